//! What other programs write: plain pcapng packets, the older packet blocks, and classic pcap.

use tracer_ebpf::header::ethertype;

use super::MOST_BLOCK;
use super::block::{Order, link};
use super::bytes::Bytes;
use super::reader::{Interface, Stop};
use super::record::Packet;
use crate::event::{self, Arp};

/// Length of a classic file's header.
pub(super) const HEADER: usize = 24;
/// Length of a classic packet's header.
const PACKET_HEADER: usize = 16;
const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
const ETHERTYPE_VLAN: [u16; 2] = [0x8100, 0x88a8];
const ETHERTYPES: [u16; 3] = [ethertype::IPV4, ethertype::IPV6, ethertype::ARP];

/// A classic pcap file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Classic {
    order: Order,
    /// Nanoseconds of a unit of the times' second part.
    unit_ns: u64,
    pub(super) link_type: u16,
}

impl Classic {
    /// Reads a file's header; `None` for another kind of file.
    pub(super) fn begin(head: &[u8]) -> Option<Self> {
        let (order, unit_ns) = [Order::Little, Order::Big].into_iter().find_map(|order| {
            let unit = match order.u32(head, 0)? {
                MICROSECONDS => 1000,
                NANOSECONDS => 1,
                _ => return None,
            };
            Some((order, unit))
        })?;
        Some(Self {
            order,
            unit_ns,
            // The upper half says how long the frame check sequence is.
            link_type: order.u32(head, 20)? as u16,
        })
    }

    /// The next packet and its length in the file; `None` at the end.
    pub(super) fn packet(self, bytes: &mut Bytes) -> Result<Option<(Packet, usize)>, Stop> {
        let head = bytes.peek(PACKET_HEADER)?;
        if head.is_empty() {
            return Ok(None);
        }
        let field = |at| {
            self.order
                .u32(head, at)
                .ok_or_else(|| Stop::new("the file ends within a packet's head"))
        };
        let (seconds, part) = (field(0)?, field(4)?);
        let (captured, length) = (field(8)? as usize, field(12)?);
        if captured > MOST_BLOCK {
            return Err(Stop::Damage(format!(
                "a packet that claims {captured} bytes"
            )));
        }
        let whole = PACKET_HEADER + captured;
        let there = bytes.peek(whole)?;
        let Some(packet) = there.get(PACKET_HEADER..whole) else {
            return Err(Stop::Damage(format!(
                "the file ends within a packet: {} of {whole} bytes are there",
                there.len()
            )));
        };
        let time_ns = u64::from(seconds) * 1_000_000_000 + u64::from(part) * self.unit_ns;
        let packet = Packet {
            interface: 0,
            time_ns,
            length,
            outbound: None,
            headers: headers(self.link_type, packet),
            arp: arp(self.link_type, packet),
        };
        Ok(Some((packet, whole)))
    }
}

/// A simple packet block: of the first interface, without a time.
pub(super) fn simple_packet(
    order: Order,
    body: &[u8],
    interfaces: &[Interface],
) -> Result<Option<Packet>, Stop> {
    let interface = interfaces
        .first()
        .ok_or_else(|| Stop::new("a packet before any interface"))?;
    let length = order
        .u32(body, 0)
        .ok_or_else(|| Stop::new("a packet without its fields"))?;
    let bytes = body.get(4..).unwrap_or_default();
    Ok(Some(Packet {
        interface: 0,
        time_ns: 0,
        length,
        outbound: None,
        headers: headers(interface.link_type, bytes),
        arp: arp(interface.link_type, bytes),
    }))
}

/// The packet block that the enhanced one replaced.
pub(super) fn old_packet(
    order: Order,
    body: &[u8],
    interfaces: &[Interface],
) -> Result<Option<Packet>, Stop> {
    let short = || Stop::new("a packet without its fields");
    let number = u32::from(order.u16(body, 0).ok_or_else(short)?);
    let interface = interfaces
        .get(number as usize)
        .ok_or_else(|| Stop::new("a packet of an interface that is not described"))?;
    let field = |at| order.u32(body, at).ok_or_else(short);
    let captured = field(12)? as usize;
    let bytes = body
        .get(20..)
        .and_then(|rest| rest.get(..captured))
        .ok_or_else(|| Stop::new("a packet longer than its block"))?;
    Ok(Some(Packet {
        interface: number,
        time_ns: interface.time_ns(field(4)?, field(8)?),
        length: field(16)?,
        outbound: None,
        headers: headers(interface.link_type, bytes),
        arp: arp(interface.link_type, bytes),
    }))
}

/// The direction in a packet's flags.
pub(super) const fn outbound(flags: u32) -> Option<bool> {
    match flags & 3 {
        1 => Some(false),
        2 => Some(true),
        _ => None,
    }
}

/// Headers of an IP packet behind a link header.
pub(super) fn headers(link_type: u16, bytes: &[u8]) -> Option<event::Packet> {
    let (kind, network) = behind_link(link_type, bytes)?;
    let is_arp = kind == Some(Arp::ETHERTYPE);
    (!is_arp).then(|| event::Packet::parse(bytes, network))?
}

/// What ARP says behind a link header.
pub(super) fn arp(link_type: u16, bytes: &[u8]) -> Option<Arp> {
    let (kind, network) = behind_link(link_type, bytes)?;
    let is_arp = kind == Some(Arp::ETHERTYPE);
    is_arp.then(|| Arp::parse(bytes.get(network..)?))?
}

/// EtherType, where the link says it, and where the network header begins.
fn behind_link(link_type: u16, bytes: &[u8]) -> Option<(Option<u16>, usize)> {
    Some(match link_type {
        link::ETHERNET => {
            let (kind, network) = behind_ethernet(bytes)?;
            (Some(kind), network)
        }
        link::RAW | link::IP4 | link::IP6 => (None, 0),
        other if link::RAW_OLD.contains(&other) => (None, 0),
        link::NULL | link::LOOP => (None, 4),
        link::COOKED => (Order::Big.u16(bytes, 14), 16),
        link::COOKED2 => (Order::Big.u16(bytes, 0), 20),
        _ => return None,
    })
}

/// EtherType of an Ethernet frame behind its VLAN tags, and where what it names begins.
fn behind_ethernet(bytes: &[u8]) -> Option<(u16, usize)> {
    let mut at = 12;
    // A frame has at most a few tags; the bound ends a nonsense one.
    for _ in 0..8 {
        let kind = Order::Big.u16(bytes, at)?;
        if ETHERTYPES.contains(&kind) {
            return Some((kind, at + 2));
        }
        if !ETHERTYPE_VLAN.contains(&kind) {
            return None;
        }
        at += 4;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arp_is_found_behind_each_link_header_that_names_it() {
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend([0; 20]);
        let behind = |head: &[u8]| [head, &arp].concat();
        let ethernet = [&[0; 12][..], &[0x08, 0x06]].concat();
        let tagged = [&[0; 12][..], &[0x81, 0, 0, 7, 0x08, 0x06]].concat();
        let cooked = [&[0; 14][..], &[0x08, 0x06]].concat();
        let cooked2 = [&[0x08, 0x06][..], &[0; 18]].concat();
        for (kind, head) in [
            (link::ETHERNET, ethernet),
            (link::ETHERNET, tagged),
            (link::COOKED, cooked),
            (link::COOKED2, cooked2),
        ] {
            let bytes = behind(&head);
            assert!(super::arp(kind, &bytes).is_some_and(|arp| !arp.reply));
            assert_eq!(headers(kind, &bytes), None);
        }
        assert_eq!(super::arp(link::RAW, &arp), None);
    }
}
