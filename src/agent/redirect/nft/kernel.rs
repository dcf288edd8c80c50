//! The netlink socket: sends batches, reads back what is in force.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::time::TimeVal;

use super::encode::{self, Batch};
use super::message::{Attributes, Head, error, find, message, number, replies};
use crate::agent::redirect::plan::{Family, Plan};
use crate::base::{Error, Result, code};

/// For one answer. The kernel answers before `send` returns; this bounds a defect.
const LIMIT: Duration = Duration::from_secs(2);

/// Sockets that wait for their end; what is above is closed by whoever used it.
const MAX_CLOSING: usize = 64;

/// Takes sockets to close. The kernel closes one only when it has buried what batches have removed, which takes it 5 to
/// 20 ms on a busy node: a pod that is being set up does not wait for that.
static CLOSER: OnceLock<Option<SyncSender<Arc<Socket>>>> = OnceLock::new();

/// Starts the thread that closes sockets, unless it runs. Must not be called from inside a pod's namespace, where that
/// thread would stay.
pub(super) fn prepare() {
    CLOSER.get_or_init(|| {
        let (sender, sockets) = sync_channel(MAX_CLOSING);
        let thread = std::thread::Builder::new().name("nft-close".to_owned()).spawn(move || sockets.into_iter().for_each(drop));
        thread.ok().map(|_| sender)
    });
}

/// A netlink socket of the namespace in which it was opened.
pub(super) struct Kernel {
    socket: Arc<Socket>,
    sequence: u32,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Some(Some(closer)) = CLOSER.get() {
            // Refused when it is full: then this is the last owner.
            let _ = closer.try_send(self.socket.clone());
        }
    }
}

/// A table of ours as found in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    fingerprint: Option<String>,
    rules: usize,
    members: BTreeSet<IpAddr>,
}

impl Found {
    /// What is found when the plan is in force.
    pub(super) fn expected(plan: &Plan) -> Self {
        let members = plan.set.as_ref().map(|set| set.members.clone()).unwrap_or_default();
        Self { fingerprint: Some(plan.fingerprint()), rules: plan.rules(), members }
    }

    /// The members that are there, when that is all in which it may differ from the plan.
    pub(super) fn members(&self, plan: &Plan) -> Option<&BTreeSet<IpAddr>> {
        let expected = Self::expected(plan);
        (self.fingerprint == expected.fingerprint && self.rules == expected.rules).then_some(&self.members)
    }
}

impl Kernel {
    /// Opens a socket in the calling thread's namespace.
    pub(super) fn open() -> Result<Self> {
        let open = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            // The text behind an error number, and errors without a copy of what was sent.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            let limit = TimeVal::new(LIMIT.as_secs().try_into().unwrap_or(2), 0);
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimeout, &limit)?;
            socket.bind_auto()?;
            Ok(socket)
        };
        let socket =
            open().map_err(|error: io::Error| Error::caused(&code::REDIRECT_FAILED, "open a netlink socket for nf_tables", error))?;
        Ok(Self { socket: Arc::new(socket), sequence: 0 })
    }

    /// Has the kernel take the batch.
    pub(super) fn commit(&mut self, batch: Batch) -> Result<()> {
        let (bytes, steps) = batch.finish();
        self.send(&bytes, "send rules")?;
        let mut open = steps.len() - 2;
        while open > 0 {
            for reply in replies(&self.receive("rules")?) {
                let Some((errno, text)) = error(&reply) else { continue };
                if errno != 0 {
                    let step = usize::try_from(reply.sequence).ok().and_then(|at| steps.get(at)).map_or("rules", String::as_str);
                    return Err(refused(step, errno, text));
                }
                open -= usize::from(open > 0);
            }
        }
        Ok(())
    }

    /// The table of that name and family, with the members of the set `set`.
    pub(super) fn find(&mut self, table: &str, set: Option<&str>, family: Family) -> Result<Option<Found>> {
        let mut name = Attributes::default();
        name.text(encode::TABLE_NAME, table);
        let mut found = None;
        let get = |kind, flags| Head { kind, flags, family: encode::family_number(family) };
        self.ask(get(number::GET_TABLE, number::ACK), &name, "read the table", |body| {
            let text = find(body, encode::TABLE_USERDATA).and_then(encode::read_comment);
            found = Some(Found { fingerprint: text, rules: 0, members: BTreeSet::new() });
        })?;
        let Some(mut found) = found else { return Ok(None) };
        let mut of_table = Attributes::default();
        of_table.text(encode::RULE_TABLE, table);
        self.ask(get(number::GET_RULE, number::DUMP), &of_table, "read the rules", |_| found.rules += 1)?;
        if let Some(set) = set {
            let mut of_set = Attributes::default();
            of_set.text(encode::ELEMENTS_TABLE, table).text(encode::ELEMENTS_SET, set);
            self.ask(get(number::GET_ELEMENTS, number::DUMP), &of_set, "read the set", |body| {
                found.members.extend(encode::read_members(body));
            })?;
        }
        Ok(Some(found))
    }

    /// Sends a question and hands each part of the answer to `part`; no such thing is no part.
    fn ask(&mut self, head: Head, attributes: &Attributes, what: &str, mut part: impl FnMut(&[u8])) -> Result<()> {
        self.sequence += 1;
        self.send(&message(head, self.sequence, attributes), what)?;
        loop {
            for reply in replies(&self.receive(what)?).filter(|reply| reply.sequence == self.sequence) {
                match error(&reply) {
                    Some((0, _)) => return Ok(()),
                    Some((errno, _)) if [Errno::ENOENT, Errno::EAFNOSUPPORT].contains(&Errno::from_raw(errno)) => return Ok(()),
                    Some((errno, text)) => return Err(refused(what, errno, text)),
                    None if reply.kind == number::NLMSG_DONE => return Ok(()),
                    // After the general header comes the 4-byte header of nf_tables.
                    None => part(reply.body.get(4..).unwrap_or_default()),
                }
            }
        }
    }

    fn send(&self, bytes: &[u8], what: &str) -> Result<()> {
        let sent = self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0);
        sent.map(|_| ()).map_err(|error| Error::caused(&code::REDIRECT_FAILED, what, error))
    }

    fn receive(&self, what: &str) -> Result<Vec<u8>> {
        let received = self.socket.recv_from_full();
        received
            .map(|(bytes, _)| bytes)
            .map_err(|error| Error::caused(&code::REDIRECT_FAILED, format!("{what}: the kernel's answer"), error))
    }
}

fn refused(step: &str, errno: i32, text: Option<String>) -> Error {
    let detail = match text {
        Some(text) => format!("{step}: {text}"),
        None => step.to_owned(),
    };
    Error::caused(&code::REDIRECT_FAILED, detail, io::Error::from_raw_os_error(errno))
}
