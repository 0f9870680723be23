//! Packets that a netfilter rule ended: what the causes of rules share. Which cause it is, the rule's
//! chain and comment tell.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::Diagnosis;
use super::evidence::{Evidence, Failure, endpoint};
use crate::event::{NetfilterHook, Tuple, protocol};
use crate::node::NetnsId;
use crate::node::netfilter::{Action, KUBE_PROXY_TABLE, Rule, RuleTable, Subject, Tool, state};
use crate::ruling::{self, Ending, Ruling};

/// A failure that netfilter's rules ended.
pub(super) struct Stop<'a> {
    /// Its place among the failures.
    failure: usize,
    /// Namespace.
    pub(super) netns: NetnsId,
    /// Hook.
    hook: NetfilterHook,
    /// Which rule; `None` where the rules could not be read.
    pub(super) ruling: Option<Ruling<'a>>,
    /// What the rule is for.
    pub(super) kind: Kind,
}

/// What a rule that ends packets is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// kube-proxy: a service without endpoints.
    NoEndpoints,
    /// kube-proxy: a service for clients from outside that has endpoints on other nodes only.
    NoLocalEndpoints,
    /// kube-proxy: a port that the service with the address does not have.
    NoServicePort,
    /// kube-proxy: an address that no service has.
    NoService,
    /// kube-proxy: loadBalancerSourceRanges.
    SourceRange,
    /// A container network's policy chains.
    NetworkPolicy,
    /// The policy of a FORWARD chain.
    ForwardPolicy,
    /// What conntrack could make nothing of.
    Invalid,
    /// Any other.
    Rule,
}

/// kube-proxy's own words for services without endpoints (pkg/proxy/iptables/proxier.go).
const NO_ENDPOINTS: &str = "has no endpoints";
/// The same for services with endpoints on other nodes only, whose packets it drops.
const NO_LOCAL_ENDPOINTS: &str = "has no local endpoints";
/// Chains of kube-proxy's nftables table whose maps reject what has no endpoints, and drop what has no local ones.
const ENDPOINT_CHECKS: [&str; 2] = ["service-endpoints-check", "nodeport-endpoints-check"];
/// kube-proxy's nftables chain that rejects what is for no service's port, and drops what is for no service's address.
const ADDRESS_CHECK: &str = "cluster-ips-check";
/// Its chain for the former in ipvs mode.
const IPVS_FILTER: &str = "KUBE-IPVS-FILTER";
/// Chains in which kube-proxy drops clients outside of loadBalancerSourceRanges.
const SOURCE_RANGE_CHAINS: &[&str] = &[
    "KUBE-PROXY-FIREWALL",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-FW-",
];
/// kube-proxy up to 1.25 marks what KUBE-FIREWALL drops.
const MARK_DROP: &str = "dropping marked packets";
/// Beginnings of the names of policy chains: Calico, kube-router, Weave, Cilium, Antrea.
const POLICY_CHAINS: &[&str] = &[
    "cali-",
    "KUBE-NWPLCY-",
    "KUBE-POD-FW-",
    "KUBE-ROUTER-",
    "WEAVE-NPC",
    "CILIUM_",
    "ANTREA-POL-",
];
/// nftables tables of policies: kube-network-policies, Calico.
const POLICY_TABLES: &[&str] = &["kube-network-policies", "calico"];

/// Every failure that rules ended, in order.
pub(super) fn stops<'a>(evidence: &Evidence<'a>) -> Vec<Stop<'a>> {
    let stop = |failure: &Failure<'a>| {
        let drop = failure.drop?;
        let by_netfilter = ruling::by_netfilter(drop.reason, drop.function);
        let filtered = ruling::filtered(failure.journey, by_netfilter)?;
        let facts = evidence.site(filtered.netns)?.facts;
        let ruling = ruling::judge(failure.journey, filtered, facts);
        // Rules that were read and let the packet pass did not drop it. At other hooks than this
        // conntrack drops too.
        if ruling.is_none() && (facts.ruleset.is_some() || filtered.hook != NetfilterHook::Forward)
        {
            return None;
        }
        Some(Stop {
            failure: failure.place,
            netns: filtered.netns,
            hook: filtered.hook,
            kind: ruling
                .as_ref()
                .map_or(Kind::Rule, |ruling| kind(&ruling.ending)),
            ruling,
        })
    };
    evidence.failures().iter().filter_map(stop).collect()
}

fn kind(ending: &Ending<'_>) -> Kind {
    let Some(rule) = ending.rule else {
        return match &ending.chain.base {
            Some(base) if base.hook == NetfilterHook::Forward => Kind::ForwardPolicy,
            _ => Kind::Rule,
        };
    };
    let begins = |names: &[&str]| {
        let passed = |chain: &&str| names.iter().any(|name| chain.starts_with(name));
        ending.path.iter().any(passed)
    };
    let comment = rule.comment.as_deref().unwrap_or_default();
    let of_kube_proxy = is_kube_proxy_s(ending.table);
    let rejects = matches!(rule.action, Action::Reject(_));
    if is_for_invalid(rule) {
        Kind::Invalid
    } else if rejects
        && (comment.ends_with(NO_ENDPOINTS) || of_kube_proxy && ending.chain.name == "reject-chain")
    {
        Kind::NoEndpoints
    } else if rule.action == Action::Drop && comment.ends_with(NO_LOCAL_ENDPOINTS)
        || of_kube_proxy && ENDPOINT_CHECKS.contains(&ending.chain.name.as_str())
    {
        Kind::NoLocalEndpoints
    } else if ending.chain.name == IPVS_FILTER && rejects
        || of_kube_proxy && ending.chain.name == ADDRESS_CHECK
    {
        if rejects {
            Kind::NoServicePort
        } else {
            Kind::NoService
        }
    } else if begins(SOURCE_RANGE_CHAINS)
        || comment.contains(MARK_DROP)
        || of_kube_proxy && ending.chain.name.starts_with("firewall-")
    {
        Kind::SourceRange
    } else if begins(POLICY_CHAINS) || POLICY_TABLES.contains(&ending.table.name.as_str()) {
        Kind::NetworkPolicy
    } else {
        Kind::Rule
    }
}

/// Whether a table is the one of kube-proxy's nftables mode.
fn is_kube_proxy_s(table: &RuleTable) -> bool {
    table.tool == Tool::Nft && table.name == KUBE_PROXY_TABLE
}

/// A rule that only ends what conntrack could make nothing of.
fn is_for_invalid(rule: &Rule) -> bool {
    let invalid = |on: &Subject| *on == Subject::State(state::INVALID);
    let by_test = rule.tests.iter().any(|test| match &test.on {
        _ if test.negated => false,
        Subject::Set {
            members: Some(members),
            ..
        } => members.iter().all(invalid),
        on => invalid(on),
    });
    by_test
        || match &rule.action {
            Action::Map {
                choices: Some(choices),
                ..
            } => choices
                .iter()
                .filter(|choice| choice.action == Action::Drop)
                .all(|choice| choice.members.iter().all(invalid)),
            _ => false,
        }
}

/// The service that a comment of kube-proxy begins with: its namespace and its name.
fn of_comment(comment: &str) -> Option<(&str, &str)> {
    let (namespace, rest) = comment.split(' ').next()?.split_once('/')?;
    let name = rest.split(':').next()?;
    (!namespace.is_empty() && !name.is_empty()).then_some((namespace, name))
}

/// The service that a chain of kube-proxy's nftables table is named after, as in `firewall-2CRNCTTE-shop/web/tcp/http`.
fn of_chain(name: &str) -> Option<(&str, &str)> {
    let mut parts = name.splitn(3, '-').nth(2)?.split('/');
    let found = (parts.next()?, parts.next()?);
    // Protocol and port follow.
    parts.next().map(|_| found)
}

impl<'a> Stop<'a> {
    /// The place of its failure, by which stops are in order.
    pub(super) const fn place_of_failure(&self) -> usize {
        self.failure
    }

    /// The failure.
    pub(super) fn failure<'e>(&self, evidence: &'e Evidence<'a>) -> &'e Failure<'a> {
        &evidence.failures()[self.failure]
    }

    /// Addresses of the packet when it ended.
    pub(super) fn tuple(&self, evidence: &Evidence<'a>) -> Option<Tuple> {
        Some(self.failure(evidence).packet_at(usize::MAX)?.tuple)
    }

    /// Namespace and name of the service that the packet was for: by the cluster, or by kube-proxy's rule.
    pub(super) fn service(&self, evidence: &Evidence<'a>) -> Option<(&'a str, &'a str)> {
        let asked = self.failure(evidence).journey.first_tuple();
        let known = evidence.cluster.zip(asked).and_then(|(cluster, asked)| {
            let service = cluster.service_at(asked.protocol, asked.destination)?;
            Some((&*service.name.namespace, &*service.name.name))
        });
        let of_rule = || {
            let ending = &self.ruling.as_ref()?.ending;
            let by_nft = is_kube_proxy_s(ending.table);
            let chain = || by_nft.then(|| of_chain(&ending.chain.name)).flatten();
            self.comment().and_then(of_comment).or_else(chain)
        };
        known.or_else(of_rule)
    }

    /// The comment of its rule.
    pub(super) fn comment(&self) -> Option<&'a str> {
        self.ruling.as_ref()?.ending.rule?.comment.as_deref()
    }

    /// Table, chain and rule in words.
    pub(super) fn place(&self) -> String {
        match &self.ruling {
            Some(ruling) => ruling.ending.place(),
            None => format!("{} hook", self.hook.name()),
        }
    }
}

/// The diagnoses of one kind, one for each subject. `say` begins one with its subject and summary for the first stop
/// of a subject, and adds the fixes; what all kinds share is added here.
pub(super) fn diagnoses<'a>(
    evidence: &Evidence<'a>,
    wanted: Kind,
    subject: impl Fn(&Stop<'a>) -> String,
    say: impl Fn(&Stop<'a>, String) -> Diagnosis,
) -> Vec<Diagnosis> {
    let mut places: HashMap<(NetnsId, String), usize> = HashMap::new();
    let mut groups: Vec<(Diagnosis, Vec<&Stop<'a>>)> = Vec::new();
    for stop in evidence
        .filtered()
        .iter()
        .filter(|stop| stop.kind == wanted)
    {
        match places.entry((stop.netns, subject(stop))) {
            Entry::Occupied(known) => groups[*known.get()].1.push(stop),
            Entry::Vacant(new) => {
                groups.push((say(stop, new.key().1.clone()), vec![stop]));
                new.insert(groups.len() - 1);
            }
        }
    }
    groups
        .into_iter()
        .map(|(begun, stops)| {
            let failures: Vec<_> = stops.iter().map(|stop| stop.failure(evidence)).collect();
            let first = stops[0];
            prove(evidence, begun.stopped(evidence, &failures), first)
        })
        .collect()
}

fn prove<'a>(evidence: &Evidence<'a>, begun: Diagnosis, stop: &Stop<'a>) -> Diagnosis {
    let netns = stop.netns;
    let failure = stop.failure(evidence);
    let (words, drop) = (failure.words(), failure.drop_words());
    let site = evidence.site(netns);
    let namespace = site.map_or_else(|| format!("netns {netns}"), |site| site.name());
    let proven = begun.prove(
        "packet",
        format!(
            "{words} was {drop}, at the {} hook of {namespace}",
            stop.hook.name()
        ),
    );
    let Some(ruling) = &stop.ruling else {
        let why = site.and_then(|site| {
            let about = |missing: &&crate::node::Missing| missing.what.contains("tables");
            site.facts.missing.iter().find(about)
        });
        return proven.lacking(why.map_or_else(
            || format!("the rules of {namespace}"),
            |missing| format!("{}: {}", missing.what, missing.why),
        ));
    };
    let Ending {
        table,
        chain,
        rule,
        path,
        ..
    } = &ruling.ending;
    let counted = |packets: Option<u64>| {
        packets.map_or_else(String::new, |count| format!(" ({count} packets so far)"))
    };
    let rule_text = match rule {
        Some(rule) => format!(
            "{} {}: {}{}",
            table.command(),
            ruling.ending.place(),
            table.text(rule),
            counted(rule.packets)
        ),
        None => format!(
            "{} {}{}",
            table.command(),
            ruling.ending.place(),
            counted(chain.base.as_ref().and_then(|base| base.policy_packets))
        ),
    };
    let others: Vec<_> = ruling.others.iter().map(Ending::place).collect();
    proven
        .prove("rule", rule_text)
        .prove_if(
            "rule",
            (path.len() > 1).then(|| format!("the packet came there by {}", path.join(" → "))),
        )
        .lacking_if(
            !ruling.certain,
            if others.is_empty() {
                "conditions of the rules before it that cannot be decided from here".to_owned()
            } else {
                format!(
                    "what tells it from {}, whose conditions cannot be decided from here",
                    others.join(", ")
                )
            },
        )
}

/// What a packet was for, in words.
pub(super) fn target(packet: Option<Tuple>) -> String {
    packet.map_or_else(
        || "(unknown)".into(),
        |tuple| {
            format!(
                "{} {}",
                protocol::name(tuple.protocol),
                endpoint(tuple.destination)
            )
        },
    )
}

/// What stands for a packet in rules of this table's tool: addresses, protocol and port.
pub(super) fn selector(table: &RuleTable, tuple: &Tuple) -> String {
    let name = protocol::name(tuple.protocol);
    let port = tuple.destination.port();
    let (source, destination) = (tuple.source.ip(), tuple.destination.ip());
    let ported = matches!(
        tuple.protocol,
        protocol::TCP | protocol::UDP | protocol::SCTP
    );
    match table.tool {
        Tool::Nft => {
            let family = if destination.is_ipv6() { "ip6" } else { "ip" };
            let addresses = format!("{family} saddr {source} {family} daddr {destination}");
            if ported {
                format!("{addresses} {name} dport {port}")
            } else {
                format!("{addresses} meta l4proto {name}")
            }
        }
        _ => {
            let base = format!("-s {source} -d {destination} -p {name}");
            if ported {
                format!("{base} --dport {port}")
            } else {
                base
            }
        }
    }
}

/// The command that accepts a packet in front of the place where it ended.
pub(super) fn accept(ending: &Ending<'_>, tuple: &Tuple) -> String {
    let (table, chain) = (ending.table, ending.chain);
    let what = selector(table, tuple);
    match (table.tool, ending.rule) {
        (Tool::Nft, rule) => {
            let (verb, place) = match rule.and_then(|rule| rule.handle) {
                Some(handle) => ("insert", format!(" handle {handle}")),
                None => ("add", String::new()),
            };
            format!(
                "nft {verb} rule {} {} {}{place} {what} accept",
                table.family.name(),
                table.name,
                chain.name
            )
        }
        (_, Some(rule)) => format!(
            "{} -t {} -I {} {} {what} -j ACCEPT",
            table.command(),
            table.name,
            chain.name,
            rule.number
        ),
        (_, None) => format!(
            "{} -t {} -A {} {what} -j ACCEPT",
            table.command(),
            table.name,
            chain.name
        ),
    }
}

/// The command that shows whether a fix worked: the same packet again, or the rule's counter.
pub(super) fn check<'a>(evidence: &Evidence<'a>, stop: &Stop<'a>) -> String {
    match (stop.tuple(evidence), &stop.ruling) {
        (Some(tuple), _) if matches!(tuple.protocol, protocol::TCP | protocol::UDP) => format!(
            "tracer probe {}://{}",
            protocol::name(tuple.protocol),
            endpoint(tuple.destination)
        ),
        (_, Some(ruling)) => ruling.ending.table.show(&ruling.ending.chain.name),
        _ => "tracer run".into(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::constructed::{Bench, CNI0, ETH0, node};
    use crate::event::Detail;
    use crate::node::netfilter::{Base, Chain, Choice, Family, Rule, Ruleset, Subject, Test};

    /// A rule with a condition on the destination's port.
    pub(in crate::cause) fn rule(port: Option<u16>, action: Action, comment: &str) -> Rule {
        Rule {
            number: 1,
            handle: Some(7),
            tests: port
                .map(|port| Test {
                    negated: false,
                    on: Subject::DestinationPort(vec![port..=port]),
                })
                .into_iter()
                .collect(),
            notes: Vec::new(),
            action,
            comment: (!comment.is_empty()).then(|| comment.to_owned()),
            packets: Some(3),
        }
    }

    /// A chain with its rules numbered.
    pub(in crate::cause) fn chain(
        name: &str,
        base: Option<(NetfilterHook, bool)>,
        mut rules: Vec<Rule>,
    ) -> Chain {
        for (index, rule) in rules.iter_mut().enumerate() {
            rule.number = index as u32 + 1;
        }
        Chain {
            name: name.into(),
            base: base.map(|(hook, drops)| Base {
                hook,
                priority: 0,
                drops,
                kind: "filter".into(),
                policy_packets: None,
                devices: Vec::new(),
            }),
            rules,
        }
    }

    /// A node whose table `filter` has these chains, and a TCP packet that netfilter dropped on its
    /// way through the node.
    pub(in crate::cause) fn forwarded(tool: Tool, chains: Vec<Chain>) -> Bench {
        let mut bench = node();
        bench.site().ruleset = Some(Ruleset {
            tables: vec![RuleTable {
                tool,
                family: Family::Ip,
                name: "filter".into(),
                chains,
            }],
        });
        bench
            .tcp("192.0.2.10:40000", "10.244.0.9:80")
            .receive(ETH0)
            .with(
                HookId::Forward,
                Detail::Route {
                    kind: 1,
                    error: 0,
                    ifindex: Some(CNI0),
                },
            )
            .netfilter(NetfilterHook::Forward)
            .dropped("NETFILTER_DROP", "nf_hook_slow");
        bench
    }

    #[test]
    fn services_of_comments_and_chains() {
        assert_eq!(
            of_comment("shop/web:http has no endpoints"),
            Some(("shop", "web"))
        );
        assert_eq!(
            of_comment("shop/web has no endpoints"),
            Some(("shop", "web"))
        );
        assert_eq!(of_comment("no service"), None);
        assert_eq!(
            of_chain("firewall-2CRNCTTE-my-shop/web-1/tcp/http"),
            Some(("my-shop", "web-1"))
        );
        for other in ["firewall-check", "reject-chain", "service-endpoints-check"] {
            assert_eq!(of_chain(other), None);
        }
    }

    #[test]
    fn what_a_set_or_map_drops_as_invalid_alone_is_for_invalid() {
        let states = |bits| vec![Subject::State(bits)];
        let in_set = |bits| Subject::Set {
            what: "ct state".into(),
            set: "__set0".into(),
            members: Some(states(bits)),
        };
        let map = |bits| Action::Map {
            words: "ct state vmap (…)".into(),
            set: "__map0".into(),
            choices: Some(vec![
                Choice {
                    members: states(state::ESTABLISHED),
                    action: Action::Accept,
                },
                Choice {
                    members: states(bits),
                    action: Action::Drop,
                },
            ]),
        };
        for (bits, expected) in [(state::INVALID, true), (state::INVALID | state::NEW, false)] {
            let mut by_set = rule(None, Action::Drop, "");
            by_set.tests.push(Test {
                negated: false,
                on: in_set(bits),
            });
            assert_eq!(is_for_invalid(&by_set), expected);
            assert_eq!(is_for_invalid(&rule(None, map(bits), "")), expected);
            by_set.tests[0].negated = true;
            assert!(!is_for_invalid(&by_set));
        }
    }

    #[test]
    fn a_subject_is_begun_once() {
        let chains = vec![chain(
            "FORWARD",
            Some((NetfilterHook::Forward, false)),
            vec![rule(Some(80), Action::Drop, "")],
        )];
        let mut bench = forwarded(Tool::IptablesLegacy, chains);
        bench
            .tcp("192.0.2.11:40000", "10.244.0.9:80")
            .receive(ETH0)
            .netfilter(NetfilterHook::Forward)
            .dropped("NETFILTER_DROP", "nf_hook_slow");
        let begun = std::cell::Cell::new(0);
        let found = bench.with_evidence(|evidence| {
            diagnoses(evidence, Kind::Rule, Stop::place, |_, subject| {
                begun.set(begun.get() + 1);
                Diagnosis::new(&crate::cause::CATALOGUE[0], subject, "")
            })
        });
        assert_eq!((begun.get(), found.len(), found[0].failed), (1, 1, 2));
    }

    #[test]
    fn packets_in_the_words_of_each_tool() {
        let bench = forwarded(
            Tool::Nft,
            vec![chain(
                "forward",
                Some((NetfilterHook::Forward, false)),
                vec![rule(Some(80), Action::Drop, "")],
            )],
        );
        bench.with_evidence(|evidence| {
            let stop = &evidence.filtered()[0];
            let ruling = stop.ruling.as_ref().expect("a ruling");
            let tuple = stop.tuple(evidence).expect("a packet");
            assert_eq!(
                accept(&ruling.ending, &tuple),
                "nft insert rule ip filter forward handle 7 ip saddr 192.0.2.10 ip daddr 10.244.0.9 tcp dport 80 accept"
            );
            assert_eq!(check(evidence, stop), "tracer probe tcp://10.244.0.9:80");
        });
    }
}
