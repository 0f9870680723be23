//! Generated packets through the programs in the kernel: an expression shows exactly those that tcpdump
//! picks out of the same packets.
//!
//! ```text
//! filter-a eth0 ── veth ── eth0 filter-b
//! ```

use std::collections::BTreeSet;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use fastrand::Rng;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrLike as _, bind, socket};

use crate::tour::{command, inside};
use crate::{Tracer, check, finish};

/// The kernel side runs each of them; between them they hold every word that both sides know.
const EXPRESSIONS: &[&str] = &[
    "arp",
    "ip and not tcp",
    "ip6 or arp",
    "icmp or icmp6",
    "host 10.0.0.1",
    "src host 10.0.1.2 and udp",
    "dst net 10.0.0.0/23 and not port 53",
    "host 2001:db8::1 or net 2001:db8:1::/48",
    "tcp dst port 80",
    "portrange 50-100 and not src host 192.0.2.1",
    "not (tcp or udp) and not ip6",
    "(udp port 53 or tcp port 30000) and (ip6 or dst host 192.0.2.1)",
    "sctp port 53 or ip6 proto 17",
    "net 10.0.0.0 mask 255.0.255.0 and proto 1",
    // ARP ends at no hook, and the next one takes its skb.
    "not arp",
];
/// How many more are made of these, and from which seed on.
const MADE: usize = 8;
const SEED: u64 = 2_026;
/// For what the kernel does with a packet after it was sent.
const SETTLED: Duration = Duration::from_millis(500);

/// Two hosts without addresses; dropping it removes them.
struct Wire;

impl Wire {
    fn build() -> anyhow::Result<Self> {
        let wire = Self;
        for line in [
            "ip netns add filter-a",
            "ip netns add filter-b",
            "ip -n filter-a link add eth0 type veth peer name eth0 netns filter-b",
            // Nothing but what is sent here is on the wire.
            "ip netns exec filter-a sysctl -qw net.ipv6.conf.all.disable_ipv6=1",
            "ip netns exec filter-b sysctl -qw net.ipv6.conf.all.disable_ipv6=1",
            "ip -n filter-a link set eth0 up",
            "ip -n filter-b link set eth0 up",
        ] {
            command(line)?;
        }
        Ok(wire)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for name in ["filter-a", "filter-b"] {
            // Nothing more can be done when this fails; the kernel goes with the lab.
            let _ = command(&format!("ip netns del {name}"));
        }
    }
}

/// Two of the expressions joined, one of them or both under `not`.
fn made() -> Vec<String> {
    let mut random = Rng::with_seed(SEED);
    let mut one = || {
        let text = EXPRESSIONS[random.usize(..EXPRESSIONS.len())];
        let not = if random.bool() { "not " } else { "" };
        let sign = if random.bool() { "and" } else { "or" };
        (format!("{not}({text})"), sign)
    };
    (0..MADE)
        .map(|_| {
            let ((left, sign), (right, _)) = (one(), one());
            format!("{left} {sign} {right}")
        })
        .collect()
}

/// Compares all expressions.
pub(super) fn agrees(tracer: &Tracer) -> anyhow::Result<()> {
    let _wire = Wire::build()?;
    let folder = tempfile::tempdir()?;
    let frames = frames();
    let sent = folder.path().join("sent.pcap");
    std::fs::write(&sent, pcap(&frames))?;
    let mut wrong = Vec::new();
    let mut shown = 0;
    let made = made();
    let all = EXPRESSIONS.iter().copied();
    let (mut before, mut told_apart) = (BTreeSet::new(), 0);
    for expression in all.chain(made.iter().map(String::as_str)) {
        let theirs = picked(&sent, expression)?;
        let ours = seen(tracer, folder.path(), expression, &frames)?;
        // The answer to another expression is not this one's.
        told_apart += usize::from(before != theirs);
        before.clone_from(&ours);
        shown += ours.len();
        let differ: Vec<_> = theirs
            .symmetric_difference(&ours)
            .map(|&number| (number, &frames[number]))
            .collect();
        if let Some((number, frame)) = differ.first() {
            wrong.push(format!(
                "{expression}: {} packets differ, the first is {number}: {frame:02x?}",
                differ.len()
            ));
        }
    }
    check(wrong.is_empty(), || wrong.join("\n"))?;
    check(told_apart > EXPRESSIONS.len(), || {
        format!("only {told_apart} answers differ from those before them")
    })?;
    // Nothing would agree with nothing.
    check(shown > frames.len(), || {
        format!("only {shown} packets were shown")
    })
}

/// IPv4 with options and as fragments, IPv6 with a fragment header, ARP, and what is none of them, each with
/// few addresses, protocols and ports. Its number is the source of its Ethernet header, and what tells IP
/// packets apart: the kernel side leaves an IPv6 packet's Ethernet header out.
fn frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut add = |kind: u16, packet: &dyn Fn(u16) -> Vec<u8>| {
        let number = frames.len() as u16;
        let mut frame = vec![2; 6];
        frame.extend([2, 0, 0, 0]);
        frame.extend(number.to_be_bytes());
        frame.extend(kind.to_be_bytes());
        frame.extend(packet(number));
        frames.push(frame);
    };
    let addresses = [[10, 0, 0, 1], [10, 0, 1, 2], [192, 0, 2, 1]];
    let nets = [[0, 0], [0, 1], [0, 2]];
    for (one, two) in [(0, 1), (1, 2), (2, 0)] {
        let ends = [addresses[one], addresses[two]].concat();
        let ends6 = [nets[one], nets[two]].map(|net| {
            let mut address = [0; 16];
            address[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
            address[4..6].copy_from_slice(&net);
            address[15] = 1;
            address
        });
        for ports in [[53_u16, 30_000], [30_000, 80], [100, 53]] {
            for protocol in [6, 17, 132, 1, 58] {
                // Options in words, and the field of the fragment.
                for (options, fragment) in [(0, 0), (2, 0), (0, 0x2000), (0, 5)] {
                    add(0x0800, &|number| {
                        let mut bytes = vec![0x45 + options, 0, 0, 48 + 4 * options];
                        bytes.extend(number.to_be_bytes());
                        bytes.extend(u16::to_be_bytes(fragment));
                        bytes.extend([64, protocol, 0, 0]);
                        bytes.extend(&ends);
                        bytes.extend(std::iter::repeat_n(1, 4 * usize::from(options)));
                        bytes.extend(transport(ports));
                        bytes
                    });
                }
                for fragment in [false, true] {
                    add(0x86dd, &|number| {
                        let behind = if fragment { 36 } else { 28 };
                        let next = if fragment { 44 } else { protocol };
                        let mut bytes = vec![0x60, 0];
                        bytes.extend(number.to_be_bytes());
                        bytes.extend([0, behind, next, 64]);
                        bytes.extend(ends6.concat());
                        if fragment {
                            bytes.extend([protocol, 0, 0, 1, 0, 0, 0, 9]);
                        }
                        bytes.extend(transport(ports));
                        bytes
                    });
                }
            }
        }
        add(0x0806, &|_| {
            let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1];
            bytes.extend([2; 6].iter().chain(&ends[..4]));
            bytes.extend([0; 6].iter().chain(&ends[4..]));
            bytes
        });
        add(0x88cc, &|_| vec![0x45; 40]);
    }
    frames
}

/// The ports, and a header behind them that any protocol takes.
fn transport(ports: [u16; 2]) -> Vec<u8> {
    let mut bytes: Vec<_> = ports.into_iter().flat_map(u16::to_be_bytes).collect();
    bytes.extend([0; 24]);
    bytes
}

/// A classic capture of Ethernet frames.
fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 2 | 4 << 16, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    for frame in frames {
        for word in [0, 0, frame.len() as u32, frame.len() as u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    file
}

/// The numbers of the frames that tcpdump picks.
fn picked(file: &Path, expression: &str) -> anyhow::Result<BTreeSet<usize>> {
    let answer = finish(
        Command::new("tcpdump")
            .arg("-r")
            .arg(file)
            // Its optimizer has a few of these wrong (IPv6 networks under two `not`).
            .args(["-O", "-n", "-e", "-t", expression]),
    )?;
    // What can never match, tcpdump refuses; that is an answer as well.
    if answer.stderr.contains("expression rejects all packets") {
        return Ok(BTreeSet::new());
    }
    answer.expect_code(0)?;
    let source = |line: &str| {
        let octets: Vec<_> = line.get(..17)?.split(':').collect();
        usize::from_str_radix(&octets.get(4..)?.concat(), 16).ok()
    };
    Ok(answer.stdout.lines().filter_map(source).collect())
}

/// The numbers of the frames that the tracer shows when all are sent.
fn seen(
    tracer: &Tracer,
    folder: &Path,
    expression: &str,
    frames: &[Vec<u8>],
) -> anyhow::Result<BTreeSet<usize>> {
    let capture = folder.join("seen.pcapng");
    let path = capture.to_string_lossy();
    let tracing = tracer.start(&["--no-follow", "--no-kube", "-w", &path, expression])?;
    inside("filter-a", || send(frames))?;
    std::thread::sleep(SETTLED);
    tracing.interrupt()?;
    let answer = tracing.finish()?;
    answer.expect_code(0)?;
    let lost = answer.object("summary")?["lost"].clone();
    check(lost.as_array().is_some_and(Vec::is_empty), || {
        format!("events were lost: {lost}")
    })?;
    let fields = ["ip.id", "ipv6.flow", "eth.src"]
        .map(|field| ["-e", field])
        .concat();
    let read = finish(
        Command::new("tshark")
            .arg("-r")
            .arg(&capture)
            .args(["-T", "fields"])
            .args(fields),
    )
    .context("tshark is needed")?;
    read.expect_code(0)?;
    let mut numbers = BTreeSet::new();
    for line in read.stdout.lines() {
        let mut fields = line.split('\t');
        let number = |text: &str| usize::from_str_radix(text.trim_start_matches("0x"), 16).ok();
        let by_packet = fields.by_ref().take(2).find_map(number);
        let source = fields.next().unwrap_or_default();
        let by_source = source
            .strip_prefix("02:00:00:00:")
            .and_then(|end| number(&end.replace(':', "")));
        numbers.extend(
            by_packet
                .or(by_source)
                .filter(|&number| number < frames.len()),
        );
    }
    Ok(numbers)
}

fn send(frames: &[Vec<u8>]) -> anyhow::Result<()> {
    let wire = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::empty(),
        None,
    )?;
    let device = getifaddrs()?
        .filter(|device| device.interface_name == "eth0")
        .filter_map(|device| device.address)
        .find(|address| address.family() == Some(AddressFamily::Packet))
        .context("the device has no address")?;
    bind(wire.as_raw_fd(), &device)?;
    for frame in frames {
        nix::unistd::write(&wire, frame)?;
    }
    Ok(())
}
