//! What other programs write: plain pcapng packets, the older packet blocks, and classic pcap.

use super::MOST_BLOCK;
use super::block::{Order, link};
use super::bytes::Bytes;
use super::reader::{Interface, Stop};
use super::record::Packet;
use crate::event;

/// Length of a classic file's header.
pub(super) const HEADER: usize = 24;
/// Length of a classic packet's header.
const PACKET_HEADER: usize = 16;
const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
const ETHERTYPE_VLAN: [u16; 2] = [0x8100, 0x88a8];
const ETHERTYPE_IP: [u16; 2] = [0x0800, 0x86dd];

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
    let network = match link_type {
        link::ETHERNET => behind_ethernet(bytes)?,
        link::RAW | link::IP4 | link::IP6 => 0,
        other if link::RAW_OLD.contains(&other) => 0,
        link::NULL | link::LOOP => 4,
        link::COOKED => 16,
        link::COOKED2 => 20,
        _ => return None,
    };
    event::Packet::parse(bytes, network)
}

/// Where the IP header begins in an Ethernet frame, behind its VLAN tags.
fn behind_ethernet(bytes: &[u8]) -> Option<usize> {
    let mut at = 12;
    // A frame has at most a few tags; the bound ends a nonsense one.
    for _ in 0..8 {
        let kind = Order::Big.u16(bytes, at)?;
        if ETHERTYPE_IP.contains(&kind) {
            return Some(at + 2);
        }
        if !ETHERTYPE_VLAN.contains(&kind) {
            return None;
        }
        at += 4;
    }
    None
}
