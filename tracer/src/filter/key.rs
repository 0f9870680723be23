//! What a program looks at, from packets as userspace has them.

use std::net::SocketAddr;

use tracer_ebpf::header::{NETWORK_BYTES, Network, TRANSPORT_BYTES};
use tracer_ebpf::program::{Key, network};

use super::NameOf;
use super::compile::{device_name, octets, words};
use crate::event::{Detail, Event, Packet, Tuple, protocol};
use crate::journey::Journey;

/// From bytes that begin at the network header, as the kernel's programs read them; EtherType in host order.
pub(super) fn of_packet(bytes: &[u8], ethertype: u16) -> Key {
    let mut found = Network::default();
    found.read(&padded::<NETWORK_BYTES>(bytes), ethertype);
    let begins = usize::from(found.transport);
    // Of IPv6's fragment header the protocol, which is its first byte; of others both ports.
    let least = if found.fragment && found.key.network == network::IPV6 {
        1
    } else {
        4
    };
    if begins != 0
        && let Some(header) = bytes.get(begins..)
        && header.len() >= least
    {
        found.read_transport(&padded::<TRANSPORT_BYTES>(header));
    }
    found.key
}

/// The first bytes, with zeros where the packet ends earlier.
fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut padded = [0; N];
    let length = bytes.len().min(N);
    padded[..length].copy_from_slice(&bytes[..length]);
    padded
}

/// Every key that is known of a journey, also by its pieces and copies.
pub(super) fn of_journey(journey: &Journey, name_of: &NameOf<'_>) -> Vec<Key> {
    let mut keys: Vec<Key> = (journey.every_event())
        .flat_map(|event| of_event(event, name_of))
        .collect();
    // Most hooks see what the hook before saw.
    keys.dedup();
    keys
}

/// Every key that an event shows of its packet.
pub(super) fn of_event(event: &Event, name_of: &NameOf<'_>) -> Vec<Key> {
    let place = of_place(event, name_of);
    let mut keys = Vec::new();
    if let Detail::Conntrack {
        original, reply, ..
    } = &event.detail
    {
        keys.extend([original, reply].map(|tuple| of_tuple(tuple, place)));
    }
    if let Some(packet) = &event.packet {
        // An ICMP error belongs to the packet that it quotes, as in the kernel's programs.
        keys.extend(packet.quoted().map(|quoted| of_tuple(&quoted, place)));
        keys.push(of_headers(packet, place));
    }
    keys
}

/// Where an event was, without the packet.
fn of_place(event: &Event, name_of: &NameOf<'_>) -> Key {
    let netns = event.netns.unwrap_or(0);
    let name = event.ifindex.and_then(|ifindex| name_of(netns, ifindex));
    Key {
        netns,
        interface: name.map_or([0; 2], |name| device_name(&name)),
        ..Key::default()
    }
}

/// Headers at a place: no more of them than tcpdump and the kernel's programs look at.
fn of_headers(packet: &Packet, place: Key) -> Key {
    let key = of_tuple(&packet.tuple, place);
    let is_fragment6 = key.network == network::IPV6 && packet.ip_id.is_some();
    let hides_ports = is_fragment6 || packet.named_protocol != packet.tuple.protocol;
    Key {
        protocol: packet.named_protocol,
        has_ports: if hides_ports { 0 } else { key.has_ports },
        ..key
    }
}

/// A tuple at a place.
fn of_tuple(tuple: &Tuple, place: Key) -> Key {
    let is_arp = tuple.protocol == protocol::ARP;
    let address = |end: SocketAddr| words(&octets(end.ip()));
    let has_ports = matches!(
        tuple.protocol,
        protocol::TCP | protocol::UDP | protocol::SCTP
    ) && (tuple.source.port(), tuple.destination.port()) != (0, 0);
    Key {
        source: address(tuple.source),
        destination: address(tuple.destination),
        source_port: tuple.source.port(),
        destination_port: tuple.destination.port(),
        protocol: if is_arp { 0 } else { tuple.protocol },
        network: match tuple.source {
            SocketAddr::V4(_) if is_arp => network::ARP,
            SocketAddr::V4(_) => network::IPV4,
            SocketAddr::V6(_) => network::IPV6,
        },
        has_ports: u8::from(has_ports),
        ..place
    }
}
