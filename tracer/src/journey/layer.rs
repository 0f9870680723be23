//! Whether an event shows the same packet, or the packet of a tunnel around it.
//!
//! Tunnels keep the skb: `vxlan_xmit_one` and `ip_tunnel_xmit` push headers onto it and send it through
//! local output again (drivers/net/vxlan, net/ipv4/ip_tunnel_core.c); `vxlan_rcv` and `ip_tunnel_rcv` pull
//! them and hand it to the tunnel's device. How many bytes that adds or takes is exact, which tells
//! it from an skb that was freed and is used again.

use super::{Area, Detail, Event, Journey, Role};
use crate::event::{NetfilterHook, Packet, protocol};

/// Bytes of a VXLAN packet's outer IP, UDP and VXLAN headers, IPv4 and IPv6.
const VXLAN: [u32; 2] = [20 + 8 + 8, 40 + 8 + 8];
/// What `vxlan_rcv` sees before the inner IP header: UDP, VXLAN and Ethernet headers.
const VXLAN_RECEIVED: u32 = 8 + 8 + 14;
/// Least and most bytes that an IP or GRE tunnel adds: an IPv4 header, an IPv6 one with all of GRE's.
const IP_TUNNEL: std::ops::RangeInclusive<u32> = 20..=40 + 16;
/// IP protocol numbers of IPv4 in IP, IPv6 in IP, and GRE.
const TUNNELS: [u8; 3] = [4, 41, 47];

/// What an event at the skb of a journey is to the journey.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Relation {
    /// The same packet.
    Same,
    /// A tunnel's packet around it.
    Wrapped,
    /// The packet that was inside.
    Unwrapped,
    /// Another packet.
    Other,
}

/// A journey's identity: at which layer of tunnels it is.
#[derive(Clone, Default, Debug)]
pub(super) struct Layers {
    /// Headers of the packets inside the present one, the innermost first.
    inside: Vec<Packet>,
    /// Index of the first event of the present layer.
    since: usize,
    /// Headers that the present layer is known to have, before an event shows them.
    expected: Option<Packet>,
    /// A socket took the packet of the present layer.
    taken: bool,
}

impl Layers {
    /// What an event at the skb of these events is to their packet.
    pub(super) fn relation(&self, events: &[Event], event: &Event) -> Relation {
        if event.not_ip {
            return Relation::Other;
        }
        let last = events.last();
        // A packet enters local output only once, but for the one that a tunnel put around it.
        if begins(last, event) {
            return match last {
                Some(last) if wraps(last, event) => Relation::Wrapped,
                _ => Relation::Other,
            };
        }
        if let Some(last) = last
            && unwraps(last, event)
        {
            let known = self.inside.last().zip(event.packet.as_ref());
            return match known {
                Some((inside, now)) if !inside.may_be(now) => Relation::Other,
                _ => Relation::Unwrapped,
            };
        }
        // A socket does not send on what it took, unless a tunnel listens there: the skb was freed and
        // is used again.
        let present = events.get(self.since..).unwrap_or_default();
        let after = matches!(event.role().area(), Area::Socket | Area::Drop)
            || event.role() == Role::Decapsulate;
        if self.taken && !after {
            return Relation::Other;
        }
        let before = present
            .iter()
            .rev()
            .find_map(|event| event.packet.as_ref())
            .or(self.expected.as_ref());
        let receives = event.role() == Role::Receive;
        match (before, &event.packet) {
            (Some(before), Some(now)) if !before.may_be(now) => Relation::Other,
            (Some(before), Some(now)) if receives && left(last) && before.tuple != now.tuple => {
                Relation::Other
            }
            _ if receives && comes_again(present, event) => Relation::Other,
            _ => Relation::Same,
        }
    }

    /// Notes an event of the present layer.
    pub(super) fn note(&mut self, event: &Event) {
        self.taken |= event.role() == Role::Deliver;
    }

    /// Notes that the next event is of a tunnel's packet around this one.
    pub(super) fn wrap(&mut self, journey: &Journey) {
        let present = journey.events[self.since..]
            .iter()
            .rev()
            .find_map(|event| event.packet.clone());
        self.inside.extend(present);
        self.since = journey.events.len();
        self.expected = None;
        self.taken = false;
    }

    /// Notes that the next event is of the packet that was inside; what was seen of its carrier is
    /// marked in the journey.
    pub(super) fn unwrap(&mut self, journey: &mut Journey) {
        let end = journey.events.len();
        journey.carried.push(self.since..end);
        self.expected = self.inside.pop();
        self.since = end;
        self.taken = false;
    }

    /// Marks what was seen of a carrier that the packet was never taken out of.
    pub(super) fn close(&self, journey: &mut Journey) {
        if !self.inside.is_empty() && self.since < journey.events.len() {
            journey.carried.push(self.since..journey.events.len());
        }
    }
}

/// The event is in local output. TCP over IPv6 has no hook of its own there (`ip6_xmit`); behind a device its
/// next one begins all over, mostly when a packet is sent again in the same skb.
fn begins(last: Option<&Event>, event: &Event) -> bool {
    let sent = || last.is_some_and(|last| last.role() == Role::Transmit);
    match event.role() {
        Role::LocalOut => true,
        Role::Output => sent(),
        Role::Netfilter => {
            matches!(event.detail, Detail::Netfilter(NetfilterHook::Output)) && sent()
        }
        _ => false,
    }
}

/// The packet went out of a device. What is received next came through a virtual pair: nothing translates
/// addresses in between.
fn left(last: Option<&Event>) -> bool {
    last.is_some_and(|last| matches!(last.role(), Role::Transmit | Role::Veth))
}

/// The reception is of a packet that comes in where these events came in already. A device that belongs to a
/// network outside frees what it sent without a trace, and its skb is the next that comes in.
///
/// Two packets come in at a device twice: one that is sent round and round through virtual pairs, and one
/// whose reception is held up by an `ifb` device (`tcf_mirred_act`), which hands it back to where it came in.
pub(super) fn comes_again(before: &[Event], event: &Event) -> bool {
    let came_in = |seen: &Event| seen.role() == Role::Receive && is_at(seen, event);
    if event.netns.is_none() || event.ifindex.is_none() {
        return false;
    }
    match before {
        [.., last] if last.role() == Role::Veth => false,
        [.., came, held]
            if came_in(came) && held.role() == Role::Transmit && !is_at(held, event) =>
        {
            false
        }
        _ => before.iter().any(came_in),
    }
}

/// Both events are at one device of one namespace.
fn is_at(one: &Event, other: &Event) -> bool {
    (one.netns, one.ifindex) == (other.netns, other.ifindex)
}

/// Bytes that the second event's packet has more than the first's.
fn grown(from: &Event, to: &Event) -> Option<u32> {
    to.length?.checked_sub(from.length?)
}

fn wraps(last: &Event, event: &Event) -> bool {
    let (Some(packet), Some(grown)) = (&event.packet, grown(last, event)) else {
        return false;
    };
    match last.role() {
        Role::Encapsulate => packet.tuple.protocol == protocol::UDP && VXLAN.contains(&grown),
        Role::Transmit | Role::IpvsTransmit => {
            TUNNELS.contains(&packet.tuple.protocol) && IP_TUNNEL.contains(&grown)
        }
        _ => false,
    }
}

fn unwraps(last: &Event, event: &Event) -> bool {
    if event.role() != Role::Receive {
        return false;
    }
    let Some(shrunk) = grown(event, last) else {
        return false;
    };
    match last.role() {
        Role::Decapsulate => shrunk == VXLAN_RECEIVED,
        Role::LocalIn | Role::LocalInFinish => {
            let tunnel = last
                .packet
                .as_ref()
                .is_some_and(|packet| TUNNELS.contains(&packet.tuple.protocol));
            tunnel && IP_TUNNEL.contains(&shrunk)
        }
        _ => false,
    }
}

/// Functions that are not given the skb are joined by CPU; their addresses must agree.
pub(super) fn belongs(journey: &Journey, event: &Event) -> bool {
    match &event.detail {
        Detail::Service { address, protocol } => journey
            .last_tuple()
            .is_some_and(|tuple| tuple.protocol == *protocol && tuple.destination == *address),
        _ => true,
    }
}
