//! `cargo xtask setup`: brings a fresh machine to where tracer builds and the lab boots.

mod check;
mod duckdb;
mod ebpf;
mod fuzz;
mod lab;
mod packages;

use std::process::ExitCode;

use anyhow::Result;

pub(crate) use check::test_programs;
pub(crate) use duckdb::duckdb;
pub(crate) use ebpf::{EbpfToolchain, ebpf_toolchain};
pub(crate) use fuzz::cargo_fuzz;
pub(crate) use lab::{capture_readers, lab_programs, require_lab_programs};

use crate::step;

/// Arguments of `cargo xtask setup`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Also install what `cargo xtask lab` needs: QEMU and the network tools of its guests
    #[arg(long)]
    lab: bool,
}

/// Installs what is missing and says what is used.
pub(crate) fn command(arguments: &Arguments) -> Result<ExitCode> {
    let toolchain = ebpf_toolchain()?;
    step::note(format!("eBPF programs are built with {toolchain}"));
    if arguments.lab {
        lab_programs()?;
        step::note("the lab is ready; kernels are downloaded when first booted");
    }
    Ok(ExitCode::SUCCESS)
}
