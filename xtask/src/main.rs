//! `cargo xtask`: everything that the repository does beside compiling.
//!
//! One file per command; this one only routes. Paths live in `workspace`, announcements in
//! `step`, the two errors with an exit code of their own in `failure`.

mod bench;
mod built;
mod failure;
mod fuzz;
mod lab;
mod lint;
mod run;
mod setup;
mod step;
mod test;
mod tidy;
mod tool;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, run and test tracer", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building tracer needs, and with --lab what the lab needs
    Setup(setup::Arguments),
    /// Run a command as root on a Debian kernel under QEMU; a shell when none is given
    Lab(lab::Arguments),
    /// Build tracer and start it as root on this machine
    Run(run::Arguments),
    /// Run the unit tests here and the lab tests on real kernels
    Test(test::Arguments),
    /// Measure what tracing costs, beside targets and another tracer
    Bench(bench::Arguments),
    /// Fuzz what reads bytes that others wrote, each target for a bounded time
    Fuzz(fuzz::Arguments),
    /// Check structure and formatting, and run clippy
    Lint,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup(arguments) => setup::command(&arguments),
        Command::Lab(arguments) => lab::command(arguments),
        Command::Run(arguments) => run::command(arguments),
        Command::Test(arguments) => test::command(&arguments),
        Command::Bench(arguments) => bench::command(&arguments),
        Command::Fuzz(arguments) => fuzz::command(&arguments),
        Command::Lint => lint::command(),
    };
    outcome.unwrap_or_else(|error| failure::report(&error))
}
