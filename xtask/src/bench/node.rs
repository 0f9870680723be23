//! The benchmark that runs in the lab: a node's traffic under no tracer, ours, and pwru.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::row::Row;
use crate::lab::{self, Lab, Series};
use crate::setup::{self, EbpfToolchain};
use crate::{built, step, tool, workspace};

/// pwru needs half a minute to attach on emulated processors, and minutes for its round trips.
const TIME_LIMIT: Duration = Duration::from_secs(40 * 60);
/// The benchmark target that runs in the guest.
const TARGET: &str = "node";
/// The suite that pwru comes from.
const SUITE: &str = "trixie";

/// Boots the kernel once and gives the rows that the guest left.
pub(super) fn rows(toolchain: &EbpfToolchain, kernel: Series) -> Result<Vec<Row>> {
    setup::lab_programs()?;
    let out = workspace::cache(&format!("bench/out-{}", kernel.name()))?;
    let report = out.join("node.json");
    if report.exists() {
        fs::remove_file(&report).with_context(|| format!("cannot remove {}", report.display()))?;
    }
    let command: Vec<OsString> = vec![
        built::release(toolchain, "--bench", TARGET)?.into(),
        "--measure".into(),
        "/out/node.json".into(),
        workspace::target().join("release/tracer").into(),
        pwru().map_or_else(|error| format!("-{error:#}").into(), OsString::from),
    ];
    step::note(format!("measuring on Linux {}", kernel.name()));
    let lab = Lab {
        out: Some(out),
        time_limit: Some(TIME_LIMIT),
        ..Lab::on(kernel)
    };
    let status = lab.run(command)?;
    if status != 0 {
        bail!("the guest's benchmark exited with {status}; what it said is above");
    }
    let text = fs::read_to_string(&report).context("the guest left no rows")?;
    serde_json::from_str(&text).context("the guest's rows cannot be read")
}

/// pwru, where this machine has the libraries that it needs.
fn pwru() -> Result<PathBuf> {
    let program = lab::program("pwru", "usr/bin/pwru", SUITE)?;
    let libraries = tool::output(tool::command("ldd")?.arg(&program))?;
    match absent_library(&libraries) {
        Some(library) => bail!(
            "{} needs {library}, which this machine lacks",
            name(&program)
        ),
        None => Ok(program),
    }
}

fn name(program: &Path) -> String {
    program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn absent_library(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.contains("not found"))?;
    line.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let text = "\tlibc.so.6 => /lib/libc.so.6 (0x0)\n\tlibpcap.so.0.8 => not found\n";
        assert_eq!(absent_library(text), Some("libpcap.so.0.8"));
        assert_eq!(
            absent_library("\tlibc.so.6 => /lib/libc.so.6 (0x0)\n"),
            None
        );
    }
}
