//! What captures cost: writing, reading, showing and explaining a million events.
//!
//! `cargo bench -p tests --bench capture [-- FILE]` leaves the capture in FILE for other programs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use tracer::capture::{Control, Header, Options, Reader, Recorder, Replay};
use tracer::event::Event;
use tracer::journey::Tracker;
use tracer::kernel::reasons::DropReasons;
use tracer::printer::{Format, Printer, Show};
use tracer::view::model::JourneyView;
use tracer::view::table;
use tracer_ebpf::event as raw;
use tracer_ebpf::hook::HookId;

const EVENTS: usize = 1_000_000;
/// A journey's events: a connection's packet through the stack to its socket.
const WAY: [HookId; 10] = [
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
const NOT_SPECIFIED: u32 = 2;
const NO_SOCKET: u32 = 3;
/// Nanoseconds between two events.
const PACE_NS: u64 = 5_000;
/// Events between two moments at which the trace drew conclusions: 10 ms of them.
const STEP: usize = 2_000;
/// One packet in so many finds no socket.
const FAILS: usize = 1_000;

fn main() -> anyhow::Result<()> {
    let kept = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'))
        .map(PathBuf::from);
    let folder = tempfile::tempdir()?;
    let file = kept.unwrap_or_else(|| folder.path().join("million.pcapng"));
    let events: Vec<raw::Event> = (0..EVENTS).map(event).collect();

    let begun = Instant::now();
    let mut tracker = Tracker::new(Some(NOT_SPECIFIED));
    let mut ended = Vec::new();
    for event in &events {
        if let Some(event) = Event::decode(event) {
            tracker.push(event, &mut ended);
        }
        ended.clear();
    }
    report("decode and join, without a capture", begun, EVENTS);

    write(&file, &events)?;
    drop(events);
    let begun = Instant::now();
    let mut reader = Reader::open(&file)?;
    let mut records = 0;
    while reader.next()?.is_some() {
        records += 1;
    }
    report("read", begun, records);

    let begun = Instant::now();
    let mut replay = Replay::new(Printer::new(Format::Silent, Show::All));
    let mut out = std::io::sink();
    let mut rows = 0;
    replay.run(
        &mut Reader::open(&file)?,
        |_| {},
        |journey, names| {
            if let Some(view) = JourneyView::new(journey, names) {
                rows += usize::from(table::journey(&mut out, &view).is_ok());
            }
        },
    )?;
    report("show --journeys", begun, EVENTS);
    anyhow::ensure!(rows == EVENTS / WAY.len(), "{rows} journeys");

    let begun = Instant::now();
    let mut replay = Replay::new(Printer::new(Format::Silent, Show::Failed));
    replay.run(&mut Reader::open(&file)?, |_| {}, |_, _| {})?;
    report("explain", begun, EVENTS);
    println!("most memory at once: {}", peak()?);
    Ok(())
}

fn report(what: &str, begun: Instant, count: usize) {
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{what:<36} {seconds:>7.3} s  {:>7.0} ns each  {:>10.0} a second",
        seconds * 1e9 / count as f64,
        count as f64 / seconds
    );
}

/// The most memory that this process had, in the kernel's words.
fn peak() -> anyhow::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("the kernel does not say")?;
    Ok(line.trim().to_owned())
}

fn write(file: &Path, events: &[raw::Event]) -> anyhow::Result<()> {
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
        monotonic_ns: 1_000_000_000,
        ..Header::default()
    };
    let reasons: DropReasons = reasons.into_iter().collect();
    let begun = Instant::now();
    let mut handing = std::time::Duration::ZERO;
    let mut recorder = Recorder::start(options, header, Arc::new(reasons))?;
    for batch in events.chunks(STEP) {
        let step = Instant::now();
        for event in batch {
            recorder.event(event);
        }
        let now_ns = batch.last().map_or(0, |event| event.time_ns);
        recorder.control(Control::Step {
            now_ns,
            hurry: false,
        });
        recorder.hand_over()?;
        handing += step.elapsed();
        // The thread is not outrun: what it can do is measured, not what it loses.
        while recorder.is_behind() {
            std::thread::yield_now();
            recorder.hand_over()?;
        }
    }
    let lost = recorder.unwritten();
    let written = recorder.finish()?;
    report("write, both threads", begun, events.len());
    println!(
        "{:<36} {:>7.3} s  {:>7.0} ns each",
        "the trace's own share of writing",
        handing.as_secs_f64(),
        handing.as_secs_f64() * 1e9 / events.len() as f64
    );
    println!(
        "{} events, {lost} lost, {:.1} bytes each",
        written.events,
        written.bytes as f64 / written.events as f64
    );
    Ok(())
}

/// The event with this number: journeys one after the other, on 64 packet buffers.
fn event(number: usize) -> raw::Event {
    let (journey, step) = (number / WAY.len(), number % WAY.len());
    let hook = WAY[step];
    let mut packet = [0; raw::PACKET_BYTES];
    packet[12..14].copy_from_slice(&[8, 0]);
    packet[14..34].copy_from_slice(&[
        0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 0, 10, 244, 1, 15,
    ]);
    packet[18..20].copy_from_slice(&(journey as u16).to_be_bytes());
    // A connection has a hundred packets.
    let client = (journey / 100) as u32;
    packet[26..30].copy_from_slice(&(0x0a00_0000 | client >> 14 & 0xffff).to_be_bytes());
    packet[34..36].copy_from_slice(&(1024 + (client as u16 & 0x3fff)).to_be_bytes());
    packet[36..38].copy_from_slice(&3000u16.to_be_bytes());
    packet[38..42].copy_from_slice(&(journey as u32).to_be_bytes());
    packet[46..48].copy_from_slice(&[0x50, 0x10]);
    let mut detail = raw::Detail {
        bytes: [0; raw::DETAIL_BYTES],
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
            let fails = journey.is_multiple_of(FAILS);
            detail.drop = raw::Drop {
                location: 0xffff_ffff_8180_0000,
                reason: if fails { NO_SOCKET } else { NOT_SPECIFIED },
                reserved: 0,
            };
        }
        _ => {}
    }
    raw::Event {
        time_ns: 1_000_000_000 + number as u64 * PACE_NS,
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
