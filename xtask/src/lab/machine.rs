//! One QEMU process: how it is started, and that it never outlives its starter.

use std::ffi::OsString;
use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::guest::{CONTROL_PORT, Guest, STDERR_PORT, STDOUT_PORT, Streams};
use super::initramfs;
use super::kernel::Kernel;
use crate::failure::missing;
use crate::tool;

/// A guest's ports: the socket's name on this side, and the guest's name for it.
const PORTS: [(&str, &str); 3] = [
    ("stdout", STDOUT_PORT),
    ("stderr", STDERR_PORT),
    ("control", CONTROL_PORT),
];
/// How much of a console is shown when something went wrong: a panic with the stacks of two tasks.
const CONSOLE_LINES: usize = 160;

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    Emulation,
}

/// The machine's size and the folder that guests see as /out.
#[derive(Clone, Debug)]
pub(super) struct Hardware {
    pub(super) accelerator: Accelerator,
    pub(super) memory_megabytes: u32,
    pub(super) cpus: u32,
    pub(super) kernel_arguments: String,
    pub(super) out: PathBuf,
}

/// A running guest. Dropping it ends QEMU, and so does the death of this process.
pub(super) struct Machine {
    qemu: Child,
    folder: TempDir,
}

/// The host's ends of a guest's ports.
pub(super) struct Ports {
    pub(super) stdout: UnixStream,
    pub(super) stderr: UnixStream,
    pub(super) control: UnixStream,
}

impl Machine {
    /// Starts QEMU and waits until it has opened its ports; the guest boots meanwhile.
    pub(super) fn start(
        kernel: &Kernel,
        guest: &Guest,
        hardware: &Hardware,
    ) -> Result<(Self, Ports)> {
        let folder = tempfile::Builder::new()
            .prefix("tracer-lab-")
            .tempdir()
            .context("cannot create a temporary folder for the lab")?;
        let initramfs = folder.path().join("initramfs");
        fs::write(&initramfs, initramfs::build(kernel, guest)?)
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        let listeners = PORTS.map(|(name, _)| listen(folder.path(), name));
        let [stdout, stderr, control] = listeners;
        let (stdout, stderr, control) = (stdout?, stderr?, control?);

        let log = folder.path().join("qemu");
        let log =
            fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = tool::command("qemu-system-x86_64")?;
        command
            .args(arguments(kernel, guest.streams, hardware, folder.path()))
            .stderr(log);
        if guest.streams == Streams::Separate {
            command.stdin(Stdio::null()).stdout(Stdio::null());
        }
        end_with_parent(&mut command);
        let qemu = command.spawn().map_err(|error| {
            missing(format!(
                "cannot start qemu-system-x86_64 ({error}); run `cargo xtask setup --lab`"
            ))
        })?;
        let mut machine = Self { qemu, folder };
        let ports = Ports {
            stdout: machine.accept(&stdout)?,
            stderr: machine.accept(&stderr)?,
            control: machine.accept(&control)?,
        };
        Ok((machine, ports))
    }

    /// QEMU's exit status once it has ended.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.qemu.try_wait().context("lost sight of QEMU")
    }

    /// What the kernel and QEMU said last.
    pub(super) fn last_words(&self) -> String {
        let mut text = String::new();
        for (file, title) in [("qemu", "QEMU"), ("console", "the guest's console")] {
            let content = fs::read(self.folder.path().join(file)).unwrap_or_default();
            let content = String::from_utf8_lossy(&content);
            let lines: Vec<&str> = content
                .lines()
                .filter(|line| !line.trim().is_empty())
                .collect();
            if lines.is_empty() {
                continue;
            }
            let tail = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
            text.push_str(&format!("--- {title} ---\n{}\n", tail.join("\n")));
        }
        if text.is_empty() {
            text.push_str("neither QEMU nor the guest's console said anything\n");
        }
        text
    }

    /// QEMU connects its ports before anything else, or ends.
    fn accept(&mut self, listener: &UnixListener) -> Result<UnixStream> {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream
                        .set_nonblocking(false)
                        .context("cannot set up a port of the guest")?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if let Some(status) = self.ended()? {
                        bail!("QEMU did not start ({status})\n{}", self.last_words());
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error).context("cannot accept a port of the guest"),
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only when QEMU has already been waited for.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Covers a starter that is killed and so runs no destructor.
fn end_with_parent(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one system call; it touches no
    // memory that another thread of the parent may have held locked.
    unsafe {
        command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
    }
}

fn listen(folder: &Path, name: &str) -> Result<UnixListener> {
    let path = folder.join(name);
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    listener
        .set_nonblocking(true)
        .with_context(|| format!("cannot set up {}", path.display()))?;
    Ok(listener)
}

fn arguments(
    kernel: &Kernel,
    streams: Streams,
    hardware: &Hardware,
    folder: &Path,
) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
    add(&[
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-nic",
        "none",
    ]);
    add(&[
        "-machine",
        "q35",
        "-m",
        &hardware.memory_megabytes.to_string(),
    ]);
    add(&["-smp", &hardware.cpus.to_string()]);
    match hardware.accelerator {
        Accelerator::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
        Accelerator::Emulation => add(&["-accel", "tcg,thread=multi", "-cpu", "max"]),
    }
    add(&["-kernel", &kernel.image.to_string_lossy()]);
    add(&["-initrd", &folder.join("initramfs").to_string_lossy()]);
    // A panic reboots, which -no-reboot turns into the end of QEMU.
    let line = format!(
        // A node reads its time from the TSC. The kernel's tests of it and of the timer fail now and
        // then where processors are emulated and busy.
        "console=ttyS0 panic=-1 loglevel=4 tsc=reliable no_timer_check {}",
        hardware.kernel_arguments
    );
    add(&["-append", line.trim_end()]);

    let console = option_value(&folder.join("console"));
    add(&[
        "-chardev",
        &format!("file,id=console,path={console}"),
        "-serial",
        "chardev:console",
    ]);
    for (tag, path, access) in [
        ("host", Path::new("/"), ",readonly=on"),
        ("out", &hardware.out, ""),
    ] {
        let path = option_value(path);
        // remap: this machine's root may span several file systems with equal inode numbers.
        add(&[
            "-fsdev",
            &format!("local,id={tag},path={path},security_model=none,multidevs=remap{access}"),
        ]);
        add(&[
            "-device",
            &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
        ]);
    }
    add(&["-device", "virtio-serial-pci"]);
    for (name, port) in PORTS {
        let path = option_value(&folder.join(name));
        add(&["-chardev", &format!("socket,id={name},path={path}")]);
        add(&[
            "-device",
            &format!("virtserialport,chardev={name},name={port}"),
        ]);
    }
    if let Streams::Terminal { .. } = streams {
        // signal=off: Ctrl-C belongs to the guest's shell.
        add(&[
            "-chardev",
            "stdio,id=terminal,signal=off",
            "-device",
            "virtconsole,chardev=terminal,nr=0",
        ]);
    }
    arguments
}

/// A path inside one of QEMU's comma-separated options.
fn option_value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_do_not_end_an_option() {
        assert_eq!(option_value(Path::new("/a,b")), "/a,,b");
    }
}
