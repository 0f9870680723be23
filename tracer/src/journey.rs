//! Joins events to journeys: one packet from where it is first seen to its end.
//!
//! Identity is the skb's address, checked against what NAT leaves alone, so that a reused skb never
//! joins two packets. Invariant: a journey never guesses; where its end was not seen it says so.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::event::{Detail, Event, Tuple};
use crate::hook::{Area, Role};

/// A packet that nothing happened to for this long has ended, or is out of sight. Longer than a
/// queue on the way holds a packet; a neighbour that has to be resolved first takes longer.
const IDLE_NS: u64 = 300_000_000;
/// The same for a packet that was handed to a neighbour: resolving one may take three probes.
const NEIGHBOUR_IDLE_NS: u64 = 4_000_000_000;
/// Most journeys under way; the oldest ends early beyond it.
const MOST_ACTIVE: usize = 65_536;
/// Most events kept of one journey: a loop of a broken network ends here.
const MOST_EVENTS: usize = 512;

/// "There is a better router": the packet goes on all the same.
const ICMP_REDIRECT: u8 = 5;

/// How a journey ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
    /// A device took it, and it was not seen again: it left this machine.
    Transmitted,
    /// It was not seen again after its last event.
    OutOfSight,
}

/// One packet's way.
#[derive(Clone, Debug)]
pub struct Journey {
    /// Number, from 1, in the order of first sight.
    pub id: u64,
    /// Everything that happened, in order.
    pub events: Vec<Event>,
    /// How it ended.
    pub ending: Ending,
}

impl Journey {
    /// Addresses at first sight.
    pub fn first_tuple(&self) -> Option<Tuple> {
        self.tuples().next()
    }

    /// Addresses at last sight, after all NAT.
    pub fn last_tuple(&self) -> Option<Tuple> {
        self.events
            .iter()
            .rev()
            .find_map(|event| event.packet.as_ref())
            .map(|packet| packet.tuple)
    }

    /// Addresses at every event that shows them.
    pub fn tuples(&self) -> impl Iterator<Item = Tuple> + '_ {
        self.events
            .iter()
            .filter_map(|event| event.packet.as_ref())
            .map(|packet| packet.tuple)
    }

    /// True when the packet was seen in a role.
    pub fn passed(&self, role: Role) -> bool {
        self.events.iter().any(|event| event.role() == role)
    }

    /// Start, CLOCK_MONOTONIC nanoseconds.
    pub fn start_ns(&self) -> u64 {
        self.events.first().map_or(0, |event| event.time_ns)
    }

    /// From first to last sight, nanoseconds.
    pub fn duration_ns(&self) -> u64 {
        let end = self.events.last().map_or(0, |event| event.time_ns);
        end.saturating_sub(self.start_ns())
    }

    /// A socket took the packet.
    pub fn was_taken(&self) -> bool {
        self.passed(Role::Deliver)
    }

    /// The packet was refused: answered with RST or an ICMP error.
    pub fn rejected(&self) -> bool {
        self.passed(Role::Reset)
            || self.events.iter().any(|event| {
                event.role() == Role::IcmpError
                    && !matches!(
                        event.detail,
                        Detail::Icmp {
                            kind: ICMP_REDIRECT,
                            ..
                        }
                    )
            })
    }

    /// The packet is for many, who may all ignore it.
    fn is_for_many(&self) -> bool {
        self.first_tuple()
            .is_some_and(|tuple| match tuple.destination.ip() {
                IpAddr::V4(address) => address.is_multicast() || address.octets()[3] == 255,
                IpAddr::V6(address) => address.is_multicast(),
            })
    }

    /// The packet was meant for one receiver and did not arrive.
    pub fn failed(&self) -> bool {
        if self.is_for_many() {
            return false;
        }
        // A lone drop without a reason is how sockets free what they have used up.
        let lone = self.events.len() == 1;
        let dropped =
            matches!(self.ending, Ending::Dropped { reason, .. } if reason.is_some() || !lone);
        self.rejected() || dropped || self.passed(Role::RouteError)
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

/// Where an event went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Number of the journey.
    pub journey: u64,
    /// Index in its events.
    pub index: usize,
}

struct Active {
    journey: Journey,
    last_ns: u64,
}

/// Journeys under way.
pub struct Tracker {
    active: HashMap<u64, Active>,
    next_id: u64,
    /// Journeys that ended early because too many were under way.
    pub evicted: u64,
    /// True where drops without a named reason after delivery are the socket's ordinary freeing.
    unspecified_reason: Option<u32>,
}

impl Tracker {
    /// An empty tracker; `unspecified_reason` is this kernel's number of NOT_SPECIFIED.
    pub fn new(unspecified_reason: Option<u32>) -> Self {
        Self {
            active: HashMap::new(),
            next_id: 1,
            evicted: 0,
            unspecified_reason,
        }
    }

    /// This kernel's number of NOT_SPECIFIED.
    pub const fn set_unspecified(&mut self, reason: Option<u32>) {
        self.unspecified_reason = reason;
    }

    /// Number of journeys under way.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// The journey under way of an skb.
    pub fn under_way(&self, skb: u64) -> Option<&Journey> {
        self.active.get(&skb).map(|active| &active.journey)
    }

    /// The journey that begins next gets this number, as it had when it was recorded.
    pub const fn number_next(&mut self, id: u64) {
        self.next_id = id;
    }

    /// Takes an event; journeys that it ends go to `ended`. Gives the event's place, where it is kept.
    pub fn push(&mut self, event: Event, ended: &mut Vec<Journey>) -> Option<Place> {
        if event.skb == 0 {
            return None;
        }
        if let Some(active) = self.active.get_mut(&event.skb) {
            if continues(&active.journey, &event) {
                if !belongs(&active.journey, &event) {
                    return None;
                }
                let over = ends(&active.journey, &event, self.unspecified_reason);
                active.last_ns = event.time_ns;
                let skb = event.skb;
                let place = Place {
                    journey: active.journey.id,
                    index: active.journey.events.len(),
                };
                let kept = place.index < MOST_EVENTS;
                if kept {
                    active.journey.events.push(event);
                }
                if let Some(ending) = over
                    && let Some(mut active) = self.active.remove(&skb)
                {
                    active.journey.ending = ending;
                    ended.push(active.journey);
                }
                return kept.then_some(place);
            }
            if let Some(old) = self.active.remove(&event.skb) {
                ended.push(out_of_sight(old.journey));
            }
        }
        // Without headers there is nothing to tell about.
        event.packet.as_ref()?;
        Some(self.start(event, ended))
    }

    fn start(&mut self, event: Event, ended: &mut Vec<Journey>) -> Place {
        if self.active.len() >= MOST_ACTIVE {
            self.evict_oldest(ended);
        }
        let (skb, last_ns) = (event.skb, event.time_ns);
        let mut journey = Journey {
            id: self.next_id,
            events: Vec::new(),
            ending: Ending::OutOfSight,
        };
        let place = Place {
            journey: self.next_id,
            index: 0,
        };
        self.next_id += 1;
        let over = ends(&journey, &event, self.unspecified_reason);
        journey.events.push(event);
        if let Some(ending) = over {
            journey.ending = ending;
            ended.push(journey);
        } else {
            self.active.insert(skb, Active { journey, last_ns });
        }
        place
    }

    fn evict_oldest(&mut self, ended: &mut Vec<Journey>) {
        let oldest = self
            .active
            .iter()
            .min_by_key(|(_, active)| active.last_ns)
            .map(|(&skb, _)| skb);
        if let Some(active) = oldest.and_then(|skb| self.active.remove(&skb)) {
            self.evicted += 1;
            ended.push(out_of_sight(active.journey));
        }
    }

    /// Ends journeys that nothing happened to for long, by the kernel's clock.
    pub fn expire(&mut self, now_ns: u64, ended: &mut Vec<Journey>) {
        let over: Vec<u64> = self
            .active
            .iter()
            .filter(|(_, active)| now_ns.saturating_sub(active.last_ns) > patience(&active.journey))
            .map(|(&skb, _)| skb)
            .collect();
        self.end(over, ended);
    }

    /// Ends all journeys.
    pub fn finish(&mut self, ended: &mut Vec<Journey>) {
        let all = self.active.keys().copied().collect();
        self.end(all, ended);
    }

    fn end(&mut self, skbs: Vec<u64>, ended: &mut Vec<Journey>) {
        let first = ended.len();
        for skb in skbs {
            if let Some(active) = self.active.remove(&skb) {
                ended.push(out_of_sight(active.journey));
            }
        }
        ended[first..].sort_by_key(|journey| (journey.start_ns(), journey.id));
    }
}

fn patience(journey: &Journey) -> u64 {
    match journey.events.last().map(Event::role) {
        Some(Role::ToNeighbour | Role::NeighbourQueue) => NEIGHBOUR_IDLE_NS,
        _ => IDLE_NS,
    }
}

/// True when the event is about the same packet as the journey at this skb address.
fn continues(journey: &Journey, event: &Event) -> bool {
    // A packet enters local output only once.
    if event.role() == Role::LocalOut || event.not_ip {
        return false;
    }
    // A socket does not send on what it took: the skb was freed and is used again.
    if journey.was_taken() && !matches!(event.role().area(), Area::Socket | Area::Drop) {
        return false;
    }
    let before = journey
        .events
        .iter()
        .rev()
        .find_map(|event| event.packet.as_ref());
    match (before, &event.packet) {
        (Some(before), Some(now)) => before.may_be(now),
        _ => true,
    }
}

/// Functions that are not given the skb are joined by CPU; their addresses must agree.
fn belongs(journey: &Journey, event: &Event) -> bool {
    match &event.detail {
        Detail::Service { address, protocol } => journey
            .last_tuple()
            .is_some_and(|tuple| tuple.protocol == *protocol && tuple.destination == *address),
        _ => true,
    }
}

/// The ending, when this event is the journey's last.
fn ends(journey: &Journey, event: &Event, unspecified: Option<u32>) -> Option<Ending> {
    let Detail::Drop { location, reason } = event.detail else {
        return None;
    };
    let reason = reason.filter(|_| reason != unspecified);
    // Sockets free what they have used up; only a named reason makes that a loss.
    if journey.was_taken() && reason.is_none() {
        return Some(Ending::Delivered);
    }
    Some(Ending::Dropped { location, reason })
}

fn out_of_sight(mut journey: Journey) -> Journey {
    journey.ending = if journey.was_taken() {
        Ending::Delivered
    } else {
        match journey.events.last().map(Event::role) {
            Some(Role::Transmit) => Ending::Transmitted,
            _ => Ending::OutOfSight,
        }
    };
    journey
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::event::{Packet, Transport};

    fn event(hook: HookId, skb: u64, time_ns: u64, sequence: u32) -> Event {
        let tuple = Tuple {
            protocol: 6,
            source: "192.0.2.1:1000".parse().expect("an address"),
            destination: "192.0.2.2:80".parse().expect("an address"),
        };
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
                tuple,
                ip_id: Some(7),
                transport: Transport::Tcp { sequence, flags: 2 },
            }),
            not_ip: false,
        }
    }

    #[test]
    fn a_reused_skb_is_another_packet() {
        let mut tracker = Tracker::new(None);
        let mut ended = Vec::new();
        tracker.push(event(HookId::LocalOut, 1, 10, 100), &mut ended);
        tracker.push(event(HookId::DeviceReceive, 1, 20, 100), &mut ended);
        assert!(ended.is_empty());
        tracker.push(event(HookId::DeviceReceive, 1, 30, 200), &mut ended);
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].events.len(), 2);
        tracker.push(event(HookId::LocalOut, 1, 40, 200), &mut ended);
        assert_eq!(ended.len(), 2);
    }

    #[test]
    fn a_drop_after_delivery_needs_a_reason_to_be_a_loss() {
        for (reason, expected_loss) in [(Some(2), false), (Some(9), true), (None, false)] {
            let mut tracker = Tracker::new(Some(2));
            let mut ended = Vec::new();
            tracker.push(event(HookId::TcpDeliver, 1, 10, 100), &mut ended);
            let mut drop = event(HookId::Drop, 1, 20, 100);
            drop.detail = Detail::Drop {
                location: 0,
                reason,
            };
            tracker.push(drop, &mut ended);
            assert_eq!(
                ended[0].ending != Ending::Delivered,
                expected_loss,
                "{reason:?}"
            );
        }
    }

    #[test]
    fn a_redirect_is_no_refusal() {
        for (kind, failed) in [(3, true), (5, false)] {
            let mut tracker = Tracker::new(None);
            let mut ended = Vec::new();
            tracker.push(event(HookId::Forward, 1, 10, 100), &mut ended);
            let mut error = event(HookId::IcmpSend, 1, 20, 100);
            error.detail = Detail::Icmp { kind, code: 1 };
            tracker.push(error, &mut ended);
            tracker.finish(&mut ended);
            assert_eq!(ended[0].failed(), failed, "ICMP type {kind}");
        }
    }

    #[test]
    fn a_service_lookup_of_other_addresses_is_not_joined() {
        let mut tracker = Tracker::new(None);
        let mut ended = Vec::new();
        tracker.push(event(HookId::IpvsLookup, 1, 10, 100), &mut ended);
        let mut lookup = event(HookId::IpvsServiceFind, 1, 20, 100);
        lookup.packet = None;
        lookup.detail = Detail::Service {
            address: "192.0.2.9:80".parse().expect("an address"),
            protocol: 6,
        };
        tracker.push(lookup.clone(), &mut ended);
        lookup.detail = Detail::Service {
            address: "192.0.2.2:80".parse().expect("an address"),
            protocol: 6,
        };
        tracker.push(lookup, &mut ended);
        tracker.finish(&mut ended);
        assert_eq!(ended[0].events.len(), 2);
    }

    #[test]
    fn silence_ends_a_journey() {
        let mut tracker = Tracker::new(None);
        let mut ended = Vec::new();
        tracker.push(event(HookId::DeviceTransmit, 1, 10, 100), &mut ended);
        tracker.expire(IDLE_NS, &mut ended);
        assert!(ended.is_empty());
        tracker.expire(IDLE_NS + 11, &mut ended);
        assert_eq!(ended[0].ending, Ending::Transmitted);
    }
}
