//! Peers that speak TLS 1.2 and nothing later.

use std::net::SocketAddr;

use http::{Method, Response};
use rustls::version::TLS12;
use warren::agent::redirect::port;
use warren::demo::pod::{ECHO_PORT, Outcome};
use warren::demo::story::mesh::{Mesh, STOLEN};

use crate::apps::*;
use crate::hostile::{block_on, runtime};
use crate::peers::*;

const SETTING: &[(&str, &str)] = &[("TLS12_ENABLED", "true")];

#[test]
fn an_older_client_is_taken_where_the_node_allows_it() {
    enrolled("older::an_older_client_is_taken_where_the_node_allows_it", |mesh| {
        let leaf = Root::of(mesh).account("client");
        let echo = at(mesh, "server", ECHO_PORT);
        let mark = mesh.log_mark();
        assert!(block_on(tls_of(&TLS12, knock(mesh), Some(&leaf), b"h2")).is_err());
        let refused = line(mesh, 2, &mark, "W3001").to_string();
        assert!(refused.contains("TLS12_ENABLED"), "{refused}");

        restart(mesh, 2);
        settles(mesh, "a proxy of today still gets there", &[("client", echo, Outcome::Echoed)]);
        block_on(async {
            let stream = tls_of(&TLS12, knock(mesh), Some(&leaf), b"h2").await.expect("a handshake");
            let sender = http2(stream).await;
            assert_eq!(ask(&sender, head(Method::CONNECT, &echo.to_string())).await.expect("an answer"), 200);
        });
    });
}

#[test]
fn an_older_server_is_reached_where_the_node_allows_it() {
    enrolled("older::an_older_server_is_reached_where_the_node_allows_it", |mesh| {
        let vault = stage_vault(mesh);
        let leaf = Root::of(mesh).account("vault");
        let listener = Server::start_at(mesh, "outside", SocketAddr::from((STOLEN, port::TUNNEL))).into_listener();
        let runtime = runtime();
        runtime.spawn(older_server(listener, leaf));
        let mark = mesh.log_mark();
        is_reset(mesh, "client", vault);
        line(mesh, 1, &mark, "W3001");

        restart(mesh, 1);
        settles(mesh, "the older server answers", &[("client", vault, Outcome::Echoed)]);
    });
}

fn restart(mesh: &mut Mesh, node: u8) {
    mesh.terminate(&format!("proxy-node{node}")).expect("it ends");
    mesh.start_proxy(node, SETTING).expect("it starts");
    mesh.wait_until_ready(node).expect("it is ready");
}

/// Gives back what comes through its tunnels.
async fn older_server(listener: std::net::TcpListener, leaf: Leaf) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime");
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let Ok(stream) = tls_server_of(&TLS12, stream, &leaf).await else { continue };
        tokio::spawn(async move {
            let Ok(mut tunnel) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = tunnel.accept().await {
                let mut send = respond.send_response(Response::new(()), false).expect("open");
                let mut receive = request.into_body();
                tokio::spawn(async move {
                    while let Some(Ok(bytes)) = receive.data().await {
                        let _ = receive.flow_control().release_capacity(bytes.len());
                        if send.send_data(bytes, false).is_err() {
                            return;
                        }
                    }
                    let _ = send.send_data(bytes::Bytes::new(), true);
                });
            }
        });
    }
}
