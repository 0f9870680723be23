//! Where packets leave the node of a capture, and where they come to it.

use crate::capture::{Foreign, Header, Reader, Record, Replay};
use crate::event::{Packet, Transport, Tuple};
use crate::hook::Role;
use crate::journey::Journey;
use crate::printer::{Format, Printer, Show};

/// What is the same of a packet on both nodes: addresses as they are on the wire or in the tunnel, and
/// what tells one packet of a connection from the next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    tuple: Tuple,
    ip_id: Option<u32>,
    /// Sequence number and flags of TCP, type and code of ICMP.
    transport: (u32, u8),
}

impl From<&Packet> for Key {
    fn from(packet: &Packet) -> Self {
        Self {
            tuple: packet.tuple,
            ip_id: packet.ip_id,
            transport: match packet.transport {
                Transport::Tcp {
                    sequence, flags, ..
                } => (sequence, flags),
                Transport::Icmp { kind, code } => (u32::from(kind), code),
                Transport::Udp
                | Transport::Arp { .. }
                | Transport::Fragment { .. }
                | Transport::Other => (0, 0),
            },
        }
    }
}

/// A packet at the edge of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Edge {
    pub(super) key: Key,
    /// Its journey.
    pub(super) journey: u64,
    /// Its skb there.
    pub(super) skb: u64,
    /// Nanoseconds since 1970 by the node's clock.
    pub(super) wall_ns: u64,
}

/// What one capture says of packets that others may have seen.
#[derive(Debug)]
pub(super) struct Sight {
    pub(super) header: Header,
    /// Packets that a device took last.
    pub(super) leaving: Vec<Edge>,
    /// Packets that a device handed over first.
    pub(super) arriving: Vec<Edge>,
}

/// Reads a capture to its end or to the first damage.
///
/// # Errors
/// When it is another program's, or damaged before it says whose it is.
pub(super) fn look(reader: &mut Reader, progress: impl FnMut(u64)) -> anyhow::Result<Sight> {
    let mut replay = Replay::new(Printer::new(Format::Silent, Show::All));
    let (mut leaving, mut arriving) = (Vec::new(), Vec::new());
    let mut told = |journey: &Journey, wall_ns: &dyn Fn(u64) -> u64| {
        leaving.extend(leaves(journey, wall_ns));
        arriving.extend(arrives(journey, wall_ns));
    };
    let mut met = |journey: &Journey, names: &crate::view::names::Names<'_>| {
        told(journey, &|time_ns| names.clock.wall_ns(time_ns));
    };
    let damage = reader.each(progress, |record, reader| {
        if matches!(record, Record::Packet(_)) {
            return Err(foreign().into());
        }
        replay.take(record, reader, &mut met)
    })?;
    replay.finish(&mut met)?;
    let header = replay.header().cloned();
    // Damage behind the header is told when the capture is read again.
    let header =
        header.ok_or_else(|| damage.map_or_else(|| foreign().into(), anyhow::Error::new))?;
    Ok(Sight {
        header,
        leaving,
        arriving,
    })
}

const fn foreign() -> Foreign {
    Foreign("merged")
}

/// The packet left: the last that was seen of it is that a device took it. A veth pair may lead to a node.
fn leaves(journey: &Journey, wall_ns: &dyn Fn(u64) -> u64) -> Option<Edge> {
    let last = journey.events.last()?;
    let packet = journey.last_packet()?;
    let edge = matches!(last.role(), Role::Transmit | Role::Veth);
    (edge && is_between_nodes(journey, journey.events.len() - 1)).then(|| Edge {
        key: packet.into(),
        journey: journey.id,
        skb: last.skb,
        wall_ns: wall_ns(last.time_ns),
    })
}

/// What goes through a tunnel is between nodes there; its other edge is towards a pod.
fn is_between_nodes(journey: &Journey, index: usize) -> bool {
    journey.carried.is_empty() || journey.is_carried(index)
}

/// The packet came: the first that was seen of it is that a device handed it over.
fn arrives(journey: &Journey, wall_ns: &dyn Fn(u64) -> u64) -> Option<Edge> {
    let first = journey.events.first()?;
    let packet = journey.first_packet()?;
    (first.role() == Role::Receive && is_between_nodes(journey, 0)).then(|| Edge {
        key: packet.into(),
        journey: journey.id,
        skb: first.skb,
        wall_ns: wall_ns(first.time_ns),
    })
}
