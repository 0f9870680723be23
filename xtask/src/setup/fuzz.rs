//! cargo-fuzz, of a pinned version, kept under `target/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::failure::missing;
use crate::step;
use crate::workspace::{self, Lock};

const CARGO_FUZZ: &str = "0.13.2";

/// The folder of cargo-fuzz; builds it when absent.
pub(crate) fn cargo_fuzz() -> Result<PathBuf> {
    let root = workspace::cache("setup")?.join(format!("cargo-fuzz-{CARGO_FUZZ}"));
    let folder = root.join("bin");
    let _lock = Lock::wait("cargo-fuzz")?;
    if works(&folder) {
        return Ok(folder);
    }
    step::note(format!(
        "building cargo-fuzz {CARGO_FUZZ} (about a minute) ..."
    ));
    let status = Command::new("cargo")
        .args(["install", "cargo-fuzz", "--locked", "--version", CARGO_FUZZ])
        .arg("--root")
        .arg(&root)
        // Outside of the workspace, whose settings are not meant for it.
        .current_dir(workspace::cache("setup")?)
        .status()
        .context("cannot start cargo")?;
    if !status.success() || !works(&folder) {
        return Err(missing(
            "building cargo-fuzz failed (its messages are above); check network and disk, then run this again",
        ));
    }
    step::note(format!("cargo-fuzz is kept in {}", folder.display()));
    Ok(folder)
}

fn works(folder: &Path) -> bool {
    Command::new(folder.join("cargo-fuzz"))
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}
