//! From a chain down to the endpoints that it sends clients from outside the node to.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::ServiceRule;
use crate::node::Prefix;
use crate::node::netfilter::{Action, Chain, Rule, RuleTable, Set, Subject};

/// Chains below one another at most; kube-proxy has five.
const MOST_DEPTH: usize = 16;

/// What a chain comes to.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Reach {
    /// Where it sends to.
    pub endpoints: BTreeSet<SocketAddr>,
    /// How long a client keeps its endpoint.
    pub affinity: Option<Duration>,
    /// The sources that it lets through, where it looks at them.
    pub sources: Option<BTreeSet<Prefix>>,
}

impl Reach {
    fn add(&mut self, other: &Self) {
        self.endpoints.extend(&other.endpoints);
        self.affinity = self.affinity.or(other.affinity);
        if let Some(sources) = &other.sources {
            self.sources.get_or_insert_default().extend(sources);
        }
    }

    /// Adds it to what is known of a destination.
    pub(super) fn add_to(&self, service: &mut ServiceRule) {
        service.endpoints.extend(&self.endpoints);
        service.affinity = service.affinity.or(self.affinity);
        if let Some(sources) = &self.sources {
            service.sources.get_or_insert_default().extend(sources);
        }
    }
}

/// What is to be known of chains by their names.
pub(super) struct Names {
    /// Chains that only mark the packet begin so.
    pub marking: &'static [&'static str],
    /// Chains that let through the sources that their rules name begin so.
    pub firewall: &'static str,
}

/// The chains of a table, each followed once.
pub(super) struct Chains<'a> {
    names: Names,
    chains: HashMap<&'a str, &'a Chain>,
    sets: HashMap<&'a str, &'a Set>,
    known: HashMap<String, Rc<Reach>>,
}

impl<'a> Chains<'a> {
    pub(super) fn new(table: &'a RuleTable, sets: &'a [Set], names: Names) -> Self {
        Self {
            names,
            chains: table
                .chains
                .iter()
                .map(|chain| (chain.name.as_str(), chain))
                .collect(),
            sets: sets.iter().map(|set| (set.name.as_str(), set)).collect(),
            known: HashMap::new(),
        }
    }

    /// A chain by its name.
    pub(super) fn get(&self, name: &str) -> Option<&'a Chain> {
        self.chains.get(name).copied()
    }

    /// A set by its name.
    pub(super) fn set(&self, name: &str) -> Option<&'a Set> {
        self.sets.get(name).copied()
    }

    /// Whether a chain only marks the packet.
    pub(super) fn marks(&self, chain: &str) -> bool {
        self.names
            .marking
            .iter()
            .any(|prefix| chain.starts_with(prefix))
    }

    /// Where a chain sends clients from outside to.
    pub(super) fn reach(&mut self, chain: &str) -> Rc<Reach> {
        self.follow(chain, 0)
    }

    fn follow(&mut self, name: &str, depth: usize) -> Rc<Reach> {
        if let Some(known) = self.known.get(name) {
            return Rc::clone(known);
        }
        let mut reach = Reach::default();
        if let Some(chain) = self.get(name)
            && depth < MOST_DEPTH
        {
            for rule in &chain.rules {
                self.follow_rule(name, rule, depth, &mut reach);
            }
        }
        let reach = Rc::new(reach);
        self.known.insert(name.to_owned(), Rc::clone(&reach));
        reach
    }

    fn follow_rule(&mut self, chain: &str, rule: &Rule, depth: usize, reach: &mut Reach) {
        match &rule.action {
            Action::Dnat(endpoint) => {
                reach.endpoints.insert(*endpoint);
            }
            Action::Jump(next) | Action::Goto(next) if !self.marks(next) => {
                if chain.starts_with(self.names.firewall) {
                    // Without a source the rule is for everyone.
                    for source in sources(rule) {
                        reach.sources.get_or_insert_default().insert(source);
                    }
                } else if only_from_here(rule) {
                    return;
                }
                let further = self.follow(next, depth + 1);
                reach.add(&further);
                reach.affinity = reach.affinity.or(self.affinity(rule));
            }
            Action::Map { set, .. } => {
                let elements = self.set(set).map_or(&[][..], |set| &set.elements);
                for element in elements {
                    if let Some(Action::Jump(next) | Action::Goto(next)) = &element.verdict {
                        let further = self.follow(next, depth + 1);
                        reach.add(&further);
                    }
                }
            }
            _ => {}
        }
    }

    /// How long a client that comes again is sent the same way.
    fn affinity(&self, rule: &Rule) -> Option<Duration> {
        let mut wanted = rule.tests.iter().filter(|test| !test.negated);
        wanted.find_map(|test| match &test.on {
            Subject::Recent(seconds) => Some(Duration::from_secs(u64::from(*seconds))),
            Subject::Set { set, .. } => self.set(set)?.timeout,
            _ => None,
        })
    }
}

/// Whether a rule is for packets of this node or its pods alone.
fn only_from_here(rule: &Rule) -> bool {
    rule.tests.iter().any(|test| {
        let from_here = matches!(
            test.on,
            Subject::Source(..) | Subject::LocalSource | Subject::In(..) | Subject::InIndex(_)
        );
        from_here && !test.negated
    })
}

/// The sources that a rule is for.
fn sources(rule: &Rule) -> impl Iterator<Item = Prefix> {
    rule.tests.iter().filter_map(|test| match test.on {
        Subject::Source(address, length) if !test.negated => Some(Prefix { address, length }),
        _ => None,
    })
}
