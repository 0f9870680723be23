//! A capture that the library writes here, as a live trace does: SYNs to a NodePort that nothing answers.

use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use tracer::capture::{Control, Header, Options, Recorder};
use tracer::kernel::reasons::DropReasons;
use tracer::node::{Address, Link, Mac, NetnsFacts, NetnsId, Occasion, Reading, Snapshot};
use tracer_ebpf::event as raw;
use tracer_ebpf::hook::HookId;

const NETNS: u32 = 4_026_531_840;
pub(crate) const NODE: [u8; 4] = [192, 168, 3, 187];
/// Who asks.
#[allow(dead_code, reason = "not every test looks for it")]
pub(crate) const CLIENT: [u8; 4] = [192, 168, 3, 10];
/// Its MAC address.
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 10];
pub(crate) const PORT: u16 = 30000;
const NO_SOCKET: u32 = 3;
/// Packets that find no virtual server and no socket.
pub(crate) const PACKETS: u32 = 3;
/// Sequence number of the first.
pub(crate) const SEQUENCE: u32 = 7_000;
/// What happens to each of them.
pub(crate) const WAY: [HookId; 8] = [
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
pub(crate) struct Capture {
    _folder: TempDir,
    /// The file.
    pub(crate) path: PathBuf,
}

impl Capture {
    /// Written as a live trace writes: events of the kernel's shape, facts, moments.
    pub(crate) fn write() -> Self {
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
            recorder.events((0..WAY.len()).map(|step| event(packet, step)).collect());
        }
        // As a live trace ends.
        let now_ns = 2_000_000_000;
        recorder.control(Control::Finish { now_ns });
        recorder.facts(vec![Reading {
            occasion: Occasion::Diagnosis,
            ..facts()
        }]);
        recorder.control(Control::Step {
            now_ns,
            hurry: true,
        });
        let written = recorder.finish().expect("all is written");
        let written = written.expect("it did not give up");
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
        Link {
            mac: Some(Mac(MAC)),
            ..Link::named(2, Some("enp1s0".into()))
        },
    ];
    namespace.addresses = vec![Address::global(2, NODE.into(), 24)];
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
    packet[6..12].copy_from_slice(&MAC);
    packet[14..26].copy_from_slice(&[0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    packet[26..30].copy_from_slice(&CLIENT);
    packet[30..34].copy_from_slice(&NODE);
    packet[34..36].copy_from_slice(&(36_380 + number as u16).to_be_bytes());
    packet[36..38].copy_from_slice(&PORT.to_be_bytes());
    packet[38..42].copy_from_slice(&(SEQUENCE + number).to_be_bytes());
    packet[46..48].copy_from_slice(&[0x50, 2]);
    let mut detail = raw::Detail {
        words: [0; raw::DETAIL_BYTES / 8],
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
                addressee: 0,
                reserved: [0; 3],
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
