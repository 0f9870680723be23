//! Private network namespaces and commands in them.

use std::io;
use std::path::Path;
use std::process::Command;
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

    /// Runs a command, its words separated by single spaces, in the namespace.
    ///
    /// # Errors
    /// When it is not installed, or with what it said when it fails.
    pub fn run(&self, line: &str) -> anyhow::Result<()> {
        if let Ok(mut announce) = self.announce.lock() {
            announce(&format!("{}# {line}", self.name));
        }
        let mut words = line.split(' ');
        let program = words.next().unwrap_or_default();
        let output = self
            .enter(|| Command::new(program).args(words).output())
            .with_context(|| format!("{program} cannot be run; is it installed?"))?;
        if !output.status.success() {
            bail!(
                "{}# {line}: {}",
                self.name,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Runs several commands, a line each.
    ///
    /// # Errors
    /// With the first that fails.
    pub fn run_all(&self, lines: &[String]) -> anyhow::Result<()> {
        lines.iter().try_for_each(|line| self.run(line))
    }
}
