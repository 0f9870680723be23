//! `cargo xtask fuzz`: what reads bytes that others wrote, under a fuzzer for a bounded time.
//!
//! The corpus in the repository is read, never written: what is found goes to `target/fuzz`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, EbpfToolchain};
use crate::{step, workspace};

/// What is fuzzed; each has `tests/fuzz/targets/NAME.rs` and `tests/fuzz/corpus/NAME`.
const TARGETS: [&str; 5] = ["capture", "record", "report", "filter", "event"];

/// Most memory of one run, MiB: a capture may unpack to 256 MiB.
const MOST_MEMORY: &str = "2048";
/// Longest time with one input, seconds.
const LONGEST: &str = "30";

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long each target is fuzzed
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Only this one
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
}

/// Fuzzes each target; the first that fails ends it.
pub(crate) fn command(arguments: &Arguments) -> Result<ExitCode> {
    let toolchain = setup::ebpf_toolchain()?;
    let fuzzer = setup::cargo_fuzz()?;
    let chosen = |name: &&str| arguments.target.as_ref().is_none_or(|only| only == name);
    for name in TARGETS.into_iter().filter(chosen) {
        Target::of(name)?.run(&toolchain, &fuzzer, arguments.seconds)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One target and its folders.
struct Target {
    name: &'static str,
    /// In the repository.
    seeds: PathBuf,
    /// What was found here.
    corpus: PathBuf,
    /// Inputs that failed.
    failures: PathBuf,
}

impl Target {
    fn of(name: &'static str) -> Result<Self> {
        let found = workspace::cache("fuzz")?;
        let target = Self {
            name,
            seeds: workspace::root().join("tests/fuzz/corpus").join(name),
            corpus: found.join("corpus").join(name),
            failures: found.join("failures").join(name),
        };
        for folder in [&target.corpus, &target.failures] {
            workspace::create_folder(folder)?;
        }
        Ok(target)
    }

    fn run(&self, toolchain: &EbpfToolchain, fuzzer: &Path, seconds: u64) -> Result<()> {
        step::note(format!("fuzzing {} for {seconds} s", self.name));
        let prefix = format!("-artifact_prefix={}/", self.failures.display());
        let mut command = self.command(toolchain, fuzzer)?;
        command
            .args([&self.corpus, &self.seeds])
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-rss_limit_mb={MOST_MEMORY}"))
            .arg(format!("-timeout={LONGEST}"))
            .arg("-print_final_stats=1")
            .arg(prefix);
        let status = command.status().context("cannot start cargo fuzz")?;
        if !status.success() {
            bail!(
                "{} failed, or does not build; the messages are above, an input that fails is in {}",
                self.name,
                self.failures.display()
            );
        }
        Ok(())
    }

    /// A command of cargo-fuzz. No sanitizer: what is fuzzed is safe Rust, panics are what is looked for, and
    /// debug assertions check what crates do unsafely; without one a stable compiler that is told to accept
    /// its flags is enough.
    fn command(&self, toolchain: &EbpfToolchain, fuzzer: &Path) -> Result<Command> {
        let mut command = toolchain.cargo()?;
        let path = command
            .get_envs()
            .find_map(|(name, value)| (name == "PATH").then_some(value?.to_owned()));
        let mut folders = vec![fuzzer.to_owned()];
        folders.extend(path.iter().flat_map(std::env::split_paths));
        command
            .env(
                "PATH",
                std::env::join_paths(folders).context("PATH cannot be passed on")?,
            )
            .env("RUSTC_BOOTSTRAP", "1")
            // By itself it is one, whose program is quicker and takes twice as long to build.
            .args([
                "fuzz",
                "run",
                "--sanitizer",
                "none",
                "--codegen-units",
                "16",
            ])
            .arg("--fuzz-dir")
            .arg(workspace::root().join("tests/fuzz"))
            .arg("--target-dir")
            .arg(workspace::cache("fuzz")?.join("build"))
            .arg(self.name);
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_its_file_and_its_seeds() {
        let fuzz = workspace::root().join("tests/fuzz");
        for name in TARGETS {
            assert!(fuzz.join(format!("targets/{name}.rs")).is_file(), "{name}");
            let seeds = std::fs::read_dir(fuzz.join("corpus").join(name)).unwrap();
            assert!(seeds.count() > 0, "{name}");
        }
        let files = std::fs::read_dir(fuzz.join("targets")).unwrap();
        assert_eq!(files.count(), TARGETS.len());
    }
}
