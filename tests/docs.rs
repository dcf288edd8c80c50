//! The pages that are made from tables in the code are current.

use warren::base::code;
use warren::config::env;

#[test]
fn the_error_reference_is_current() {
    assert_page("docs/errors.md", &code::reference_page(), "cargo run -q -- explain --page");
}

#[test]
fn the_settings_reference_is_current() {
    assert_page("docs/configuration.md", &env::reference_page(), "cargo run -q -- settings");
}

#[test]
fn chart_image_and_pages_name_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    for (path, text) in [
        ("deploy/helm/warren/Chart.yaml", format!("\nappVersion: {version}\n")),
        ("deploy/helm/warren/Chart.yaml", format!("\nversion: {version}\n")),
        ("deploy/warren.yaml", format!("image: localhost/warren:{version}\n")),
        ("deploy/Dockerfile", format!("localhost/warren:{version} .")),
        ("README.md", format!("target/warren-{version}-amd64.tar")),
    ] {
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(page.contains(&text), "{path} lacks {text:?}");
    }
}

fn assert_page(path: &str, page: &str, command: &str) {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    assert!(text == page, "{path} is not what the code says; make it anew: {command} > {path}");
}
