//! What a loss does to certainty, which arrived packets are looked at, and what is counted.

use std::net::SocketAddr;

use serde_json::json;
use tracer_ebpf::hook::HookId;

use super::pace::{GATHER_NS, GATHER_WITH_CLUSTER_NS};
use super::*;
use crate::event::{Arp, Detail, Packet, Transport};
use crate::kube::constructed::cluster;

/// A packet from a client to a node's port, seen at these moments and hooks.
fn journey(id: u64, to: &str, hooks: &[HookId], start_ns: u64, ending: Ending) -> Journey {
    let source = SocketAddr::from(([192, 0, 2, 10], 40_000 + id as u16));
    let tuple = Tuple {
        protocol: 6,
        source,
        destination: to.parse().expect("an address"),
    };
    let event = |(index, &hook): (usize, &HookId)| Event {
        time_ns: start_ns + index as u64,
        skb: id,
        netns: Some(1),
        ifindex: Some(2),
        length: None,
        mark: None,
        hook,
        detail: Detail::None,
        packet: Some(Packet {
            tuple,
            named_protocol: tuple.protocol,
            ip_id: None,
            transport: Transport::tcp(1, 2),
            about: None,
        }),
        not_ip: false,
        arp: None,
    };
    Journey {
        id,
        events: hooks.iter().enumerate().map(event).collect(),
        ending,
        ..Journey::default()
    }
}

fn collector() -> Collector {
    Collector::new(Source::recorded(), SocketReasons::default())
}

/// What becomes of a diagnosis that rests on one packet, with a loss at 20 ns or without one.
fn judged(start_ns: u64, ending: Ending, loss: bool) -> Diagnosis {
    let mut collector = collector();
    if loss {
        collector.mark_loss(20);
    }
    let packet = journey(
        1,
        "192.0.2.1:80",
        &[HookId::DeviceReceive],
        start_ns,
        ending,
    );
    let flow = collector.flows.add(packet).expect("a flow").flow;
    let mut diagnosis = Diagnosis {
        code: "no-route",
        subject: String::new(),
        certainty: Certainty::Certain,
        summary: String::new(),
        evidence: Vec::new(),
        missing: Vec::new(),
        fixes: Vec::new(),
        check: String::new(),
        flows: vec![flow],
        failed: 1,
        total: 1,
        consequences: Vec::new(),
    };
    collector.doubt(&mut diagnosis);
    diagnosis
}

#[test]
fn what_did_not_happen_is_not_certain_after_a_loss() {
    let silent = judged(10, Ending::OutOfSight, true);
    assert_eq!(silent.certainty, Certainty::Likely);
    assert_eq!(silent.missing, [LOST_MEANWHILE]);
    assert_eq!(
        judged(10, Ending::OutOfSight, false).certainty,
        Certainty::Certain
    );
    // It began after the loss.
    assert_eq!(
        judged(30, Ending::OutOfSight, true).certainty,
        Certainty::Certain
    );
}

#[test]
fn a_drop_that_was_seen_stays_certain_after_a_loss() {
    let dropped = Ending::Dropped {
        location: 1,
        reason: None,
    };
    assert_eq!(judged(10, dropped, true).certainty, Certainty::Certain);
}

#[test]
fn a_socket_on_a_nodeport_is_looked_at_once() {
    let service = json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"],
            "ports": [{"port": 80, "nodePort": 30000, "protocol": "TCP"}]}});
    let taken = [
        HookId::DeviceReceive,
        HookId::TcpReceive,
        HookId::TcpDeliver,
    ];
    let due = |known: bool, to: &str, hooks: &[HookId]| {
        let mut collector = collector();
        if known {
            let facts = cluster("node-a", std::slice::from_ref(&service));
            collector.set_cluster(Some(Arc::new(facts)));
        }
        let mut keep = |id| {
            let arrived = journey(id, to, hooks, 10, Ending::Delivered);
            collector.pace = Pace::default();
            collector.keep(vec![arrived], 50);
            collector.pace.is_asked()
        };
        (keep(1), keep(2))
    };
    assert_eq!(due(true, "192.0.2.1:30000", &taken), (true, false));
    assert_eq!(due(true, "192.0.2.1:30001", &taken), (false, false));
    assert_eq!(due(true, "192.0.2.1:30000", &taken[..1]), (false, false));
    assert_eq!(due(false, "192.0.2.1:30000", &taken), (false, false));
}

#[test]
fn facts_of_before_a_failure_are_read_anew() {
    const ASKED_NS: u64 = 10_000_000_000;
    let old = |taken_ns, now_ns| {
        let mut collector = collector();
        let hooks = [HookId::DeviceReceive];
        let silent = journey(1, "192.0.2.1:80", &hooks, 10, Ending::OutOfSight);
        let client = silent.first_tuple().expect("addresses");
        collector.pace.ask(None, client, ASKED_NS);
        Arc::make_mut(&mut collector.facts).taken_ns = taken_ns;
        collector.facts_are_old(collector.pace.asked_ns(), now_ns)
    };
    let now_ns = ASKED_NS + GATHER_NS;
    assert!(old(None, now_ns));
    assert!(old(Some(ASKED_NS - 1), now_ns));
    assert!(!old(Some(ASKED_NS), now_ns));
    assert!(old(Some(ASKED_NS), ASKED_NS + FACTS_AGE_NS + 1));
}

#[test]
fn a_diagnosis_waits_longer_for_a_cluster_that_has_not_answered() {
    let due = |facts: Option<ClusterFacts>, now_ns: u64| {
        let mut collector = collector();
        collector.set_cluster(facts.map(Arc::new));
        let client = Tuple {
            source: SocketAddr::from(([192, 0, 2, 1], 40_000)),
            destination: SocketAddr::from(([192, 0, 2, 2], 80)),
            protocol: 6,
        };
        collector.pace.ask(None, client, 0);
        collector.is_due(now_ns, false)
    };
    let unread = || ClusterFacts::unread("https://192.0.2.1:6443");
    assert!(due(None, GATHER_NS));
    assert!(due(Some(cluster("node-a", &[])), GATHER_NS));
    assert!(!due(Some(unread()), GATHER_NS));
    assert!(due(
        Some(unread().with_trouble("connection refused")),
        GATHER_NS
    ));
    assert!(due(Some(unread()), GATHER_WITH_CLUSTER_NS));
}

#[test]
fn a_buffer_of_no_network_is_no_end_of_a_packet() {
    let seen = journey(
        1,
        "192.0.2.1:80",
        &[HookId::DeviceReceive],
        1,
        Ending::OutOfSight,
    );
    let freed = |ifindex| Event {
        hook: HookId::Drop,
        ifindex,
        not_ip: true,
        packet: None,
        detail: Detail::Drop {
            location: 1,
            reason: None,
        },
        ..seen.events[0].clone()
    };
    for (ifindex, ended) in [(None, 0), (Some(2), 1)] {
        let (mut collector, mut journeys) = (collector(), Vec::new());
        collector.push(seen.events[0].clone(), &mut journeys);
        collector.push(freed(ifindex), &mut journeys);
        assert_eq!(journeys.len(), ended, "{ifindex:?}");
    }
}

#[test]
fn losses_are_counted_by_what_did_not_arrive() {
    let mut collector = collector();
    let dropped = Ending::Dropped {
        location: 1,
        reason: Some(3),
    };
    let to = "192.0.2.1:80";
    collector.keep(
        vec![
            journey(1, to, &[HookId::DeviceReceive, HookId::Drop], 1, dropped),
            journey(
                2,
                to,
                &[HookId::DeviceReceive, HookId::IcmpSend],
                2,
                Ending::OutOfSight,
            ),
            journey(3, to, &[HookId::DeviceReceive], 3, Ending::Delivered),
            // To everyone, who may ignore it.
            journey(
                4,
                "224.0.0.251:53",
                &[HookId::DeviceReceive, HookId::Drop],
                4,
                dropped,
            ),
        ],
        10,
    );
    let (location, reason) = (1, Some(3));
    let losses = [
        (Loss::Dropped { location, reason }, 1),
        (Loss::IcmpError, 1),
    ];
    assert_eq!(collector.counts().losses, losses.into());
    assert_eq!(
        (collector.counts().packets, collector.counts().failed),
        (4, 2)
    );
}

#[test]
fn arp_has_journeys_where_it_is_asked_for_and_is_never_judged() {
    let question = Event {
        packet: None,
        not_ip: true,
        arp: Some(Arp {
            reply: false,
            sender: [192, 0, 2, 1].into(),
            target: [192, 0, 2, 2].into(),
        }),
        ..journey(
            1,
            "192.0.2.1:80",
            &[HookId::DeviceReceive],
            1,
            Ending::OutOfSight,
        )
        .events[0]
            .clone()
    };
    let dropped = Event {
        hook: HookId::Drop,
        detail: Detail::Drop {
            location: 1,
            reason: Some(2),
        },
        ..question.clone()
    };
    let packets = |follow| {
        let mut collector = collector();
        collector.follow_arp(follow);
        let mut ended = Vec::new();
        for event in [&question, &dropped] {
            collector.push(event.clone(), &mut ended);
        }
        collector.finish(&mut ended);
        for journey in &ended {
            assert!(journey.is_arp() && !journey.failed());
            assert_eq!(journey.events.len(), 2);
        }
        collector.keep(ended, 3);
        assert_eq!((collector.flows(), collector.counts().failed), (0, 0));
        assert!(!collector.is_due(3, true));
        collector.counts().packets
    };
    assert_eq!((packets(true), packets(false)), (1, 0));
}

#[test]
fn arp_does_not_change_the_numbers_of_other_packets() {
    let mut collector = collector();
    collector.follow_arp(true);
    let ip = journey(
        7,
        "192.0.2.1:80",
        &[HookId::DeviceReceive],
        1,
        Ending::OutOfSight,
    )
    .events[0]
        .clone();
    let arp = Event {
        skb: 8,
        packet: None,
        not_ip: true,
        arp: Some(Arp {
            reply: true,
            sender: [192, 0, 2, 1].into(),
            target: [192, 0, 2, 2].into(),
        }),
        ..ip.clone()
    };
    let mut ended = Vec::new();
    let number = collector.push(arp, &mut ended).expect("it is followed");
    assert_eq!(collector.push(ip, &mut ended), Some(1));
    assert!(number > 1);
}

#[test]
fn a_namespace_is_seen_anew_once_all_is_forgotten() {
    let mut collector = collector();
    for _ in 0..2 {
        let packet = journey(
            1,
            "192.0.2.1:80",
            &[HookId::DeviceReceive],
            1,
            Ending::OutOfSight,
        );
        let event = packet.events.into_iter().next().expect("an event");
        collector.push(event, &mut Vec::new());
        assert!(collector.seen.contains(&1));
        collector.forget();
    }
}
