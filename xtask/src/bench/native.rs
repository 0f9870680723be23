//! The benchmarks that run on this machine.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::row::Row;
use crate::setup::EbpfToolchain;
use crate::{run, workspace};

/// Judging a hundred thousand flows may take this long.
const MOST_JUDGING: Duration = Duration::from_secs(2);
/// The test that judges them; it prints both times.
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
    let text = output(toolchain, &[&words, target].concat())?;
    Ok(text.lines().filter_map(Row::in_line).collect())
}

/// The time that all causes take over a hundred thousand flows on a node of 5,000 services.
pub(super) fn causes(toolchain: &EbpfToolchain) -> Result<Vec<Row>> {
    let text = output(
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
    )?;
    let row = text
        .lines()
        .find_map(judged)
        .context("the benchmark of the causes says no time")?;
    Ok(vec![row])
}

/// Reads `10,000 flows: 80ms; 100,000 flows: 901.5ms, 12 diagnoses`.
fn judged(line: &str) -> Option<Row> {
    let (_, rest) = line.split_once("100,000 flows: ")?;
    let time = rest.split(',').next()?;
    let (number, scale) = match time.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (time.strip_suffix('s')?, 1.0),
    };
    Some(Row {
        name: "judging 100,000 flows, 5,000 services".into(),
        value: Some(number.parse::<f64>().ok()? * scale),
        unit: "s".into(),
        at_most: Some(MOST_JUDGING.as_secs_f64()),
        skipped: None,
    })
}

fn output(toolchain: &EbpfToolchain, arguments: &[&str]) -> Result<String> {
    let output = toolchain
        .cargo()?
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("cargo {} failed: {}", arguments.join(" "), text.trim());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_judging_is_read() {
        let row =
            judged("10,000 flows: 80.1ms; 100,000 flows: 901.5ms, 12 diagnoses").expect("a row");
        assert_eq!(row.value, Some(0.9015));
        let row = judged("10,000 flows: 80.1ms; 100,000 flows: 2.5s, 12 diagnoses").expect("a row");
        assert_eq!(row.met(), Some(false));
        assert_eq!(judged("running 1 test"), None);
    }
}
