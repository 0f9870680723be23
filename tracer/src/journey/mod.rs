//! One packet from where it is first seen to its end.
//!
//! Map: here the values, `tracker` joins events to journeys, `branching` knows fragments and copies, `layer` says
//! whether an event shows the same packet, or what carries it through a tunnel. Invariants: identity is the
//! skb's address, checked against what NAT and tunnels leave alone, so that a reused skb never joins two
//! packets; a journey never guesses: where its end was not seen, or events were lost meanwhile, it says so.

use std::net::IpAddr;
use std::ops::Range;

use crate::event::{Detail, Event, Packet, Transport, Tuple, protocol};
use crate::hook::{Area, Role};

mod branching;
mod ending;
mod layer;
mod tracker;

#[cfg(test)]
pub(crate) mod constructed;

pub use ending::SocketReasons;
pub use tracker::Tracker;

/// "There is a better router": the packet goes on all the same.
const ICMP_REDIRECT: u8 = 5;

/// How a journey ended.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Ending {
    /// A socket took the packet.
    Delivered,
    /// The packet was freed as dropped.
    Dropped {
        /// Return address in the function that dropped it.
        location: u64,
        /// Number in this kernel's `enum skb_drop_reason`; `None` where it says nothing.
        reason: Option<u32>,
    },
    /// A fragment that went into the whole packet, which was seen afterwards.
    Reassembled,
    /// It came from outside for another host: the device takes every frame (promiscuous).
    ForAnotherHost,
    /// A device took it, and it was not seen again: it left this machine.
    Transmitted,
    /// It was not seen again after its last event.
    #[default]
    OutOfSight,
}

/// In which way a packet did not arrive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Loss {
    /// It was freed as dropped; as [`Ending::Dropped`].
    Dropped {
        /// Return address in the function that dropped it.
        location: u64,
        /// Number in this kernel's `enum skb_drop_reason`.
        reason: Option<u32>,
    },
    /// It was answered with RST.
    Reset,
    /// It was answered with an ICMP error.
    IcmpError,
    /// No route led on.
    NoRoute,
}

/// What the kernel made of a packet beside the packet itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BranchKind {
    /// A piece of it: all are needed.
    Fragment,
    /// A copy, as a bridge makes when it floods: one that arrives is enough.
    Copy,
}

/// A piece or copy that goes its own way.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Which.
    pub kind: BranchKind,
    /// What happened to it alone, in order.
    pub events: Vec<Event>,
    /// How it ended.
    pub ending: Ending,
}

/// One packet's way.
#[derive(Clone, Default, Debug)]
pub struct Journey {
    /// Number, from 1, in the order of first sight.
    pub id: u64,
    /// Everything that happened, in order.
    pub events: Vec<Event>,
    /// How it ended.
    pub ending: Ending,
    /// Ranges of `events` that show the headers of the packet that carries this one through a tunnel.
    pub carried: Vec<Range<usize>>,
    /// Its other fragments or copies. Of fragments the way above is that of one that was lost, of copies
    /// that of the one that came farthest.
    pub branches: Vec<Branch>,
    /// Events were lost while it was under way, or were too many to be kept: what is not here may have
    /// happened all the same.
    pub gap: bool,
}

impl Journey {
    /// True when the event with this index shows the headers of a tunnel's packet around this one.
    pub fn is_carried(&self, index: usize) -> bool {
        self.carried.iter().any(|range| range.contains(&index))
    }

    /// What happened to all of its fragments and copies: first its own way, then one branch after the other.
    pub fn every_event(&self) -> impl Iterator<Item = &Event> {
        let branches = self.branches.iter().flat_map(|branch| &branch.events);
        self.events.iter().chain(branches)
    }

    /// Headers of the packet itself; those of a tunnel around it, and those of fragments without ports,
    /// only where nothing else was seen.
    pub fn own(&self) -> impl DoubleEndedIterator<Item = &Packet> {
        let shows = |(index, event): (usize, &Event)| {
            let packet = event.packet.as_ref();
            packet.is_some_and(|packet| !packet.is_later_fragment() && !self.is_carried(index))
        };
        let any = self.events.iter().enumerate().any(shows);
        self.events
            .iter()
            .enumerate()
            .filter(move |&found| !any || shows(found))
            .filter_map(|(_, event)| event.packet.as_ref())
    }

    /// Headers at first sight.
    pub fn first_packet(&self) -> Option<&Packet> {
        self.own().next()
    }

    /// Addresses at first sight.
    pub fn first_tuple(&self) -> Option<Tuple> {
        self.tuples().next()
    }

    /// Headers at last sight, after all NAT.
    pub fn last_packet(&self) -> Option<&Packet> {
        self.own().next_back()
    }

    /// Addresses at last sight, after all NAT.
    pub fn last_tuple(&self) -> Option<Tuple> {
        self.last_packet().map(|packet| packet.tuple)
    }

    /// Addresses at every event that shows them.
    pub fn tuples(&self) -> impl Iterator<Item = Tuple> + '_ {
        self.own().map(|packet| packet.tuple)
    }

    /// True when the packet was seen in a role.
    pub fn passed(&self, role: Role) -> bool {
        self.events.iter().any(|event| event.role() == role)
    }

    /// Start, CLOCK_MONOTONIC nanoseconds.
    pub fn start_ns(&self) -> u64 {
        self.events.first().map_or(0, |event| event.time_ns)
    }

    /// Last sight, CLOCK_MONOTONIC nanoseconds.
    pub fn end_ns(&self) -> u64 {
        self.events.last().map_or(0, |event| event.time_ns)
    }

    /// From first to last sight, nanoseconds.
    pub fn duration_ns(&self) -> u64 {
        self.end_ns().saturating_sub(self.start_ns())
    }

    /// A socket took the packet.
    pub fn was_taken(&self) -> bool {
        // The tunnel's own socket is not where the packet in it goes.
        (0..self.events.len())
            .any(|index| ending::takes(&self.events[index]) && !self.is_carried(index))
    }

    /// Where a datagram was freed after it came to a socket, on a kernel that does not say why. A socket
    /// that is done with one frees it without a trace, so the place tells whether it was refused.
    pub fn freed_at_socket(&self) -> Option<u64> {
        let last = self.events.last()?;
        let Detail::Drop { location, .. } = last.detail else {
            return None;
        };
        let datagram =
            (last.packet.as_ref()).is_some_and(|packet| matches!(packet.transport, Transport::Udp));
        (datagram && self.ending == Ending::Delivered).then_some(location)
    }

    /// The packet was answered with RST.
    pub fn was_reset(&self) -> bool {
        (self.events.iter()).any(|event| event.role() == Role::Reset && refuses(event))
    }

    /// The packet was refused: answered with RST or an ICMP error.
    pub fn rejected(&self) -> bool {
        self.events.iter().any(refuses)
    }

    /// The packet is for many, who may all ignore it.
    fn is_for_many(&self) -> bool {
        self.first_tuple()
            .is_some_and(|tuple| match tuple.destination.ip() {
                IpAddr::V4(address) => address.is_multicast() || address.octets()[3] == 255,
                IpAddr::V6(address) => address.is_multicast(),
            })
    }

    /// The packet is ARP's: it belongs to no connection, and hosts may ignore it.
    pub fn is_arp(&self) -> bool {
        self.first_tuple()
            .is_some_and(|tuple| tuple.protocol == protocol::ARP)
    }

    /// Nothing but its end was seen, without a reason: so sockets free what they have used up.
    pub fn was_only_freed(&self) -> bool {
        self.events.len() == 1 && matches!(self.ending, Ending::Dropped { reason: None, .. })
    }

    /// The packet was meant for one receiver and did not arrive.
    pub fn failed(&self) -> bool {
        self.loss().is_some()
    }

    /// In which way a packet that was meant for one receiver did not arrive; `None` where it did.
    pub fn loss(&self) -> Option<Loss> {
        if self.is_for_many() || self.is_arp() {
            return None;
        }
        let (mut late_reset, mut reset, mut rejected, mut no_route) = (false, false, false, false);
        for event in &self.events {
            match event.role() {
                Role::Reset if refuses(event) => reset = true,
                // It found nothing to reset: the connection is gone already.
                Role::Reset => late_reset = true,
                Role::IcmpError => rejected |= refuses(event),
                Role::RouteError => no_route = true,
                _ => {}
            }
        }
        match self.ending {
            Ending::Dropped { location, reason } if !late_reset && !self.was_only_freed() => {
                Some(Loss::Dropped { location, reason })
            }
            _ if reset => Some(Loss::Reset),
            _ if rejected => Some(Loss::IcmpError),
            _ if no_route => Some(Loss::NoRoute),
            _ => None,
        }
    }

    /// Namespaces that the packet was seen in, in order, each once in a row.
    pub fn namespaces(&self) -> Vec<u32> {
        let mut namespaces: Vec<u32> = self.events.iter().filter_map(|event| event.netns).collect();
        namespaces.dedup();
        namespaces
    }

    /// The namespace in which the packet was when the event with this index happened.
    pub fn namespace_at(&self, index: usize) -> Option<u32> {
        self.events[..=index.min(self.events.len().saturating_sub(1))]
            .iter()
            .rev()
            .find_map(|event| event.netns)
    }
}

/// The event answers the packet with RST or an ICMP error. A redirect is none: it only tells of a better way.
pub fn refuses(event: &Event) -> bool {
    match event.role() {
        // `tcp_v4_send_reset` is called for a reset that finds no socket too, and returns at once.
        Role::Reset => !event.packet.as_ref().is_some_and(Packet::resets),
        Role::IcmpError => {
            let Detail::Icmp { kind, .. } = event.detail else {
                return true;
            };
            kind != ICMP_REDIRECT
        }
        _ => false,
    }
}
