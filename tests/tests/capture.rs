//! What other programs make of our captures: tshark, tcpdump and mergecap on one that the
//! library writes here.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use tempfile::TempDir;
use tracer::capture::{Control, Header, Options, Recorder};
use tracer::kernel::reasons::DropReasons;
use tracer::node::{Address, Link, NetnsFacts, NetnsId, Occasion, Reading, Scope, Snapshot};
use tracer_ebpf::event as raw;
use tracer_ebpf::hook::HookId;

const NETNS: u32 = 4_026_531_840;
const NODE: [u8; 4] = [192, 168, 3, 187];
const PORT: u16 = 30000;
const NO_SOCKET: u32 = 3;
/// Packets that find no virtual server and no socket.
const PACKETS: u32 = 3;
/// Sequence number of the first.
const SEQUENCE: u32 = 7_000;
/// What happens to each of them.
const WAY: [HookId; 8] = [
    HookId::DeviceReceive,
    HookId::Ip4Receive,
    HookId::NetfilterHook,
    HookId::LocalDeliver,
    HookId::IpvsServiceFind,
    HookId::TcpReceive,
    HookId::TcpReset,
    HookId::Drop,
];

/// A capture; the folder goes with it.
struct Capture {
    _folder: TempDir,
    path: PathBuf,
}

impl Capture {
    /// Written as a live trace writes: events of the kernel's shape, facts, moments.
    fn write() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("refused.pcapng");
        let options = Options {
            path: path.clone(),
            rotate: None,
            trigger: None,
            zstd: false,
            snaplen: None,
        };
        let reasons = vec![
            (2, "NOT_SPECIFIED".to_owned()),
            (NO_SOCKET, "NO_SOCKET".to_owned()),
        ];
        let names: DropReasons = reasons.iter().cloned().collect();
        let header = Header {
            node: "node-1".into(),
            kernel: "6.1.0".into(),
            tool: "0.1.0".into(),
            reasons,
            wall_ns: 1_800_000_000_000_000_000,
            monotonic_ns: 1_000_000_000,
            ..Header::default()
        };
        let mut recorder = Recorder::start(options, header, Arc::new(names)).expect("a capture");
        recorder.facts(vec![facts()]);
        for packet in 0..PACKETS {
            for step in 0..WAY.len() {
                recorder.event(&event(packet, step));
            }
        }
        recorder.control(Control::Finish {
            now_ns: 2_000_000_000,
        });
        let written = recorder.finish().expect("all is written");
        assert_eq!(written.events, u64::from(PACKETS) * WAY.len() as u64);
        Self {
            _folder: folder,
            path,
        }
    }
}

/// A namespace with one device and the node's address.
fn facts() -> Reading {
    let mut namespace = NetnsFacts::unread(NetnsId(NETNS), Some("node"));
    namespace.links = vec![
        Link::named(1, Some("lo".into())),
        Link::named(2, Some("enp1s0".into())),
    ];
    namespace.addresses = vec![Address {
        link: 2,
        address: NODE.into(),
        prefix_length: 24,
        secondary: false,
        flags: 0,
        label: None,
        scope: Scope::Global,
    }];
    let mut facts = Snapshot::empty();
    facts.namespaces.push(namespace);
    Reading {
        occasion: Occasion::Names,
        facts: Arc::new(facts),
    }
}

/// One step of one packet: a SYN to a NodePort that nothing answers.
fn event(number: u32, step: usize) -> raw::Event {
    let hook = WAY[step];
    let mut packet = [0; raw::PACKET_BYTES];
    packet[12..14].copy_from_slice(&[8, 0]);
    packet[14..30].copy_from_slice(&[0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 168, 3, 10]);
    packet[30..34].copy_from_slice(&NODE);
    packet[34..36].copy_from_slice(&(36_380 + number as u16).to_be_bytes());
    packet[36..38].copy_from_slice(&PORT.to_be_bytes());
    packet[38..42].copy_from_slice(&(SEQUENCE + number).to_be_bytes());
    packet[46..48].copy_from_slice(&[0x50, 2]);
    let mut detail = raw::Detail {
        bytes: [0; raw::DETAIL_BYTES],
    };
    match hook {
        HookId::NetfilterHook => detail.netfilter = raw::Netfilter { hook: 0, family: 2 },
        HookId::LocalDeliver => {
            detail.route = raw::Route {
                kind: 2,
                error: 0,
                ifindex: 1,
            };
        }
        HookId::IpvsServiceFind => {
            let mut address = [0; 16];
            address[..4].copy_from_slice(&NODE);
            detail.service = raw::Service {
                address,
                port: PORT.to_be(),
                protocol: 6,
                family: 2,
                reserved: 0,
                fwmark: 0,
            };
        }
        HookId::Drop => {
            detail.drop = raw::Drop {
                location: 0xffff_ffff_8180_0000,
                reason: NO_SOCKET,
                reserved: 0,
            };
        }
        _ => {}
    }
    raw::Event {
        time_ns: 1_000_000_000 + u64::from(number) * 1_000_000 + step as u64 * 1_000,
        skb: 0xffff_8880_0000_0000 + u64::from(number) * 256,
        netns: NETNS,
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

/// Runs a program on a file.
fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .expect("a program that cargo xtask test installs")
}

/// Lines of what tshark says of a file; it must have nothing to complain about.
fn tshark(file: &Path, arguments: &[&str]) -> Vec<String> {
    let file = file.display().to_string();
    let mut all = vec!["-n", "-r", &file];
    all.extend(arguments);
    let output = run("tshark", &all);
    let complaints: Vec<String> = String::from_utf8_lossy(&output.stderr)
        .lines()
        // It says so of itself, not of the file.
        .filter(|line| !line.starts_with("Running as user"))
        .map(str::to_owned)
        .collect();
    assert!(output.status.success(), "{file}: {complaints:?}");
    assert_eq!(complaints, Vec::<String>::new(), "{file}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn tshark_reads_a_capture_without_a_warning() {
    let capture = Capture::write();
    assert!(!tshark(&capture.path, &[]).is_empty());
    let broken = tshark(&capture.path, &["-Y", "_ws.malformed"]);
    assert_eq!(broken, Vec::<String>::new());
}

#[test]
fn comments_find_the_packet() {
    let capture = Capture::write();
    let filter = "frame.comment contains \"no virtual server 192.168.3.187:30000\"";
    let fields = [
        "-Y",
        filter,
        "-T",
        "fields",
        "-e",
        "ip.dst",
        "-e",
        "tcp.dstport",
        "-e",
        "frame.interface_name",
    ];
    let found = tshark(&capture.path, &fields);
    assert_eq!(found.len(), PACKETS as usize, "{found:?}");
    for line in found {
        assert_eq!(line, "192.168.3.187\t30000\tnode/enp1s0");
    }
}

#[test]
fn packet_numbers_group_a_journey() {
    let capture = Capture::write();
    let fields = [
        "-Y",
        "tcp",
        "-T",
        "fields",
        "-e",
        "frame.packet_id",
        "-e",
        "tcp.seq_raw",
    ];
    let events = tshark(&capture.path, &fields);
    assert_eq!(events.len(), PACKETS as usize * WAY.len());
    for (number, way) in (0..PACKETS).zip(events.chunks(WAY.len())) {
        let expected = format!("{}\t{}", number + 1, SEQUENCE + number);
        assert!(way.iter().all(|line| *line == expected), "{way:?}");
    }
}

#[test]
fn addresses_have_names() {
    let capture = Capture::write();
    let file = capture.path.display().to_string();
    // Names of the file alone: nobody is asked.
    let output = run(
        "tshark",
        &[
            "-r",
            &file,
            "-N",
            "n",
            "-o",
            "nameres.use_external_name_resolver:FALSE",
            "-T",
            "fields",
            "-e",
            "ip.dst_host",
        ],
    );
    let names = String::from_utf8_lossy(&output.stdout);
    assert!(names.lines().any(|name| name == "node"), "{names}");
}

#[test]
fn tcpdump_reads_a_capture() {
    let capture = Capture::write();
    let file = capture.path.display().to_string();
    let output = run("tcpdump", &["-n", "-r", &file]);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    let lines = String::from_utf8_lossy(&output.stdout).lines().count();
    assert_eq!(lines, PACKETS as usize * WAY.len());
}

#[test]
fn mergecap_joins_captures() {
    let capture = Capture::write();
    let file = capture.path.display().to_string();
    let merged = tempfile::NamedTempFile::new().expect("a file");
    let into = merged.path().display().to_string();
    let output = run("mergecap", &["-w", &into, &file, &file]);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    let packets = tshark(merged.path(), &["-Y", "tcp"]).len();
    assert_eq!(packets, 2 * PACKETS as usize * WAY.len());
}
