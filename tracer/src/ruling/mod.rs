//! Which rule ended a packet: what was seen of it, held against the rules of its namespace.
//!
//! Invariant: pure. It is given a journey and facts, and a cause or a view asks it.

mod walk;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use tracer_ebpf::hook::HookId;

use crate::event::{Detail, Event, NetfilterHook, Packet, Transport, Tuple, protocol, tcp_flag};
use crate::hook::Role;
use crate::journey::{Ending as JourneyEnding, Journey, refuses};
use crate::node::netfilter::{Action, state};
use crate::node::{NetnsFacts, NetnsId};

pub use walk::Ending;

/// A packet that netfilter dropped.
#[derive(Clone, Copy, Debug)]
pub struct Filtered {
    /// Namespace.
    pub netns: NetnsId,
    /// Hook at which it ended.
    pub hook: NetfilterHook,
    /// Index of the event that says so.
    index: usize,
}

/// What the rules say about a filtered packet.
#[derive(Clone, Debug)]
pub struct Ruling<'a> {
    /// The place where it ended; the first of those that are possible.
    pub ending: Ending<'a>,
    /// No other place is possible.
    pub certain: bool,
    /// The other places where it may have ended.
    pub others: Vec<Ending<'a>>,
}

/// Whether the kernel says that netfilter dropped a packet: by its reason, or, where it has none, by the
/// function that freed the packet.
pub fn by_netfilter(reason: Option<&str>, function: Option<&str>) -> bool {
    match (reason, function) {
        (Some(reason), _) => reason == "NETFILTER_DROP",
        // A bridge runs the rules of its prerouting by itself (net/bridge/br_input.c, nf_hook_bridge_pre).
        (None, Some(function)) => matches!(
            function,
            "nf_hook_slow" | "nft_do_chain" | "br_handle_frame"
        ),
        (None, None) => false,
    }
}

/// The last hook of a packet, when nothing else than rules can have ended it there.
///
/// `by_netfilter` is what [`by_netfilter`] says of its drop.
pub fn filtered(journey: &Journey, by_netfilter: bool) -> Option<Filtered> {
    if !by_netfilter || !matches!(journey.ending, JourneyEnding::Dropped { .. }) {
        return None;
    }
    let (index, hook) = journey
        .events
        .iter()
        .enumerate()
        .rev()
        .find_map(|(index, event)| match event.detail {
            Detail::Netfilter(hook) => Some((index, hook)),
            _ if event.hook == HookId::BridgeReceive => {
                Some((index, NetfilterHook::BridgePreRouting))
            }
            _ => None,
        })?;
    // IPVS and conntrack's clashes drop at hooks as well, and have causes of their own.
    let only_rules = journey.events[index + 1..].iter().all(|event| {
        matches!(
            event.role(),
            // An ICMP error looks up the way back.
            Role::Conntrack | Role::Nat | Role::IcmpError | Role::RouteLookup | Role::Drop
        )
    });
    (only_rules && hook != NetfilterHook::Other).then_some(Filtered {
        netns: NetnsId(journey.namespace_at(index)?),
        hook,
        index,
    })
}

/// Holds a filtered packet against the rules of its namespace; `None` where they were not read or no
/// rule can have dropped it.
pub fn judge<'a>(
    journey: &Journey,
    filtered: Filtered,
    facts: &'a NetnsFacts,
) -> Option<Ruling<'a>> {
    let ruleset = facts.ruleset.as_ref()?;
    let last = journey.events.last()?;
    let entered = &journey.events[filtered.index];
    // Translation at this hook came before the filters.
    let packet: &Packet = last.packet.as_ref().or(entered.packet.as_ref())?;
    let (input, output) = devices(journey, filtered, facts);
    let mut marks: Vec<u32> = [entered.mark, last.mark].into_iter().flatten().collect();
    marks.dedup();
    let is_local = |address: IpAddr| facts.is_local_address(address);
    let walked = walk::endings(
        ruleset,
        &walk::Packet {
            hook: filtered.hook,
            tuple: packet.tuple,
            transport: packet.transport,
            input,
            output,
            states: states(journey, packet),
            marks,
            is_local: &is_local,
        },
    );
    let mut answers = journey.events[filtered.index..].iter();
    let rejected = answers.any(|event| event.role() == Role::IcmpError && refuses(event));
    // What answers with an ICMP error is a reject rule; its answer may not have been seen.
    let mut possible: Vec<_> = walked
        .into_iter()
        .filter(|ending| !rejected || ending.rule.is_some_and(|rule| may_reject(&rule.action)))
        .collect();
    if possible.is_empty() {
        return None;
    }
    let ending = possible.remove(0);
    let ends = ending.rule.is_none_or(|rule| ends(&rule.action));
    Some(Ruling {
        certain: ending.sure || possible.is_empty() && ends,
        ending,
        others: possible,
    })
}

/// Whether an action by which the walk found an end may have answered with an ICMP error.
const fn may_reject(action: &Action) -> bool {
    !matches!(
        action,
        Action::Drop
            | Action::Map {
                choices: Some(_),
                ..
            }
    )
}

/// Whether an action by which the walk found an end is known to end packets. A map that is known says so
/// itself where an end was found by it.
const fn ends(action: &Action) -> bool {
    matches!(
        action,
        Action::Drop
            | Action::Reject(_)
            | Action::Map {
                choices: Some(_),
                ..
            }
    )
}

type Devices = Option<Vec<(u32, String)>>;

/// The devices that rules of the hook know: where the packet came in and where it goes out.
fn devices(journey: &Journey, filtered: Filtered, facts: &NetnsFacts) -> (Devices, Devices) {
    let before = &journey.events[..=filtered.index];
    let here = |event: &&Event| event.netns == Some(filtered.netns.0);
    let alone = |index: u32| {
        let link = facts.link(index)?;
        Some(vec![(link.index, link.name.clone())])
    };
    let known = |index: u32| {
        let link = facts.link(index)?;
        let bridge = link.master.and_then(|master| facts.link(master));
        Some(
            [Some(link), bridge]
                .into_iter()
                .flatten()
                .map(|link| (link.index, link.name.clone()))
                .collect(),
        )
    };
    let input = || {
        let at = before
            .iter()
            .rev()
            .filter(here)
            .find_map(|event| event.ifindex);
        known(at?)
    };
    let output = || {
        let routed = before.iter().rev().filter(here).find_map(|event| {
            let leads = matches!(event.role(), Role::Forward | Role::LocalOut | Role::Output);
            match event.detail {
                Detail::Route { ifindex, .. } if leads => ifindex,
                _ => None,
            }
        });
        known(routed?)
    };
    // Here a port is not its bridge.
    let port = || {
        let mut received = before.iter().rev().filter(here);
        alone(
            received
                .find(|event| event.role() == Role::Receive)?
                .ifindex?,
        )
    };
    let at_hook = || alone(journey.events[filtered.index].ifindex?);
    match filtered.hook {
        NetfilterHook::BridgePreRouting | NetfilterHook::BridgeInput => (port(), Some(Vec::new())),
        NetfilterHook::BridgeForward => (port(), at_hook()),
        NetfilterHook::BridgeOutput | NetfilterHook::BridgePostRouting | NetfilterHook::Egress => {
            (Some(Vec::new()), at_hook())
        }
        NetfilterHook::Ingress => (at_hook(), Some(Vec::new())),
        NetfilterHook::PreRouting | NetfilterHook::Input => (input(), Some(Vec::new())),
        NetfilterHook::Forward => (input(), output()),
        NetfilterHook::Output => (Some(Vec::new()), output()),
        NetfilterHook::PostRouting | NetfilterHook::Other => (None, output()),
    }
}

/// Conntrack states that the packet may have, by what conntrack was seen to make of it.
fn states(journey: &Journey, packet: &Packet) -> Vec<u8> {
    const ALL: [u8; 5] = [
        state::INVALID,
        state::ESTABLISHED,
        state::RELATED,
        state::NEW,
        state::UNTRACKED,
    ];
    let namespace = journey.namespace_at(usize::MAX);
    let seen = journey
        .events
        .iter()
        .enumerate()
        .rev()
        .filter(|&(index, _)| journey.namespace_at(index) == namespace)
        .find_map(|(_, event)| match &event.detail {
            Detail::Conntrack {
                original,
                reply,
                relation: Some(relation),
                ..
            } => Some((*relation, translated(original, reply))),
            _ => None,
        });
    let Some((relation, nat)) = seen else {
        return ALL.to_vec();
    };
    let known = match relation {
        0 | 3 => state::ESTABLISHED,
        1 | 4 => state::RELATED,
        _ => state::NEW,
    };
    let opens = matches!(packet.transport, Transport::Tcp { flags, .. }
        if flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN);
    let mut states = vec![known | nat];
    // TCP's tracker may still find the packet invalid, except one that opens a connection.
    if matches!(packet.transport, Transport::Tcp { .. }) && !opens {
        states.push(state::INVALID);
    }
    states
}

/// The bits of a translated connection.
fn translated(original: &Tuple, reply: &Tuple) -> u8 {
    // Captures made by earlier versions have ICMP's id and type where there are ports.
    let no_ports = protocol::is_icmp(original.protocol);
    let differ = |one: SocketAddr, two: SocketAddr| one.ip() != two.ip() || !no_ports && one != two;
    let destination = differ(original.destination, reply.source);
    let source = differ(original.source, reply.destination);
    (u8::from(destination) * state::DNAT) | (u8::from(source) * state::SNAT)
}
