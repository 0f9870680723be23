//! A command that is run while tracing. Invariant: it does not outlive us.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use anyhow::Context as _;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::Serialize;
use shared_child::SharedChild;

/// Most rounds of ending what a command left: each ends one generation of its processes.
const MOST_ROUNDS: usize = 64;

/// A shell command at work, with our rights and our input. Dropping it ends it.
pub(super) struct Command {
    line: String,
    child: Arc<SharedChild>,
    /// Processes that were ours before, as of a shell that became us: they are not the command's.
    before: Vec<Pid>,
}

/// What became of a command.
#[derive(Serialize)]
pub(super) struct CommandView {
    /// As typed.
    command: String,
    /// Exit code; none when a signal ended it.
    exit_code: Option<i32>,
    /// Signal that ended it.
    signal: Option<i32>,
}

impl Command {
    /// Starts a shell command. With `apart` what it prints goes to our standard error, so that it does
    /// not come between objects.
    ///
    /// # Errors
    /// When no shell can be started.
    pub(super) fn start(line: &str, apart: bool) -> anyhow::Result<Self> {
        let mut command = std::process::Command::new("sh");
        command.arg("-c").arg(line);
        if apart {
            command.stdout(Stdio::from(io::stderr().as_fd().try_clone_to_owned()?));
        }
        // SAFETY: between fork and exec only one system call is made.
        unsafe {
            command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGTERM).map_err(io::Error::from));
        }
        // What the command starts comes to us, not to init, when the process between has ended.
        prctl::set_child_subreaper(true)?;
        let before = children();
        let child = SharedChild::spawn(&mut command)
            .with_context(|| format!("{line:?} cannot be started by sh"))?;
        Ok(Self {
            line: line.to_owned(),
            child: Arc::new(child),
            before,
        })
    }

    /// Done when the command has ended.
    pub(super) async fn ended(&self) -> io::Result<ExitStatus> {
        let child = Arc::clone(&self.child);
        tokio::task::spawn_blocking(move || child.wait()).await?
    }

    /// Ends it, where it has not ended.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub(super) fn end(&self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }

    /// How it ended, as shown.
    pub(super) fn view(&self, status: ExitStatus) -> CommandView {
        CommandView {
            command: self.line.clone(),
            exit_code: status.code(),
            signal: status.signal(),
        }
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for _ in 0..MOST_ROUNDS {
            let mut left = children();
            left.retain(|child| !self.before.contains(child));
            if left.is_empty() {
                break;
            }
            for child in left {
                let _ = kill(child, Signal::SIGKILL);
                let _ = waitpid(child, None);
            }
        }
    }
}

/// The processes that are ours: nothing else starts any while a command is at work.
fn children() -> Vec<Pid> {
    let threads = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| {
            let numbers = list.split_whitespace().filter_map(|pid| pid.parse().ok());
            numbers.map(Pid::from_raw).collect::<Vec<_>>()
        })
        .collect()
}

impl CommandView {
    /// In words, for a person.
    pub(super) fn words(&self) -> String {
        let end = match (self.exit_code, self.signal) {
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".into(),
        };
        format!("`{}` {end}", self.command)
    }
}
