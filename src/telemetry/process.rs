//! What the kernel says about this process, read when it is asked for.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// `process_open_fds`, `process_max_fds`, `process_resident_memory_bytes`, `warren_log_lines_dropped_total`.
#[derive(Debug)]
pub struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: Option<i64>| -> Result<(), std::fmt::Error> {
            let Some(value) = value else { return Ok(()) };
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        gauge("process_open_fds", "Open file descriptors", open_fds())?;
        gauge("process_max_fds", "Limit of open file descriptors", max_fds())?;
        gauge("process_resident_memory_bytes", "Resident memory", resident_bytes())?;
        let dropped = ConstCounter::new(super::log::dropped_lines() as u64);
        dropped.encode(encoder.encode_descriptor(
            "warren_log_lines_dropped",
            "Log lines that did not fit the queue",
            None,
            dropped.metric_type(),
        )?)
    }
}

/// Open descriptors; `None` without `/proc`.
pub fn open_fds() -> Option<i64> {
    i64::try_from(std::fs::read_dir("/proc/self/fd").ok()?.count()).ok()
}

/// The soft limit of open descriptors.
pub fn max_fds() -> Option<i64> {
    let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).ok()?;
    i64::try_from(soft).ok()
}

/// Resident memory, bytes; `None` without `/proc`.
pub fn resident_bytes() -> Option<i64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * page)
}
