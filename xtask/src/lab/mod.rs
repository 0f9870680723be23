//! `cargo xtask lab`: a command as root on a real Debian kernel, under QEMU.
//!
//! `kernel` and `archive` provide the kernel, `initramfs` and `guest` what runs inside,
//! `machine` the QEMU process, `session` the command's life. Guests have no network, see this
//! machine's files read-only with memory laid over them, and leave results in /out.

mod accelerator;
mod archive;
mod guest;
mod initramfs;
mod kernel;
mod machine;
mod session;

use std::env;
use std::ffi::OsString;
use std::io::{IsTerminal as _, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::termios::{self, SetArg, Termios};

pub(crate) use kernel::Series;
pub(crate) use session::{INTERRUPTED, asked_to_stop};

use crate::failure::{Failure, missing};
use crate::{setup, workspace};
use guest::{Guest, Streams};
use kernel::Kernel;
use machine::{Accelerator, Hardware};
use session::{BOOT_LIMIT, Limits};

/// Arguments of `cargo xtask lab`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The Debian kernel to boot
    #[arg(long, value_enum, default_value = "6.1")]
    kernel: Series,
    /// Memory of the guest
    #[arg(long, value_name = "MB", default_value_t = MEMORY_MEGABYTES)]
    memory: u32,
    /// Processors of the guest
    #[arg(long, value_name = "N", default_value_t = CPUS)]
    cpus: u32,
    /// Folder that the guest sees as /out and may write [default: target/lab/out/SERIES]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// More words for the kernel's command line
    #[arg(
        long,
        value_name = "WORDS",
        default_value = "",
        allow_hyphen_values = true
    )]
    append: String,
    /// First install what the lab needs and this machine lacks
    #[arg(long)]
    setup: bool,
    /// Give the command this terminal (what a shell gets anyway)
    #[arg(long)]
    tty: bool,
    /// The command and its arguments; a shell when there is none
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// A program of a package of another Debian suite, downloaded on first use and never installed.
pub(crate) fn program(package: &str, path: &str, suite: &str) -> Result<PathBuf> {
    archive::program(package, path, suite, &workspace::cache("lab/programs")?)
}

/// Boots and gives the command's exit status.
pub(crate) fn command(arguments: Arguments) -> Result<ExitCode> {
    let interactive = arguments.tty || arguments.command.is_empty();
    if interactive && !(stdin().is_terminal() && stdout().is_terminal()) {
        return Err(Failure::Usage(
            "a shell needs a terminal; give a command: cargo xtask lab -- COMMAND".into(),
        )
        .into());
    }
    if arguments.setup {
        setup::lab_programs()?;
    }
    let lab = Lab {
        memory_megabytes: arguments.memory,
        cpus: arguments.cpus,
        kernel_arguments: arguments.append,
        out: arguments.out,
        interactive,
        ..Lab::on(arguments.kernel)
    };
    lab.run(arguments.command).map(ExitCode::from)
}

/// A guest to be booted, once per `run`.
pub(crate) struct Lab {
    pub(crate) kernel: Series,
    pub(crate) memory_megabytes: u32,
    pub(crate) cpus: u32,
    /// Added to the kernel's command line.
    pub(crate) kernel_arguments: String,
    /// What the guest sees as /out; when not given a folder of its series, so that labs of two kernels can run at once.
    pub(crate) out: Option<PathBuf>,
    /// How long the command may take, boot not counted.
    pub(crate) time_limit: Option<Duration>,
    /// The command gets the caller's terminal.
    pub(crate) interactive: bool,
}

/// The guest's size when nothing else is asked for.
const MEMORY_MEGABYTES: u32 = 3072;
const CPUS: u32 = 2;

impl Lab {
    /// A guest of the usual size whose command has no terminal.
    pub(crate) fn on(kernel: Series) -> Self {
        Self {
            kernel,
            memory_megabytes: MEMORY_MEGABYTES,
            cpus: CPUS,
            kernel_arguments: String::new(),
            out: None,
            time_limit: None,
            interactive: false,
        }
    }

    /// Downloads the kernel if there is none, boots, runs the command in the caller's folder
    /// and gives its exit status.
    pub(crate) fn run(&self, command: Vec<OsString>) -> Result<u8> {
        if !cfg!(target_arch = "x86_64") {
            return Err(missing(
                "the lab shares this machine's programs with x86-64 kernels, so it needs an x86-64 machine",
            ));
        }
        setup::require_lab_programs()?;
        let kernel = Kernel::obtain(self.kernel)?;
        let out = match &self.out {
            Some(folder) => folder.clone(),
            None => workspace::target().join("lab/out").join(self.kernel.name()),
        };
        workspace::create_folder(&out)?;
        let mut hardware = Hardware {
            accelerator: Accelerator::Emulation,
            memory_megabytes: self.memory_megabytes,
            cpus: self.cpus,
            kernel_arguments: self.kernel_arguments.clone(),
            out: out
                .canonicalize()
                .with_context(|| format!("cannot find {}", out.display()))?,
        };
        hardware.accelerator = accelerator::choose(&kernel, &hardware)?;
        let guest = Guest {
            command,
            folder: env::current_dir().context("cannot tell the current folder")?,
            streams: if self.interactive {
                terminal_size()
            } else {
                Streams::Separate
            },
        };
        let limits = Limits {
            boot: BOOT_LIMIT,
            command: self.time_limit,
        };
        // QEMU makes the terminal raw and, when killed, leaves it so.
        let _restored = self.interactive.then(SavedTerminal::save).flatten();
        session::run_patiently(&kernel, &guest, &hardware, limits)
    }
}

fn terminal_size() -> Streams {
    let (columns, rows) =
        terminal_size::terminal_size().map_or((80, 24), |(width, height)| (width.0, height.0));
    Streams::Terminal { rows, columns }
}

/// The terminal's settings, put back when dropped.
struct SavedTerminal(Termios);

impl SavedTerminal {
    fn save() -> Option<Self> {
        termios::tcgetattr(stdin()).ok().map(Self)
    }
}

impl Drop for SavedTerminal {
    fn drop(&mut self) {
        // Without a terminal there is nothing left to restore.
        let _ = termios::tcsetattr(stdin(), SetArg::TCSANOW, &self.0);
    }
}
