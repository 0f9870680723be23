//! `answer-lost`: the answers went out of a device, and whoever asked asked again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::audit::nothing;
use super::evidence::Evidence;
use super::no_answer::{AGAIN, SILENCE, is_gone};
use super::{Cause, Diagnosis, Site};
use crate::event::{Event, protocol};
use crate::flow::{Direction, Flow};
use crate::hook::Role;
use crate::journey::Journey;
use crate::node::{NetnsId, PolicyRule, RuleAction};

pub(super) const CAUSE: Cause = Cause {
    code: "answer-lost",
    title: "the answers went out of a device, and whoever asked asked again",
    explanation: "\
A server took the SYNs of a connection and answered each (SYN+ACK). The answers left by a device and were not
dropped before, but the client went on with SYNs, so it never got them.

Why, where the answers leave by another device than the SYNs came in by: the route back is another one, by a
policy rule (ip rule), a VPN or overlay that takes over the default route, or a second card. A firewall on that
way sees half of a connection and drops it, another provider drops the source address, or the way ends there.
Where they leave by the same device: a firewall or a reverse path filter behind it drops them, or the client's
host does.

Proof: SYNs and answers that were both repeated, the devices of both. What became of the answers there is not
known, so that it is never more than likely. Where another cause explains the same connection, this one is not
named.

Fix: send the answers back the way that the questions came: a route to the clients by that device, a policy
rule for the address that they came to, or no rule that leads elsewhere.",
    references: &[
        "Linux Documentation/networking/ip-sysctl.rst, tcp_synack_retries: a SYN+ACK without an answer is repeated",
        "ip-rule(8): the rule with the lowest priority that fits decides which table is asked",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

/// Where the questions came in and the answers went out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Ways {
    netns: NetnsId,
    came_in: u32,
    went_out: u32,
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut groups: BTreeMap<(Ways, SocketAddr), Vec<&Flow>> = BTreeMap::new();
    for &flow in evidence.unheard() {
        let seen_ns = evidence.until_ns.max(flow.last_ns);
        let waited = Duration::from_nanos(seen_ns.saturating_sub(flow.first_ns));
        let asked = Duration::from_nanos(flow.last_ns.saturating_sub(flow.first_ns));
        if flow.suspicious == 0
            && asked >= AGAIN
            && waited >= SILENCE
            && let Some(ways) = ways(flow)
        {
            let key = (ways, flow.client.destination);
            groups.entry(key).or_default().push(flow);
        }
    }
    groups
        .into_iter()
        .filter_map(|((ways, to), flows)| one(evidence, ways, to, &flows))
        .collect()
}

/// `None` where one of the answers may have been taken, or the questions came from the same namespace.
fn ways(flow: &Flow) -> Option<Ways> {
    if flow.of(Direction::Reply).any(|answer| !is_gone(answer)) {
        return None;
    }
    let answer = flow.of(Direction::Reply).last()?;
    let transmits = |event: &Event| event.role() == Role::Transmit;
    let index = answer.events.iter().rposition(transmits)?;
    let (netns, went_out) = (answer.namespace_at(index)?, answer.events[index].ifindex?);
    let question = flow.of(Direction::Request).last()?;
    let came_in = question.events.iter().find(|event| {
        event.role() == Role::Receive && event.netns == Some(netns) && event.ifindex.is_some()
    })?;
    Some(Ways {
        netns: NetnsId(netns),
        came_in: came_in.ifindex?,
        went_out,
    })
}

/// The device that answers went out of is the one that the questions came in by, or another of the same bond or
/// bridge.
fn is_same_way(site: &Site<'_>, ways: Ways) -> bool {
    let master = |index: u32| site.link(index).and_then(|link| link.master);
    let (came_in, went_out) = (ways.came_in, ways.went_out);
    let masters = [master(came_in), master(went_out)];
    came_in == went_out
        || masters[0].is_some() && masters[0] == masters[1]
        || masters[0] == Some(went_out)
        || masters[1] == Some(came_in)
}

fn one(evidence: &Evidence<'_>, ways: Ways, to: SocketAddr, flows: &[&Flow]) -> Option<Diagnosis> {
    let first = flows.first()?;
    let question = first.of(Direction::Request).last()?;
    let answer = first.of(Direction::Reply).last()?;
    let (client, left) = (first.client.source, answer.last_tuple()?);
    let site = evidence.site(ways.netns)?;
    let place = site.name();
    let (came_in, went_out) = (site.device(ways.came_in), site.device(ways.went_out));
    let same = is_same_way(site, ways);
    let name = protocol::name(first.client.protocol);
    let summary = if same {
        format!(
            "{to} answers {client}, and the answers went out of {went_out} of {place}; the client asks again, so they are \
             lost beyond it."
        )
    } else {
        format!(
            "{to} answers {client}, but the answers leave {place} by {went_out}, and what they answer came in by {came_in}: \
             they do not reach the client."
        )
    };
    let counted = |journeys: usize, what: &str, id: u64, how: String| {
        format!("#{id} {name} {what} {how}, {journeys} seen")
    };
    let begun = Diagnosis::new(
        &CAUSE,
        format!("{name} {to} out of {went_out} of {place}"),
        summary,
    )
    .stopped_flows(evidence, flows.iter().map(|flow| flow.id))
    .prove(
        "packet",
        counted(
            first.of(Direction::Request).count(),
            "SYN",
            question.id,
            format!("{client} → {to} came in by {came_in}"),
        ),
    )
    .prove(
        "packet",
        counted(
            first.of(Direction::Reply).count(),
            "SYN+ACK",
            answer.id,
            format!(
                "{} → {} went out of {went_out}",
                left.source, left.destination
            ),
        ),
    )
    .prove_if(
        "route",
        site.main_route(client.ip())
            .map(|route| site.route_words(route)),
    )
    .lacking(format!("what became of them beyond {went_out}"));
    let rule = rule(site, answer, ways.went_out).filter(|_| !same);
    let proven = begun.prove_if("rule", rule.map(words));
    let device = format!("'host {} and port {}'", client.ip(), to.port());
    let mended = match rule {
        Some(rule) => proven.fix(
            [format!(
                "ip{} rule del {}   # or have it leave out what goes to {}",
                if rule.ipv6 { " -6" } else { "" },
                words(rule),
                client.ip()
            )],
            "what else goes by this rule takes the main table's route",
        ),
        None if same => proven,
        None => proven.fix(
            [format!(
                "ip route add {} via GATEWAY dev {came_in}   # the gateway of that network",
                client.ip()
            )],
            "everything for this client goes that way",
        ),
    };
    let looked = mended.fix(
        [format!(
            "tracer run {device}   # on the hosts beyond {went_out}: how far do the answers come?"
        )],
        "none: this only looks",
    );
    Some(
        looked
            .check(format!(
                "ip route get {} from {} iif {came_in}",
                client.ip(),
                to.ip()
            ))
            .typed_for(Some(site)),
    )
}

/// The first rule that somebody made, that fits the answers, and whose table has a route for them out of their device.
fn rule<'a>(site: &Site<'a>, answer: &Journey, went_out: u32) -> Option<&'a PolicyRule> {
    let tuple = answer.first_tuple()?;
    let (from, to) = (tuple.source.ip(), tuple.destination.ip());
    let leads = |table: u32| {
        let mut routes = site.facts.routes.iter();
        routes.any(|route| {
            let mut links = route.next_hops.iter().map(|hop| hop.link).chain(route.link);
            route.table == table
                && route.destination.contains(to)
                && links.any(|link| link == went_out)
        })
    };
    let rules = site.facts.rules.iter();
    rules
        .filter(|rule| rule.ipv6 == to.is_ipv6() && !rule.is_default())
        .filter(|rule| rule.action == RuleAction::Lookup && leads(rule.table))
        // Whether a mark or a device fits is not known here.
        .filter(|rule| rule.mark.is_none() && rule.input.is_none())
        .filter(|rule| rule.from.is_none_or(|prefix| prefix.contains(from)))
        .filter(|rule| rule.to.is_none_or(|prefix| prefix.contains(to)))
        .min_by_key(|rule| rule.priority)
}

/// A rule as `ip rule` takes it.
fn words(rule: &PolicyRule) -> String {
    let from = rule
        .from
        .map_or_else(|| "from all".to_owned(), |prefix| format!("from {prefix}"));
    let to = rule.to.map(|prefix| format!(" to {prefix}"));
    let priority = rule.priority;
    format!(
        "{from}{} lookup {} priority {priority}",
        to.unwrap_or_default(),
        rule.table
    )
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ETH0, ip, node, route};
    use crate::event::{Transport, tcp_flag};
    use crate::node::{Prefix, Route};

    const CLIENT: &str = "198.51.100.7:40000";
    const SERVER: &str = "10.244.0.9:80";
    const VPN: u32 = 77;

    /// Questions at these seconds, each answered out of a device.
    fn asked(seconds: &[u64], out: u32) -> Bench {
        let mut bench = node();
        for &second in seconds {
            let began = second * 1_000_000_000;
            let question = bench.tcp(CLIENT, SERVER).receive(ETH0).began(began);
            question.at(HookId::Forward).at(HookId::TcpDeliver).ends();
            let flags = tcp_flag::SYN | tcp_flag::ACK;
            let transport = Transport::tcp(1, flags);
            let answer = bench.packet(protocol::TCP, SERVER, CLIENT, transport);
            let answer = answer.receive(CNI0).began(began + 1_000);
            answer.at(HookId::Forward).transmit(out).ends();
        }
        bench
    }

    #[test]
    fn answers_by_another_device_are_named_with_the_rule_that_sends_them_there() {
        let mut bench = asked(&[1, 2, 4], VPN);
        bench.site().rules = vec![PolicyRule {
            ipv6: false,
            priority: 100,
            action: RuleAction::Lookup,
            table: 77,
            from: Some(Prefix {
                address: ip("10.244.0.0"),
                length: 16,
            }),
            to: None,
            input: None,
            mark: None,
        }];
        // A rule whose table leads elsewhere is not to blame.
        let found = bench.only();
        assert!(found.fixes[0].lines[0].starts_with("ip route add 198.51.100.7"));
        bench.site().routes.push(Route {
            table: 77,
            ..route("0.0.0.0", 0, VPN)
        });
        let found = bench.only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Likely)
        );
        assert!(found.summary.contains("came in by eth0"), "{found:#?}");
        let line = &found.fixes[0].lines[0];
        let rule = "ip rule del from 10.244.0.0/16 lookup 77 priority 100";
        assert!(line.starts_with(rule), "{line}");
    }

    #[test]
    fn answers_by_the_same_device_are_lost_beyond_it() {
        let found = asked(&[1, 2, 4], ETH0).only();
        assert!(found.summary.contains("lost beyond it"), "{found:#?}");
    }

    #[test]
    fn who_asked_once_or_just_now_says_nothing() {
        for seconds in [&[1][..], &[1, 2], &[1, 1, 1]] {
            assert!(asked(seconds, VPN).codes().is_empty(), "{seconds:?}");
        }
    }

    #[test]
    fn a_connection_that_goes_on_is_well() {
        let mut bench = asked(&[1, 2, 4], VPN);
        let flags = tcp_flag::ACK;
        let transport = Transport::tcp(2, flags);
        let goes_on = bench.packet(protocol::TCP, CLIENT, SERVER, transport);
        goes_on.receive(ETH0).at(HookId::TcpDeliver).ends();
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
    }
}
