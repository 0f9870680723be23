//! Events and journeys for tests.

use tracer_ebpf::hook::HookId;

use super::Journey;
use crate::event::{Detail, Event, Packet, Transport, Tuple};

/// Headers without more than addresses.
pub(crate) fn packet(protocol: u8, (source, destination): (&str, &str)) -> Packet {
    Packet {
        tuple: Tuple {
            protocol,
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
        },
        named_protocol: protocol,
        ip_id: None,
        transport: Transport::Udp,
        about: None,
    }
}

/// A SYN from 192.0.2.1:1000 to 192.0.2.2:80 at a hook.
pub(crate) fn event(hook: HookId, skb: u64, time_ns: u64, sequence: u32) -> Event {
    Event {
        time_ns,
        skb,
        netns: Some(1),
        ifindex: None,
        length: None,
        mark: None,
        hook,
        detail: Detail::None,
        packet: Some(Packet {
            ip_id: Some(7),
            transport: Transport::tcp(sequence, 2),
            ..packet(6, ("192.0.2.1:1000", "192.0.2.2:80"))
        }),
        not_ip: false,
        arp: None,
    }
}

/// A journey that had these addresses, one after the other; its number is its time too.
pub(crate) fn journey(id: u64, protocol: u8, ends: &[(&str, &str)]) -> Journey {
    let events = ends
        .iter()
        .map(|&ends| Event {
            packet: Some(packet(protocol, ends)),
            ..event(HookId::Output, id, id, 0)
        })
        .collect();
    Journey {
        id,
        events,
        ..Journey::default()
    }
}
