//! `warren`: parses the command line, calls one role.

use std::process::ExitCode;

/// Long-lived processes with many small buffers on many threads: the system allocator fragments.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    warren::cli::main()
}
