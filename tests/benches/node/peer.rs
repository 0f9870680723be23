//! A tracer at work beside the traffic, ours or another's, and what its programs cost the kernel.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use aya::programs::loaded_programs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// pwru takes half a minute on emulated processors.
const READY: Duration = Duration::from_secs(180);
/// pwru lets go of over a thousand kprobes.
const END: Duration = Duration::from_secs(300);
/// Where a tracer says that it is attached.
const READY_FILE: &str = "/tmp/bench-ready";

/// How a tracer is started; `{ready}` stands for the file that it is to make once it traces.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) command: Vec<String>,
}

/// A tracer at work.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<(Instant, String)>,
    /// From its start until it traced.
    pub(crate) ready: Duration,
    /// Programs that were loaded before it.
    before: HashSet<u32>,
}

/// What programs cost the kernel.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Cost {
    pub(crate) runs: u64,
    pub(crate) time: Duration,
}

/// What a tracer said at its end.
pub(crate) struct Ended {
    /// From being asked until it was gone.
    pub(crate) detached: Duration,
    /// Its lines.
    pub(crate) lines: Vec<String>,
}

fn programs() -> HashSet<u32> {
    loaded_programs()
        .flatten()
        .map(|program| program.id())
        .collect()
}

impl Peer {
    /// Starts it and waits until it traces.
    pub(crate) fn start(&self) -> anyhow::Result<Running> {
        let _ = std::fs::remove_file(READY_FILE);
        let before = programs();
        let words: Vec<_> = self
            .command
            .iter()
            .map(|word| word.replace("{ready}", READY_FILE))
            .collect();
        let begun = Instant::now();
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", self.name))?;
        let stdout = child.stdout.take().context("no way from it")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        while !Path::new(READY_FILE).exists() {
            if let Some(status) = child.try_wait()? {
                bail!("{} ended before it traced: {status}", self.name);
            }
            if begun.elapsed() > READY {
                let _ = child.kill();
                bail!("{} was not ready within {READY:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Running {
            child,
            lines,
            ready: begun.elapsed(),
            before,
        })
    }
}

impl Running {
    /// What its programs cost so far.
    pub(crate) fn cost(&self) -> Cost {
        loaded_programs()
            .flatten()
            .filter(|program| !self.before.contains(&program.id()))
            .fold(Cost::default(), |sum, program| Cost {
                runs: sum.runs + program.run_count(),
                time: sum.time + program.run_time(),
            })
    }

    /// When it printed an object of this type.
    pub(crate) fn await_object(&self, kind: &str, patience: Duration) -> Option<Instant> {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok((when, line)) if object(&line, kind).is_some() => return Some(when),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Asks it to end, and waits.
    pub(crate) fn end(mut self) -> anyhow::Result<Ended> {
        let begun = Instant::now();
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGINT)?;
        while self.child.try_wait()?.is_none() {
            if begun.elapsed() > END {
                self.child.kill()?;
                bail!("it did not end within {END:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let detached = begun.elapsed();
        let lines = self.lines.iter().map(|(_, line)| line).collect();
        Ok(Ended { detached, lines })
    }
}

impl Ended {
    /// Our summary.
    pub(crate) fn summary(&self) -> anyhow::Result<Value> {
        let found = self.lines.iter().find_map(|line| object(line, "summary"));
        found.context("the tracer gave no summary")
    }
}

fn object(line: &str, kind: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(line).ok()?;
    (value["type"] == kind).then_some(value)
}
