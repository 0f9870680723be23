//! `cargo xtask bench`: what tracing costs, on one kernel in one run, beside targets and pwru.
//!
//! The work is done by the workspace's benchmark programs: `collector`, `capture` and `cluster` run here,
//! `node` inside the lab. This builds and starts them, gathers their rows, prints one table and keeps it as
//! JSON. It measures nothing itself.

mod native;
mod node;
mod row;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;

use crate::lab::Series;
use crate::{setup, step, workspace};
use row::Row;

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The Debian kernel that the node is measured on
    #[arg(long, value_enum, default_value = "6.1")]
    kernel: Series,
    /// Only this part
    #[arg(value_enum)]
    only: Option<Part>,
}

/// A part of the benchmarks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Part {
    /// Instructions per event, memory of flows
    Collector,
    /// Writing, showing and explaining a million events
    Capture,
    /// Facts of a cluster of 5,000 services
    Cluster,
    /// Judging a hundred thousand flows
    Causes,
    /// Kernel time, round trips, readiness, loss and diagnosis in the lab
    Node,
}

/// Runs what was asked for; a target that is not met makes the exit code 1.
pub(crate) fn command(arguments: &Arguments) -> Result<ExitCode> {
    let toolchain = setup::ebpf_toolchain()?;
    let mut rows = Vec::new();
    let chosen = |part: &&Part| arguments.only.is_none_or(|only| only == **part);
    for part in Part::value_variants().iter().filter(chosen) {
        let found = match part {
            Part::Collector => native::collector(&toolchain),
            Part::Capture => native::capture(&toolchain),
            Part::Cluster => native::cluster(&toolchain),
            Part::Causes => native::causes(&toolchain),
            Part::Node => node::rows(&toolchain, arguments.kernel),
        };
        rows.extend(found.unwrap_or_else(|error| vec![Row::skipped(&format!("{part:?}"), &error)]));
    }
    print!("\n{}", row::table(&rows));
    let path = workspace::cache("bench")?.join(format!("{}.json", arguments.kernel.name()));
    let text = serde_json::to_string_pretty(&rows).context("cannot write the rows as JSON")?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    step::note(format!("kept in {}", path.display()));
    let missed = rows.iter().any(|row| row.met() == Some(false));
    Ok(ExitCode::from(u8::from(missed)))
}
