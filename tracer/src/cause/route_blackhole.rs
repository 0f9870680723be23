//! `route-blackhole`: a blackhole, prohibit or unreachable route, or a policy rule, refuses the packet.

use std::net::IpAddr;

use super::audit::nothing;
use super::evidence::Evidence;
use super::no_route::{errno, refused};
use super::{Cause, Diagnosis, Site};
use crate::node::{PolicyRule, RouteKind, RuleAction};

pub(super) const CAUSE: Cause = Cause {
    code: "route-blackhole",
    title: "a blackhole, prohibit or unreachable route refuses the packet",
    explanation: "\
The most special route for the destination is one that throws packets away: blackhole silently, unreachable
with ICMP host unreachable, prohibit with ICMP administratively prohibited. A policy rule (ip rule) can say
the same.

Why: Calico and other CNIs put a blackhole route over each block of addresses so that an address that no
pod has is not sent in circles: then the pod is gone, or its own /32 route is missing. Administrators use
them against unwanted networks.

Proof: routing refused the packet with the errno of that kind of route, and the tables hold such a route
for the destination.

Fix: delete the route, or bring back the more special route that should be above it.",
    references: &[
        "Linux net/ipv4/fib_semantics.c, fib_props: EINVAL for blackhole, EHOSTUNREACH for unreachable, EACCES \
         for prohibit; policy rules carry the same actions",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

/// The policy rule that gives packets for a destination this kind of refusal, asked before any table
/// that everybody uses.
fn refusing_rule<'a>(
    site: &Site<'a>,
    kind: RouteKind,
    destination: IpAddr,
) -> Option<&'a PolicyRule> {
    let wanted = match kind {
        RouteKind::Blackhole => RuleAction::Blackhole,
        RouteKind::Unreachable => RuleAction::Unreachable,
        RouteKind::Prohibit => RuleAction::Prohibit,
        _ => return None,
    };
    site.facts.rules.iter().find(|rule| {
        rule.action == wanted
            && rule.ipv6 == destination.is_ipv6()
            && rule.to.is_some_and(|prefix| prefix.contains(destination))
            && (rule.from.is_none() && rule.input.is_none() && rule.mark.is_none())
    })
}

/// The kind of route that an errno tells of.
fn kind(error: u16) -> Option<RouteKind> {
    match error {
        errno::INVAL => Some(RouteKind::Blackhole),
        errno::HOSTUNREACH => Some(RouteKind::Unreachable),
        errno::ACCES => Some(RouteKind::Prohibit),
        _ => None,
    }
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (netns, destination, error) = refused(evidence, failure)?;
            kind(error).map(|_| (netns, destination, error))
        })
        .into_iter()
        .filter_map(|((netns, destination, error), failures)| {
            let kind = kind(error)?;
            let site = evidence.site(netns);
            let place = site.map_or_else(|| format!("netns {netns}"), Site::name);
            let route = site
                .and_then(|site| Some(site.route_words(site.refusing_route(kind, destination)?)));
            let rule = site.and_then(|site| refusing_rule(site, kind, destination));
            // Forwarding that was off meanwhile says the same; then there is no such route or rule.
            let ruled = site.is_some_and(|site| site.throws_away());
            if kind == RouteKind::Unreachable && route.is_none() && !ruled {
                return None;
            }
            let flag = if destination.is_ipv6() { "-6 " } else { "" };
            let summary = match &route {
                Some(route) => format!("{place} throws packets for {destination} away by its route \"{route}\"."),
                None => format!(
                    "{place} throws packets for {destination} away: routing says {kind}, by a route or a policy rule."
                ),
            };
            let diagnosis = Diagnosis::new(&CAUSE, format!("{destination} from {place}"), summary)
                .stopped(evidence, &failures)
                .prove_if(
                    "packet",
                    failures
                        .first()
                        .map(|first| format!("{} was refused by routing: {kind} (errno {error})", first.words())),
                )
                .prove_if("route", route.clone())
                .prove_if("rule", rule.map(|rule| format!("policy rule {}: {kind}", rule.priority)))
                .lacking_if(
                    route.is_none() && rule.is_none(),
                    format!("the {kind} route or rule itself: it is gone, or it is a policy rule (ip rule)"),
                );
            let diagnosis = match &route {
                Some(route) => diagnosis.fix(
                    [
                        format!("ip {flag}route del {route}"),
                        "or bring back the more special route above it (the pod's own route, by the CNI's daemon)".into(),
                    ],
                    "packets for every address of the range follow the next route, often the default route",
                ),
                None if rule.is_some() => diagnosis.fix(
                    [format!("ip {flag}rule del priority {}", rule.map_or(0, |rule| rule.priority))],
                    "packets that the rule stopped follow the routes again",
                ),
                None => diagnosis.fix(
                    [format!("ip {flag}rule; ip {flag}route show table all type {kind}   # find it, then delete it")],
                    "packets for its range follow the next route, often the default route",
                ),
            };
            let check = format!("ip {flag}route get {destination}");
            Some(diagnosis.check(check).typed_for(site))
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, node, route};
    use crate::event::Detail;
    use crate::node::Route;

    fn with(kind: RouteKind, error: u16) -> Bench {
        let mut bench = node();
        bench.site().routes.push(Route {
            kind,
            link: None,
            ..route("198.51.100.0", 24, 0)
        });
        bench
            .udp("10.244.0.9:40000", "198.51.100.9:53")
            .receive(CNI0)
            .at(HookId::RouteInput)
            .with(
                HookId::RouteError,
                Detail::Route {
                    kind: 7,
                    error,
                    ifindex: None,
                },
            )
            .dropped("NOT_SPECIFIED", "ip_error");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        with(RouteKind::Blackhole, errno::INVAL)
    }

    #[test]
    fn each_kind_is_named_with_its_route() {
        for (kind, error) in [
            (RouteKind::Blackhole, errno::INVAL),
            (RouteKind::Unreachable, errno::HOSTUNREACH),
            (RouteKind::Prohibit, errno::ACCES),
        ] {
            let found = with(kind, error).only();
            assert_eq!(
                (found.code, found.certainty),
                (CAUSE.code, Certainty::Certain)
            );
            assert!(
                found.summary.contains(&format!("{kind} 198.51.100.0/24")),
                "{found:#?}"
            );
        }
    }

    #[test]
    fn unreachable_without_a_route_or_rule_is_forwarding_that_was_off() {
        let mut bench = with(RouteKind::Unreachable, errno::HOSTUNREACH);
        bench
            .site()
            .routes
            .retain(|route| route.kind != RouteKind::Unreachable);
        assert_eq!(bench.codes(), [] as [&str; 0]);
    }

    #[test]
    fn without_the_route_it_is_likely() {
        let mut bench = situation();
        bench
            .site()
            .routes
            .retain(|route| route.kind != RouteKind::Blackhole);
        assert_eq!(bench.only().certainty, Certainty::Likely);
    }
}
