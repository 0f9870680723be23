//! Two nodes with VXLAN between them, whose clocks disagree.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracer_ebpf::hook::HookId;

use super::facts::Known;
use super::sight::{Edge, Key, Sight};
use super::space::Space;
use super::{Joined, clock, merge};
use crate::capture::{Control, Header, Headers, Reader, Record, Replay, Rewriter, Sighting};
use crate::event::{Detail, Event, Packet};
use crate::journey::{Ending, Journey};
use crate::node::{Address, KubeProxy, NetnsFacts, NetnsId, Occasion, Reading, Scope, Snapshot};
use crate::printer::{Format, Printer, Show};

/// Every machine's first namespace has this number.
const NETNS: u32 = 4_026_531_840;
/// When it all begins, nanoseconds since 1970.
const BEGIN: u64 = 1_800_000_000_000_000_000;
const MICROSECOND: u64 = 1_000;
/// How far the second node's clock is ahead.
const AHEAD: i64 = 5_000_000_000;
/// How far a node's moments are ahead of the events behind them.
const LOOKS_AHEAD: u64 = 15_000_000;
/// Lengths of an inner packet, of one with its Ethernet header, and of what VXLAN makes of it.
const INNER: u32 = 100;
const FRAMED: u32 = INNER + 14;
const OUTER: u32 = FRAMED + 36;

type End = ([u8; 4], u16);
const POD_A: End = ([10, 244, 1, 2], 4000);
const POD_B: End = ([10, 244, 2, 2], 3000);
const WIRE_A: End = ([198, 51, 100, 1], 50_000);
const WIRE_B: End = ([198, 51, 100, 2], 8472);

/// Ethernet, IPv4 and UDP.
fn frame(from: End, to: End, ip_id: u16) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    bytes.extend([8, 0, 0x45, 0, 0, 28]);
    bytes.extend(ip_id.to_be_bytes());
    bytes.extend([0x40, 0, 64, 17, 0, 0]);
    bytes.extend(from.0);
    bytes.extend(to.0);
    bytes.extend(from.1.to_be_bytes());
    bytes.extend(to.1.to_be_bytes());
    bytes.extend([0, 8, 0, 0]);
    bytes
}

/// A node: its capture is what is told to it, in the order of time.
struct Node {
    name: &'static str,
    /// Its clock less the true one.
    ahead: i64,
    /// What its kernel counted when it all began.
    monotonic: u64,
    sightings: Vec<Sighting>,
    journeys: u64,
}

impl Node {
    const fn new(name: &'static str, ahead: i64, monotonic: u64) -> Self {
        Self {
            name,
            ahead,
            monotonic,
            sightings: Vec::new(),
            journeys: 0,
        }
    }

    /// A packet's way through the node: hooks with the true time since the beginning, the frame and
    /// the length there.
    fn packet(&mut self, way: &[(HookId, u64, &[u8], u32)]) {
        self.journeys += 1;
        for (hook, after_ns, frame, length) in way {
            self.sightings.push(Sighting {
                event: Event {
                    time_ns: self.monotonic + after_ns,
                    // Both kernels use the same addresses.
                    skb: 0xffff_8880_0000_1000,
                    netns: Some(NETNS),
                    ifindex: Some(2),
                    length: Some(*length),
                    mark: None,
                    hook: *hook,
                    detail: Detail::None,
                    packet: Packet::parse(frame, 14),
                    not_ip: false,
                    arp: None,
                },
                journey: Some(self.journeys),
                interface: None,
                headers: Some(Headers::of_frame(frame)),
            });
        }
    }

    /// A pod's packet goes out over VXLAN; the last event is at `at_ns`.
    fn sends(&mut self, at_ns: u64, inner: &[u8], outer: &[u8]) {
        self.packet(&[
            (
                HookId::DeviceReceive,
                at_ns - 40 * MICROSECOND,
                inner,
                INNER,
            ),
            (HookId::Forward, at_ns - 30 * MICROSECOND, inner, INNER),
            (
                HookId::VxlanTransmit,
                at_ns - 20 * MICROSECOND,
                inner,
                FRAMED,
            ),
            (HookId::LocalOut, at_ns - 10 * MICROSECOND, outer, OUTER),
            (HookId::DeviceTransmit, at_ns, outer, OUTER + 14),
        ]);
    }

    /// It comes out of VXLAN and is delivered; the first event is at `at_ns`.
    fn receives(&mut self, at_ns: u64, inner: &[u8], outer: &[u8]) {
        self.packet(&[
            (HookId::DeviceReceive, at_ns, outer, OUTER),
            (
                HookId::UdpDeliver,
                at_ns + 10 * MICROSECOND,
                outer,
                OUTER - 20,
            ),
            (
                HookId::VxlanReceive,
                at_ns + 20 * MICROSECOND,
                outer,
                OUTER - 20,
            ),
            (
                HookId::DeviceReceive,
                at_ns + 30 * MICROSECOND,
                inner,
                INNER,
            ),
            (HookId::UdpDeliver, at_ns + 40 * MICROSECOND, inner, INNER),
        ]);
    }

    fn write(mut self, folder: &Path) -> PathBuf {
        let path = folder.join(format!("{}.pcapng", self.name));
        let header = Header {
            node: self.name.into(),
            kernel: "6.1.0".into(),
            reasons: vec![(2, "NOT_SPECIFIED".into())],
            wall_ns: BEGIN.saturating_add_signed(self.ahead),
            monotonic_ns: self.monotonic,
            ..Header::default()
        };
        let mut facts = Snapshot::empty();
        facts
            .namespaces
            .push(NetnsFacts::unread(NetnsId(NETNS), Some("node")));
        let mut rewriter = Rewriter::create(path.clone(), header).expect("a capture");
        let reading = Reading {
            occasion: Occasion::Names,
            facts: Arc::new(facts),
        };
        rewriter.record(Record::Facts(reading)).expect("room");
        self.sightings
            .sort_by_key(|sighting| sighting.event.time_ns);
        for (number, sighting) in self.sightings.into_iter().enumerate() {
            // A node looks at its events while others, of a moment ago, are still on their way to it. The
            // other node has no such moments, so that they tell the two apart.
            if self.ahead == 0 && number % 3 == 0 {
                let now_ns = sighting.event.time_ns + LOOKS_AHEAD;
                let hurry = false;
                rewriter
                    .record(Record::Control(Control::Step { now_ns, hurry }))
                    .expect("room");
            }
            rewriter.event(sighting, false).expect("room");
        }
        // And goes on to look, for longer than a packet is waited for.
        let now_ns = self.monotonic + 1_000_000_000;
        let hurry = false;
        rewriter
            .record(Record::Control(Control::Step { now_ns, hurry }))
            .expect("room");
        rewriter
            .record(Record::Control(Control::Finish { now_ns }))
            .expect("room");
        rewriter.finish().expect("room");
        path
    }
}

/// Questions from a pod of the first node to one of the second, and answers.
fn nodes(questions: u16, answers: bool) -> (Node, Node) {
    let mut one = Node::new("node-a", 0, 10_000_000_000);
    let mut two = Node::new("node-b", AHEAD, 777_000_000_000);
    for number in 0..questions {
        let at_ns = 1_000_000 + u64::from(number) * 2_000_000;
        let (there_ns, back_ns) = (
            (100 + 37 * (u64::from(number) % 5)) * MICROSECOND,
            (120 + 29 * (u64::from(number) % 4)) * MICROSECOND,
        );
        let inner = frame(POD_A, POD_B, number);
        let outer = frame(WIRE_A, WIRE_B, 1000 + number);
        one.sends(at_ns, &inner, &outer);
        two.receives(at_ns + there_ns, &inner, &outer);
        if answers {
            let answered = at_ns + 1_000_000;
            let inner = frame(POD_B, POD_A, 5000 + number);
            let outer = frame(WIRE_B, WIRE_A, 6000 + number);
            two.sends(answered, &inner, &outer);
            one.receives(answered + back_ns, &inner, &outer);
        }
    }
    (one, two)
}

fn merged(one: Node, two: Node) -> (Vec<Joined>, Vec<Journey>, BTreeSet<String>) {
    let folder = tempfile::tempdir().expect("a folder");
    let files = [one.write(folder.path()), two.write(folder.path())];
    let out = folder.path().join("both.pcapng");
    let merged = merge(&files, &out, |_| {}).expect("a merge");
    assert!(merged.damaged.is_empty(), "{:?}", merged.damaged);
    let mut reader = Reader::open(&out).expect("a capture");
    let mut replay = Replay::new(Printer::new(Format::Silent, Show::All));
    let (mut journeys, mut names_seen) = (Vec::new(), BTreeSet::new());
    let ended = replay
        .run(
            &mut reader,
            |_| {},
            |journey, names| {
                names_seen.extend(
                    journey
                        .namespaces()
                        .into_iter()
                        .map(|netns| names.namespace(netns)),
                );
                journeys.push(journey.clone());
            },
        )
        .expect("an answer");
    assert!(ended.error.is_none(), "{:?}", ended.error);
    (merged.joined, journeys, names_seen)
}

#[test]
fn a_packet_that_goes_from_node_to_node_is_one_journey() {
    let (one, two) = nodes(20, true);
    let (joined, journeys, names) = merged(one, two);
    assert_eq!(
        (joined[0].offset_ns, joined[0].error_ns),
        (Some(0), Some(0))
    );
    assert_eq!(
        (joined[1].pairs, joined[1].joined, joined[0].joined),
        (40, 20, 20)
    );
    assert_eq!(journeys.len(), 40, "each question and each answer is one");
    for journey in &journeys {
        assert_eq!(journey.ending, Ending::Delivered);
        assert_eq!(journey.events.len(), 10);
        assert_eq!(journey.namespaces().len(), 2);
        assert_eq!(
            journey.carried,
            vec![3..8; 1],
            "the tunnel's headers are one stretch"
        );
        let times = journey.events.iter().map(|event| event.time_ns);
        assert!(times.is_sorted(), "nothing arrives before it was sent");
        assert_eq!(journey.first_tuple(), journey.last_tuple());
    }
    let expected = ["node@node-a", "node@node-b"].map(str::to_owned);
    assert_eq!(names, expected.into());
}

#[test]
fn the_offset_is_within_its_error_and_the_error_is_half_the_least_round_trip() {
    let (one, two) = nodes(20, true);
    let (joined, ..) = merged(one, two);
    let (offset, error) = (joined[1].offset_ns, joined[1].error_ns);
    let (offset, error) = (offset.expect("an offset"), error.expect("an error"));
    assert!(offset.abs_diff(AHEAD) <= error, "{offset} ± {error}");
    // The fastest there takes 100 µs, the fastest back 120.
    assert_eq!(error, 110 * MICROSECOND);
    let words = joined[1].words();
    assert!(words.contains("± 110 µs"), "{words}");
}

/// A packet, and when it was seen by the clock there.
fn edge(frame: &[u8], wall_ns: u64) -> Edge {
    Edge {
        key: Key::from(&Packet::parse(frame, 14).expect("a packet")),
        journey: 1,
        skb: 1,
        wall_ns,
    }
}

#[test]
fn a_clock_is_told_by_way_of_a_capture_that_comes_later() {
    // Each of three clocks less the first one's.
    let ahead = [0, 3_000_000_000, 1_000_000_000];
    let mut sights: Vec<Sight> = ahead
        .iter()
        .map(|_| Sight {
            header: Header::default(),
            leaving: Vec::new(),
            arriving: Vec::new(),
        })
        .collect();
    // The first and the second share packets with the third alone.
    for (number, (from, to)) in [(0, 2), (2, 0), (2, 1), (1, 2)].into_iter().enumerate() {
        let packet = frame(POD_A, POD_B, number as u16);
        let (left, came) = (BEGIN + ahead[from], BEGIN + ahead[to] + MICROSECOND);
        sights[from].leaving.push(edge(&packet, left));
        sights[to].arriving.push(edge(&packet, came));
    }
    let offsets = clock::offsets(&sights);
    for (number, (offset, ahead)) in offsets.iter().zip(ahead).enumerate() {
        assert_eq!(offset.clock_ns, Some(ahead.cast_signed()), "{number}");
    }
    let errors = offsets.iter().map(|offset| offset.error_ns);
    assert!(errors.eq([0, 2 * MICROSECOND, MICROSECOND].map(Some)));
    assert_eq!(offsets[0].pairs, 2);
}

#[test]
fn progress_goes_on_through_both_readings() {
    let folder = tempfile::tempdir().expect("a folder");
    // Each has more records than are read between two words of progress.
    let (one, two) = nodes(450, true);
    let files = [one.write(folder.path()), two.write(folder.path())];
    let bytes = |file: &PathBuf| std::fs::metadata(file).expect("a file").len();
    let once: u64 = files.iter().map(bytes).sum();
    let mut told = Vec::new();
    let out = folder.path().join("both.pcapng");
    merge(&files, &out, |position| told.push(position)).expect("a merge");
    assert!(told.is_sorted(), "{told:?}");
    assert!(told.first().is_some_and(|&read| 0 < read && read < once));
    let last = told.last().copied().unwrap_or_default();
    assert!(once < last && last <= 2 * once, "{once} {told:?}");
}

#[test]
fn every_time_of_a_nodes_facts_is_by_the_first_ones_clock() {
    let space = Space::new(1, &Header::default(), &mut Vec::new());
    let mut known = Known::new(vec![(space, None)]);
    let mut namespace = NetnsFacts::unread(NetnsId(NETNS), Some("node"));
    namespace.addresses = vec![Address {
        link: 2,
        address: WIRE_B.0.into(),
        prefix_length: 24,
        secondary: false,
        flags: 0,
        label: None,
        scope: Scope::Global,
        created_ns: Some(2),
    }];
    let mut proxy = KubeProxy::constructed("kube-proxy");
    proxy.started_ns = Some(3);
    let mut facts = Snapshot::empty();
    facts.taken_ns = Some(1);
    facts.namespaces.push(namespace);
    facts.kube_proxies.push(proxy);
    let reading = Reading {
        occasion: Occasion::Names,
        facts: Arc::new(facts),
    };
    let facts = known.reading(0, reading, |time_ns| time_ns + 100).facts;
    let created_ns = facts.namespaces[0].addresses[0].created_ns;
    let started_ns = facts.kube_proxies[0].started_ns;
    let times = [facts.taken_ns, created_ns, started_ns];
    assert_eq!(times, [101u64, 102, 103].map(Some));
}

#[test]
fn one_way_alone_has_no_error_and_joins_all_the_same() {
    let (one, two) = nodes(5, false);
    let (joined, journeys, _) = merged(one, two);
    assert_eq!(joined[1].error_ns, None);
    assert_eq!(joined[1].joined, 5);
    assert_eq!(journeys.len(), 5);
    assert!(joined[1].words().contains("one way only"));
}

#[test]
fn what_only_looks_alike_is_not_joined() {
    let (one, mut two) = nodes(3, true);
    // A packet that nobody sent, and one that comes an hour late.
    let stray = frame(POD_A, POD_B, 99);
    let outer = frame(WIRE_A, WIRE_B, 1099);
    two.receives(50_000_000, &stray, &outer);
    let late = frame(POD_A, POD_B, 1);
    let outer = frame(WIRE_A, WIRE_B, 1001);
    two.receives(3_600_000_000_000, &late, &outer);
    let (joined, journeys, _) = merged(one, two);
    assert_eq!(journeys.len(), 8);
    assert_eq!((joined[0].joined, joined[1].joined), (3, 3));
    let alone = journeys
        .iter()
        .filter(|journey| journey.namespaces().len() == 1);
    assert_eq!(alone.count(), 2);
}

#[test]
fn nodes_that_share_no_packet_keep_their_clocks_and_that_is_said() {
    let (one, _) = nodes(3, false);
    let two = Node::new("node-b", AHEAD, 0);
    let (joined, journeys, _) = merged(one, two);
    assert_eq!((joined[1].offset_ns, joined[1].pairs), (None, 0));
    assert_eq!(journeys.len(), 3);
    assert!(
        joined[1]
            .words()
            .contains("no packet of it was seen elsewhere")
    );
}
