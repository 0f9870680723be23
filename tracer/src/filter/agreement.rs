//! Generated expressions over generated packets: three answers agree with the meaning evaluated as it
//! stands: the program's on what the kernel's code reads of a frame, what captures match (the frame decoded
//! to an event), and tcpdump's own.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use tracer_ebpf::event::valid;
use tracer_ebpf::hook::HookId;
use tracer_ebpf::program::{Instruction, kind, network, side};

use super::meaning::{Predicate, Side, Test};
use super::*;
use crate::event::constructed;

const ETHERNET: usize = 14;

fn one_of(words: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    proptest::sample::select(words)
}

/// One test; the values are few, so that packets often match.
fn term() -> impl Strategy<Value = String> {
    const DIRECTION: &[&str] = &["", "src ", "dst ", "src or dst ", "src and dst "];
    const TRANSPORT: &[&str] = &["", "tcp ", "udp ", "sctp "];
    const PORTS: &[&str] = &[
        "53",
        "80",
        "30000",
        "domain",
        "ssh",
        "80 or 53",
        "(1 or 443)",
    ];
    const RANGES: &[&str] = &["1-80", "53-53", "443-30000", "ssh-http", "ssh-domain"];
    const HOSTS: &[&str] = &["10.0.0.1", "10.0.1.2", "192.0.2.1", "10.0.0.1 or 192.0.2.1"];
    const NETS: &[&str] = &[
        "10",
        "10.0",
        "10.0.1",
        "10.0.0.0/23",
        "192.0.2.1/32",
        "0.0.0.0/0",
        "10.0.0.0 mask 255.0.255.0",
    ];
    const HOSTS6: &[&str] = &["2001:db8::1", "2001:db8:1::2"];
    const NETS6: &[&str] = &["2001:db8::/48", "2001:db8::/32", "::/0", "2001:db8::1/128"];
    let joined = |(a, b, c, d)| format!("{a}{b}{c}{d}");
    prop_oneof![
        2 => one_of(&["tcp", "udp", "sctp", "icmp", "icmp6", "ip", "ip6", "arp"]).prop_map(str::to_owned),
        3 => (one_of(TRANSPORT), one_of(DIRECTION), Just("port "), one_of(PORTS)).prop_map(joined),
        1 => (one_of(TRANSPORT), one_of(DIRECTION), Just("portrange "), one_of(RANGES)).prop_map(joined),
        3 => (one_of(&["", "ip ", "arp "]), one_of(DIRECTION), Just("host "), one_of(HOSTS)).prop_map(joined),
        3 => (one_of(&["", "ip ", "arp "]), one_of(DIRECTION), Just("net "), one_of(NETS)).prop_map(joined),
        2 => (one_of(&["", "ip6 "]), one_of(DIRECTION), Just("host "), one_of(HOSTS6)).prop_map(joined),
        2 => (one_of(&["", "ip6 "]), one_of(DIRECTION), Just("net "), one_of(NETS6)).prop_map(joined),
        1 => (one_of(&["", "ip ", "ip6 "]), Just("proto "), one_of(&["6", "17", "47", "1", "58", "\\tcp"]), Just("")).prop_map(joined),
    ]
    // tcpdump refuses what its table of ports gives to another protocol.
    .prop_filter("ssh is TCP's", |text| {
        !text.contains("ssh") || !text.starts_with("udp") && !text.starts_with("sctp")
    })
}

fn expression() -> impl Strategy<Value = String> {
    term().prop_recursive(3, 10, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| format!("not {one}")),
            inner.clone().prop_map(|one| format!("not ({one})")),
            (
                inner.clone(),
                one_of(&[" and ", " or ", " && ", " || "]),
                inner.clone()
            )
                .prop_map(|(one, sign, two)| format!("{one}{sign}{two}")),
            (inner.clone(), one_of(&[" and ", " or "]), inner)
                .prop_map(|(one, sign, two)| format!("({one}){sign}({two})")),
        ]
    })
}

/// An Ethernet frame, and the one that goes the other way.
type Frames = [Vec<u8>; 2];

/// Frames around few addresses and ports: IPv4 with options and fragments, IPv6 with a header between, ARP,
/// and what is none of them.
fn frames() -> impl Strategy<Value = Frames> {
    let address = proptest::sample::select(vec![
        [10, 0, 0, 1],
        [10, 0, 1, 2],
        [192, 0, 2, 1],
        [10, 9, 0, 7],
    ]);
    let address6 = proptest::sample::select(vec!["2001:db8::1", "2001:db8:1::2", "fe80::1"])
        .prop_map(|text| {
            text.parse::<Ipv6Addr>()
                .map_or([0; 16], |address| address.octets())
        });
    let port = proptest::sample::select(vec![1_u16, 22, 53, 80, 443, 30000]);
    let protocol = proptest::sample::select(vec![6_u8, 17, 132, 1, 58, 47]);
    let four = (
        (address.clone(), address.clone(), protocol.clone()),
        (port.clone(), port.clone()),
        (
            0_u8..3,
            proptest::sample::select(vec![0_u16, 0, 0, 0x2000, 0x2003, 5]),
        ),
    )
        .prop_map(
            |((source, destination, protocol), ports, (options, fragment))| {
                both_ways(
                    (source, destination),
                    ports,
                    |[source, destination], ports| {
                        let mut bytes = vec![0x45 + options, 0, 0, 60, 0, 7];
                        bytes.extend(fragment.to_be_bytes());
                        bytes.extend([64, protocol, 0, 0]);
                        bytes.extend(source.iter().chain(&destination));
                        bytes.extend(std::iter::repeat_n(1, 4 * usize::from(options)));
                        bytes.extend(transport(ports));
                        (0x0800_u16, bytes)
                    },
                )
            },
        );
    // No header between, hop-by-hop options, a fragment header and destination options.
    let between = proptest::sample::select(vec![None, None, Some(0_u8), Some(44), Some(60)]);
    let six = (
        (address6.clone(), address6),
        protocol,
        (port.clone(), port),
        between,
    )
        .prop_map(|(ends, protocol, ports, between)| {
            both_ways(ends, ports, |[source, destination], ports| {
                let mut behind = match between {
                    Some(44) => vec![protocol, 0, 0, 1, 0, 0, 0, 9],
                    Some(_) => vec![protocol, 0, 1, 4, 0, 0, 0, 0],
                    None => Vec::new(),
                };
                behind.extend(transport(ports));
                let next = between.unwrap_or(protocol);
                let mut bytes = vec![0x60, 0, 0, 0, 0, behind.len() as u8, next, 64];
                bytes.extend(source.iter().chain(&destination).chain(&behind));
                (0x86dd, bytes)
            })
        });
    let arp = (address.clone(), address).prop_map(|ends| {
        both_ways(ends, (0, 0), |[source, destination], _| {
            let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1];
            bytes.extend([2; 6].iter().chain(&source));
            bytes.extend([0; 6].iter().chain(&destination));
            (0x0806, bytes)
        })
    });
    let other = Just([(0x88cc, vec![0x45; 40]), (0x88cc, vec![0x45; 40])]);
    prop_oneof![6 => four, 4 => six, 2 => arp, 1 => other].prop_map(|frames| {
        frames.map(|(kind, bytes): (u16, Vec<u8>)| {
            let mut frame = vec![2; 12];
            frame.extend(kind.to_be_bytes());
            frame.extend(bytes);
            frame
        })
    })
}

/// A packet and the one that goes the other way.
fn both_ways<A: Copy, T>(
    ends: (A, A),
    ports: (u16, u16),
    packet: impl Fn([A; 2], (u16, u16)) -> T,
) -> [T; 2] {
    [
        packet([ends.0, ends.1], ports),
        packet([ends.1, ends.0], (ports.1, ports.0)),
    ]
}

fn transport((source, destination): (u16, u16)) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(source.to_be_bytes());
    bytes.extend(destination.to_be_bytes());
    bytes.extend([0; 24]);
    bytes
}

fn ethertype(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[12], frame[13]])
}

/// What the program in the kernel answers.
fn program_matches(filter: &Filter, frame: &[u8]) -> bool {
    filter.matches_packet(&frame[ETHERNET..], ethertype(frame))
}

/// What captures answer; `None` for what has no addresses, which they never show.
fn capture_matches(filter: &Filter, frame: &[u8]) -> Option<bool> {
    let mut raw = constructed(HookId::DeviceReceive, valid::PACKET | valid::SKB);
    raw.packet[..frame.len()].copy_from_slice(frame);
    raw.packet_len = frame.len() as u8;
    raw.network_offset = ETHERNET as u8;
    raw.protocol = ethertype(frame).to_be();
    let mut event = Event::decode(&raw).expect("a known hook");
    event.follow_arp();
    (ethertype(frame) != 0x88cc).then(|| filter.matches_event(&event, &|_, _| None))
}

fn filter(text: &str) -> Filter {
    Expression::parse(text)
        .and_then(|expression| expression.resolve(&Here::default()))
        .unwrap_or_else(|error| panic!("{error}"))
}

/// The meaning, evaluated from the frame's bytes without program, key or header code.
fn holds(predicate: &Predicate, frame: &[u8]) -> bool {
    match predicate {
        Predicate::Not(one) => !holds(one, frame),
        Predicate::And(one, two) => holds(one, frame) && holds(two, frame),
        Predicate::Or(one, two) => holds(one, frame) || holds(two, frame),
        Predicate::Test(test) => test_holds(test, frame),
    }
}

fn test_holds(test: &Test, frame: &[u8]) -> bool {
    let bytes = &frame[ETHERNET..];
    let network = match ethertype(frame) {
        0x0800 => network::IPV4,
        0x86dd => network::IPV6,
        0x0806 => network::ARP,
        _ => 0,
    };
    let protocol = match network {
        network::IPV4 => Some(bytes[9]),
        network::IPV6 if bytes[6] == 44 => Some(bytes[40]),
        network::IPV6 => Some(bytes[6]),
        _ => None,
    };
    let four = |at: usize| {
        IpAddr::V4(Ipv4Addr::new(
            bytes[at],
            bytes[at + 1],
            bytes[at + 2],
            bytes[at + 3],
        ))
    };
    let six = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&bytes[at..at + 16]);
        IpAddr::V6(octets.into())
    };
    let addresses = match network {
        network::IPV4 => Some((four(12), four(16))),
        network::IPV6 => Some((six(8), six(24))),
        network::ARP => Some((four(14), four(24))),
        _ => None,
    };
    let begins = match network {
        network::IPV4 if (u16::from(bytes[6]) << 8 | u16::from(bytes[7])) & 0x1fff == 0 => {
            Some(usize::from(bytes[0] & 15) * 4)
        }
        network::IPV6 if bytes[6] != 44 => Some(40),
        _ => None,
    };
    let ports = begins
        .filter(|_| matches!(protocol, Some(6 | 17 | 132)))
        .map(|at| {
            let port = |at: usize| u16::from(bytes[at]) << 8 | u16::from(bytes[at + 1]);
            (port(at), port(at + 2))
        });
    fn sided<T>(side: Side, ends: Option<(T, T)>, holds: impl Fn(T) -> bool) -> bool {
        ends.is_some_and(|(source, destination)| match side {
            Side::Source => holds(source),
            Side::Destination => holds(destination),
            Side::Either => holds(source) || holds(destination),
        })
    }
    match test {
        Test::Network(networks) => network & networks != 0,
        Test::Protocol {
            networks,
            protocol: wanted,
        } => network & networks != 0 && protocol == Some(*wanted),
        Test::Address {
            side,
            networks,
            address,
            mask,
        } => {
            network & networks != 0
                && sided(*side, addresses, |found| match (found, mask, address) {
                    (IpAddr::V4(found), IpAddr::V4(mask), IpAddr::V4(address)) => {
                        found & *mask == *address
                    }
                    (IpAddr::V6(found), IpAddr::V6(mask), IpAddr::V6(address)) => {
                        found & *mask == *address
                    }
                    _ => false,
                })
        }
        Test::Port {
            side,
            protocol: wanted,
            range,
        } => {
            wanted.is_none_or(|wanted| protocol == Some(wanted))
                && sided(*side, ports, |port| range.contains(&port))
        }
        Test::Interface(_) | Test::Namespace(_) => false,
    }
}

/// The meaning where both directions are followed: under `not`, addresses and ports are neither one's.
fn holds_either_way(predicate: &Predicate, negated: bool, frame: &[u8], back: &[u8]) -> bool {
    let of = |one, negated| holds_either_way(one, negated, frame, back);
    match predicate {
        Predicate::Not(one) => !of(one, !negated),
        Predicate::And(one, two) => of(one, negated) && of(two, negated),
        Predicate::Or(one, two) => of(one, negated) || of(two, negated),
        Predicate::Test(test) => test_holds(test, frame) || negated && test_holds(test, back),
    }
}

proptest! {
    #[test]
    fn every_answer_is_what_the_expression_means(text in expression(), packets in prop::collection::vec(frames(), 20)) {
        let filter = filter(&text);
        let meaning = filter.meaning().expect("a meaning");
        for [frame, back] in packets {
            let means = holds(meaning, &frame);
            prop_assert_eq!(program_matches(&filter, &frame), means, "{} on {:02x?}", text, frame);
            if let Some(matches) = capture_matches(&filter, &frame) {
                let means = holds_either_way(meaning, false, &frame, &back)
                    || holds_either_way(meaning, false, &back, &frame);
                prop_assert_eq!(matches, means, "{} on {:02x?}", text, frame);
            }
        }
    }
}

/// A classic pcap file of Ethernet frames; each one's seconds are its number.
fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 2 | 4 << 16, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    for (number, frame) in frames.iter().enumerate() {
        for word in [number as u32, 0, frame.len() as u32, frame.len() as u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    file
}

/// Numbers of the packets in a file made by [`pcap`].
fn numbers(file: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut rest = file.get(24..).unwrap_or_default();
    while let Some((header, behind)) = rest.split_at_checked(16) {
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
                as usize
        };
        found.push(word(0));
        rest = behind.get(word(8)..).unwrap_or_default();
    }
    found
}

#[test]
fn tcpdump_gives_the_same_answer() {
    let mut runner = TestRunner::deterministic();
    // Each is followed by the one that goes the other way.
    let frames: Vec<Vec<u8>> = (0..400)
        .flat_map(|_| frames().new_tree(&mut runner).expect("frames").current())
        .collect();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("packets.pcap");
    fs::write(&file, pcap(&frames)).expect("a file");
    let (mut differences, mut matched) = (String::new(), 0);
    for _ in 0..300 {
        let text = expression()
            .new_tree(&mut runner)
            .expect("an expression")
            .current();
        let answer = Command::new("tcpdump")
            .arg("-r")
            .arg(&file)
            // Its optimizer has a few of these wrong (IPv6 networks under two `not`).
            .args(["-O", "-w", "-", &text])
            .output()
            .expect("tcpdump is needed; `cargo xtask setup --lab` installs it");
        let words = String::from_utf8_lossy(&answer.stderr);
        // What can never match, tcpdump refuses; that is an answer as well.
        let impossible = words.contains("expression rejects all packets");
        assert!(
            answer.status.success() || impossible,
            "tcpdump on {text}: {words}"
        );
        let theirs = if impossible {
            Vec::new()
        } else {
            numbers(&answer.stdout)
        };
        let filter = filter(&text);
        matched += theirs.len();
        let theirs: Vec<bool> = (0..frames.len())
            .map(|number| theirs.binary_search(&number).is_ok())
            .collect();
        // A source that is not meant is no destination either where both directions are followed.
        let both_ways = !text.contains("not ") || !text.contains("src ") && !text.contains("dst ");
        let differs = |&number: &usize| {
            let frame = &frames[number];
            let captures = capture_matches(&filter, frame).filter(|_| both_ways);
            program_matches(&filter, frame) != theirs[number]
                || captures.is_some_and(|ours| ours != (theirs[number] || theirs[number ^ 1]))
        };
        if let Some(number) = (0..frames.len()).find(differs) {
            let frame = &frames[number];
            let _ = writeln!(differences, "{text}: packet {number} {frame:02x?}");
        }
    }
    assert!(differences.is_empty(), "{differences}");
    // Expressions that match nothing would agree about nothing.
    assert!(matched > 20_000, "only {matched} matches");
}

/// A program with one instruction broken gives another answer, so that one which the compiler got wrong would be
/// noticed.
#[test]
fn a_broken_program_disagrees() {
    let mut runner = TestRunner::deterministic();
    let frames: Vec<Vec<u8>> = (0..400)
        .flat_map(|_| frames().new_tree(&mut runner).expect("frames").current())
        .collect();
    let (mut broken, mut noticed) = (0, 0);
    for _ in 0..100 {
        let text = expression()
            .new_tree(&mut runner)
            .expect("an expression")
            .current();
        let whole = filter(&text);
        let answers = |filter: &Filter| -> Vec<bool> {
            let answer = |frame: &Vec<u8>| program_matches(filter, frame);
            frames.iter().map(answer).collect()
        };
        let right = answers(&whole);
        for index in 0..whole.program.used().len() {
            for break_it in [exchange_jumps, exchange_sides, take_the_next] {
                let mut other = whole.clone();
                let instruction = &mut other.program.instructions[index];
                break_it(instruction);
                if other != whole {
                    broken += 1;
                    noticed += usize::from(answers(&other) != right);
                }
            }
        }
    }
    // Of many an expression a part makes no difference: `tcp and (ip or udp)`, a net that holds every address.
    assert!(
        broken > 300 && noticed * 3 > broken * 2,
        "{noticed} of {broken} broken programs were noticed"
    );
}

fn exchange_jumps(instruction: &mut Instruction) {
    std::mem::swap(&mut instruction.on_match, &mut instruction.on_miss);
}

fn exchange_sides(instruction: &mut Instruction) {
    instruction.side = match instruction.side {
        side::SOURCE => side::DESTINATION,
        side::DESTINATION => side::SOURCE,
        other => other,
    };
}

/// The port or protocol beside the one that is meant.
fn take_the_next(instruction: &mut Instruction) {
    match instruction.kind {
        kind::PORT => (instruction.low, instruction.high) = (instruction.high + 1, u16::MAX),
        kind::PROTOCOL => instruction.protocol ^= 1,
        _ => {}
    }
}
