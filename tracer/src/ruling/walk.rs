//! Walks the rules of a hook with one packet, as the kernel does, and tells where it may end.
//!
//! A condition holds, does not hold, or cannot be decided. What comes behind something undecided is not
//! sure any more; the walk goes on, so that every place where the packet may have ended is found. A chain
//! may then be left in several ways, and each of them is followed.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::event::{NetfilterHook, Transport, Tuple};
use crate::node::netfilter::{
    Action, Base, Chain, Choice, IpSetLookup, Rule, RuleTable, Ruleset, Subject, Test,
};

/// Rules looked at for one packet at most.
const MOST_RULES: usize = 200_000;
/// The kernel's own limit of jumps (`NFT_JUMP_STACK_SIZE`).
const MOST_JUMPS: usize = 16;
/// Places found at most: more are no answer.
const MOST_ENDINGS: usize = 16;

/// A packet at a hook.
pub(super) struct Packet<'a> {
    pub(super) hook: NetfilterHook,
    pub(super) tuple: Tuple,
    pub(super) transport: Transport,
    /// Devices that rules may know it to come in by: the device and its bridge. `None`: not known.
    pub(super) input: Option<Vec<(u32, String)>>,
    pub(super) output: Option<Vec<(u32, String)>>,
    /// Conntrack states that it may have, each a set of `node::netfilter::state` bits.
    pub(super) states: Vec<u8>,
    /// Firewall marks that it may have.
    pub(super) marks: Vec<u32>,
    /// Whether an address is this host's.
    pub(super) is_local: &'a dyn Fn(IpAddr) -> bool,
}

impl Packet<'_> {
    /// It enters a base chain: one of some devices lets no other's packets in.
    fn enters(&self, base: &Base) -> Truth {
        if base.devices.is_empty() {
            return Truth::Yes;
        }
        let own = match self.hook {
            NetfilterHook::Egress => &self.output,
            _ => &self.input,
        };
        let of = |device: &String, found: &str| match device.strip_suffix('*') {
            Some(prefix) => named(found, prefix, true),
            None => named(found, device, false),
        };
        device(own, |_, found| {
            base.devices.iter().any(|device| of(device, found))
        })
    }
}

/// Where a packet may have ended.
#[derive(Clone, Debug)]
pub struct Ending<'a> {
    /// Table.
    pub table: &'a RuleTable,
    /// Chain.
    pub chain: &'a Chain,
    /// The rule; `None` for the chain's policy.
    pub rule: Option<&'a Rule>,
    /// Everything before it was decided.
    pub sure: bool,
    /// Chains that led there, the base chain first.
    pub path: Vec<&'a str>,
}

impl Ending<'_> {
    /// Table, chain and rule or policy in words.
    pub fn place(&self) -> String {
        match self.rule {
            Some(rule) => self.table.place(self.chain, rule),
            None => format!("{}/{} policy DROP", self.table.named(), self.chain.name),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Truth {
    Yes,
    No,
    Unknown,
}

impl Truth {
    /// What all of several possibilities say; unknown when they differ or there are none.
    fn agreed(mut answers: impl Iterator<Item = bool>) -> Self {
        match answers.next() {
            Some(first) if answers.all(|answer| answer == first) => Self::from(first),
            _ => Self::Unknown,
        }
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// The ways in which a packet may have left a chain alive; none when it surely ended there.
#[derive(Clone, Copy)]
struct Left {
    /// At the chain's end or by `return`.
    back: bool,
    /// Accepted by this table.
    accepted: bool,
}

impl Left {
    const ENDED: Self = Self {
        back: false,
        accepted: false,
    };
    const BACK: Self = Self {
        back: true,
        accepted: false,
    };
    const ACCEPTED: Self = Self {
        back: false,
        accepted: true,
    };
    const ANY: Self = Self {
        back: true,
        accepted: true,
    };

    const fn or(self, other: Self) -> Self {
        Self {
            back: self.back || other.back,
            accepted: self.accepted || other.accepted,
        }
    }
}

/// A rule, and where it is.
#[derive(Clone, Copy)]
struct Place<'a> {
    table: &'a RuleTable,
    chain: &'a Chain,
    rule: &'a Rule,
}

/// What a packet met in a rule.
struct Met {
    left: Left,
    /// It may have gone on to the rule behind.
    next_rule: bool,
}

impl Met {
    const NEXT_RULE: Self = Self {
        left: Left::ENDED,
        next_rule: true,
    };

    const fn leaves(left: Left) -> Self {
        Self {
            left,
            next_rule: false,
        }
    }
}

struct Walk<'a, 'p> {
    packet: &'p Packet<'p>,
    sure: bool,
    visited: usize,
    path: Vec<&'a str>,
    found: Vec<Ending<'a>>,
}

/// The places where the packet may have been dropped at its hook, in order, up to the first sure one.
pub(super) fn endings<'a>(ruleset: &'a Ruleset, packet: &Packet<'_>) -> Vec<Ending<'a>> {
    let ipv6 = packet.tuple.destination.is_ipv6();
    let mut bases: Vec<(&RuleTable, &Chain, &Base)> = ruleset
        .tables
        .iter()
        .filter(|table| table.family.sees(ipv6))
        .flat_map(|table| table.chains.iter().map(move |chain| (table, chain)))
        .filter_map(|(table, chain)| Some((table, chain, chain.base.as_ref()?)))
        .filter(|(.., base)| base.hook == packet.hook && base.kind != "nat")
        .filter(|(.., base)| packet.enters(base) != Truth::No)
        .collect();
    bases.sort_by_key(|(.., base)| base.priority);
    let mut walk = Walk {
        packet,
        sure: true,
        visited: 0,
        path: Vec::new(),
        found: Vec::new(),
    };
    for (table, chain, base) in bases {
        walk.sure &= packet.enters(base) == Truth::Yes;
        let left = walk.chain(table, chain);
        if left.back && base.drops {
            walk.end(table, chain, None);
        }
        let passes = left.accepted || left.back && !base.drops;
        if !passes {
            break;
        }
    }
    walk.found
}

impl<'a> Walk<'a, '_> {
    fn end(&mut self, table: &'a RuleTable, chain: &'a Chain, rule: Option<&'a Rule>) {
        // Several ways may lead to one place.
        let known = self.found.iter().any(|ending| {
            std::ptr::eq(ending.chain, chain)
                && ending.rule.map(std::ptr::from_ref) == rule.map(std::ptr::from_ref)
        });
        if !known && self.found.len() < MOST_ENDINGS {
            let mut path = self.path.clone();
            if path.last() != Some(&chain.name.as_str()) {
                path.push(&chain.name);
            }
            self.found.push(Ending {
                table,
                chain,
                rule,
                sure: self.sure,
                path,
            });
        }
    }

    fn chain(&mut self, table: &'a RuleTable, chain: &'a Chain) -> Left {
        self.path.push(&chain.name);
        let left = self.rules(table, chain);
        self.path.pop();
        left
    }

    fn rules(&mut self, table: &'a RuleTable, chain: &'a Chain) -> Left {
        let mut left = Left::ENDED;
        for rule in &chain.rules {
            self.visited += 1;
            if self.visited > MOST_RULES {
                self.sure = false;
                return Left::ANY;
            }
            let truth = self.matches(rule);
            if truth == Truth::No {
                continue;
            }
            self.sure &= truth == Truth::Yes || rule.action == Action::Continue;
            let place = Place { table, chain, rule };
            let met = self.action(place, &rule.action);
            left = left.or(met.left);
            if truth == Truth::Yes && !met.next_rule {
                return left;
            }
        }
        left.or(Left::BACK)
    }

    /// What an action does to a packet that it is for.
    fn action(&mut self, place: Place<'a>, action: &'a Action) -> Met {
        match action {
            Action::Continue => Met::NEXT_RULE,
            Action::Drop | Action::Reject(_) => {
                self.end(place.table, place.chain, Some(place.rule));
                Met::leaves(Left::ENDED)
            }
            Action::Accept | Action::Translate(_) | Action::Dnat(_) => Met::leaves(Left::ACCEPTED),
            Action::Return => Met::leaves(Left::BACK),
            Action::Map {
                choices: Some(choices),
                ..
            } => self.map(place, choices),
            // A map that is not known may drop, and a target that is not known may do anything.
            Action::Map { choices: None, .. } | Action::Other(_) => self.cannot_follow(place),
            Action::Jump(name) | Action::Goto(name) => {
                let (Some(next), true) = (place.table.chain(name), self.path.len() < MOST_JUMPS)
                else {
                    return self.cannot_follow(place);
                };
                let left = self.chain(place.table, next);
                let comes_back = left.back && matches!(action, Action::Jump(_));
                Met {
                    left: Left {
                        back: left.back && !comes_back,
                        ..left
                    },
                    next_rule: comes_back,
                }
            }
        }
    }

    /// What a map says of the packet: of several keys that it may have, any of them; without its key the rule
    /// does not match.
    fn map(&mut self, place: Place<'a>, choices: &'a [Choice]) -> Met {
        let truths = choices
            .iter()
            .map(|choice| (self.any(&choice.members), choice));
        let possible: Vec<_> = truths.filter(|(truth, _)| *truth != Truth::No).collect();
        if let Some((_, choice)) = possible.iter().find(|(truth, _)| *truth == Truth::Yes) {
            return self.action(place, &choice.action);
        }
        // To go on is what happens without the key as well.
        self.sure &= possible
            .iter()
            .all(|(_, choice)| choice.action == Action::Continue);
        let mut met = Met::NEXT_RULE;
        for (_, choice) in possible {
            met.left = met.left.or(self.action(place, &choice.action).left);
        }
        met
    }

    /// The packet may have ended by this rule, or gone on in any way.
    fn cannot_follow(&mut self, place: Place<'a>) -> Met {
        self.sure = false;
        self.end(place.table, place.chain, Some(place.rule));
        Met {
            left: Left::ANY,
            next_rule: true,
        }
    }

    fn matches(&self, rule: &Rule) -> Truth {
        let mut truth = Truth::Yes;
        for test in &rule.tests {
            match self.test(test) {
                Truth::No => return Truth::No,
                Truth::Unknown => truth = Truth::Unknown,
                Truth::Yes => {}
            }
        }
        // A rule that counts and never counted did not match this packet either.
        if truth == Truth::Unknown && rule.packets == Some(0) {
            return Truth::No;
        }
        truth
    }

    fn test(&self, test: &Test) -> Truth {
        let truth = self.holds(&test.on);
        match (truth, test.negated) {
            (Truth::Yes, true) => Truth::No,
            (Truth::No, true) => Truth::Yes,
            _ => truth,
        }
    }

    fn holds(&self, on: &Subject) -> Truth {
        let Packet {
            tuple, transport, ..
        } = self.packet;
        match on {
            Subject::Source(address, length) => inside(tuple.source.ip(), *address, *length).into(),
            Subject::Destination(address, length) => {
                inside(tuple.destination.ip(), *address, *length).into()
            }
            Subject::Protocol(number) => (tuple.protocol == *number).into(),
            Subject::Ipv6(ipv6) => (tuple.destination.is_ipv6() == *ipv6).into(),
            Subject::In(name, prefix) => {
                device(&self.packet.input, |_, found| named(found, name, *prefix))
            }
            Subject::Out(name, prefix) => {
                device(&self.packet.output, |_, found| named(found, name, *prefix))
            }
            Subject::InIndex(index) => device(&self.packet.input, |found, _| found == *index),
            Subject::OutIndex(index) => device(&self.packet.output, |found, _| found == *index),
            Subject::SourcePort(ranges) => self.port(|tuple| has(ranges, tuple.source.port())),
            Subject::DestinationPort(ranges) => {
                self.port(|tuple| has(ranges, tuple.destination.port()))
            }
            Subject::EitherPort(ranges) => self.port(|tuple| {
                has(ranges, tuple.source.port()) || has(ranges, tuple.destination.port())
            }),
            Subject::TcpFlags { mask, set } => match transport {
                Transport::Tcp { flags, .. } => (flags & mask == *set).into(),
                Transport::Other => Truth::Unknown,
                _ => Truth::No,
            },
            Subject::Icmp { kind, code } => match transport {
                Transport::Icmp {
                    kind: found,
                    code: found_code,
                } => (found == kind && code.is_none_or(|code| code == *found_code)).into(),
                Transport::Other => Truth::Unknown,
                _ => Truth::No,
            },
            Subject::State(bits) => {
                Truth::agreed(self.packet.states.iter().map(|state| state & bits != 0))
            }
            Subject::Mark { value, mask } => {
                Truth::agreed(self.packet.marks.iter().map(|mark| mark & mask == *value))
            }
            Subject::LocalSource => (self.packet.is_local)(tuple.source.ip()).into(),
            Subject::LocalDestination => (self.packet.is_local)(tuple.destination.ip()).into(),
            Subject::Set { members, .. } | Subject::IpSet(IpSetLookup { members, .. }) => {
                let members = members.as_deref();
                members.map_or(Truth::Unknown, |members| self.any(members))
            }
            Subject::All(parts) => self.all(parts),
            Subject::Recent(_) | Subject::Other(_) => Truth::Unknown,
        }
    }

    /// Whether one of several conditions holds.
    fn any(&self, conditions: &[Subject]) -> Truth {
        let mut truth = Truth::No;
        for on in conditions {
            match self.holds(on) {
                Truth::Yes => return Truth::Yes,
                Truth::Unknown => truth = Truth::Unknown,
                Truth::No => {}
            }
        }
        truth
    }

    /// Whether all of several conditions hold.
    fn all(&self, conditions: &[Subject]) -> Truth {
        let mut truth = Truth::Yes;
        for on in conditions {
            match self.holds(on) {
                Truth::No => return Truth::No,
                Truth::Unknown => truth = Truth::Unknown,
                Truth::Yes => {}
            }
        }
        truth
    }

    /// A condition on ports; a packet whose ports were not read cannot be decided.
    fn port(&self, holds: impl Fn(&Tuple) -> bool) -> Truth {
        match self.packet.transport {
            Transport::Other => Truth::Unknown,
            Transport::Icmp { .. } => Truth::No,
            _ => holds(&self.packet.tuple).into(),
        }
    }
}

/// A packet without such a device (none comes in by one at OUTPUT) matches no name.
fn device(devices: &Option<Vec<(u32, String)>>, holds: impl Fn(u32, &str) -> bool) -> Truth {
    match devices {
        None => Truth::Unknown,
        Some(devices) if devices.is_empty() => Truth::No,
        Some(devices) => Truth::agreed(devices.iter().map(|(index, name)| holds(*index, name))),
    }
}

fn named(found: &str, name: &str, prefix: bool) -> bool {
    if prefix {
        found.starts_with(name)
    } else {
        found == name
    }
}

fn has(ranges: &[RangeInclusive<u16>], port: u16) -> bool {
    ranges.iter().any(|range| range.contains(&port))
}

fn inside(address: IpAddr, prefix: IpAddr, length: u8) -> bool {
    let (address, prefix, width) = match (address, prefix) {
        (IpAddr::V4(address), IpAddr::V4(prefix)) => (
            u128::from(address.to_bits()) << 96,
            u128::from(prefix.to_bits()) << 96,
            32,
        ),
        (IpAddr::V6(address), IpAddr::V6(prefix)) => (address.to_bits(), prefix.to_bits(), 128),
        _ => return false,
    };
    let length = u32::from(length).min(width);
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    address & mask == prefix & mask
}
