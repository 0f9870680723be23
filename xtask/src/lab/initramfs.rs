//! The first programs of a guest: an initramfs that makes this machine's files its root.
//!
//! The first stage runs from the initramfs (busybox): it loads the modules for the shared
//! folders and puts a memory overlay on the read-only root. The second stage runs in that root
//! as process 1, so that the kernel loads modules and sees paths as on any machine.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use cpio::newc::Builder;

use super::guest::Guest;
use super::kernel::Kernel;
use crate::failure::missing;
use crate::tool;

/// Modules without which a guest reaches neither its root nor its streams.
const MODULES: [&str; 5] = [
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
];
/// The busybox applets that the first stage uses.
const APPLETS: [&str; 7] = [
    "sh",
    "mount",
    "mkdir",
    "insmod",
    "cp",
    "poweroff",
    "switch_root",
];

const FILE: u32 = 0o100_755;
const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;

const FIRST_STAGE: &str = r#"#!/bin/sh
export PATH=/bin
stop() {
    echo "lab: $1"
    poweroff -f
}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do
    insmod "$module" || stop "cannot load $module"
done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,ro,cache=loose host /host ||
    stop "cannot mount the host's files"
mount -t tmpfs -o size=75% memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work root /root ||
    stop "cannot lay memory over the host's files"
mkdir -p /root/proc /root/sys /root/dev /root/run
for folder in proc sys dev; do
    mount -o move /$folder /root/$folder
done
mount -t tmpfs -o mode=755 run /root/run
cp -r /lab /root/run/lab
cp /bin/busybox /root/run/lab/busybox
exec switch_root -c /dev/console /root /bin/sh /run/lab/start || stop "cannot enter the root"
"#;

/// Builds the archive that QEMU hands to the kernel.
pub(super) fn build(kernel: &Kernel, guest: &Guest) -> Result<Vec<u8>> {
    let busybox = tool::find("busybox")
        .ok_or_else(|| missing("busybox is missing; run `cargo xtask setup --lab`"))?;
    let busybox = read(&busybox)?;
    let mut archive = Archive::default();
    for folder in [
        "bin", "dev", "host", "lab", "memory", "modules", "proc", "root", "sys",
    ] {
        archive.add(folder, FOLDER, Vec::new());
    }
    archive.add("bin/busybox", FILE, busybox);
    for applet in APPLETS {
        archive.add(&format!("bin/{applet}"), LINK, b"busybox".to_vec());
    }
    for (order, module) in modules(kernel)?.into_iter().enumerate() {
        archive.add(&format!("modules/{order:02}.ko"), FILE, module);
    }
    archive.add("init", FILE, FIRST_STAGE.into());
    archive.add("lab/start", FILE, guest.second_stage(kernel)?.into());
    archive.add("lab/command", FILE, guest.command_script()?.into());
    archive.finish()
}

#[derive(Default)]
struct Archive {
    entries: Vec<(Builder, Cursor<Vec<u8>>)>,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: Vec<u8>) {
        let inode = u32::try_from(self.entries.len()).unwrap_or(0) + 1;
        let entry = Builder::new(name).ino(inode).nlink(1).mode(mode);
        self.entries.push((entry, Cursor::new(content)));
    }

    fn finish(self) -> Result<Vec<u8>> {
        cpio::write_cpio(self.entries.into_iter(), Vec::new()).context("cannot write the initramfs")
    }
}

/// The uncompressed modules in the order in which they must be loaded.
fn modules(kernel: &Kernel) -> Result<Vec<Vec<u8>>> {
    let plan = tool::output(
        tool::command("modprobe")?
            .arg("--dirname")
            .arg(&kernel.folder)
            .args(["--set-version", &kernel.release, "--show-depends", "--all"])
            .args(MODULES),
    )?;
    load_order(&plan)
        .into_iter()
        .map(|path| module(Path::new(path)))
        .collect()
}

/// The files in modprobe's plan, each once; built-in modules have none.
fn load_order(plan: &str) -> Vec<&str> {
    let mut files = Vec::new();
    for file in plan
        .lines()
        .filter_map(|line| line.trim().strip_prefix("insmod "))
    {
        let file = file.trim();
        if !files.contains(&file) {
            files.push(file);
        }
    }
    files
}

/// insmod in the guest takes uncompressed modules only.
fn module(path: &Path) -> Result<Vec<u8>> {
    let decompressor = match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return read(path),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => bail!(
            "{} is compressed in a way that is not known here",
            path.display()
        ),
    };
    let output = tool::run(tool::command(decompressor)?.args(["-d", "-c"]).arg(path))?;
    if !output.status.success() {
        bail!("cannot decompress {}", path.display());
    }
    Ok(output.stdout)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_dependencies_are_loaded_once_and_first() {
        let plan = "insmod /m/virtio.ko \ninsmod /m/virtio_pci.ko \nbuiltin overlay\ninsmod /m/virtio.ko \ninsmod /m/9p.ko \n";
        assert_eq!(
            load_order(plan),
            ["/m/virtio.ko", "/m/virtio_pci.ko", "/m/9p.ko"]
        );
    }

    #[test]
    fn archive_lists_what_was_added() {
        let mut archive = Archive::default();
        archive.add("bin", FOLDER, Vec::new());
        archive.add("bin/sh", LINK, b"busybox".to_vec());
        let bytes = archive.finish().unwrap();
        let first = cpio::NewcReader::new(bytes.as_slice()).unwrap();
        assert_eq!(first.entry().name(), "bin");
        assert_eq!(first.entry().mode(), FOLDER);
    }
}
