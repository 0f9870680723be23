//! One command in one guest: streams copied live, exit status passed on, limits kept.

use std::io::{BufRead as _, BufReader, Read, Write, stderr, stdout};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::guest::{Guest, STARTED};
use super::kernel::Kernel;
use super::machine::{Hardware, Machine};
use crate::step;

/// How long a boot may take before it counts as failed.
pub(super) const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// How often a guest that ends during its boot is booted.
const BOOTS: u32 = 3;
/// A guest that has reported its status powers off at once; one that hangs is ended.
const POWEROFF_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// What a shell reports for a program ended by SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;
/// What a shell reports for a program ended by SIGPIPE.
const OUTPUT_CLOSED: u8 = 141;

/// Time limits of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) boot: Duration,
    pub(super) command: Option<Duration>,
}

/// The guest was gone before the command started: nothing of the caller's has run yet.
#[derive(Debug, thiserror::Error)]
#[error("the guest ended during boot (QEMU: {qemu})\n{last_words}")]
pub(super) struct BootFailed {
    qemu: ExitStatus,
    last_words: String,
}

enum Event {
    Started,
    Exited(u8),
    OutputClosed,
}

static ASKED_TO_STOP: AtomicBool = AtomicBool::new(false);

/// True once Ctrl-C or a termination signal came while a guest was running.
pub(crate) fn asked_to_stop() -> bool {
    ASKED_TO_STOP.load(Ordering::Relaxed)
}

/// The same as `run`, with more boots when the first ones fail.
///
/// An emulated processor may go on with an instruction that another one has just patched. Kernels
/// patch themselves while they boot and then sometimes meet such a stale instruction and panic.
pub(super) fn run_patiently(
    kernel: &Kernel,
    guest: &Guest,
    hardware: &Hardware,
    limits: Limits,
) -> Result<u8> {
    for _ in 1..BOOTS {
        match run(kernel, guest, hardware, limits) {
            Err(error) if error.is::<BootFailed>() => {
                step::note(format!("{error}booting once more"));
            }
            ended => return ended,
        }
    }
    run(kernel, guest, hardware, limits)
}

/// Boots, runs the guest's command and gives its exit status.
pub(super) fn run(
    kernel: &Kernel,
    guest: &Guest,
    hardware: &Hardware,
    limits: Limits,
) -> Result<u8> {
    watch_signals()?;
    let started = Instant::now();
    let (mut machine, ports) = Machine::start(kernel, guest, hardware)?;
    let (sender, events) = mpsc::channel();
    let copiers = [
        copy(ports.stdout, stdout(), sender.clone()),
        copy(ports.stderr, stderr(), sender.clone()),
    ];
    let control = thread::spawn(move || read_control(ports.control, &sender));

    let mut running_since = None;
    let status = loop {
        match events.recv_timeout(POLL) {
            Ok(Event::Started) => running_since = Some(Instant::now()),
            Ok(Event::Exited(status)) => break status,
            Ok(Event::OutputClosed) => return Ok(OUTPUT_CLOSED),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        if asked_to_stop() {
            return Ok(INTERRUPTED);
        }
        match (running_since, limits.command) {
            (None, _) if started.elapsed() > limits.boot => bail!(
                "the guest did not start the command within {} s\n{}",
                limits.boot.as_secs(),
                machine.last_words()
            ),
            (Some(since), Some(limit)) if since.elapsed() > limit => bail!(
                "the command did not end within {} s\n{}",
                limit.as_secs(),
                machine.last_words()
            ),
            _ => {}
        }
        if let Some(qemu) = machine.ended()? {
            // Its last words may still be on their way through the channel.
            if let Some(status) = events.iter().find_map(exit_status) {
                break status;
            }
            let last_words = machine.last_words();
            if running_since.is_none() {
                return Err(BootFailed { qemu, last_words }.into());
            }
            bail!("the guest ended while the command ran (QEMU: {qemu})\n{last_words}");
        }
    };
    let asked = Instant::now();
    while machine.ended()?.is_none() && asked.elapsed() < POWEROFF_LIMIT && !asked_to_stop() {
        thread::sleep(POLL);
    }
    drop(machine);
    for thread in copiers.into_iter().chain([control]) {
        // A panic in there has printed itself.
        let _ = thread.join();
    }
    Ok(status)
}

fn exit_status(event: Event) -> Option<u8> {
    match event {
        Event::Exited(status) => Some(status),
        Event::Started | Event::OutputClosed => None,
    }
}

/// From here on signals only raise a flag, so that the session can end QEMU and clean up.
fn watch_signals() -> Result<()> {
    static WATCHING: AtomicBool = AtomicBool::new(false);
    if WATCHING.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    ctrlc::set_handler(|| ASKED_TO_STOP.store(true, Ordering::Relaxed))
        .context("cannot handle Ctrl-C")
}

/// Copies as it comes: no line waits for the next one.
fn copy<R, W>(mut from: R, mut to: W, events: Sender<Event>) -> JoinHandle<()>
where
    R: Read + Send + 'static,
    W: Write + Send + 'static,
{
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        // A read error means that QEMU is gone, which the session notices by itself.
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let written = to.write_all(&buffer[..length]).and_then(|()| to.flush());
            if written.is_err() {
                // Nobody listens any more when this fails: the session is already over.
                let _ = events.send(Event::OutputClosed);
                return;
            }
        }
    })
}

fn read_control(port: impl Read, events: &Sender<Event>) {
    for line in BufReader::new(port).lines().map_while(Result::ok) {
        if let Some(event) = parse(&line)
            && events.send(event).is_err()
        {
            return;
        }
    }
}

fn parse(line: &str) -> Option<Event> {
    if line == STARTED {
        return Some(Event::Started);
    }
    line.strip_prefix("exit ")?.parse().ok().map(Event::Exited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_lines_are_understood() {
        assert!(matches!(parse("started"), Some(Event::Started)));
        assert!(matches!(parse("exit 42"), Some(Event::Exited(42))));
        assert!(parse("exit 4200").is_none());
        assert!(parse("noise").is_none());
    }
}
