//! Options of a capture, and what is said when one is written or read.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::Args;
use tracer_ebpf::event::PACKET_BYTES;

use super::run::{blind_spots, host_name, kernel_release};
use super::{Failure, nearest, value};
use crate::capture::{
    Full, Header, LEAST_ROOM, Options, Recorder, Rotate, STANDARD_OUTPUT, Trigger, keep_in,
};
use crate::cause;
use crate::session::Session;
use crate::view::names::Clock;

/// Headers of Ethernet and IPv6, and of TCP up to its flags.
const HEADERS: usize = 68;
/// Every cause fires.
const ANY: &str = "any";

/// What was typed of a capture.
#[derive(Args, Debug)]
pub(super) struct Capture {
    /// Write everything into a capture (pcapng): tracer explain FILE reads it, and so does Wireshark. With
    /// `--format json`, `-` writes it as lines among the others, as `cluster capture` takes it.
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Begin a new file after this size or time and keep so many: 100M,10 or 1h,24. FILE x.pcapng becomes
    /// x.00001.pcapng, x.00002.pcapng and so on, behind those that are there, which count as well;
    /// `cat x.*.pcapng > whole.pcapng` joins them.
    #[arg(long, value_name = "SIZE|TIME,KEEP", requires = "write", value_parser = rotate)]
    rotate: Option<Rotate>,
    /// Keep the last while in memory and write it when this cause, or any, is named.
    #[arg(long, value_name = "CAUSE|any", requires = "write", value_parser = cause)]
    trigger: Option<String>,
    /// Time to keep before the trigger.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = value::duration, requires = "trigger")]
    before: Duration,
    /// Time to keep after the trigger.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = value::duration, requires = "trigger")]
    after: Duration,
    /// Compress the capture with zstd.
    #[arg(long, requires = "write")]
    zstd: bool,
    /// Bytes kept of each packet, payload included: 68, which the headers need, to 128, which the kernel
    /// gives; by default its headers, and the question of DNS.
    #[arg(long, value_name = "BYTES", requires = "write", value_parser = snaplen)]
    snaplen: Option<usize>,
}

/// What a tracer that stays on keeps.
#[derive(Args, Debug)]
pub(super) struct Kept {
    /// Keep a capture of what led to each diagnosis in this folder.
    #[arg(long, value_name = "DIR")]
    capture: Option<PathBuf>,
    /// Most bytes of this node's captures in it; the oldest go first: 500M, 2G.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = room, requires = "capture")]
    capture_limit: u64,
}

impl Kept {
    /// Makes the session keep captures, where that was asked for.
    pub(super) fn start(&self, session: &mut Session) -> anyhow::Result<()> {
        let Some(folder) = &self.capture else {
            return Ok(());
        };
        let options = keep_in(folder, &host_name(), self.capture_limit, SystemTime::now())
            .with_context(|| format!("captures cannot be kept in {}", folder.display()))?;
        let header = header(session, "");
        let reasons = session.kernel().reasons.clone();
        session.record(Recorder::start(options, header, reasons)?);
        Ok(())
    }
}

/// Room for captures.
pub(super) fn room(text: &str) -> Result<u64, String> {
    let bytes = value::bytes(text)?;
    if bytes < LEAST_ROOM {
        return Err(format!("at least {}M are needed", LEAST_ROOM >> 20));
    }
    Ok(bytes)
}

impl Capture {
    /// Refuses what cannot be written to standard output.
    pub(super) fn check(&self, json: bool) -> Result<(), Failure> {
        if self.write.as_deref() != Some(Path::new(STANDARD_OUTPUT)) {
            return Ok(());
        }
        if !json {
            return Err(Failure::usage(
                "-w - writes the capture as lines of JSON: it needs --format json".into(),
            ));
        }
        if self.zstd || self.rotate.is_some() || self.trigger.is_some() {
            return Err(Failure::usage(
                "-w - takes neither --zstd nor --rotate nor --trigger: its lines are one capture"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Makes the session write its capture, where one was asked for.
    pub(super) fn start(&self, session: &mut Session, filter: &str) -> anyhow::Result<()> {
        let Some(path) = &self.write else {
            return Ok(());
        };
        let options = Options {
            path: path.clone(),
            rotate: self.rotate,
            trigger: self.trigger.as_ref().map(|cause| Trigger {
                cause: (cause != ANY).then(|| cause.clone()),
                before: self.before,
                after: self.after,
                most: Trigger::MOST,
            }),
            zstd: self.zstd,
            snaplen: self.snaplen,
        };
        let header = header(session, filter);
        let reasons = session.kernel().reasons.clone();
        session.record(Recorder::start(options, header, reasons)?);
        Ok(())
    }
}

fn header(session: &mut Session, filter: &str) -> Header {
    let tracing = session.tracing();
    let attached = tracing
        .hooks
        .iter()
        .filter_map(|state| {
            let tier = state.outcome.as_ref().ok()?;
            Some((state.hook.id.name().to_owned(), tier.name().to_owned()))
        })
        .collect();
    let not_seen = blind_spots(tracing);
    let kernel = session.kernel();
    // Whole nanoseconds of the wall clock, so that times survive the way into the file and back.
    let clock: Clock = kernel.clock;
    let (wall_ns, monotonic_ns) = clock.both_ns();
    Header {
        node: host_name(),
        kernel: kernel_release(),
        tool: env!("CARGO_PKG_VERSION").into(),
        filter: filter.to_owned(),
        attached,
        not_seen,
        reasons: kernel
            .reasons
            .iter()
            .map(|(number, name)| (number, name.to_owned()))
            .collect(),
        wall_ns,
        monotonic_ns,
    }
}

/// Bytes of a packet. With fewer a capture could not explain itself.
fn snaplen(text: &str) -> Result<usize, String> {
    let length = text.parse().ok();
    length
        .filter(|length| (HEADERS..=PACKET_BYTES).contains(length))
        .ok_or_else(|| {
            format!(
                "{text:?} is no number from {HEADERS}, which the headers need, to {PACKET_BYTES}, which the kernel \
                 gives; without --snaplen the headers alone are kept"
            )
        })
}

/// A code of the catalogue, or `any`.
fn cause(text: &str) -> Result<String, String> {
    if text == ANY || cause::find(text).is_some() {
        return Ok(text.to_owned());
    }
    let codes = cause::CATALOGUE.iter().map(|cause| cause.code);
    Err(format!(
        "no cause is called {text}; the nearest: {}",
        nearest(text, codes).join(", ")
    ))
}

/// `100M,10` or `1h,24`.
fn rotate(text: &str) -> Result<Rotate, String> {
    let wrong = || format!("{text:?} is not SIZE,KEEP or TIME,KEEP, such as 100M,10 or 1h,24");
    let (full, keep) = text.split_once(',').ok_or_else(wrong)?;
    let keep = keep.trim().parse().map_err(|_| wrong())?;
    let at = full
        .find(|letter: char| !letter.is_ascii_digit())
        .ok_or_else(wrong)?;
    let (number, unit) = full.split_at(at);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let full = match unit.trim() {
        "k" | "K" => Full::Bytes(number << 10),
        "M" => Full::Bytes(number << 20),
        "G" => Full::Bytes(number << 30),
        "s" => Full::Time(Duration::from_secs(number)),
        "m" => Full::Time(Duration::from_secs(number * 60)),
        "h" => Full::Time(Duration::from_secs(number * 3600)),
        _ => return Err(wrong()),
    };
    if number == 0 || number > 1 << 20 || keep == 0 {
        return Err(wrong());
    }
    Ok(Rotate { full, keep })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_told_apart() {
        for (text, full, keep) in [
            ("100M,10", Full::Bytes(100 << 20), 10),
            ("64k,2", Full::Bytes(64 << 10), 2),
            ("1h,24", Full::Time(Duration::from_secs(3600)), 24),
            ("5m,1", Full::Time(Duration::from_secs(300)), 1),
        ] {
            assert_eq!(rotate(text), Ok(Rotate { full, keep }), "{text}");
        }
        for text in ["", "10", "10M", "10M,0", "0M,3", "10X,3", "M,3", "10M,x"] {
            assert!(rotate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn so_much_is_kept_that_a_capture_explains_itself() {
        for (text, length) in [("68", 68), ("128", 128)] {
            assert_eq!(snaplen(text), Ok(length));
        }
        for text in ["", "0", "67", "129", "65535", "-1", "many"] {
            let said = snaplen(text).expect_err("out of range");
            assert!(said.contains("68") && said.contains("128"), "{said}");
        }
    }

    #[test]
    fn room_has_a_least_size() {
        assert_eq!(room("1G"), Ok(1 << 30));
        assert_eq!(room("512MiB"), Ok(512 << 20));
        for text in ["", "1M", "lots"] {
            assert!(room(text).is_err(), "{text}");
        }
    }
}
