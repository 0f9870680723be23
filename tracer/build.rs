//! Builds the eBPF objects and leaves them in OUT_DIR for `kernel::load` to embed.
//!
//! `cargo xtask` chooses the toolchain and puts bpf-linker on PATH; see `xtask/src/setup`.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, anyhow};
use aya_build::{Package, Toolchain};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-env-changed=TRACER_EBPF_TOOLCHAIN");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    for (features, object) in [(["program"], "all"), (["filter"], "filtered")] {
        build(&features).context(
            "building the eBPF programs failed; `cargo xtask setup` installs what it needs",
        )?;
        strip(&out.join("tracer-ebpf"), &out.join(object))
            .with_context(|| format!("stripping {object} in {} failed", out.display()))?;
    }
    Ok(())
}

/// Builds the object with these features, as `tracer-ebpf`.
fn build(features: &[&str]) -> anyhow::Result<()> {
    let toolchain = env::var("TRACER_EBPF_TOOLCHAIN").unwrap_or_else(|_| "nightly".into());
    let package = Package {
        name: "tracer-ebpf",
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../tracer-ebpf"),
        features,
        ..Package::default()
    };
    aya_build::build_ebpf([package], Toolchain::Custom(&toolchain))
}

/// Leaves out what describes the programs to debuggers: the kernel does without, and reading it for some seventy
/// programs takes longer than loading them.
fn strip(from: &Path, to: &Path) -> anyhow::Result<()> {
    let read = fs::read(from)?;
    let mut object = Builder::read(&*read).map_err(|error| anyhow!("{error}"))?;
    for section in &mut object.sections {
        let name = section.name.as_slice();
        let name = name.strip_prefix(b".rel").unwrap_or(name);
        section.delete = name.starts_with(b".debug") || name.starts_with(b".BTF");
    }
    object.delete_orphans();
    // LLVM puts the sections' names among the symbols'.
    let names = object.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut written = Vec::new();
    object
        .write(&mut written)
        .map_err(|error| anyhow!("{error}"))?;
    Ok(fs::write(to, written)?)
}
