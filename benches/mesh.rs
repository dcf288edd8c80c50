//! `cargo bench --bench mesh [-- --rounds N] [--json FILE]`: throughput, round trips, new connections and processor time
//! between two pods on two nodes, direct and through the mesh, measured in turn for several rounds.
#![allow(missing_docs, reason = "a program")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::Serialize;
use warren::base::{Error, Result, code};
use warren::demo::story::Progress;
use warren::demo::story::mesh::Mesh;
use warren::demo::story::table::{FIGURES, Row, Table, Times, measure};
use warren::demo::{sandbox, wait};

#[derive(Parser)]
struct Args {
    /// How often everything is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Writes every row into this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is needed to compare rows with others.
#[derive(Serialize)]
struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    memory_gb: f64,
}

#[derive(Serialize)]
struct Rows {
    warren: &'static str,
    command: String,
    machine: Machine,
    rounds: Vec<Table>,
    median: Table,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mesh bench: {error}\n{}", error.code().hint);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let args = Args::parse();
    let times = Times { bulk: Duration::from_secs(3), round_trips: Duration::from_secs(2), rate: Duration::from_secs(2) };
    // Before the namespaces are left: inside, the path may mean another file.
    let failed = |error| Error::caused(&code::BAD_FILE, "write the rows", error);
    let file = args.json.as_ref().map(std::fs::File::create).transpose().map_err(failed)?;
    let sandbox = sandbox::enter()?;
    wait::catch_signals()?;
    let machine = Machine::this();
    println!("{}, {} cores, {:.1} GB, Linux {}", machine.cpu, machine.cores, machine.memory_gb, machine.kernel);

    let rounds = measure_all(&sandbox, args.rounds, times);
    if let Some(signal) = wait::interrupted() {
        return Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)));
    }
    let rounds = rounds?;
    let median = Table { direct: middle(&rounds, |table| table.direct), mesh: middle(&rounds, |table| table.mesh) };
    println!("\n{:46} {:>28} {:>28}", format!("median (least-most) of {} rounds", rounds.len()), "direct", "mesh");
    for (title, figure, digits) in FIGURES {
        let cell = |way: fn(&Table) -> Row| {
            let (least, median, most) = spread(rounds.iter().map(way).map(|row| figure(&row)).collect());
            format!("{median:.digits$} ({least:.digits$}-{most:.digits$})")
        };
        println!("{title:46} {:>28} {:>28}", cell(|table| table.direct), cell(|table| table.mesh));
    }
    if let Some(file) = file {
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        let rows = Rows { warren: env!("CARGO_PKG_VERSION"), command, machine, rounds, median };
        serde_json::to_writer_pretty(file, &rows).map_err(|error| failed(error.into()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Direct and mesh in turn, so that what else the machine does falls on both.
fn measure_all(sandbox: &sandbox::Sandbox, rounds: u16, times: Times) -> Result<Vec<Table>> {
    let progress = Progress::start();
    let mut mesh = Mesh::start(sandbox.dir(), &PathBuf::from(env!("CARGO_BIN_EXE_warren")))?;
    let mut tables = Vec::new();
    for round in 1..=rounds {
        progress.say(&format!("round {round} of {rounds}, direct"));
        let direct = measure(&mut mesh, times)?;
        mesh.enrol(true)?;
        mesh.wait_until_enrolled()?;
        progress.say(&format!("round {round} of {rounds}, mesh"));
        let through = measure(&mut mesh, times)?;
        mesh.enrol(false)?;
        mesh.wait_until_left()?;
        tables.push(Table { direct, mesh: through });
    }
    mesh.stop();
    Ok(tables)
}

/// Each figure's median.
fn middle(rounds: &[Table], way: fn(&Table) -> Row) -> Row {
    let figure = |figure: fn(&Row) -> f64| spread(rounds.iter().map(way).map(|row| figure(&row)).collect()).1;
    Row {
        gbps_1: figure(|row| row.gbps_1),
        gbps_8: figure(|row| row.gbps_8),
        rtt_p50_us: figure(|row| row.rtt_p50_us),
        rtt_p99_us: figure(|row| row.rtt_p99_us),
        connections_per_s: figure(|row| row.connections_per_s),
        connections_per_s_32: figure(|row| row.connections_per_s_32),
        proxy_cpu_s_per_gb: figure(|row| row.proxy_cpu_s_per_gb),
        cpu_s_per_gb: figure(|row| row.cpu_s_per_gb),
    }
}

/// Least, median, most.
fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    let (low, high) = (at(values.len().saturating_sub(1) / 2), at(values.len() / 2));
    (at(0), f64::midpoint(low, high), at(values.len().saturating_sub(1)))
}

impl Machine {
    fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_else(|| "unknown".to_owned())
        };
        let kilobytes = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse::<f64>().unwrap_or_default();
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_gb: kilobytes * 1024.0 / 1e9,
        }
    }
}
