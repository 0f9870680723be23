//! Captures of two nodes with VXLAN between them, whose clocks disagree, as one.

use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use nix::unistd::Pid;
use serde_json::Value;

use crate::paths::World;
use crate::tour::inside;
use crate::{Running, Test, Tracer, check};

/// How far the second node's clock is ahead.
const AHEAD: Duration = Duration::from_secs(5);
/// More than setting a clock takes on an emulated machine.
const SETTING_NS: u64 = 500_000_000;
/// Questions that are asked.
const QUESTIONS: usize = 20;
const PATIENCE: Duration = Duration::from_millis(1500);

/// The tests.
pub fn tests() -> Vec<Test> {
    vec![Test::new(
        "merge: a packet goes on from node to node though their clocks disagree",
        from_node_to_node,
    )]
}

/// This machine's clock, set ahead for as long as the value lives.
struct Ahead;

impl Ahead {
    fn set() -> anyhow::Result<Self> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?);
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(now + AHEAD))?;
        Ok(Self)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Ok(now) = clock_gettime(ClockId::CLOCK_REALTIME) {
            let back = Duration::from(now).saturating_sub(AHEAD);
            // The lab's clock ends with the lab.
            let _ = clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(back));
        }
    }
}

/// A capture of what one node's namespace sees, and nothing else.
fn capture(tracer: &Tracer, namespace: &str, file: &Path) -> anyhow::Result<Running> {
    let file = file.display().to_string();
    tracer.start(&["netns", namespace, "--no-follow", "--no-kube", "-w", &file])
}

fn from_node_to_node(tracer: &Tracer) -> anyhow::Result<()> {
    let world = World::build()?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str| folder.path().join(format!("{name}.pcapng"));
    let one = capture(tracer, "pt-a", &file("a"))?;
    let ahead = Ahead::set()?;
    let two = capture(tracer, "pt-b", &file("b"))?;
    drop(ahead);
    let socket = inside("pt-p1", || UdpSocket::bind(("0.0.0.0", 4000)))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(("10.244.2.2", 3000)).context("pt-p3")?;
    for number in 0..QUESTIONS {
        socket.send(&[number as u8; 8])?;
        socket.recv(&mut [0; 64]).context("no answer")?;
    }
    std::thread::sleep(Duration::from_millis(600));
    for running in [one, two] {
        kill(Pid::from_raw(running.id().cast_signed()), Signal::SIGINT)?;
        running.finish()?;
    }
    drop(world);
    let text = |name: &str| file(name).display().to_string();
    let (a, b, both) = (text("a"), text("b"), text("both"));
    let answer = tracer.run(&["merge", &a, &b, "-o", &both, "--format", "json"])?;
    answer.expect_code(0)?;
    judge_clocks(&answer.objects("merge"))?;
    let replayed = tracer.run(&["explain", &both, "--all", "--format", "json"])?;
    check(replayed.code <= 1, || replayed.stderr.trim().to_owned())?;
    judge_ways(&replayed.objects("journey"))
}

fn judge_clocks(captures: &[Value]) -> anyhow::Result<()> {
    let [first, second] = captures else {
        anyhow::bail!("not two captures: {captures:?}");
    };
    let number = |field: &str| second[field].as_i64();
    let (offset, error) = (number("offset_ns"), number("error_ns"));
    let ahead = i64::try_from(AHEAD.as_nanos())?;
    check(
        offset.is_some_and(|offset| offset.abs_diff(ahead) < SETTING_NS) && error.is_some(),
        || format!("the clock: {second}"),
    )?;
    println!("    offset {offset:?} ns, error {error:?} ns");
    for capture in [first, second] {
        check(capture["joined"].as_u64() >= Some(QUESTIONS as u64), || {
            format!("too few joined: {capture}")
        })?;
    }
    Ok(())
}

/// Every question and every answer is one journey through both nodes.
fn judge_ways(journeys: &[Value]) -> anyhow::Result<()> {
    let way = |journey: &Value| -> Vec<String> {
        let stages = journey["path"].as_array().into_iter().flatten();
        stages
            .filter_map(|stage| stage["namespace"].as_str().map(str::to_owned))
            .collect()
    };
    for (from, to, nodes) in [
        ("10.244.1.2:4000", "10.244.2.2:3000", ["pt-a", "pt-b"]),
        ("10.244.2.2:3000", "10.244.1.2:4000", ["pt-b", "pt-a"]),
    ] {
        let found: Vec<&Value> = journeys
            .iter()
            .filter(|journey| journey["source"] == from && journey["destination"] == to)
            .collect();
        check(found.len() == QUESTIONS, || {
            format!("{} journeys from {from} to {to}", found.len())
        })?;
        for journey in found {
            check(way(journey) == nodes, || format!("{journey}"))?;
        }
    }
    Ok(())
}
