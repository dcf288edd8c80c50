//! What is on the wire: every frame of one interface, read from a packet socket and classified.

mod counters;
mod tls;

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimestampns, RxqOvfl};
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, bind, recvmsg, setsockopt};
use parking_lot::{Condvar, Mutex};
use pcap_file::PcapError;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use socket2::{Domain, Protocol, Socket, Type};

pub use self::counters::{Classifier, Counters};
use crate::base::{Error, Result, code};
use crate::net::NetNs;

/// Longest frame that is kept whole. The kernel joins segments up to 64 KiB, larger only where an interface is told so.
const SNAP_LENGTH: usize = 256 * 1024;
/// What the kernel may queue while this process is not scheduled.
const QUEUE: usize = 64 * 1024 * 1024;
/// How long the reader waits before it looks whether it is still wanted.
const TICK: u8 = 20;

/// What to look for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Bytes that the applications send, and that must not be readable on the wire.
    pub marker: Vec<u8>,
    /// Ports on which the applications listen.
    pub app_ports: Vec<u16>,
    /// The port of the tunnels.
    pub hbone_port: u16,
}

/// A running capture. Ends when dropped.
pub struct Capture {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<Result<Option<Recorder>>>>,
}

/// A pcap file (nanoseconds, Ethernet) that captures write to, one after the other.
pub struct Recorder(PcapWriter<io::BufWriter<File>>);

impl Recorder {
    /// Writes the file's header.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(file: File) -> Result<Self> {
        let failed = |error| Error::caused(&code::BAD_FILE, "write the pcap file", error);
        let header = PcapHeader {
            snaplen: u32::try_from(SNAP_LENGTH).unwrap_or(u32::MAX),
            ts_resolution: pcap_file::TsResolution::NanoSecond,
            ..PcapHeader::default()
        };
        PcapWriter::with_header(io::BufWriter::new(file), header).map(Self).map_err(failed)
    }

    /// Completes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(self) -> Result<()> {
        let written = self.0.into_writer().into_inner().map_err(io::IntoInnerError::into_error);
        written.map(drop).map_err(|error| Error::caused(&code::BAD_FILE, "write the pcap file", error))
    }

    fn write(&mut self, time: Duration, frame: &[u8]) -> Result<()> {
        let length = u32::try_from(frame.len()).map_err(|_| Error::internal("a frame longer than a frame can be"))?;
        self.0.write_packet(&PcapPacket::new(time, length, frame)).map(drop).map_err(|error| match error {
            // The crate's own text says "reading".
            PcapError::IoError(io) => Error::caused(&code::BAD_FILE, "write the pcap file", io),
            other => Error::caused(&code::BAD_FILE, "write the pcap file", other),
        })
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    read: Condvar,
    stop: AtomicBool,
}

#[derive(Debug)]
struct State {
    classifier: Classifier,
    /// When the socket's queue was last seen empty.
    empty_at: Instant,
    failed: Option<Error>,
}

impl Capture {
    /// Captures what `interface` of `netns` sends and receives; with a recorder, into its file too.
    ///
    /// # Errors
    /// `DEMO_UNSUPPORTED`: no packet socket, or no such interface.
    pub fn start(netns: &NetNs, interface: &str, wanted: Wanted, recorder: Option<Recorder>) -> Result<Self> {
        let failed = |error: io::Error| Error::caused(&code::DEMO_UNSUPPORTED, format!("capture on {interface}"), error);
        let (socket, index) = netns.run(|| open(interface)).and_then(|opened| opened).map_err(failed)?;
        let state = State { classifier: Classifier::new(wanted), empty_at: Instant::now(), failed: None };
        let shared = Arc::new(Shared { state: Mutex::new(state), read: Condvar::new(), stop: AtomicBool::new(false) });
        let reading = Arc::clone(&shared);
        let reader = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || {
                let result = read_all(&socket, index, &reading, recorder);
                if let Err(error) = &result {
                    reading.state.lock().failed = Some(error.clone());
                }
                result
            })
            .map_err(failed)?;
        Ok(Self { shared, reader: Some(reader) })
    }

    /// What has been on the wire since the start, up to this moment: frames that wait in the socket are read first.
    ///
    /// # Errors
    /// The capture broke, or frames were lost: then nothing can be said about what was *not* seen.
    pub fn counters(&self) -> Result<Counters> {
        let asked = Instant::now();
        let end = asked + Duration::from_secs(5);
        let mut state = self.shared.state.lock();
        loop {
            if let Some(failed) = &state.failed {
                return Err(failed.clone());
            }
            if state.empty_at > asked {
                break;
            }
            if self.shared.read.wait_until(&mut state, end).timed_out() {
                return Err(Error::new(&code::DEMO_UNSUPPORTED, "the capture does not keep up with the wire"));
            }
        }
        let counters = state.classifier.counters();
        if counters.dropped > 0 {
            return Err(Error::new(&code::DEMO_UNSUPPORTED, format!("the capture lost {} frames", counters.dropped)));
        }
        Ok(counters)
    }

    /// Ends the capture and gives the recorder back.
    ///
    /// # Errors
    /// Reading the wire or writing the file failed at some point.
    pub fn stop(mut self) -> Result<Option<Recorder>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        match self.reader.take().map(JoinHandle::join) {
            Some(Ok(Ok(recorder))) => Ok(recorder),
            None => Ok(None),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(_)) => Err(Error::internal("the capture thread ended by itself")),
        }
    }
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn open(interface: &str) -> io::Result<(OwnedFd, usize)> {
    let address = nix::ifaddrs::getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address.and_then(|address| address.as_link_addr().copied()))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such interface"))?;
    let every_protocol = i32::from(u16::try_from(nix::libc::ETH_P_ALL).map_err(io::Error::other)?.to_be());
    let socket: OwnedFd = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), Some(Protocol::from(every_protocol)))?.into();
    // Without privilege over the whole machine only up to net.core.rmem_max.
    if setsockopt(&socket, RcvBufForce, &QUEUE).is_err() {
        setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &QUEUE)?;
    }
    setsockopt(&socket, RxqOvfl, &1)?;
    setsockopt(&socket, ReceiveTimestampns, &true)?;
    bind(socket.as_raw_fd(), &address)?;
    Ok((socket, address.ifindex()))
}

fn read_all(socket: &OwnedFd, index: usize, shared: &Shared, mut recorder: Option<Recorder>) -> Result<Option<Recorder>> {
    let broken = |errno: Errno| Error::caused(&code::DEMO_UNSUPPORTED, "the capture broke", errno);
    let mut frame = vec![0; SNAP_LENGTH];
    while !shared.stop.load(Ordering::Relaxed) {
        let looked_at = Instant::now();
        match receive(socket, &mut frame) {
            Ok(received) => {
                let mut state = shared.state.lock();
                state.classifier.dropped(received.dropped);
                // Frames of other interfaces may be queued between the making of the socket and its binding.
                if received.interface != Some(index) {
                    continue;
                }
                let frame = frame.get(..received.length).unwrap_or_default();
                state.classifier.frame(frame);
                drop(state);
                if let Some(recorder) = &mut recorder {
                    recorder.write(received.time, frame)?;
                }
            }
            Err(Errno::EAGAIN) => {
                shared.state.lock().empty_at = looked_at;
                shared.read.notify_all();
                let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                match poll(&mut ready, PollTimeout::from(TICK)) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(broken(errno)),
                }
            }
            Err(Errno::EINTR | Errno::ENETDOWN) => {}
            Err(errno) => return Err(broken(errno)),
        }
    }
    Ok(recorder)
}

struct Received {
    length: usize,
    interface: Option<usize>,
    /// Since 1970.
    time: Duration,
    /// Frames this socket has lost so far, if the kernel says.
    dropped: Option<u32>,
}

fn receive(socket: &OwnedFd, frame: &mut [u8]) -> std::result::Result<Received, Errno> {
    let mut control = nix::cmsg_space!(u32, nix::libc::timespec);
    let mut slices = [IoSliceMut::new(frame)];
    let message = recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
    let mut received = Received {
        length: message.bytes,
        interface: message.address.map(|address| address.ifindex()),
        time: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
        dropped: None,
    };
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::RxqOvfl(count) => received.dropped = Some(count),
            ControlMessageOwned::ScmTimestampns(time) => received.time = time.into(),
            _ => {}
        }
    }
    Ok(received)
}

#[cfg(test)]
mod tests;
