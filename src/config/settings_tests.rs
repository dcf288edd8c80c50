use super::*;

fn with(pairs: &[(&str, &str)]) -> Result<Settings> {
    let mut vars = vec![("FAKE_CA", "true")];
    vars.extend_from_slice(pairs);
    let vars: [(&str, &str); 3] = [vars[0], vars.get(1).copied().unwrap_or(("A", "")), vars.get(2).copied().unwrap_or(("B", ""))];
    Settings::from_env(&Env::from(vars))
}

#[test]
fn workers_are_a_number_or_a_share() {
    for (value, expected) in [("3", 3), ("50%", 4), ("1%", 1), ("0", 8)] {
        let settings = with(&[("ZTUNNEL_WORKER_THREADS", value), ("ZTUNNEL_CPU_LIMIT", "8")]).expect(value);
        assert_eq!(settings.workers.get(), expected, "{value}");
    }
    for value in ["0%", "101%", "-1", "many"] {
        let error = with(&[("ZTUNNEL_WORKER_THREADS", value)]).expect_err(value);
        assert!(error.to_string().contains(value), "{error}");
        assert_eq!(error.code().id, "W0002");
    }
}

#[test]
fn the_drain_leaves_time_for_the_process() {
    for (grace, seconds) in [("30", 25), ("10", 9), ("1", 1), ("0", 5)] {
        assert_eq!(with(&[("TERMINATION_GRACE_PERIOD_SECONDS", grace)]).expect(grace).drain, Duration::from_secs(seconds), "{grace}");
    }
    let both = [("TERMINATION_GRACE_PERIOD_SECONDS", "30"), ("CONNECTION_TERMINATION_DEADLINE", "1m30s")];
    assert_eq!(with(&both).expect("both").drain, Duration::from_secs(90));
}

#[test]
fn an_empty_address_is_none_and_a_bare_one_gets_its_scheme() {
    assert!(with(&[("XDS_ADDRESS", "")]).expect("none").xds.is_none());
    let xds = with(&[("XDS_ADDRESS", "istiod.mesh.svc:15012")]).expect("bare").xds.expect("some");
    assert_eq!(xds.address, "https://istiod.mesh.svc:15012");
    let error = Settings::from_env(&Env::from([("CA_ADDRESS", "")])).expect_err("nobody signs");
    assert_eq!(error.code().id, "W0002");
}

#[test]
fn credentials_are_not_shown() {
    let settings = with(&[("AUTH_TOKEN", "s3cret"), ("XDS_HEADER_X_KEY", "hidden")]).expect("settings");
    let shown = format!("{settings:?}");
    assert!(shown.contains("X_KEY") && !shown.contains("s3cret") && !shown.contains("hidden"), "{shown}");
}

#[test]
fn unusable_values_are_named() {
    for (name, value) in [
        ("IPV6_ENABLED", "yes"),
        ("HTTP2_FRAME_SIZE", "100"),
        ("HBONE_ENGINE", "hyper"),
        ("TLS12_ENABLED", "1"),
        ("HTTP2_STREAM_WINDOW_SIZE", "4294967295"),
        ("CONGESTION_CONTROL", "bbr"),
        ("SECRET_TTL", "soon"),
        ("PROXY_MODE", "dedicated"),
        ("LOG_FORMAT", "xml"),
    ] {
        let error = with(&[(name, value)]).expect_err(name).to_string();
        assert!(error.contains(name) && error.contains(value), "{error}");
    }
}

#[test]
fn tls_1_2_takes_the_engine_that_has_it() {
    for (pairs, tls12, engine) in [
        (vec![], false, Engine::Warren),
        (vec![("TLS12_ENABLED", "true")], true, Engine::H2),
        (vec![("TLS12_ENABLED", "true"), ("HBONE_ENGINE", "warren")], true, Engine::H2),
        (vec![("TLS12_ENABLED", "false"), ("HBONE_ENGINE", "h2")], false, Engine::H2),
    ] {
        let http2 = with(&pairs).expect("settings").http2;
        assert_eq!((http2.tls12, http2.engine), (tls12, engine), "{pairs:?}");
    }
}

#[test]
fn what_is_not_said_of_the_authority_is_the_control_planes() {
    let same = Settings::from_env(&Env::from([("XDS_ADDRESS", "https://control:15012"), ("XDS_ROOT_CA", "/root.pem")])).expect("both");
    let Ca::Server(ca) = same.ca else { panic!("a server") };
    assert_eq!((ca.address.as_str(), ca.root.as_str()), ("https://control:15012", "/root.pem"));
    let apart = Settings::from_env(&Env::from([("XDS_ADDRESS", "https://control:15012"), ("CA_ADDRESS", "https://ca:15012")]));
    let Ca::Server(ca) = apart.expect("two").ca else { panic!("a server") };
    assert_eq!(ca.address, "https://ca:15012");
}
