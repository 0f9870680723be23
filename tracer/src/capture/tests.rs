//! What a capture promises, on one made here: round trip, damage at every byte, both byte orders, other
//! programs' files.

mod filtered;
mod kept;
mod named;
mod others;
mod shown;

use std::fs;
use std::io::{Cursor, Write as _};
use std::path::Path;
use std::sync::Arc;

use tracer_ebpf::hook::HookId;

use super::block::{self, Builder, option};
use super::encoder::{Encoder, Told};
use super::record::{Control, FRAME_BYTES, Header, Headers, Record};
use super::{ReadError, Reader, Replay};
use crate::event::{Arp, Detail, Event, Packet, Tuple};
use crate::kernel::reasons::DropReasons;
use crate::node::{Link, NetnsFacts, NetnsId, Occasion, Reading, Snapshot};
use crate::printer::{Format, Printer, Show};

const WALL: u64 = 1_800_000_000_123_456_789;
const MONOTONIC: u64 = 5_000_000_000;
const NETNS: u32 = 4_026_531_840;

/// Ethernet, IPv4 and TCP: a SYN from 192.168.3.10:36380 to 192.168.3.187:30000.
fn syn() -> Headers {
    let mut bytes = [0; FRAME_BYTES];
    bytes[12..14].copy_from_slice(&[8, 0]);
    bytes[14..34].copy_from_slice(&[
        0x45, 0, 0, 60, 0x64, 0x5e, 0x40, 0, 64, 6, 0, 0, 192, 168, 3, 10, 192, 168, 3, 187,
    ]);
    bytes[34..54].copy_from_slice(&[
        0x8e, 0x1c, 0x75, 0x30, 0x15, 0x57, 0x8a, 0xf4, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0,
    ]);
    Headers {
        bytes,
        length: 66,
        network: 14,
        protocol: 0x0800u16.to_be(),
    }
}

fn event(number: u64, hook: HookId, detail: Detail) -> Event {
    let headers = syn();
    Event {
        time_ns: MONOTONIC + number * 1_000,
        skb: 0xffff_8880_1234_5600,
        netns: Some(NETNS),
        ifindex: Some(2),
        length: Some(60),
        mark: Some(0x4000),
        hook,
        detail,
        packet: Packet::parse(&headers.bytes, 14),
        not_ip: false,
        arp: None,
    }
}

/// Everything that happened to a refused packet; details of every kind among it.
fn events() -> Vec<Event> {
    let at = |text: &str| text.parse().expect("an address");
    let tuple = |source, destination| Tuple {
        protocol: 6,
        source: at(source),
        destination: at(destination),
    };
    let details = [
        (HookId::DeviceReceive, Detail::None),
        (
            HookId::ConntrackTcp,
            Detail::Conntrack {
                original: tuple("192.168.3.10:36380", "192.168.3.187:30000"),
                reply: tuple("192.168.3.187:30000", "192.168.3.10:36380"),
                destination_nat: true,
                relation: Some(2),
                status: 8,
                zone: 3,
            },
        ),
        (
            HookId::LocalDeliver,
            Detail::Route {
                kind: 2,
                error: 0,
                ifindex: Some(1),
            },
        ),
        (
            HookId::NeighbourQueue,
            Detail::Neighbour {
                address: at("[2001:db8::1]:0").ip(),
                ifindex: 2,
            },
        ),
        (HookId::IcmpSend, Detail::Icmp { kind: 3, code: 3 }),
        (HookId::TcpReset, Detail::None),
        (
            HookId::IpvsNatTransmit,
            Detail::Sent {
                real: at("10.244.1.15:3000"),
                forwarding: 0,
                protocol: 6,
                state: 5,
            },
        ),
        (
            HookId::Drop,
            Detail::Drop {
                location: 0xffff_ffff_8123_4567,
                reason: Some(3),
            },
        ),
    ];
    (0..)
        .zip(details)
        .map(|(number, (hook, detail))| event(number, hook, detail))
        .collect()
}

fn header() -> Header {
    Header {
        node: "node-1".into(),
        kernel: "6.1.0".into(),
        tool: "0.1.0".into(),
        attached: vec![("drop".into(), "tracepoint".into())],
        reasons: vec![(3, "NO_SOCKET".into())],
        wall_ns: WALL,
        monotonic_ns: MONOTONIC,
        ..Header::default()
    }
}

fn facts() -> Snapshot {
    let mut namespace = NetnsFacts::unread(NetnsId(NETNS), Some("node"));
    namespace.links = vec![
        Link::named(1, Some("lo".into())),
        Link::named(2, Some("enp1s0".into())),
    ];
    let mut facts = Snapshot::empty();
    facts.namespaces.push(namespace);
    facts
}

/// A capture, and the length that it had after each block.
fn capture() -> (Vec<u8>, Vec<usize>) {
    let reasons: DropReasons = header().reasons.into_iter().collect();
    let mut encoder = Encoder::new(header(), Arc::new(reasons), None);
    encoder.know_facts(&Arc::new(facts()));
    let mut bytes = Vec::new();
    let mut put = |encoder: &mut Encoder, record| {
        encoder.record(record, &mut bytes).expect("a record");
    };
    let mut start = Vec::new();
    encoder.begin(&mut start).expect("a beginning");
    let symbols = vec![(0xffff_ffff_8123_4567, "tcp_v4_rcv".to_owned())];
    put(&mut encoder, Record::Symbols(symbols));
    for event in &events() {
        let told = Told {
            event,
            journey: Some(7),
            headers: Some(syn()),
            borrowed: false,
            site: (event.netns, event.ifindex),
            words: "what happened",
        };
        encoder.event(&told, &mut bytes).expect("an event");
    }
    let reading = Reading {
        occasion: Occasion::Names,
        facts: Arc::new(facts()),
    };
    let control = Control::Step {
        now_ns: MONOTONIC + 1_000_000,
        hurry: true,
    };
    for record in [Record::Facts(reading), Record::Control(control)] {
        encoder.record(record, &mut bytes).expect("a record");
    }
    encoder.end(&mut bytes);
    start.extend(bytes);
    let mut ends = vec![];
    let mut at = 0;
    while at < start.len() {
        let length = block::Order::Little.u32(&start, at + 4).expect("a length");
        at += length as usize;
        ends.push(at);
    }
    (start, ends)
}

/// What can be read, and how it ends.
fn read(bytes: Vec<u8>) -> (Vec<String>, Option<ReadError>) {
    let mut records = Vec::new();
    let mut reader = match Reader::from_stream(Cursor::new(bytes)) {
        Ok(reader) => reader,
        Err(error) => return (records, Some(error)),
    };
    loop {
        match reader.next() {
            Ok(Some(record)) => records.push(format!("{record:?}")),
            Ok(None) => return (records, None),
            Err(error) => return (records, Some(error)),
        }
    }
}

#[test]
fn what_is_written_is_read() {
    let (bytes, _) = capture();
    let mut reader = Reader::from_stream(Cursor::new(bytes)).expect("a capture");
    let (mut found, mut moments) = (Vec::new(), 0);
    while let Some(record) = reader.next().expect("no damage") {
        match record {
            Record::Header(read) => assert_eq!(*read, header()),
            Record::Event(sighting) => {
                assert_eq!(sighting.journey, Some(7));
                found.push(sighting.event);
            }
            Record::Facts(reading) => assert_eq!(*reading.facts, facts()),
            Record::Symbols(symbols) => assert_eq!(symbols[0].1, "tcp_v4_rcv"),
            Record::Control(_) => moments += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(found, events());
    assert_eq!(moments, 1);
    // The first stands for no device: it gives the file its link type.
    let names = reader
        .interfaces()
        .iter()
        .map(|interface| interface.name.as_deref());
    assert_eq!(
        names.collect::<Vec<_>>(),
        [Some("-/-"), Some("node/enp1s0")]
    );
}

#[test]
fn what_arp_says_is_read_again() {
    let mut framed = syn();
    framed.bytes[12..14].copy_from_slice(&[8, 6]);
    framed.bytes[14..42].copy_from_slice(&[
        0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 192, 0, 2, 2,
    ]);
    (framed.length, framed.protocol) = (42, 0x0806u16.to_be());
    let asked = Event {
        packet: None,
        not_ip: true,
        arp: Arp::parse(&framed.bytes[14..]),
        ..event(0, HookId::DeviceReceive, Detail::None)
    };
    assert!(asked.arp.is_some());
    let mut bare = framed;
    bare.bytes.copy_within(14.., 0);
    (bare.length, bare.network) = (28, 0);
    for headers in [framed, bare] {
        let mut encoder = Encoder::new(header(), Arc::default(), None);
        let mut bytes = Vec::new();
        encoder.begin(&mut bytes).expect("a beginning");
        let told = Told {
            event: &asked,
            journey: None,
            headers: Some(headers),
            borrowed: false,
            site: (asked.netns, asked.ifindex),
            words: "",
        };
        encoder.event(&told, &mut bytes).expect("an event");
        let mut reader = Reader::from_stream(Cursor::new(bytes)).expect("a capture");
        let mut found = Vec::new();
        while let Some(record) = reader.next().expect("no damage") {
            if let Record::Event(sighting) = record {
                found.push(sighting.event);
            }
        }
        assert_eq!(found, std::slice::from_ref(&asked));
    }
}

#[test]
fn a_capture_cut_anywhere_gives_what_is_before() {
    let (bytes, ends) = capture();
    let (whole, error) = read(bytes.clone());
    assert!(error.is_none(), "{error:?}");
    for length in 0..bytes.len() {
        let (records, error) = read(bytes[..length].to_vec());
        assert_eq!(records, whole[..records.len()], "cut at {length}");
        let (before, _) = read(bytes[..complete(&ends, length)].to_vec());
        assert_eq!(records.len(), before.len(), "cut at {length}");
        if ends.contains(&length) {
            assert!(error.is_none(), "cut at {length}: {error:?}");
            continue;
        }
        match error {
            Some(ReadError::Damage { position, .. }) => {
                assert_eq!(
                    position as usize,
                    complete(&ends, length),
                    "cut at {length}"
                );
            }
            other => panic!("cut at {length}: {other:?}"),
        }
    }
}

/// The end of the last block that ends at or before a place.
fn complete(ends: &[usize], at: usize) -> usize {
    ends.iter().copied().rfind(|&end| end <= at).unwrap_or(0)
}

#[test]
fn a_flipped_byte_costs_nothing_before_it() {
    let (bytes, ends) = capture();
    let (whole, _) = read(bytes.clone());
    for at in 0..bytes.len() {
        let (before, _) = read(bytes[..complete(&ends, at)].to_vec());
        for mask in [0x01, 0x80, 0xff] {
            let mut flipped = bytes.clone();
            flipped[at] ^= mask;
            let (records, _) = read(flipped);
            assert!(records.len() >= before.len(), "byte {at} ^ {mask:#x}");
            assert_eq!(records[..before.len()], whole[..before.len()], "byte {at}");
        }
    }
}

#[test]
fn lengths_that_cannot_be_are_damage_and_take_no_memory() {
    let (bytes, ends) = capture();
    for length in [0u32, 11, 13, 64 << 20, !3] {
        let mut wrong = bytes.clone();
        wrong[ends[1] + 4..ends[1] + 8].copy_from_slice(&length.to_le_bytes());
        let (_, error) = read(wrong);
        let Some(ReadError::Damage {
            position, reason, ..
        }) = error
        else {
            panic!("{length}: {error:?}");
        };
        assert_eq!(position as usize, ends[1], "{reason}");
    }
}

#[test]
fn packed_captures_are_read() {
    let (bytes, _) = capture();
    let (whole, _) = read(bytes.clone());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).expect("gzip");
    let gzip = gzip.finish().expect("gzip");
    let zstd = zstd::stream::encode_all(Cursor::new(&bytes), 1).expect("zstd");
    for packed in [gzip, zstd] {
        let (records, error) = read(packed.clone());
        assert!(error.is_none(), "{error:?}");
        assert_eq!(records, whole);
        let (records, error) = read(packed[..packed.len() - 9].to_vec());
        let said = error.expect("what is missing").to_string();
        assert!(said.contains("of what it unpacks to"), "{said}");
        assert_eq!(records, whole[..records.len()]);
    }
}

#[test]
fn a_wrong_checksum_at_the_end_of_a_packed_capture_costs_no_record() {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/captures");
    let mut packed = fs::read(captures.join("vip-nodeport-unbound.pcapng")).expect("a capture");
    let (whole, error) = read(packed.clone());
    assert!(error.is_none(), "{error:?}");
    let last = packed.len() - 1;
    packed[last] ^= 1;
    let (records, error) = read(packed);
    assert!(records == whole, "{} of {}", records.len(), whole.len());
    let said = error.expect("the checksum is wrong").to_string();
    assert!(!said.contains("byte 0 "), "{said}");
}

#[test]
fn a_later_tracers_records_are_passed_over() {
    let (bytes, _) = capture();
    let (whole, _) = read(bytes.clone());
    let mut later = bytes;
    for head in [[99u8, 0, 1, 0, 0, 0, 0, 0], [3, 0, 200, 0, 0, 0, 0, 0]] {
        let mut custom = Builder::new(&mut later, block::CUSTOM);
        custom.u32(super::ENTERPRISE);
        custom.bytes(&head);
        custom.end();
    }
    let mut reader = Reader::from_stream(Cursor::new(later)).expect("a capture");
    let mut count = 0;
    while reader.next().expect("no damage").is_some() {
        count += 1;
    }
    assert_eq!(count, whole.len());
    let skipped: Vec<_> = reader.skipped().iter().collect();
    assert_eq!(
        skipped,
        [
            (
                "records of kind 3 in version 200, which a later tracer wrote",
                1
            ),
            ("records of kind 99, which a later tracer wrote", 1)
        ]
    );
}

/// A pcapng file of another program, in either byte order, with microseconds and a direction.
fn foreign(big: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let u32 = |value: u32| {
        if big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    };
    let u16 = |value: u16| {
        if big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    };
    let mut put = |kind: u32, body: &[u8]| {
        let length = u32((12 + body.len()) as u32);
        bytes.extend([&u32(kind)[..], &length, body, &length].concat());
    };
    let section = [&u32(block::ORDER_MAGIC)[..], &u16(1), &u16(0), &[0xff; 8]].concat();
    put(block::SECTION, &section);
    let name = [&u16(option::INTERFACE_NAME)[..], &u16(4), b"eth0", &[0; 4]].concat();
    put(
        block::INTERFACE,
        &[&u16(1)[..], &[0; 2], &u32(0), &name].concat(),
    );
    let time = WALL / 1000;
    let headers = syn();
    let packet = [
        &u32(0)[..],
        &u32((time >> 32) as u32),
        &u32(time as u32),
        &u32(56),
        &u32(74),
        &headers.bytes[..56],
        &u16(option::PACKET_FLAGS),
        &u16(4),
        &u32(2),
        &[0; 4],
    ]
    .concat();
    put(block::PACKET, &packet);
    bytes
}

#[test]
fn other_programs_packets_become_journeys_of_their_interface() {
    for bytes in [foreign(false), foreign(true)] {
        let mut reader = Reader::from_stream(Cursor::new(bytes)).expect("a capture");
        let mut replay = Replay::new(Printer::new(Format::Silent, Show::All));
        let mut told = Vec::new();
        let ended = replay
            .run(
                &mut reader,
                |_| {},
                |journey, names| {
                    let tuple = journey.first_tuple().expect("addresses");
                    told.push((
                        tuple.destination.to_string(),
                        names.device(Some(0), 1),
                        names.clock.wall_ns(journey.start_ns()),
                    ));
                },
            )
            .expect("no trouble");
        assert!(ended.error.is_none(), "{:?}", ended.error);
        let time = WALL / 1000 * 1000;
        assert_eq!(told, [("192.168.3.187:30000".into(), "eth0".into(), time)]);
    }
}

#[test]
fn classic_captures_are_read() {
    for (magic, unit) in [(0xa1b2_c3d4u32, 1000), (0xa1b2_3c4d, 1)] {
        for big in [false, true] {
            let u32 = |value: u32| {
                if big {
                    value.to_be_bytes()
                } else {
                    value.to_le_bytes()
                }
            };
            let headers = syn();
            let part = (WALL % 1_000_000_000 / unit) as u32;
            let mut bytes = [
                &u32(magic)[..],
                &[0; 12],
                &u32(65535),
                &u32(1),
                &u32((WALL / 1_000_000_000) as u32),
                &u32(part),
                &u32(54),
                &u32(74),
                &headers.bytes[..54],
            ]
            .concat();
            let (records, error) = read(bytes.clone());
            assert!(error.is_none(), "{error:?}");
            let time = WALL / unit * unit;
            assert!(records[0].contains(&time.to_string()), "{records:?}");
            assert!(records[0].contains("192.168.3.187:30000"), "{records:?}");
            bytes.truncate(bytes.len() - 1);
            let (records, error) = read(bytes);
            assert!(records.is_empty() && error.is_some());
        }
    }
}

#[test]
fn what_is_no_capture_is_said() {
    for (bytes, why) in [
        (&b""[..], "empty"),
        (b"GIF89a", "neither"),
        (&[0; 100], "neither"),
    ] {
        let (records, error) = read(bytes.to_vec());
        assert!(records.is_empty());
        let said = error.expect("it is none").to_string();
        assert!(said.contains("byte 0") && said.contains(why), "{said}");
    }
}
