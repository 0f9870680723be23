//! The lab tests: one binary, built here and run once per kernel in a guest.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::native::{LAB_TARGET, Targets};
use super::table::{Column, TestResult};
use crate::lab::{Lab, Series, asked_to_stop};
use crate::setup::EbpfToolchain;
use crate::{run, step, workspace};

/// A guest that hangs must not hang the whole run.
const TIME_LIMIT: Duration = Duration::from_secs(15 * 60);

/// Runs the lab tests on each kernel, one guest at a time.
pub(super) fn run(
    toolchain: &EbpfToolchain,
    targets: &Targets,
    kernels: &[Series],
    filter: Option<&str>,
) -> Result<Vec<Column>> {
    if !targets.lab {
        bail!(
            "the tests crate has no test target named {LAB_TARGET}; use --no-lab for the other tests"
        );
    }
    run::build_tracer(toolchain)?;
    let binary = build_binary(toolchain)?;
    let mut command: Vec<OsString> = vec![
        binary.into(),
        "--tracer".into(),
        workspace::target().join("release/tracer").into(),
    ];
    command.extend(filter.map(OsString::from));

    let mut columns = Vec::new();
    for &kernel in kernels {
        if asked_to_stop() {
            break;
        }
        step::note(format!("lab tests on Linux {}", kernel.name()));
        columns.push(on_kernel(kernel, &command)?);
    }
    Ok(columns)
}

/// A guest that does not boot, crashes or reports nothing is a failed test, not the end.
fn on_kernel(kernel: Series, command: &[OsString]) -> Result<Column> {
    let out = workspace::cache(&format!("lab/results/{}", kernel.name()))?;
    let report = out.join("results.json");
    if report.exists() {
        fs::remove_file(&report).with_context(|| format!("cannot remove {}", report.display()))?;
    }
    let lab = Lab {
        out: Some(out),
        time_limit: Some(TIME_LIMIT),
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

#[derive(Deserialize)]
struct Message {
    target: Option<MessageTarget>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct MessageTarget {
    name: String,
}

fn build_binary(toolchain: &EbpfToolchain) -> Result<PathBuf> {
    let output = toolchain
        .cargo()?
        .args([
            "test",
            "--release",
            "--package",
            "tests",
            "--test",
            LAB_TARGET,
            "--no-run",
        ])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the lab tests do not build; cargo's messages are above");
    }
    executable(&String::from_utf8_lossy(&output.stdout)).context("cargo built no lab test binary")
}

/// The lab binary's path in cargo's messages, one JSON object a line.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| {
            message
                .target
                .as_ref()
                .is_some_and(|target| target.name == LAB_TARGET)
        })
        .find_map(|message| message.executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_of_the_lab_target_is_found() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"tracer"},"executable":"/t/tracer"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"lab"},"executable":"/t/lab-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executable(messages), Some(PathBuf::from("/t/lab-1")));
        assert_eq!(executable(""), None);
    }
}
