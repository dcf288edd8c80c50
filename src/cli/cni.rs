//! `warren cni`: the chained CNI plugin.

use std::process::ExitCode;

use crate::cni::plugin;

/// Whether a container runtime has started this program: it gives no arguments and says in the environment what to do.
pub(super) fn is_called() -> bool {
    std::env::args_os().len() <= 1 && std::env::var_os(plugin::COMMAND).is_some()
}

/// Answers the runtime.
pub(super) fn run() -> ExitCode {
    plugin::main()
}
