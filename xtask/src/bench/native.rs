//! The benchmarks that run on this machine.

use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use super::row::Row;
use crate::setup::EbpfToolchain;
use crate::{run, workspace};

/// The test that judges a hundred thousand flows; it prints rows as the benchmarks do.
const JUDGING: &str = "cause::benchmark::judging_a_hundred_thousand_flows_is_quick_and_linear";

/// Instructions per event, memory of a million flows, growth over ten million events.
pub(super) fn collector(toolchain: &EbpfToolchain) -> Result<Vec<Row>> {
    benchmark(toolchain, &["collector"])
}

/// Writing, showing and explaining a million events, beside tshark.
pub(super) fn capture(toolchain: &EbpfToolchain) -> Result<Vec<Row>> {
    run::build_tracer(toolchain)?;
    let tracer = workspace::target().join("release/tracer");
    benchmark(
        toolchain,
        &["capture", "--", "--tracer", &tracer.to_string_lossy()],
    )
}

/// Facts of a cluster of 5,000 services and 50,000 endpoints.
pub(super) fn cluster(toolchain: &EbpfToolchain) -> Result<Vec<Row>> {
    benchmark(toolchain, &["cluster"])
}

fn benchmark(toolchain: &EbpfToolchain, target: &[&str]) -> Result<Vec<Row>> {
    let words = ["bench", "--package", "tests", "--bench"];
    rows_of(toolchain, &[&words, target].concat())
}

/// The time that all causes take over a hundred thousand flows on a node of 5,000 services.
pub(super) fn causes(toolchain: &EbpfToolchain) -> Result<Vec<Row>> {
    rows_of(
        toolchain,
        &[
            "test",
            "--release",
            "--package",
            "tracer",
            "--lib",
            JUDGING,
            "--",
            "--exact",
            "--ignored",
            "--nocapture",
        ],
    )
}

/// The rows that a benchmark prints.
fn rows_of(toolchain: &EbpfToolchain, arguments: &[&str]) -> Result<Vec<Row>> {
    let output = toolchain
        .cargo()?
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let command = arguments.join(" ");
    if !output.status.success() {
        bail!("cargo {command} failed: {}", text.trim());
    }
    let rows: Vec<Row> = text.lines().filter_map(Row::in_line).collect();
    if rows.is_empty() {
        bail!("cargo {command} printed no number: does what it names still exist?");
    }
    Ok(rows)
}
