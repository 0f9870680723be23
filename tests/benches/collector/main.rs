//! What an event costs the collector from ring buffer bytes to its journey in its flow, and how much
//! memory many flows and many events take. Prints one JSON object a line.

mod replay;

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::json;
use tracer::collector::Collector;
use tracer::journey::SocketReasons;
use tracer::node::Source;

use replay::Replay;

/// Passes of the replay whose instructions are counted, behind as many that warm up.
const COUNTED: u64 = 200;
const LIVE_FLOWS: u64 = 1_000_000;
/// Targets, MiB.
const MOST_MIB: f64 = 512.0;
const MOST_GROWTH_MIB: f64 = 4.0;
/// Clients of the many events.
const CLIENTS: u64 = 1_000;
const MANY_EVENTS: u64 = 10_000_000;
/// Tells the program what to run under callgrind.
const UNDER_CALLGRIND: &str = "COLLECTOR_UNDER_CALLGRIND";

fn main() -> anyhow::Result<()> {
    let replay = Replay::new();
    if let Ok(what) = std::env::var(UNDER_CALLGRIND) {
        return counted(&replay, &what);
    }
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word));
    if wants("instructions") {
        instructions(&replay)?;
    }
    if wants("flows") {
        live_flows(&replay)?;
    }
    if wants("flat") {
        flat(&replay.of_clients(CLIENTS))?;
    }
    Ok(())
}

fn collector() -> Collector {
    Collector::new(Source::live(Vec::new()), SocketReasons::default())
}

/// What runs under callgrind: the collector for the first half, or for the whole of the passes.
fn counted(replay: &Replay, what: &str) -> anyhow::Result<()> {
    match what {
        "half" => {
            replay.into(&mut collector(), 0..COUNTED);
            std::hint::black_box(replay.nowhere(COUNTED..2 * COUNTED));
        }
        "whole" => {
            replay.into(&mut collector(), 0..2 * COUNTED);
        }
        _ => anyhow::bail!("{what} is nothing to count"),
    }
    Ok(())
}

/// Instructions that callgrind counts in a run of this program.
fn callgrind(what: &str) -> anyhow::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .env(UNDER_CALLGRIND, what)
        .output()
        .context("valgrind cannot be started; it is Debian's package valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind failed: {text}");
    let count = text
        .lines()
        .find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    count.with_context(|| format!("valgrind counted nothing: {text}"))
}

/// The second half of a replay costs what the whole costs beyond one whose second half goes nowhere.
fn instructions(replay: &Replay) -> anyhow::Result<()> {
    let (half, whole) = (callgrind("half")?, callgrind("whole")?);
    let events = COUNTED * replay.events() as u64;
    let each = (whole - half) as f64 / events as f64;
    let once = replay.into(&mut collector(), 0..COUNTED);
    println!(
        "{}",
        json!({"name": "collector: instructions per event", "value": each, "unit": "instructions",
            "events_per_packet": once.events as f64 / once.packets as f64})
    );
    Ok(())
}

fn live_flows(replay: &Replay) -> anyhow::Result<()> {
    let before = memory_mib("VmRSS")?;
    let mut collector = collector();
    let (begun, mut passes, mut events) = (Instant::now(), 0, 0);
    while (collector.flows() as u64) < LIVE_FLOWS {
        events += replay.into(&mut collector, passes..passes + 100).events;
        passes += 100;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let (now, peak) = (memory_mib("VmRSS")?, memory_mib("VmHWM")?);
    println!(
        "{}",
        json!({"name": "collector: peak with a million live flows", "value": peak, "unit": "MiB", "at_most": MOST_MIB, "flows": collector.flows(),
            "settled": now - before, "events": events, "events_per_second": events as f64 / seconds})
    );
    Ok(())
}

fn flat(replay: &Replay) -> anyhow::Result<()> {
    let mut collector = collector();
    let (mut passes, mut events, mut early) = (0_u64, 0, 0.0);
    while events < MANY_EVENTS {
        events += replay.into(&mut collector, passes..passes + CLIENTS).events;
        passes += CLIENTS;
        if early == 0.0 && events >= MANY_EVENTS / 4 {
            early = memory_mib("VmRSS")?;
        }
    }
    let late = memory_mib("VmRSS")?;
    println!(
        "{}",
        json!({"name": "collector: growth from 2.5 to 10 million events", "value": late - early, "unit": "MiB", "at_most": MOST_GROWTH_MIB,
            "early": early, "late": late, "flows": collector.flows()})
    );
    Ok(())
}

/// A line of /proc/self/status, MiB.
fn memory_mib(field: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .context("no such field")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
