//! One part of a tunnel, done so many times: what benches/counts/run runs under callgrind. Without arguments: the parts, and what they do.
#![allow(missing_docs, reason = "a program")]

use std::process::ExitCode;

use warren::hbone::counts::{MOST, PARTS};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(name) = args.next() else {
        PARTS.iter().for_each(|part| println!("{}\t{}", part.name, part.what));
        return ExitCode::SUCCESS;
    };
    let times = args.next().and_then(|times| times.parse().ok()).filter(|times| *times <= MOST);
    match (PARTS.iter().find(|part| part.name == name), times) {
        (Some(part), Some(times)) => (part.run)(times),
        _ => {
            eprintln!("usage: counts [PART TIMES], TIMES at most {MOST}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
