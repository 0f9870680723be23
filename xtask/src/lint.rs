//! `cargo xtask lint`: structure, formatting and clippy, with warnings as errors.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::{setup, tidy};

/// Every check and its arguments to cargo. The eBPF programs themselves compile for a target
/// that clippy cannot host; their library is what both sides share.
const CHECKS: [(&str, &[&str]); 4] = [
    ("formatting", &["fmt", "--all", "--check"]),
    (
        "formatting of the fuzz targets",
        &["fmt", "--manifest-path", "tests/fuzz/Cargo.toml", "--check"],
    ),
    (
        "clippy",
        &["clippy", "--all-targets", "--", "--deny", "warnings"],
    ),
    (
        "clippy of the shared eBPF library",
        &[
            "clippy",
            "--package",
            "tracer-ebpf",
            "--lib",
            "--",
            "--deny",
            "warnings",
        ],
    ),
];

/// Runs the checks; the first that fails ends it.
pub(crate) fn command() -> Result<ExitCode> {
    let untidy = tidy::findings()?;
    if !untidy.is_empty() {
        bail!("the tree is untidy:\n{}", untidy.join("\n"));
    }
    let toolchain = setup::ebpf_toolchain()?;
    for (name, arguments) in CHECKS {
        let status = toolchain
            .cargo()?
            .args(arguments)
            .status()
            .context("cannot start cargo")?;
        if !status.success() {
            bail!("{name} found something; cargo's messages are above");
        }
    }
    Ok(ExitCode::SUCCESS)
}
