//! `cargo xtask run`: builds tracer and starts it as root on this machine.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

use crate::failure::missing;
use crate::setup::{self, EbpfToolchain};
use crate::{step, tool, workspace};

/// What tracer takes as its first word; anything else is an argument of `tracer run`.
const SUBCOMMANDS: [&str; 17] = [
    "run",
    "reproduce",
    "doctor",
    "why",
    "check",
    "probe",
    "explain",
    "show",
    "report",
    "export",
    "merge",
    "serve",
    "top",
    "cluster",
    "help",
    "completions",
    "man",
];
const GLOBAL_FLAGS: [&str; 4] = ["--help", "-h", "--version", "-V"];

/// Tells tracer where the lab is: the path of this program, to be called as
/// `$TRACER_LAB lab --setup -- COMMAND...`.
const LAB_VARIABLE: &str = "TRACER_LAB";

/// Arguments of `cargo xtask run`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Passed to tracer; without one of its commands in front they are those of `tracer run`
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// Sets up, builds, and becomes tracer: its exit status and its signals are then its own.
pub(crate) fn command(arguments: Arguments) -> Result<ExitCode> {
    let toolchain = setup::ebpf_toolchain()?;
    build_tracer(&toolchain)?;
    let tracer = workspace::target().join("release/tracer");
    let lab = env::current_exe().context("cannot tell the path of xtask itself")?;
    let mut command = if geteuid().is_root() {
        let mut command = Command::new(&tracer);
        command.env(LAB_VARIABLE, &lab);
        command
    } else {
        if tool::find("sudo").is_none() {
            return Err(missing(format!(
                "tracer needs root to load eBPF programs and there is no sudo; run {} as root",
                tracer.display()
            )));
        }
        step::note("using sudo, because only root may load eBPF programs");
        let mut lab_setting = OsString::from(format!("{LAB_VARIABLE}="));
        lab_setting.push(&lab);
        let mut command = Command::new("sudo");
        // sudo drops most of the environment; env sets it again on the other side.
        command.arg("env").arg(lab_setting).arg(&tracer);
        command
    };
    let error = command.args(tracer_arguments(arguments.arguments)).exec();
    Err(error).with_context(|| format!("cannot start {}", tracer.display()))
}

/// Builds the release binary with cargo's own progress on the terminal.
pub(crate) fn build_tracer(toolchain: &EbpfToolchain) -> Result<()> {
    let status = toolchain
        .cargo()?
        .args(["build", "--release", "--package", "tracer"])
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("tracer does not build; cargo's messages are above");
    }
    Ok(())
}

fn tracer_arguments(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let known = |first: &OsStr| {
        let mut words = SUBCOMMANDS.iter().chain(&GLOBAL_FLAGS);
        words.any(|word| first == OsStr::new(word))
    };
    if !arguments.first().is_some_and(|first| known(first)) {
        arguments.insert(0, "run".into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(arguments: &[&str]) -> Vec<OsString> {
        tracer_arguments(arguments.iter().map(OsString::from).collect())
    }

    #[test]
    fn commands_pass_and_the_rest_is_for_run() {
        assert_eq!(routed(&[]), ["run"]);
        assert_eq!(routed(&["--duration", "5"]), ["run", "--duration", "5"]);
        assert_eq!(routed(&["host 10.0.0.1"]), ["run", "host 10.0.0.1"]);
        assert_eq!(routed(&["reproduce", "vip"]), ["reproduce", "vip"]);
        assert_eq!(routed(&["man", "pages"]), ["man", "pages"]);
        assert_eq!(routed(&["--help"]), ["--help"]);
        assert_eq!(routed(&["run", "-x"]), ["run", "-x"]);
    }
}
