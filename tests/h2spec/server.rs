//! The HTTP/2 core behind plain TCP, for h2spec: any request is answered with 200 and a little data when it has ended.
//!
//! The core is compiled in, out of the library's source: nothing of it is public for this.

#![allow(dead_code, unused_imports, reason = "a tunnel needs more of the core than this")]

use std::net::TcpListener;

#[path = "../../src/hbone"]
mod hbone {
    mod core;
    mod hpack;

    use std::collections::BTreeMap;
    use std::io::{self, Read, Write};
    use std::net::{Shutdown, TcpStream};
    use std::time::Duration;

    use http::HeaderMap;

    use self::core::{Connection, Event, Local, Role, Slot};

    const LOCAL: Local = Local {
        stream_window: 65_535,
        connection_window: 65_535,
        whole_window: false,
        frame_size: 16_384,
        header_list: 16_384,
        max_streams: 100,
        ping_interval: Duration::from_secs(3600),
        ping_limit: Duration::from_secs(3600),
    };

    const ANSWER: &[u8] = b"Not a tunnel, but it speaks like one.\n";

    /// To the end of the connection, of which either side may be the cause.
    pub(crate) fn serve(mut socket: TcpStream) -> io::Result<()> {
        let mut connection = Connection::new(Role::Server, LOCAL);
        // What is left to be sent on streams that are answered.
        let mut answers: BTreeMap<Slot, &[u8]> = BTreeMap::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            socket.write_all(connection.control())?;
            connection.control().clear();
            if connection.is_over() {
                return part(socket);
            }
            let length = socket.read(&mut buffer)?;
            let bytes = buffer.get(..length).unwrap_or_default();
            if bytes.is_empty() {
                return Ok(());
            }
            if !hear(&mut connection, &mut answers, bytes) {
                socket.write_all(connection.control())?;
                return part(socket);
            }
            for (slot, rest) in &mut answers {
                while let length @ 1.. = connection.room(*slot).min(connection.frame_size()).min(rest.len()) {
                    let (now, later) = rest.split_at(length);
                    *rest = later;
                    let Some(header) = connection.data(*slot, length) else { break };
                    connection.control().extend_from_slice(&header);
                    connection.control().extend_from_slice(now);
                }
            }
            answers.retain(|slot, rest| {
                if rest.is_empty() {
                    connection.finish(*slot);
                    connection.release(*slot);
                }
                !rest.is_empty()
            });
        }
    }

    /// Closed before all is read, the kernel sends a reset, and the peer may lose what was said last.
    fn part(mut socket: TcpStream) -> io::Result<()> {
        socket.shutdown(Shutdown::Write)?;
        io::copy(&mut socket, &mut io::sink()).map(drop)
    }

    /// Whether the connection goes on.
    fn hear(connection: &mut Connection, answers: &mut BTreeMap<Slot, &[u8]>, mut bytes: &[u8]) -> bool {
        loop {
            let Ok((used, event)) = connection.receive(bytes) else { return false };
            bytes = bytes.get(used..).unwrap_or_default();
            match event {
                None => return true,
                Some(Event::Data(slot, length)) => connection.credit(slot, length),
                Some(Event::End(slot)) => {
                    connection.answer(slot, &HeaderMap::new());
                    answers.insert(slot, ANSWER);
                }
                Some(Event::Reset(slot, _)) => {
                    answers.remove(&slot);
                    connection.release(slot);
                }
                Some(Event::Request(..) | Event::Answer(..) | Event::Room(_) | Event::Settled | Event::GoingAway(_)) => {}
            }
        }
    }
}

fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    for socket in listener.incoming() {
        let socket = socket?;
        std::thread::spawn(move || hbone::serve(socket));
    }
    Ok(())
}
