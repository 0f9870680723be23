//! What Wireshark is shown: lengths and names.

use std::sync::Arc;

use tracer_ebpf::hook::HookId;

use super::super::block;
use super::super::encoder::{Encoder, Told};
use super::super::record::Headers;
use super::{NETNS, event, facts, header, syn};
use crate::event::{Detail, Event};
use crate::node::Address;

/// The length that Wireshark is told of a packet, and how many of its bytes are there.
pub(super) fn lengths(event: &Event, headers: Headers) -> (u32, u32) {
    let mut encoder = Encoder::new(header(), Arc::default(), None);
    let mut bytes = Vec::new();
    let told = Told {
        event,
        journey: None,
        headers: Some(headers),
        borrowed: false,
        site: (Some(NETNS), Some(2)),
        words: "",
    };
    encoder.event(&told, &mut bytes).expect("an event");
    let field = |at| block::Order::Little.u32(&bytes, at).expect("a field");
    let interface = field(4) as usize;
    (field(interface + 24), field(interface + 20))
}

#[test]
fn a_packet_is_as_long_as_its_headers_say_wherever_it_is_seen() {
    // A socket sees the skb without its headers, a device that sends it with all of them.
    for (hook, skb_length) in [
        (HookId::TcpReceive, 40),
        (HookId::DeviceReceive, 60),
        (HookId::DeviceTransmit, 74),
    ] {
        let event = Event {
            length: Some(skb_length),
            ..event(0, hook, Detail::None)
        };
        assert_eq!(lengths(&event, syn()), (74, 54), "{hook:?}");
        // Without a link header one is put before it.
        let mut bare = syn();
        bare.bytes.copy_within(14.., 0);
        (bare.length, bare.network) = (52, 0);
        assert_eq!(lengths(&event, bare), (74, 54), "{hook:?}");
    }
}

#[test]
fn a_packet_whose_headers_say_no_length_is_as_long_as_its_skb() {
    for (hook, length) in [
        (HookId::DeviceReceive, 90_014),
        (HookId::DeviceTransmit, 90_000),
    ] {
        let mut event = event(0, hook, Detail::None);
        event.length = Some(90_000);
        // Segments that were joined beyond what the field can say.
        let mut joined = syn();
        joined.bytes[16..18].fill(0);
        assert_eq!(lengths(&event, joined).0, length, "{hook:?}");
        // What is no IP may hold anything there.
        let mut other = syn();
        other.protocol = 0x0806u16.to_be();
        assert_eq!(lengths(&event, other).0, length, "{hook:?}");
    }
    let short = Event {
        length: Some(1),
        ..event(0, HookId::DeviceTransmit, Detail::None)
    };
    let mut joined = syn();
    joined.bytes[16..18].fill(0);
    assert_eq!(lengths(&short, joined), (54, 54));
}

#[test]
fn an_address_is_named_again_when_its_owner_changes() {
    let named = |name: &'static str| {
        let mut facts = facts();
        let namespace = &mut facts.namespaces[0];
        namespace.name = Some(name.into());
        namespace.addresses = vec![Address::global(2, [192, 168, 3, 187].into(), 24)];
        Arc::new(facts)
    };
    let mut encoder = Encoder::new(header(), Arc::default(), None);
    let packet = event(0, HookId::DeviceReceive, Detail::None);
    let mut names = Vec::new();
    // The first packets come before anything is known of the node.
    for facts in [None, Some("old"), Some("old"), None, Some("new"), None] {
        if let Some(name) = facts {
            encoder.know_facts(&named(name));
        }
        let told = Told {
            event: &packet,
            journey: None,
            headers: Some(syn()),
            borrowed: false,
            site: (Some(NETNS), Some(2)),
            words: "",
        };
        let mut bytes = Vec::new();
        encoder.event(&told, &mut bytes).expect("an event");
        let mut at = 0;
        while at < bytes.len() {
            let field = |at| block::Order::Little.u32(&bytes, at).expect("a field");
            let length = field(at + 4) as usize;
            if field(at) == block::NAMES {
                // Kind and length, the address, and the name with a zero behind it.
                let name = bytes[at + 16..at + length].split(|&byte| byte == 0).next();
                names.push(String::from_utf8_lossy(name.unwrap_or_default()).into_owned());
            }
            at += length;
        }
    }
    assert_eq!(names, ["old", "new"]);
}
