//! Everything that is measured on one kernel in one run; a row is one number and where it should be.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::peer::{Cost, Ended, Peer, Running};
use super::traffic::{Kind, flood, refused, round_trips};
use super::world::{NODE, NODE_PORT, World};

/// Round trips that a median is taken of.
const COUNT: usize = 300;
/// Round trips beforehand: neighbours, caches.
const WARM_UP: usize = 20;
/// What the guard takes to see what tracing costs, and to leave flows out until that is below its limit.
const GUARDED: Duration = Duration::from_secs(8);
const AT_ONCE: Duration = Duration::ZERO;
const FLOOD: Duration = Duration::from_secs(5);
/// Where pwru prints to.
const PWRU_OUTPUT: &str = "/tmp/bench-pwru";
/// A diagnosis that takes longer than this is missing.
const DIAGNOSIS: Duration = Duration::from_secs(20);

/// Where a row's number should be.
enum Target {
    AtMost(f64),
    /// Only told.
    None,
}

/// The rows so far.
#[derive(Default)]
struct Table(Vec<Value>);

impl Table {
    fn row(&mut self, name: String, value: f64, unit: &str, target: Target) {
        let (limit, met) = match target {
            Target::AtMost(limit) => (Some(limit), Some(value <= limit)),
            Target::None => (None, None),
        };
        println!("{name}: {value:.3} {unit}");
        self.0.push(
            json!({"name": name, "value": value, "unit": unit, "at_most": limit, "met": met}),
        );
    }

    fn skipped(&mut self, name: &str, why: &anyhow::Error) {
        println!("{name}: skipped: {why:#}");
        self.0
            .push(json!({"name": name, "skipped": format!("{why:#}")}));
    }
}

/// What one kind of round trip came to under one tracer.
#[derive(Clone, Copy, Default)]
struct Trip {
    median: Duration,
    runs: f64,
    kernel_us: f64,
}

/// The same for each kind, in the order of [`Kind::ALL`].
type Trips = [Trip; 2];

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Measures each kind after round trips for so long, and some more.
fn trips(world: &World, running: Option<&Running>, beforehand: Duration) -> anyhow::Result<Trips> {
    let mut all = Trips::default();
    for (kind, trip) in Kind::ALL.into_iter().zip(&mut all) {
        let begun = Instant::now();
        round_trips(world, kind, WARM_UP)?;
        while begun.elapsed() < beforehand {
            round_trips(world, kind, WARM_UP)?;
        }
        let cost = || running.map(Running::cost).unwrap_or_default();
        let before: Cost = cost();
        trip.median = median(round_trips(world, kind, COUNT)?);
        let after = cost();
        trip.runs = (after.runs - before.runs) as f64 / COUNT as f64;
        trip.kernel_us = (after.time - before.time).as_secs_f64() * 1e6 / COUNT as f64;
    }
    Ok(all)
}

/// What a peer came to.
struct Measured {
    trips: Trips,
    ready: Duration,
    ended: Ended,
}

fn under(world: &World, peer: &Peer, beforehand: Duration) -> anyhow::Result<Measured> {
    let running = peer.start()?;
    let ready = running.ready;
    let trips = trips(world, Some(&running), beforehand)?;
    Ok(Measured {
        trips,
        ready,
        ended: running.end()?,
    })
}

fn tell(table: &mut Table, name: &str, untraced: &Trips, measured: &Measured) {
    for ((kind, trip), plain) in Kind::ALL.into_iter().zip(&measured.trips).zip(untraced) {
        let kind = kind.name();
        let slower = trip.median.as_secs_f64() / plain.median.as_secs_f64();
        table.row(
            format!("{name}, {kind}: kernel time a round trip"),
            trip.kernel_us,
            "µs",
            Target::None,
        );
        table.row(
            format!("{name}, {kind}: program runs a round trip"),
            trip.runs,
            "runs",
            Target::None,
        );
        table.row(
            format!("{name}, {kind}: round trip (median)"),
            trip.median.as_secs_f64() * 1e6,
            "µs",
            Target::None,
        );
        table.row(
            format!("{name}, {kind}: round trip against untraced"),
            slower,
            "times",
            Target::None,
        );
    }
}

fn ratio(table: &mut Table, name: &str, one: &Measured, two: &Measured, at_most: f64) {
    for ((kind, one), two) in Kind::ALL.into_iter().zip(&one.trips).zip(&two.trips) {
        let value = one.kernel_us / two.kernel_us;
        table.row(
            format!("{name}, {}: kernel time", kind.name()),
            value,
            "times",
            Target::AtMost(at_most),
        );
    }
}

/// Where the programs are.
pub(crate) struct Programs<'a> {
    pub(crate) tracer: &'a str,
    /// pwru, or why there is none.
    pub(crate) pwru: Result<&'a str, String>,
}

/// Our tracer with more arguments.
fn ours(programs: &Programs<'_>, name: &'static str, more: &[&str]) -> Peer {
    let words = [
        programs.tracer,
        "run",
        "--format",
        "json",
        "--ready-file",
        "{ready}",
        "--failed",
    ];
    Peer {
        name,
        command: words
            .iter()
            .chain(more)
            .map(|word| (*word).to_owned())
            .collect(),
    }
}

/// Measures everything and writes the rows.
pub(crate) fn measure(programs: &Programs<'_>, out: &Path) -> anyhow::Result<()> {
    std::fs::write("/proc/sys/kernel/bpf_stats_enabled", "1")
        .context("the kernel's statistics of programs cannot be switched on")?;
    let world = World::build()?;
    let mut table = Table::default();
    round_trips(&world, Kind::Udp, WARM_UP)?;
    let untraced = trips(&world, None, AT_ONCE)?;
    for (kind, trip) in Kind::ALL.into_iter().zip(&untraced) {
        table.row(
            format!("untraced, {}: round trip (median)", kind.name()),
            trip.median.as_secs_f64() * 1e6,
            "µs",
            Target::None,
        );
    }
    costs(&mut table, &world, programs, &untraced)?;
    for (name, result) in [
        ("diagnosis", diagnosis(&mut table, &world, programs)),
        ("flood", under_flood(&mut table, &world, programs)),
    ] {
        if let Err(error) = result {
            table.skipped(name, &error);
        }
    }
    std::fs::write(out, Value::from(table.0).to_string())
        .with_context(|| format!("cannot write {}", out.display()))
}

fn costs(
    table: &mut Table,
    world: &World,
    programs: &Programs<'_>,
    untraced: &Trips,
) -> anyhow::Result<()> {
    let all = under(world, &ours(programs, "no filter", &[]), AT_ONCE)?;
    tell(table, "no filter", untraced, &all);
    table.row(
        "no filter: ready".into(),
        all.ready.as_secs_f64(),
        "s",
        Target::AtMost(2.0),
    );
    table.row(
        "no filter: detached".into(),
        all.ended.detached.as_secs_f64(),
        "s",
        Target::AtMost(1.0),
    );

    let matching = format!("host {NODE} and port {NODE_PORT}");
    let filtered = under(
        world,
        &ours(programs, "matching filter", &[&matching]),
        AT_ONCE,
    );
    let matching = match &filtered {
        Ok(measured) => {
            tell(table, "matching filter", untraced, measured);
            measured
        }
        Err(error) => {
            table.skipped("matching filter", error);
            &all
        }
    };
    match under(
        world,
        &ours(programs, "filter without match", &["host 203.0.113.9"]),
        AT_ONCE,
    ) {
        Ok(other) => {
            tell(table, "filter without match", untraced, &other);
            ratio(
                table,
                "filter without match against matching",
                &other,
                matching,
                0.1,
            );
            for ((kind, trip), plain) in Kind::ALL.into_iter().zip(&other.trips).zip(untraced) {
                let slower = trip.median.as_secs_f64() / plain.median.as_secs_f64() - 1.0;
                table.row(
                    format!("filter without match, {}: slowdown", kind.name()),
                    slower * 100.0,
                    "%",
                    Target::AtMost(5.0),
                );
            }
        }
        Err(error) => table.skipped("filter without match", &error),
    }
    match under(
        world,
        &ours(programs, "over its limit", &["--max-cpu", "0.1"]),
        GUARDED,
    ) {
        Ok(guarded) => {
            tell(table, "over its limit", untraced, &guarded);
            ratio(
                table,
                "over its limit against no filter",
                &guarded,
                &all,
                1.0,
            );
        }
        Err(error) => table.skipped("over its limit", &error),
    }
    match pwru(world, programs) {
        Ok(pwru) => {
            tell(table, "pwru", untraced, &pwru);
            table.row(
                "pwru: ready".into(),
                pwru.ready.as_secs_f64(),
                "s",
                Target::None,
            );
            // It overwrites what it has not printed yet, so its cost is not that of all it saw.
            let printed = std::fs::read(PWRU_OUTPUT).unwrap_or_default();
            let lines = printed.iter().filter(|&&byte| byte == b'\n').count();
            let runs: f64 = pwru.trips.iter().map(|trip| trip.runs).sum();
            table.row(
                "pwru: lines printed of program runs".into(),
                lines as f64 / (runs * (COUNT + WARM_UP) as f64),
                "times",
                Target::None,
            );
            let name = if filtered.is_ok() {
                "matching filter against pwru"
            } else {
                "no filter against pwru"
            };
            ratio(table, name, matching, &pwru, 0.125);
        }
        Err(error) => table.skipped("pwru", &error),
    }
    Ok(())
}

fn pwru(world: &World, programs: &Programs<'_>) -> anyhow::Result<Measured> {
    let program = programs
        .pwru
        .as_ref()
        .map_err(|why| anyhow::anyhow!("{why}"))?;
    let expression = format!("host {NODE} and port {NODE_PORT}");
    let words = [
        program,
        "--filter-track-skb",
        "--ready-file",
        "{ready}",
        "--output-file",
        PWRU_OUTPUT,
        &expression,
    ];
    let command = words.iter().map(|word| (*word).to_owned()).collect();
    under(
        world,
        &Peer {
            name: "pwru",
            command,
        },
        AT_ONCE,
    )
}

/// From the end of a refused connection to its diagnosis.
fn diagnosis(table: &mut Table, world: &World, programs: &Programs<'_>) -> anyhow::Result<()> {
    let running = ours(programs, "diagnosis", &[]).start()?;
    let end = refused(world)?;
    let said = running.await_object("diagnosis", DIAGNOSIS);
    running.end()?;
    let said = said.context("no diagnosis came")?;
    table.row(
        "diagnosis behind the packet's end".into(),
        (said - end).as_secs_f64(),
        "s",
        Target::AtMost(2.0),
    );
    Ok(())
}

fn under_flood(table: &mut Table, world: &World, programs: &Programs<'_>) -> anyhow::Result<()> {
    let plain = flood(world, FLOOD)?;
    table.row(
        "flood untraced: datagrams a second".into(),
        plain.sent as f64 / plain.seconds,
        "1/s",
        Target::None,
    );
    let running = ours(programs, "flood", &[]).start()?;
    let begun = Instant::now();
    let traced = flood(world, FLOOD)?;
    let summary = running.end()?.summary()?;
    let lost: f64 = summary["lost"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|row| row[1].as_f64())
        .sum();
    let events = summary["events"].as_f64().unwrap_or_default();
    table.row(
        "flood: datagrams a second".into(),
        traced.sent as f64 / traced.seconds,
        "1/s",
        Target::None,
    );
    table.row(
        "flood: answered".into(),
        traced.answered as f64,
        "datagrams",
        Target::None,
    );
    table.row(
        "flood: events a second".into(),
        events / begun.elapsed().as_secs_f64().min(traced.seconds),
        "1/s",
        Target::None,
    );
    table.row(
        "flood: events lost".into(),
        lost,
        "events",
        Target::AtMost(0.0),
    );
    println!("flood: {}", summary["lost"]);
    Ok(())
}
