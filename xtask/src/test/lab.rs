//! The lab tests: one binary, built here and run once per kernel in a guest.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::native::{LAB_TARGET, Targets};
use super::table::{Column, TestResult};
use crate::lab::{Lab, Series, asked_to_stop};
use crate::setup::EbpfToolchain;
use crate::{built, step, workspace};

/// A guest that hangs must not hang the whole run.
const TIME_LIMIT: Duration = Duration::from_secs(45 * 60);
/// The same with the fault matrix, which plays every scenario several times.
const LONG_TIME_LIMIT: Duration = Duration::from_secs(180 * 60);

/// Runs the lab tests on each kernel, one guest at a time.
pub(super) fn run(
    toolchain: &EbpfToolchain,
    targets: &Targets,
    kernels: &[Series],
    long: bool,
    filters: &[String],
) -> Result<Vec<Column>> {
    if !targets.lab {
        bail!(
            "the tests crate has no test target named {LAB_TARGET}; use --no-lab for the other tests"
        );
    }
    let binary = built::release(toolchain, "--test", LAB_TARGET)?;
    let mut command: Vec<OsString> = vec![
        binary.into(),
        "--tracer".into(),
        workspace::target().join("release/tracer").into(),
    ];
    command.extend(long.then(|| "--long".into()));
    command.extend(filters.iter().map(OsString::from));
    let time_limit = if long { LONG_TIME_LIMIT } else { TIME_LIMIT };

    let mut columns = Vec::new();
    for &kernel in kernels {
        if asked_to_stop() {
            break;
        }
        step::note(format!("lab tests on Linux {}", kernel.name()));
        columns.push(on_kernel(kernel, &command, time_limit)?);
    }
    Ok(columns)
}

/// A guest that does not boot, crashes or reports nothing is a failed test, not the end.
fn on_kernel(kernel: Series, command: &[OsString], time_limit: Duration) -> Result<Column> {
    let out = workspace::cache(&format!("lab/results/{}", kernel.name()))?;
    let report = out.join("results.json");
    if report.exists() {
        fs::remove_file(&report).with_context(|| format!("cannot remove {}", report.display()))?;
    }
    let lab = Lab {
        out: Some(out),
        time_limit: Some(time_limit),
        ..Lab::on(kernel)
    };
    let ended = lab.run(command.to_vec());
    let mut results = match read_report(&report) {
        Ok(results) => results,
        Err(error) => vec![TestResult::failed("results", format!("{error:#}"))],
    };
    let any_failed = results.iter().any(TestResult::has_failed);
    match ended {
        Ok(0) => {}
        Ok(_) if any_failed => {}
        Ok(status) => results.push(TestResult::failed(
            "exit",
            format!("the tests exited with {status}"),
        )),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            results.push(TestResult::failed(
                "guest",
                "the guest failed; its console is above",
            ));
        }
    }
    Ok(Column {
        kernel: kernel.name().to_owned(),
        results,
    })
}

fn read_report(path: &Path) -> Result<Vec<TestResult>> {
    let text = fs::read_to_string(path).context("the tests left no results.json in /out")?;
    serde_json::from_str(&text).context("the tests left a results.json that cannot be read")
}
