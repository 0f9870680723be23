//! The toolchain that compiles the eBPF programs.
//!
//! A rustup nightly with rust-src and a bpf-linker on PATH is used when it is there. Else
//! Debian's rustc-web with its sources is installed beside rustup, and bpf-linker is built
//! against the LLVM of the same version. rustup's own toolchains are never changed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::packages;
use crate::failure::missing;
use crate::step;
use crate::tool;
use crate::workspace::{self, Lock};

/// LLVM of Debian's rustc-web; bpf-linker must be built against the same.
const LLVM: &str = "22";
const BPF_LINKER: &str = "0.13.0";
const DEBIAN_PREFIX: &str = "/usr";

/// What the build of the eBPF programs is to use.
pub(crate) struct EbpfToolchain {
    /// What `rustup run` is given: a toolchain's name, or the folder that holds bin/rustc.
    toolchain: String,
    /// The folder of bpf-linker.
    linker_folder: PathBuf,
    /// The compiler is a stable release that must be told to accept `-Z build-std`.
    bootstrap: bool,
}

impl EbpfToolchain {
    /// A cargo command that builds tracer with this toolchain.
    pub(crate) fn cargo(&self) -> Result<Command> {
        let mut cargo = Command::new("cargo");
        cargo
            .current_dir(workspace::root())
            // Quiet for the cargo that tracer's build script runs, whose every line would come
            // back as a warning at each build; not for this one, which shows its progress.
            .args(["--config", "term.quiet=false"])
            .env("CARGO_TERM_QUIET", "true")
            .env("TRACER_EBPF_TOOLCHAIN", &self.toolchain)
            .env("PATH", tool::search_path(&[&self.linker_folder])?);
        if self.bootstrap {
            cargo.env("RUSTC_BOOTSTRAP", "1");
        }
        Ok(cargo)
    }
}

impl fmt::Display for EbpfToolchain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compiler = if self.bootstrap {
            "Debian's rustc-web"
        } else {
            "rustup's nightly"
        };
        write!(
            formatter,
            "{compiler} (toolchain {}) and {}",
            self.toolchain,
            self.linker_folder.join("bpf-linker").display()
        )
    }
}

/// Finds a toolchain, installing Debian's when there is none.
pub(crate) fn ebpf_toolchain() -> Result<EbpfToolchain> {
    if tool::find("rustup").is_none() {
        return Err(missing(
            "rustup is missing; get it from https://rustup.rs and install the stable toolchain",
        ));
    }
    if let Some(toolchain) = nightly()? {
        return Ok(toolchain);
    }
    if !packages::debian_like() {
        return Err(missing(
            "the eBPF programs need a nightly Rust with its sources and bpf-linker; get them with \
             `rustup toolchain install nightly --component rust-src` and `cargo install bpf-linker`",
        ));
    }
    debian()
}

fn nightly() -> Result<Option<EbpfToolchain>> {
    let Some(linker) = tool::find("bpf-linker") else {
        return Ok(None);
    };
    let sysroot = tool::output(
        tool::command("rustup")?.args(["run", "nightly", "rustc", "--print", "sysroot"]),
    );
    // No nightly at all is an answer, not an error.
    let Ok(sysroot) = sysroot else {
        return Ok(None);
    };
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
    Ok(core.is_dir().then(|| EbpfToolchain {
        toolchain: "nightly".to_owned(),
        linker_folder: linker.parent().unwrap_or(Path::new("/")).to_owned(),
        bootstrap: false,
    }))
}

fn debian() -> Result<EbpfToolchain> {
    let _lock = Lock::wait("ebpf-toolchain")?;
    let llvm_package = format!("llvm-{LLVM}-dev");
    packages::install(
        "building the eBPF programs (no nightly Rust with rust-src and bpf-linker found)",
        &[
            "rustc-web",
            "cargo-web",
            "rust-web-src",
            &llvm_package,
            "zlib1g-dev",
            "libzstd-dev",
        ],
    )?;
    let rustc = Path::new(DEBIAN_PREFIX).join("bin/rustc");
    let version = tool::output(tool::command(&rustc)?.arg("-vV"))?;
    if llvm_of(&version) != Some(LLVM) {
        bail!(
            "Debian's rustc now uses LLVM {}, but bpf-linker {BPF_LINKER} is built here against {LLVM}; \
             install a nightly with rust-src and a bpf-linker instead",
            llvm_of(&version).unwrap_or("of an unknown version")
        );
    }
    Ok(EbpfToolchain {
        toolchain: DEBIAN_PREFIX.to_owned(),
        linker_folder: bpf_linker()?,
        bootstrap: true,
    })
}

/// The major version of LLVM that `rustc -vV` names.
fn llvm_of(version: &str) -> Option<&str> {
    let full = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    full.split('.').next()
}

/// The folder of a bpf-linker built against Debian's LLVM; builds it when absent.
fn bpf_linker() -> Result<PathBuf> {
    let finished = workspace::cache("setup")?.join(format!("bpf-linker-{BPF_LINKER}-llvm-{LLVM}"));
    let folder = finished.join("bin");
    if works(&folder) {
        return Ok(folder);
    }
    step::note(format!(
        "building bpf-linker {BPF_LINKER} against LLVM {LLVM} (about a minute) ..."
    ));
    // Built aside and renamed when complete, so that an interrupted build is never used.
    let aside = tempfile::Builder::new()
        .prefix("bpf-linker-")
        .tempdir_in(workspace::cache("setup")?)
        .context("cannot create a folder to build bpf-linker in")?;
    let install = aside.path().join("install");
    let status = Command::new("cargo")
        .args(["install", "bpf-linker", "--locked", "--version", BPF_LINKER])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{LLVM}"),
        ])
        .arg("--root")
        .arg(&install)
        .arg("--target-dir")
        .arg(aside.path().join("build"))
        .current_dir(aside.path())
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}"))
        .status()
        .context("cannot start cargo")?;
    if !status.success() || !works(&install.join("bin")) {
        return Err(missing(
            "building bpf-linker failed (its messages are above); check network and disk, then run this again",
        ));
    }
    if finished.exists() {
        fs::remove_dir_all(&finished)
            .with_context(|| format!("cannot replace {}", finished.display()))?;
    }
    fs::rename(&install, &finished)
        .with_context(|| format!("cannot move bpf-linker to {}", finished.display()))?;
    Ok(folder)
}

fn works(folder: &Path) -> bool {
    Command::new(folder.join("bpf-linker"))
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_version_is_read() {
        let version = "rustc 1.96.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_of(version), Some("22"));
        assert_eq!(llvm_of("rustc 1.96.0"), None);
    }
}
