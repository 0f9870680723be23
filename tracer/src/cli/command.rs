//! A command that is run while tracing. Invariant: it does not outlive us.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use anyhow::Context as _;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use serde::Serialize;
use shared_child::SharedChild;

/// A shell command at work, with our rights and our input. Dropping it ends it.
pub(super) struct Command {
    line: String,
    child: Arc<SharedChild>,
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
        let child = SharedChild::spawn(&mut command)
            .with_context(|| format!("{line:?} cannot be started by sh"))?;
        Ok(Self {
            line: line.to_owned(),
            child: Arc::new(child),
        })
    }

    /// Done when the command has ended.
    pub(super) async fn ended(&self) -> io::Result<ExitStatus> {
        let child = Arc::clone(&self.child);
        tokio::task::spawn_blocking(move || child.wait()).await?
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
    }
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
