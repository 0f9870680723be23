//! What captures cost: writing, showing and explaining a million events. Prints one JSON object a line.
//!
//! `cargo bench -p tests --bench capture -- --tracer PATH`; `cargo xtask bench capture` builds both.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::time::{ClockId, clock_gettime};
use serde_json::json;
use tracer::capture::{Control, Header, Options, Recorder};
use tracer::event::Decoder;
use tracer::journey::{SocketReasons, Tracker};
use tracer::kernel::reasons::DropReasons;
use tracer_ebpf::event as raw;
use tracer_ebpf::hook::HookId;

const EVENTS: usize = 1_000_000;
/// What writing may add to the collector's own time.
const MOST_WRITING: f64 = 0.3;
const MOST_BYTES: f64 = 200.0;
const MOST_EXPLAINING_S: f64 = 5.0;
const MOST_EXPLAINING_MIB: f64 = 500.0;
const MOST_OF_TSHARK: f64 = 0.1;
/// Twice as many events that all fail may take so many times as long.
const MOST_GROWTH: f64 = 2.5;
/// Where nothing but failures is explained: so many events, then twice as many.
const FAILING: usize = 125_000;
/// How often each of them is explained; the quickest counts.
const TIMES: usize = 3;
/// Events of one journey.
const STEPS: usize = 10;
/// A journey's events: a connection's packet through the stack to its socket.
const WAY: [HookId; STEPS] = [
    HookId::DeviceReceive,
    HookId::Ip4Receive,
    HookId::NetfilterHook,
    HookId::ConntrackTcp,
    HookId::RouteInput,
    HookId::LocalDeliver,
    HookId::NetfilterHook,
    HookId::TcpReceive,
    HookId::TcpDeliver,
    HookId::Drop,
];
/// The same where nothing listens.
const REFUSED: [HookId; STEPS] = [
    HookId::DeviceReceive,
    HookId::Ip4Receive,
    HookId::NetfilterHook,
    HookId::ConntrackTcp,
    HookId::RouteInput,
    HookId::LocalDeliver,
    HookId::NetfilterHook,
    HookId::TcpReceive,
    HookId::TcpReset,
    HookId::Drop,
];
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;
/// CLOCK_MONOTONIC of the first event.
const STARTED_NS: u64 = 1_000_000_000;
const NOT_SPECIFIED: u32 = 2;
const NO_SOCKET: u32 = 3;
/// Nanoseconds between two events.
const PACE_NS: u64 = 5_000;
/// The same where all fail: a connection every tenth of a second, for so long that causes are looked for again
/// and again.
const SLOW_PACE_NS: u64 = 10_000_000;
/// Events between two moments at which the trace drew conclusions: 10 ms of them.
const STEP: usize = 2_000;
/// The same where all fail: a second of them.
const SLOW_STEP: usize = 100;
/// One packet in so many finds no socket.
const FAILS: usize = 1_000;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let tracer = arguments
        .find(|argument| argument == "--tracer")
        .and_then(|_| arguments.next())
        .context("usage: capture --tracer PATH")?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("million.pcapng");
    let events: Vec<raw::Event> = (0..EVENTS).map(event).collect();
    let written = write(&file, &events, STEP)?;
    drop(events);
    row(
        "capture: events joined and written a second",
        EVENTS as f64 / written.whole.as_secs_f64(),
        "1/s",
        None,
    );
    row(
        "capture: bytes an event, not packed",
        written.bytes as f64 / EVENTS as f64,
        "bytes",
        Some(MOST_BYTES),
    );
    row(
        "capture: writing against decoding and joining",
        written.handing.as_secs_f64() / written.joining.as_secs_f64(),
        "times",
        Some(MOST_WRITING),
    );
    let file = file.to_string_lossy();
    let explain = run(&[&tracer, "explain", &file])?;
    row(
        "capture: explaining a million events",
        explain.as_secs_f64(),
        "s",
        Some(MOST_EXPLAINING_S),
    );
    // The largest child so far, which is the one before.
    let kib = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    row(
        "capture: memory while explaining",
        kib as f64 / 1024.0,
        "MiB",
        Some(MOST_EXPLAINING_MIB),
    );
    let show = run(&[&tracer, "show", &file])?;
    row(
        "capture: packets shown a second",
        EVENTS as f64 / show.as_secs_f64(),
        "1/s",
        None,
    );
    match run(&["tshark", "-r", &file]) {
        Ok(tshark) => row(
            "capture: showing against tshark",
            show.as_secs_f64() / tshark.as_secs_f64(),
            "times",
            Some(MOST_OF_TSHARK),
        ),
        Err(error) => println!(
            "{}",
            json!({"name": "capture: showing against tshark", "skipped": format!("{error:#}")})
        ),
    }
    explain_failures(&tracer, folder.path())
}

/// Explains captures in which every connection fails in the same way.
fn explain_failures(tracer: &str, folder: &Path) -> anyhow::Result<()> {
    let explain = |count: usize| -> anyhow::Result<Duration> {
        let file = folder.join(format!("failing-{count}.pcapng"));
        let events: Vec<raw::Event> = (0..count).map(failing).collect();
        write(&file, &events, SLOW_STEP)?;
        drop(events);
        let file = file.to_string_lossy();
        let mut times = Vec::new();
        for _ in 0..TIMES {
            let before = children_spent()?;
            run(&[tracer, "explain", &file])?;
            times.push(children_spent()? - before);
        }
        times.into_iter().min().context("it ran")
    };
    let (once, twice) = (explain(FAILING)?, explain(2 * FAILING)?);
    row(
        "capture: explaining twice as many failures",
        twice.as_secs_f64() / once.as_secs_f64(),
        "times",
        Some(MOST_GROWTH),
    );
    row(
        "capture: explaining a million events that all fail",
        explain(EVENTS)?.as_secs_f64(),
        "s",
        Some(MOST_EXPLAINING_S),
    );
    Ok(())
}

/// A line for `cargo xtask bench`.
fn row(name: &str, value: f64, unit: &str, at_most: Option<f64>) {
    println!(
        "{}",
        json!({"name": name, "value": value, "unit": unit, "at_most": at_most})
    );
}

/// How long a program takes over the capture.
fn run(words: &[&str]) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let status = Command::new(words[0])
        .args(&words[1..])
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("{} cannot be started", words[0]))?;
    // 1: a cause was named.
    anyhow::ensure!(
        matches!(status.code(), Some(0 | 1)),
        "{} failed: {status}",
        words[0]
    );
    Ok(begun.elapsed())
}

/// Processor time of this thread so far: others that take its processor away do not count.
fn spent() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Processor time of the programs that ended so far.
fn children_spent() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = [usage.user_time(), usage.system_time()].map(|time| time.num_microseconds());
    Ok(Duration::from_micros(
        micros.iter().sum::<i64>().try_into()?,
    ))
}

/// What writing a capture came to.
struct Written {
    bytes: u64,
    whole: Duration,
    /// What the events cost the trace until they are journeys.
    joining: Duration,
    /// What it cost the trace that they are written as well.
    handing: Duration,
}

/// Takes events as a trace does that writes no capture.
fn join(decoder: &mut Decoder, tracker: &mut Tracker, events: &[raw::Event]) {
    let mut ended = Vec::new();
    for event in events {
        if let Some(event) = decoder.decode(event) {
            tracker.push(event, &mut ended);
        }
        ended.clear();
    }
}

/// Writes the capture of a trace that drew conclusions after every `step` events.
fn write(file: &Path, events: &[raw::Event], step: usize) -> anyhow::Result<Written> {
    let options = Options {
        path: file.to_owned(),
        rotate: None,
        trigger: None,
        zstd: false,
        snaplen: None,
    };
    let reasons = [
        (NOT_SPECIFIED, "NOT_SPECIFIED".to_owned()),
        (NO_SOCKET, "NO_SOCKET".to_owned()),
    ];
    let header = Header {
        node: "bench".into(),
        kernel: "none".into(),
        tool: env!("CARGO_PKG_VERSION").into(),
        reasons: reasons.to_vec(),
        wall_ns: 1_800_000_000_000_000_000,
        monotonic_ns: STARTED_NS,
        ..Header::default()
    };
    let reasons: DropReasons = reasons.into_iter().collect();
    let mut decoder = Decoder::default();
    let mut tracker = Tracker::new(SocketReasons::from_iter([(NOT_SPECIFIED, "NOT_SPECIFIED")]));
    let begun = Instant::now();
    let (mut joining, mut handing) = (Duration::ZERO, Duration::ZERO);
    let mut recorder = Recorder::start(options, header, Arc::new(reasons))?;
    for batch in events.chunks(step) {
        let now_ns = batch.last().map_or(0, |event| event.time_ns);
        // In turns, so that whatever else this machine does slows both.
        let before = spent();
        join(&mut decoder, &mut tracker, batch);
        joining += spent() - before;
        // A trace owns what came out of the ring buffer.
        let batch = batch.to_vec();
        let before = spent();
        recorder.events(batch);
        recorder.control(Control::Step {
            now_ns,
            hurry: false,
        });
        recorder.hand_over()?;
        handing += spent() - before;
        // The thread is not outrun: what it can do is measured, not what it loses.
        while recorder.is_behind() {
            std::thread::yield_now();
            recorder.hand_over()?;
        }
    }
    let lost = recorder.unwritten();
    let written = recorder.finish()?.context("the capture gave up")?;
    anyhow::ensure!(
        lost == 0 && written.events == events.len() as u64,
        "{lost} events lost"
    );
    Ok(Written {
        bytes: written.bytes,
        whole: begun.elapsed(),
        joining,
        handing,
    })
}

/// The event with this number: journeys one after the other, on 64 packet buffers.
fn event(number: usize) -> raw::Event {
    let (journey, step) = (number / STEPS, number % STEPS);
    let fails = journey.is_multiple_of(FAILS);
    // A connection has a hundred packets.
    let mut event = packet_event(journey, step, WAY[step], journey / 100, TCP_ACK, fails);
    event.time_ns = STARTED_NS + number as u64 * PACE_NS;
    event
}

/// The same where every packet opens a connection of its own, and is refused.
fn failing(number: usize) -> raw::Event {
    let (journey, step) = (number / STEPS, number % STEPS);
    let mut event = packet_event(journey, step, REFUSED[step], journey, TCP_SYN, true);
    event.time_ns = STARTED_NS + number as u64 * SLOW_PACE_NS;
    event
}

/// What happens to a packet at a hook on its way; its time is left open.
fn packet_event(
    journey: usize,
    step: usize,
    hook: HookId,
    client: usize,
    flags: u8,
    fails: bool,
) -> raw::Event {
    let mut packet = [0; raw::PACKET_BYTES];
    packet[12..14].copy_from_slice(&[8, 0]);
    packet[14..34].copy_from_slice(&[
        0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 0, 10, 244, 1, 15,
    ]);
    packet[18..20].copy_from_slice(&(journey as u16).to_be_bytes());
    let client = client as u32;
    packet[26..30].copy_from_slice(&(0x0a00_0000 | client >> 14 & 0xffff).to_be_bytes());
    packet[34..36].copy_from_slice(&(1024 + (client as u16 & 0x3fff)).to_be_bytes());
    packet[36..38].copy_from_slice(&3000u16.to_be_bytes());
    packet[38..42].copy_from_slice(&(journey as u32).to_be_bytes());
    packet[46..48].copy_from_slice(&[0x50, flags]);
    let mut detail = raw::Detail {
        words: [0; raw::DETAIL_BYTES / 8],
    };
    match hook {
        HookId::NetfilterHook => {
            detail.netfilter = raw::Netfilter {
                hook: u8::from(step > 4),
                family: 2,
            };
        }
        HookId::ConntrackTcp => {
            let tuple = raw::Tuple {
                source: address([10, 0, 0, 1]),
                source_port: 1024u16.to_be(),
                family_or_status: 2,
                destination: address([10, 244, 1, 15]),
                destination_port: 3000u16.to_be(),
                protocol_or_manipulation: 6,
                direction: 0,
            };
            detail.conntrack = raw::Conntrack {
                original: tuple,
                reply: tuple,
            };
        }
        HookId::LocalDeliver => {
            detail.route = raw::Route {
                kind: 2,
                error: 0,
                ifindex: 1,
            };
        }
        HookId::TcpDeliver => {
            detail.socket = raw::Socket {
                state: 1,
                reserved: 0,
                port: 3000,
            };
        }
        HookId::Drop => {
            detail.drop = raw::Drop {
                location: 0xffff_ffff_8180_0000,
                reason: if fails { NO_SOCKET } else { NOT_SPECIFIED },
                addressee: 0,
                reserved: [0; 3],
            };
        }
        _ => {}
    }
    raw::Event {
        time_ns: 0,
        skb: 0xffff_8880_0000_0000 + (journey as u64 % 64) * 256,
        netns: 4_026_531_840,
        ifindex: 2,
        length: 60,
        mark: 0,
        hook: hook as u16,
        valid: raw::valid::NETNS
            | raw::valid::IFINDEX
            | raw::valid::PACKET
            | raw::valid::SKB
            | raw::valid::DETAIL,
        protocol: 0x0800u16.to_be(),
        packet_len: 66,
        network_offset: 14,
        detail,
        packet,
    }
}

fn address(octets: [u8; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&octets);
    bytes
}
