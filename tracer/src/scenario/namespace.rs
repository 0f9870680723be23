//! Private network namespaces and commands in them.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, unshare};

use crate::node::NetnsHandle;

/// Is told every command before it runs.
pub type Announce = Box<dyn FnMut(&str) + Send>;

/// A private namespace; gone when the last clone of it is.
#[derive(Clone)]
pub struct Namespace {
    name: String,
    handle: NetnsHandle,
    announce: Arc<Mutex<Announce>>,
}

impl Namespace {
    /// Makes a namespace. Nothing is mounted: only descriptors of this process lead to it.
    ///
    /// # Errors
    /// When the kernel refuses, for want of CAP_SYS_ADMIN for one.
    pub fn new(name: &str, announce: &Arc<Mutex<Announce>>) -> anyhow::Result<Self> {
        let made = std::thread::spawn(|| -> io::Result<NetnsHandle> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            NetnsHandle::from_path(Path::new("/proc/thread-self/ns/net"))
        });
        let handle = made
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that made it failed")))
            .with_context(|| format!("a private network namespace {name} cannot be made"))?;
        Ok(Self {
            name: name.to_owned(),
            handle: handle.named(name),
            announce: Arc::clone(announce),
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace as facts are read through.
    pub const fn handle(&self) -> &NetnsHandle {
        &self.handle
    }

    /// Runs a closure in the namespace, on a thread of its own.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or what the closure says.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> anyhow::Result<T> {
        let done = self
            .handle
            .run(work)
            .with_context(|| format!("namespace {} cannot be entered", self.name))?;
        Ok(done?)
    }

    /// Runs a command, quoted as for a shell, in the namespace.
    ///
    /// # Errors
    /// When it is not installed, or with what it said when it fails.
    pub fn run(&self, line: &str) -> anyhow::Result<()> {
        if let Some((name, value)) = line
            .strip_prefix("sysctl -qw ")
            .and_then(|setting| setting.split_once('='))
        {
            return self.set(line, name, value);
        }
        self.output(line).map(drop)
    }

    /// What `sysctl -qw` does, without a process for it.
    fn set(&self, line: &str, name: &str, value: &str) -> anyhow::Result<()> {
        self.announce(line);
        // As there: with slashes a device's name may hold a dot.
        let place = if name.contains('/') {
            name.to_owned()
        } else {
            name.replace('.', "/")
        };
        let file = Path::new("/proc/sys").join(place);
        self.enter(|| std::fs::write(&file, value))
            .with_context(|| format!("{}# {line}", self.name))
    }

    fn execute(&self, line: &str) -> anyhow::Result<String> {
        let words = shlex::split(line).with_context(|| format!("{line}: a quote is not closed"))?;
        let (program, arguments) = words.split_first().context("an empty command")?;
        let output = self
            .enter(|| Command::new(program).args(arguments).output())
            .with_context(|| format!("{program} cannot be run; is it installed?"))?;
        if !output.status.success() {
            bail!(
                "{}# {line}: {}",
                self.name,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs several commands, a line each; neighbouring ones of `ip` in one process.
    ///
    /// # Errors
    /// With the first that fails.
    pub fn run_all(&self, lines: &[String]) -> anyhow::Result<()> {
        // Options of `ip` itself hold for a whole batch.
        let is_ip = |line: &String| line.starts_with("ip ") && !line.starts_with("ip -");
        lines
            .chunk_by(|one, other| is_ip(one) && is_ip(other))
            .try_for_each(|lines| match lines {
                [line] => self.run(line),
                several => self.run_ip(several),
            })
    }

    /// Runs commands of `ip` in one process: starting one costs more than what it does.
    fn run_ip(&self, lines: &[String]) -> anyhow::Result<()> {
        for line in lines {
            self.announce(line);
        }
        let batch: String = lines
            .iter()
            .map(|line| line.replacen("ip ", "", 1) + "\n")
            .collect();
        let output = self.enter(|| {
            let mut child = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(batch.as_bytes())?;
            }
            child.wait_with_output()
        })?;
        if !output.status.success() {
            // It says which line: "Command failed -:3".
            bail!(
                "{}# {}: {}",
                self.name,
                lines.join("; "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Says a command.
    pub(super) fn announce(&self, line: &str) {
        if let Ok(mut announce) = self.announce.lock() {
            announce(&format!("{}# {line}", self.name));
        }
    }

    /// A path to the namespace that a command can open while we live.
    pub fn path(&self) -> String {
        format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.handle.as_fd().as_raw_fd()
        )
    }

    /// What a command prints in the namespace.
    ///
    /// # Errors
    /// When it is not installed, or with what it said when it fails.
    pub fn output(&self, line: &str) -> anyhow::Result<String> {
        self.announce(line);
        self.execute(line)
    }
}
