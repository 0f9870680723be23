//! What names of the cluster mean on a capture.

use std::sync::Arc;

use serde_json::json;
use tracer_ebpf::hook::HookId;

use super::super::There;
use super::super::encoder::{Encoder, Told};
use super::super::record::{Headers, Record};
use super::{event, facts, header, syn};
use crate::capture::{Reader, Replay};
use crate::event::{Detail, Event, Packet};
use crate::filter::Expression;
use crate::kube::constructed::cluster;
use crate::printer::{Format, Printer, Show};

/// A SYN from 192.168.3.10 to another address.
fn syn_to(destination: [u8; 4]) -> Headers {
    let mut headers = syn();
    headers.bytes[30..34].copy_from_slice(&destination);
    headers
}

/// A capture of three packets: to a node, to another one, and to what is none.
fn capture() -> Vec<u8> {
    let nodes = [("node-a", "192.0.2.1"), ("node-b", "192.0.2.2")].map(|(name, address)| {
        json!({"kind": "Node", "metadata": {"name": name}, "status": {
            "addresses": [{"type": "InternalIP", "address": address}]}})
    });
    let mut encoder = Encoder::new(header(), Arc::default(), None);
    encoder.know_facts(&Arc::new(facts()));
    let mut bytes = Vec::new();
    encoder.begin(&mut bytes).expect("a beginning");
    let known = Some(Arc::new(cluster("node-a", &nodes)));
    encoder
        .record(Record::Cluster(known), &mut bytes)
        .expect("a record");
    for (number, last) in [(0, 1), (1, 2), (2, 3)] {
        let headers = syn_to([192, 0, 2, last]);
        let seen = Event {
            skb: 0xffff_8880_0000_0000 + number * 0x100,
            packet: Packet::parse(&headers.bytes, 14),
            ..event(number, HookId::DeviceReceive, Detail::None)
        };
        let told = Told {
            event: &seen,
            journey: Some(number + 1),
            headers: Some(headers),
            borrowed: false,
            site: (seen.netns, seen.ifindex),
            words: "",
        };
        encoder.event(&told, &mut bytes).expect("an event");
    }
    encoder.end(&mut bytes);
    bytes
}

#[test]
fn a_nodes_name_means_its_address_where_the_capture_was_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.pcapng");
    std::fs::write(&path, capture()).expect("a file");
    let there = There::read(&path).expect("its names");
    let shown = |text: &str| {
        let filter = Expression::parse(text).and_then(|parsed| parsed.resolve(&there));
        let mut replay = Replay::new(Printer::new(Format::Silent, Show::All));
        replay.analysis().only(filter.expect(text));
        let mut found = Vec::new();
        let mut reader = Reader::open(&path).expect("a capture");
        let ended = replay
            .run(
                &mut reader,
                |_| {},
                |journey, _| {
                    let tuple = journey.first_tuple().expect("a packet");
                    found.push(tuple.destination.ip().to_string());
                },
            )
            .expect("a replay");
        assert!(ended.error.is_none(), "{:?}", ended.error);
        found.sort();
        found
    };
    assert_eq!(shown("").len(), 3);
    assert_eq!(shown("node node-b"), ["192.0.2.2"]);
    assert_eq!(shown("dst node node-a"), ["192.0.2.1"]);
    assert_eq!(shown("not node node-a and not node node-b"), ["192.0.2.3"]);
    let unknown = Expression::parse("node node-c").and_then(|parsed| parsed.resolve(&there));
    assert!(unknown.is_err_and(|error| error.message().contains("no such node")));
}
