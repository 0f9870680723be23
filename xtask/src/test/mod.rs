//! `cargo xtask test`: unit tests on this machine, then the lab tests on real kernels.

mod lab;
mod native;
mod table;

use std::process::ExitCode;

use anyhow::Result;

use crate::lab::{INTERRUPTED, Series, asked_to_stop};
use crate::{setup, step};
use table::{Column, Counts};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Kernels of the lab tests, with commas between: 5.10, 6.1, 6.12, 7.3; or all
    #[arg(long, default_value = "6.1", value_parser = parse_kernels)]
    kernel: Kernels,
    /// Only the tests that need no lab
    #[arg(long)]
    no_lab: bool,
    /// Also the long tests: filters, captures, and every scenario with the fault, healthy and renamed
    #[arg(long, conflicts_with = "no_lab")]
    long: bool,
    /// Only tests whose name contains one of these
    filters: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kernels(Vec<Series>);

fn parse_kernels(word: &str) -> Result<Kernels, String> {
    use clap::ValueEnum as _;
    if word == "all" {
        return Ok(Kernels(Series::ALL.to_vec()));
    }
    word.split(',')
        .map(|name| Series::from_str(name, false))
        .collect::<Result<_, _>>()
        .map(Kernels)
        .map_err(|_| format!("{} or all", Series::ALL.map(Series::name).join(", ")))
}

/// Runs everything that was asked for; the last line printed is `N passed, N failed`.
pub(crate) fn command(arguments: &Arguments) -> Result<ExitCode> {
    let toolchain = setup::ebpf_toolchain()?;
    setup::capture_readers()?;
    if !arguments.no_lab {
        setup::lab_programs()?;
    }
    let readers = native::Readers {
        promtool: setup::test_programs()?,
        duckdb: setup::duckdb()?,
    };
    let filters = arguments.filters.as_slice();
    let targets = native::Targets::of_workspace(&toolchain)?;
    let mut total = native::run(&toolchain, &readers, &targets, filters)?;
    if !arguments.no_lab {
        let columns = lab::run(
            &toolchain,
            &targets,
            &arguments.kernel.0,
            arguments.long,
            filters,
        )?;
        print!("\n{}", table::render(&columns));
        total += columns.iter().map(Column::counts).sum();
    }
    if asked_to_stop() {
        step::note("interrupted: not all tests ran");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(outcome(total))
}

/// No test at all is no success: a filter that matches nothing is a mistake.
fn outcome(total: Counts) -> ExitCode {
    if total.passed == 0 && total.failed == 0 {
        step::note("no test matches");
    }
    ExitCode::from(u8::from(total.failed > 0 || total.passed == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_some_or_all() {
        assert_eq!(parse_kernels("6.12"), Ok(Kernels(vec![Series::V6_12])));
        assert_eq!(
            parse_kernels("7.3,5.10"),
            Ok(Kernels(vec![Series::V7_3, Series::V5_10]))
        );
        assert_eq!(parse_kernels("all").unwrap().0.len(), 4);
        for wrong in ["4.19", "6.1,", "6.1 6.12"] {
            assert!(parse_kernels(wrong).unwrap_err().contains("5.10"));
        }
    }
}
