//! A table of paths: for each the exact stages of the request and of the reply, the addresses before and
//! after NAT, and how both end. One trace of all of them; a row is a test.
//!
//! ```text
//! pt-c 192.0.2.10 ── veth ── 192.0.2.1 pt-a 198.51.100.1 ── veth ── 198.51.100.2 pt-b
//!      2001:db8::10          2001:db8::1     flannel.1 10.244.1.0 ── VXLAN ── 10.244.2.0 flannel.1
//!                            cni0 10.244.1.1, fd00:1::1             cni0 10.244.2.1
//!                            ├── pt-p1 10.244.1.2, fd00:1::2        └── pt-p3 10.244.2.2
//!                            └── pt-p2 10.244.1.3
//! ```

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::tour::{command, inside};
use crate::{Answer, Shared, Test, Tracer, check, finish};

mod pieces;
mod row;
mod table;
mod world;

use row::Row;
pub(crate) use row::Seen;
use table::ROWS;
pub(crate) use world::World;

/// Patience of a client.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Most traces that are made to get one without gaps.
const TRACES: usize = 4;
/// How often a server looks whether it is to stop.
const POLL: Duration = Duration::from_millis(100);

/// The rows as tests; the first that runs makes the trace.
pub fn tests() -> Vec<Test> {
    let traced = Shared::default();
    let of_row = |row: &'static Row| {
        let traced = traced.clone();
        Test::new(format!("path: {}", row.name), move |tracer| {
            row.judge(traced.get(|| trace(tracer))?)
        })
    };
    let mut tests: Vec<_> = ROWS.iter().map(of_row).collect();
    tests.extend(pieces::tests());
    tests.push(Test::new("probe: where two ways part", probe));
    tests.push(Test::new(
        "run: a command, its exit code, and the file that says ready",
        run_command,
    ));
    tests
}

/// Traces the traffic of all rows; again where the kernel skipped a program because it interrupted the
/// same one on its processor. Such a trace says so and has gaps; no other loss is excused.
fn trace(tracer: &Tracer) -> anyhow::Result<Answer> {
    let mut answer = trace_once(tracer)?;
    for _ in 1..TRACES {
        let lost = &answer.object("summary")?["lost"];
        let skipped = lost.as_array().is_some_and(
            |ways| matches!(&ways[..], [way] if way[0] == "program skipped by the kernel"),
        );
        if !skipped {
            break;
        }
        answer = trace_once(tracer)?;
    }
    Ok(answer)
}

fn trace_once(tracer: &Tracer) -> anyhow::Result<Answer> {
    let world = World::build()?;
    let tracing = tracer.start(&["--all", "--buffer", "32M"])?;
    for row in ROWS {
        row.send()
            .with_context(|| format!("the traffic of \"{}\"", row.name))?;
    }
    std::thread::sleep(Duration::from_millis(600));
    kill(Pid::from_raw(tracing.id().cast_signed()), Signal::SIGINT)?;
    let answer = tracing.finish()?;
    drop(world);
    Ok(answer)
}

/// A NodePort that works beside a port that nobody serves: named cause or not, the way is told, and
/// where it leaves the other.
fn probe(tracer: &Tracer) -> anyhow::Result<()> {
    let _world = World::build()?;
    let works = "tcp://192.0.2.1:30000";
    let refused = "tcp://192.0.2.1:30999";
    let answer = tracer.run(&[
        "probe",
        works,
        "--against",
        refused,
        "--from",
        "pt-c",
        "--format",
        "json",
        "--no-kube",
    ])?;
    answer.expect_code(1)?;
    let probes = answer.objects("probe");
    check(
        probes.len() == 2 && probes[0]["works"] == true && probes[1]["works"] == false,
        || format!("{probes:?}"),
    )?;
    let comparison = answer.object("comparison")?;
    check(comparison["part_at"] == "ipvs", || format!("{comparison}"))?;
    let answer = tracer.run(&[
        "probe",
        "dns://10.96.0.10/a.example",
        "--from",
        "pt-p1",
        "--format",
        "json",
        "--no-kube",
    ])?;
    answer.expect_code(0)?;
    let probe = answer.object("probe")?;
    check(
        probe["outcome"]
            .as_str()
            .is_some_and(|outcome| outcome.contains("NXDOMAIN")),
        || format!("{probe}"),
    )?;
    // Without a route nothing is sent: the ways part before the first stage of the one that works.
    let answer = tracer.run(&[
        "probe",
        works,
        "--against",
        "tcp://203.0.113.9:80",
        "--from",
        "pt-c",
        "--format",
        "json",
        "--no-kube",
    ])?;
    answer.expect_code(1)?;
    let comparisons = answer.objects("comparison");
    let parted = comparisons.iter().filter(|way| way["part_at"].is_string());
    check(parted.count() == 2, || format!("{comparisons:?}"))?;
    let unknown = tracer.run(&["probe", works, "--from", "pt-x"])?;
    unknown.expect_code(2)?;
    check(unknown.stderr.contains("pt-"), || unknown.stderr.clone())
}

fn run_command(tracer: &Tracer) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let ready = directory.path().join("ready");
    let line = format!("cat {} && exit 7", ready.display());
    let path = ready.to_string_lossy();
    let answer = tracer.run(&[
        "run",
        "--format",
        "json",
        "--no-kube",
        "--cmd",
        &line,
        "--ready-file",
        &path,
        "--for",
        "20s",
    ])?;
    let ended = answer.object("command")?;
    check(
        ended["exit_code"] == 7 && !answer.stderr.trim().is_empty(),
        || format!("{ended}, stderr {}", answer.stderr),
    )?;
    // A command does not outlive the trace.
    let line = "sleep 77 | cat";
    let answer = tracer.run(&["run", "--no-kube", "--cmd", line, "--for", "500ms"])?;
    answer.expect_code(0)?;
    let left = finish(Command::new("pgrep").args(["-f", "^sleep 77"]))?;
    check(left.code == 1, || "the command outlived the trace".into())
}
