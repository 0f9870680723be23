//! Everything that a cause may look at, with the indices that keep judging linear in flows.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use super::filtered::{self, Stop};
use super::site::Site;
use crate::event::{Event, Packet, Transport, protocol, tcp_flag};
use crate::flow::{Direction, Flow, Flows, Repeated};
use crate::hook::Role;
use crate::journey::{Ending, Journey};
use crate::kernel::reasons::DropReasons;
use crate::kernel::symbols::Symbols;
use crate::kube::ClusterFacts;
use crate::node::{NetnsId, Snapshot};

const DNS_PORT: u16 = 53;
/// What resolvers wait at least before they ask again.
const ASKED_AGAIN_NS: u64 = 1_000_000_000;

/// Names for what the kernel gives as numbers.
#[derive(Clone, Copy)]
pub struct DropNames<'a> {
    /// Drop reasons of the kernel that was traced; empty before 5.17.
    pub reasons: &'a DropReasons,
    /// Its functions.
    pub symbols: &'a Symbols,
}

/// Why and where a packet was freed, by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DropSite<'a> {
    /// The kernel's reason without its prefix; `None` where it gives none that says anything.
    pub reason: Option<&'a str>,
    /// Function that freed the packet, without the compiler's suffixes.
    pub function: Option<&'a str>,
}

/// A journey that did not arrive, in its flow.
pub struct Failure<'a> {
    /// Its place among the failures.
    pub(super) place: usize,
    /// The connection.
    pub flow: &'a Flow,
    /// Which way the packet went.
    pub direction: Direction,
    /// The packet's way.
    pub journey: &'a Journey,
    /// How it was dropped, where it was.
    pub drop: Option<DropSite<'a>>,
    roles: Roles,
}

/// The roles that a packet was seen in. Most causes ask for one that a packet was not seen in, and looking
/// through the events of all failures for it is most of the work.
#[derive(Clone, Copy)]
struct Roles(u64);

/// Everything that a cause may look at.
pub struct Evidence<'a> {
    /// What was seen on the wire.
    pub flows: &'a Flows,
    /// What the node was like, and when.
    pub facts: &'a Snapshot,
    /// What the cluster was like, and how fresh that is.
    pub cluster: Option<&'a ClusterFacts>,
    /// Journeys that did not arrive, by the order of their flows.
    failures: Vec<Failure<'a>>,
    /// Flows whose opening was repeated and never answered, in order.
    stalled: Vec<&'a Flow>,
    /// Flows whose opening was answered, and repeated all the same, in order.
    unheard: Vec<&'a Flow>,
    /// Flows with data that is repeated and not acknowledged, in order.
    repeating: Vec<(&'a Flow, Repeated<'a>)>,
    /// Flows that word came back of, and no more, in order.
    refused: Vec<&'a Flow>,
    /// Packets were looked at up to here, by CLOCK_MONOTONIC; the facts may be older.
    pub(super) until_ns: u64,
    /// The kernel gives drop reasons (from 5.17 on).
    pub gives_reasons: bool,
    sites: HashMap<NetnsId, Site<'a>>,
    /// Failures that netfilter's rules ended; judged once, when the first cause asks.
    filtered: OnceCell<Vec<Stop<'a>>>,
    /// Flows by the address and port that they went to.
    flows_to: HashMap<(u8, SocketAddr), Vec<&'a Flow>>,
}

impl<'a> Evidence<'a> {
    /// Indexes flows and facts once for all causes.
    pub fn new(flows: &'a Flows, facts: &'a Snapshot, names: DropNames<'a>) -> Self {
        let mut ordered: Vec<&Flow> = flows.iter().collect();
        ordered.sort_unstable_by_key(|flow| flow.id);
        let mut flows_to: HashMap<_, Vec<&Flow>> = HashMap::new();
        let mut failures = Vec::new();
        for &flow in &ordered {
            let client = flow.client;
            flows_to
                .entry((client.protocol, client.destination))
                .or_default()
                .push(flow);
            // Most flows have no failure; looking for one in their journeys is most of the work.
            let failed = (flow.suspicious > 0)
                .then(|| flow.kept())
                .into_iter()
                .flatten()
                .filter(|(_, journey)| journey.is_suspicious() && !flow.was_reset_before(journey));
            for (direction, journey) in failed {
                failures.push(Failure {
                    place: failures.len(),
                    flow,
                    direction,
                    journey,
                    drop: names.site(journey),
                    roles: Roles::of(journey),
                });
            }
        }
        Self {
            flows,
            facts,
            cluster: None,
            failures,
            until_ns: facts.taken_ns.unwrap_or(0),
            gives_reasons: !names.reasons.is_empty(),
            refused: ordered
                .iter()
                .copied()
                .filter(|flow| flow.refused)
                .collect(),
            unheard: ordered
                .iter()
                .copied()
                .filter(|flow| flow.is_unheard())
                .collect(),
            repeating: ordered
                .iter()
                .filter_map(|&flow| Some((flow, flow.repeated()?)))
                .collect(),
            stalled: ordered
                .into_iter()
                .filter(|flow| flow.is_stalled())
                .collect(),
            sites: facts
                .namespaces
                .iter()
                .map(|facts| (facts.id, Site::new(facts)))
                .collect(),
            filtered: OnceCell::new(),
            flows_to,
        }
    }

    /// The same with what is known of the cluster.
    #[must_use]
    pub const fn with_cluster(mut self, cluster: Option<&'a ClusterFacts>) -> Self {
        self.cluster = cluster;
        self
    }

    /// The same at a time when the facts may be older than the packets.
    #[must_use]
    pub const fn seen_until(mut self, now_ns: u64) -> Self {
        self.until_ns = now_ns;
        self
    }

    /// Failures that netfilter's rules ended.
    pub(super) fn filtered(&self) -> &[Stop<'a>] {
        self.filtered.get_or_init(|| filtered::stops(self))
    }

    /// How netfilter's rules ended a failure, where they did.
    pub(super) fn stop(&self, failure: &Failure<'_>) -> Option<&Stop<'a>> {
        let stops = self.filtered();
        let found = stops.binary_search_by_key(&failure.place, Stop::place_of_failure);
        found.ok().map(|index| &stops[index])
    }

    /// Journeys that did not arrive.
    pub fn failures(&self) -> &[Failure<'a>] {
        &self.failures
    }

    /// Flows whose opening was repeated and never answered.
    pub fn stalled(&self) -> &[&'a Flow] {
        &self.stalled
    }

    /// Flows whose opening was answered, and repeated all the same.
    pub fn unheard(&self) -> &[&'a Flow] {
        &self.unheard
    }

    /// Flows with data that is repeated and not acknowledged.
    pub fn repeating(&self) -> &[(&'a Flow, Repeated<'a>)] {
        &self.repeating
    }

    /// Flows that were refused: RST came back before anything else, or an ICMP error.
    pub fn refused(&self) -> &[&'a Flow] {
        &self.refused
    }

    /// The facts of a namespace.
    pub fn site(&self, id: NetnsId) -> Option<&Site<'a>> {
        self.sites.get(&id)
    }

    /// Every namespace that facts were read of.
    pub fn sites(&self) -> impl Iterator<Item = &Site<'a>> {
        self.facts
            .namespaces
            .iter()
            .filter_map(|facts| self.sites.get(&facts.id))
    }

    /// Failures by what `key` says of them, one of each flow and key; those without a key are left out.
    pub fn group<K: Ord>(
        &self,
        key: impl Fn(&Failure<'a>) -> Option<K>,
    ) -> BTreeMap<K, Vec<&Failure<'a>>> {
        let mut groups: BTreeMap<K, Vec<&Failure<'a>>> = BTreeMap::new();
        for failure in &self.failures {
            let Some(key) = key(failure) else { continue };
            let group = groups.entry(key).or_default();
            if group
                .last()
                .is_none_or(|last| last.flow.id != failure.flow.id)
            {
                group.push(failure);
            }
        }
        groups
    }

    /// Flows to an address and port, in order.
    pub fn flows_to(&self, protocol: u8, address: SocketAddr) -> &[&'a Flow] {
        self.flows_to
            .get(&(protocol, address))
            .map_or(&[], Vec::as_slice)
    }

    /// How many connections there were to the addresses and ports that these flows went to.
    pub fn connections_beside(&self, flows: &[u64]) -> usize {
        let mut targets: Vec<_> = flows
            .iter()
            .filter_map(|&id| self.flows.get(id))
            .map(|flow| (flow.client.protocol, flow.client.destination))
            .collect();
        targets.sort_unstable();
        targets.dedup();
        targets
            .iter()
            .map(|&(protocol, address)| self.flows_to(protocol, address).len())
            .sum()
    }
}

impl<'a> DropNames<'a> {
    fn site(self, journey: &Journey) -> Option<DropSite<'a>> {
        let Ending::Dropped { location, reason } = journey.ending else {
            return None;
        };
        Some(DropSite {
            reason: reason
                .and_then(|reason| self.reasons.name(reason))
                .filter(|name| *name != "NOT_SPECIFIED"),
            function: self.symbols.function(location),
        })
    }
}

// The last role, and so each, has a bit.
const _: () = assert!((Role::Drop as u32) < u64::BITS);

impl Roles {
    fn of(journey: &Journey) -> Self {
        let bits = journey.events.iter().map(|event| Self::bit(event.role()));
        Self(bits.fold(0, |all, bit| all | bit))
    }

    const fn bit(role: Role) -> u64 {
        1 << role as u32
    }

    const fn has(self, role: Role) -> bool {
        self.0 & Self::bit(role) != 0
    }
}

impl Failure<'_> {
    /// The packet was seen in a role.
    pub const fn passed(&self, role: Role) -> bool {
        self.roles.has(role)
    }

    /// The packet was answered with RST.
    pub fn was_reset(&self) -> bool {
        self.passed(Role::Reset) && self.journey.was_reset()
    }

    /// The packet was refused: answered with RST or an ICMP error.
    pub fn rejected(&self) -> bool {
        (self.passed(Role::Reset) || self.passed(Role::IcmpError)) && self.journey.rejected()
    }

    /// A socket took the packet.
    pub fn was_taken(&self) -> bool {
        (self.passed(Role::Deliver) || self.passed(Role::HalfOpen)) && self.journey.was_taken()
    }

    /// The last event of the packet with this meaning, and its place.
    pub fn last(&self, role: Role) -> Option<(usize, &Event)> {
        if !self.passed(role) {
            return None;
        }
        let events = &self.journey.events;
        let index = events.iter().rposition(|event| event.role() == role)?;
        Some((index, &events[index]))
    }

    /// The namespace that the packet was in when the event with this index happened.
    pub fn netns_at(&self, index: usize) -> Option<NetnsId> {
        self.journey.namespace_at(index).map(NetnsId)
    }

    /// The namespace that the packet was last seen in.
    pub fn netns(&self) -> Option<NetnsId> {
        self.netns_at(usize::MAX)
    }

    /// Index of the device that the packet came in by, before an event.
    pub fn ingress(&self, before: usize) -> Option<u32> {
        self.journey.events[..before.min(self.journey.events.len())]
            .iter()
            .rev()
            .find(|event| event.role() == Role::Receive)
            .and_then(|event| event.ifindex)
    }

    /// Addresses of the packet just before or at an event.
    pub fn packet_at(&self, index: usize) -> Option<&Packet> {
        let events = &self.journey.events;
        events[..=index.min(events.len().saturating_sub(1))]
            .iter()
            .rev()
            .find_map(|event| event.packet.as_ref())
    }

    /// The packet was dropped for one of these reasons; where the kernel gives no reason, in one of
    /// these functions.
    pub fn dropped_for(&self, reasons: &[&str], functions: &[&str]) -> bool {
        match self.drop {
            Some(DropSite {
                reason: Some(reason),
                ..
            }) => reasons.contains(&reason),
            Some(DropSite {
                function: Some(function),
                ..
            }) => functions.contains(&function),
            _ => false,
        }
    }

    /// The packet asks for something: it opens a TCP connection, or belongs to a protocol without
    /// connections and goes the way that its flow began.
    pub fn is_opening(&self) -> bool {
        self.direction == Direction::Request && self.packet_at(0).is_some_and(Packet::opens)
    }

    /// Its loss only slows a connection of TCP down.
    pub fn slows_down(&self) -> bool {
        self.packet_at(0)
            .is_some_and(|packet| match packet.transport {
                Transport::Tcp { flags, .. } => flags & tcp_flag::SYN == 0,
                _ => false,
            })
    }

    /// The kernel's words for the drop.
    pub fn drop_words(&self) -> String {
        match self.drop {
            Some(DropSite {
                reason: Some(reason),
                ..
            }) => format!("dropped, reason {reason}"),
            Some(DropSite {
                function: Some(function),
                ..
            }) => format!("dropped in {function}"),
            Some(_) => "dropped".into(),
            None => "lost".into(),
        }
    }

    /// The packet's number and addresses: `#12 tcp 192.0.2.1:4000 → 192.0.2.2:80`.
    pub fn words(&self) -> String {
        let id = self.journey.id;
        self.journey.first_tuple().map_or_else(
            || format!("#{id}"),
            |tuple| {
                format!(
                    "#{id} {} {} → {}",
                    protocol::name(tuple.protocol),
                    endpoint(tuple.source),
                    endpoint(tuple.destination)
                )
            },
        )
    }
}

/// An address with its port, where it has one.
pub(super) fn endpoint(address: SocketAddr) -> String {
    if address.port() == 0 {
        address.ip().to_string()
    } else {
        address.to_string()
    }
}

impl Journey {
    /// It did not arrive, or met no virtual server where it may have expected one.
    pub fn is_suspicious(&self) -> bool {
        self.failed() || self.ipvs_miss().is_some()
    }
}

fn is_icmp_error(journey: &Journey) -> bool {
    let packet = journey.first_packet();
    packet.is_some_and(|packet| packet.about.is_some())
}

impl Flow {
    /// The TCP connection was reset before this packet of it was lost: nobody wants it any more, and conntrack
    /// calls it invalid. What is answered with RST itself is no such packet.
    fn was_reset_before(&self, lost: &Journey) -> bool {
        let opens = lost
            .first_packet()
            .is_none_or(|packet| match packet.transport {
                Transport::Tcp { flags, .. } => flags & tcp_flag::SYN != 0,
                _ => true,
            });
        // A rule that rejects sends its RST behind the last hook before the drop.
        let seen = lost.events.iter().rfind(|event| event.role() != Role::Drop);
        let Some(seen) = seen.filter(|_| !opens && !lost.was_reset()) else {
            return false;
        };
        // Who resets says no more than that; else the ports have a new connection since.
        [Direction::Request, Direction::Reply].iter().any(|&way| {
            self.of(way)
                .filter(|journey| journey.id != lost.id && journey.start_ns() < seen.time_ns)
                .max_by_key(|journey| journey.start_ns())
                .and_then(Journey::first_packet)
                .is_some_and(Packet::resets)
        })
    }

    /// Somebody tries to open it again and again, or asks DNS again after a while, and nothing comes back but word that it
    /// does not arrive.
    pub fn is_stalled(&self) -> bool {
        let is_dns =
            self.client.protocol == protocol::UDP && self.client.destination.port() == DNS_PORT;
        // A resolver asks for both kinds of addresses at once.
        if is_dns && self.last_ns.saturating_sub(self.first_ns) < ASKED_AGAIN_NS {
            return false;
        }
        let mut openings = 0;
        for (direction, journey) in self.kept() {
            if direction == Direction::Reply {
                if is_icmp_error(journey) {
                    continue;
                }
                return false;
            }
            let opens = journey
                .first_packet()
                .is_some_and(|packet| match packet.transport {
                    Transport::Tcp { flags, .. } => {
                        flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN
                    }
                    Transport::Udp => is_dns,
                    _ => false,
                });
            openings += usize::from(opens);
        }
        openings > 1
    }

    /// A TCP connection that the one side opens and the other answers, both again and again.
    pub fn is_unheard(&self) -> bool {
        const SYN_ACK: u8 = tcp_flag::SYN | tcp_flag::ACK;
        let mut seen = [0, 0];
        for (direction, journey) in self.kept() {
            let (side, wanted) = match direction {
                Direction::Request => (0, tcp_flag::SYN),
                Direction::Reply => (1, SYN_ACK),
            };
            match journey.first_packet().map(|packet| packet.transport) {
                Some(Transport::Tcp { flags, .. }) if flags & SYN_ACK == wanted => seen[side] += 1,
                _ => return false,
            }
        }
        seen.iter().all(|&count| count > 1)
    }
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::hook::HookId;

    use crate::cause::constructed::{Bench, node};
    use crate::event::{NetfilterHook, Transport, protocol, tcp_flag};

    const CLIENT: &str = "192.0.2.1:4000";
    const POD: &str = "10.244.0.9:80";

    fn client_says(bench: &mut Bench, flags: u8, began: Option<u64>) {
        let transport = Transport::tcp(1, flags);
        let way = bench.packet(protocol::TCP, CLIENT, POD, transport);
        let way = way.at(HookId::LocalOut);
        match began {
            Some(time_ns) => way.began(time_ns),
            None => way,
        }
        .at(HookId::TcpDeliver)
        .ends();
    }

    /// The pod's last packet, 2,000 ns from its first sight to the hook that it ends at.
    fn pod_s_end_is_lost(bench: &mut Bench, hook: HookId) {
        let transport = Transport::tcp(2, tcp_flag::FIN | tcp_flag::ACK);
        bench
            .packet(protocol::TCP, POD, CLIENT, transport)
            .at(HookId::LocalOut)
            .at(HookId::Forward)
            .netfilter(NetfilterHook::Forward)
            .at(hook)
            .dropped("NETFILTER_DROP", "nf_hook_slow");
    }

    fn failures(bench: &Bench) -> usize {
        bench.with_evidence(|evidence| evidence.failures().len())
    }

    #[test]
    fn what_is_lost_of_a_connection_that_was_reset_is_no_failure() {
        let (before, behind) = (Some(2500), Some(4500));
        for (flags, began, hook, expected) in [
            (tcp_flag::RST, None, HookId::Output, 1),
            (tcp_flag::RST, before, HookId::Output, 0),
            (tcp_flag::ACK, before, HookId::Output, 1),
            // A rule that rejects sends it.
            (tcp_flag::RST, behind, HookId::Output, 1),
            // The packet itself is answered with it.
            (tcp_flag::RST, before, HookId::TcpReset, 1),
        ] {
            let mut bench = node();
            pod_s_end_is_lost(&mut bench, hook);
            client_says(&mut bench, flags, began);
            assert_eq!(failures(&bench), expected, "{flags} {began:?} {hook:?}");
        }
        let mut bench = node();
        client_says(&mut bench, tcp_flag::RST, None);
        pod_s_end_is_lost(&mut bench, HookId::Output);
        assert_eq!(failures(&bench), 0);
        // The same ports, another connection, whether or not its opening is still kept.
        for flags in [tcp_flag::SYN, tcp_flag::ACK] {
            let mut bench = node();
            client_says(&mut bench, tcp_flag::RST, None);
            client_says(&mut bench, flags, None);
            pod_s_end_is_lost(&mut bench, HookId::Output);
            assert_eq!(failures(&bench), 1);
        }
    }
}
