//! The tests that run on this machine, and which test targets the workspace has.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::table::Counts;
use crate::setup::EbpfToolchain;
use crate::tool;

/// Name of the test target that runs inside guests only.
pub(super) const LAB_TARGET: &str = "lab";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// The workspace's integration tests.
pub(super) struct Targets {
    native: Vec<String>,
    /// False until the tests crate has its lab test.
    pub(super) lab: bool,
}

impl Targets {
    pub(super) fn of_workspace(toolchain: &EbpfToolchain) -> Result<Self> {
        let text = tool::output(toolchain.cargo()?.args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
        ]))?;
        Self::in_metadata(&text)
    }

    fn in_metadata(text: &str) -> Result<Self> {
        let metadata: Metadata =
            serde_json::from_str(text).context("cannot read cargo's metadata")?;
        let targets = metadata
            .packages
            .into_iter()
            .flat_map(|package| package.targets);
        let (lab, native): (Vec<_>, Vec<_>) = targets
            .filter(|target| target.kind.iter().any(|kind| kind == "test"))
            .map(|target| target.name)
            .partition(|name| name == LAB_TARGET);
        Ok(Self {
            native,
            lab: !lab.is_empty(),
        })
    }
}

/// Programs that read what the tracer writes; the tests find them by the environment.
pub(super) struct Readers {
    /// promtool.
    pub(super) promtool: PathBuf,
    /// Folder of DuckDB's Python package.
    pub(super) duckdb: PathBuf,
}

/// Runs unit and integration tests; a build that fails counts as one failed test.
pub(super) fn run(
    toolchain: &EbpfToolchain,
    readers: &Readers,
    targets: &Targets,
    filters: &[String],
) -> Result<Counts> {
    let mut workspace = vec!["--lib", "--bins"];
    for name in &targets.native {
        workspace.extend(["--test", name]);
    }
    // On its own, because the package's binary compiles for the eBPF target only.
    let shared = vec!["--package", "tracer-ebpf", "--lib"];
    let mut total = Counts::default();
    for selection in [workspace, shared] {
        total += cargo_test(toolchain, readers, &selection, filters)?;
    }
    Ok(total)
}

fn cargo_test(
    toolchain: &EbpfToolchain,
    readers: &Readers,
    selection: &[&str],
    filters: &[String],
) -> Result<Counts> {
    let mut child = toolchain
        .cargo()?
        .args(["test", "--no-fail-fast"])
        .args(selection)
        .arg("--")
        .args(filters)
        .env("PROMTOOL", &readers.promtool)
        .env("DUCKDB", &readers.duckdb)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let mut counts = Counts::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            counts += result_line(&line).unwrap_or_default();
            println!("{line}");
        }
    }
    let status = child.wait().context("lost sight of cargo")?;
    if !status.success() && counts.failed == 0 {
        counts.failed = 1;
    }
    Ok(counts)
}

/// Reads `test result: ok. 5 passed; 0 failed; ...`.
fn result_line(line: &str) -> Option<Counts> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        numbers
            .split("; ")
            .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
    };
    Some(Counts {
        passed: number("passed")?,
        failed: number("failed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_cargo_test_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.01s";
        let counts = result_line(line).unwrap();
        assert_eq!((counts.passed, counts.failed), (12, 3));
        assert!(result_line("running 3 tests").is_none());
    }

    #[test]
    fn lab_target_is_told_apart() {
        let text = r#"{"packages": [{"targets": [
            {"name": "lab", "kind": ["test"]},
            {"name": "golden", "kind": ["test"]},
            {"name": "tracer", "kind": ["lib"]}
        ]}]}"#;
        let targets = Targets::in_metadata(text).unwrap();
        assert!(targets.lab);
        assert_eq!(targets.native, ["golden"]);
    }
}
