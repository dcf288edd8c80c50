//! Looking around inside a pod's network namespace.

use std::io::{self, BufRead, BufReader};
use std::time::Duration;

use crate::agent::redirect::port;
use crate::base::{Code, Error, Result, code, deadline};
use crate::net::NetNs;

/// For one operation inside a namespace. Netlink answers at once unless the kernel is in trouble.
const LIMIT: Duration = Duration::from_secs(5);

/// Runs `work` inside the namespace on a thread that may block.
pub(in crate::agent) async fn inside<R: Send + 'static>(
    netns: &NetNs,
    failure: &'static Code,
    work: impl FnOnce() -> Result<R> + Send + 'static,
) -> Result<R> {
    let namespace = netns.clone();
    let id = netns.id();
    let task = tokio::task::spawn_blocking(move || namespace.run(work));
    let ran = deadline(LIMIT, failure, id, task).await?;
    let ran = ran.map_err(|error| Error::caused(failure, format!("work inside {id}"), error))?;
    ran.map_err(|error| {
        let code = if error.kind() == io::ErrorKind::PermissionDenied { &code::NO_PERMISSION } else { failure };
        Error::caused(code, format!("enter {id}"), error)
    })?
}

/// Whether an interface of the calling thread's namespace has IPv6.
///
/// Absent files mean a kernel without IPv6.
pub(in crate::agent) fn has_ipv6() -> bool {
    let Ok(interfaces) = std::fs::read_dir("/proc/sys/net/ipv6/conf") else { return false };
    let mut interfaces = interfaces.flatten().filter(|entry| entry.file_name() != "all" && entry.file_name() != "default");
    interfaces.any(|entry| std::fs::read_to_string(entry.path().join("disable_ipv6")).is_ok_and(|text| text.trim() == "0"))
}

/// How many established connections the calling thread's namespace has on the proxy's ports.
pub(super) fn connections() -> io::Result<usize> {
    let mut count = 0;
    for table in ["tcp", "tcp6"] {
        match std::fs::File::open(format!("/proc/thread-self/net/{table}")) {
            Ok(file) => {
                for line in BufReader::new(file).lines() {
                    count += usize::from(is_proxied(&line?));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// `sl local_address rem_address st …`: addresses are hexadecimal `IP:PORT`, state 01 is established.
fn is_proxied(line: &str) -> bool {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (Some(local), Some(_), Some("01")) = (fields.next(), fields.next(), fields.next()) else { return false };
    let local_port = local.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
    local_port.is_some_and(|local| [port::OUTBOUND, port::INBOUND, port::TUNNEL].contains(&local))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn established_connections_on_the_proxys_ports_are_proxied() {
        let cases = [
            ("   1: 0200000A:3A99 0100000A:B2C4 01 00000000:00000000 00:00000000", true),
            ("   2: 0200000A:3AA0 0100000A:B2C4 01 00000000:00000000 00:00000000", true),
            ("   3: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000", false),
            ("   4: 0200000A:3A99 0100000A:B2C4 06 00000000:00000000 00:00000000", false),
            ("   5: 0200000A:0050 0100000A:3A99 01 00000000:00000000 00:00000000", false),
            ("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when", false),
            ("", false),
        ];
        for (line, expected) in cases {
            assert_eq!(is_proxied(line), expected, "{line}");
        }
    }
}
