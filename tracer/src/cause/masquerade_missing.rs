//! `masquerade-missing`: the endpoint answers its client directly, past the node that translated; or it is its own
//! client, and gets its packets back with its own address.
//!
//! A reply is only translated back where the conntrack or IPVS entry is.

use super::audit::Finding;
use super::bridge_nf_off::below_netfilter;
use super::evidence::Evidence;
use super::source_check::{Refusal, refused};
use super::unnatted::stray;
use super::{Cause, Diagnosis, Site};
use crate::event::protocol;
use crate::expectation::SERVICE_DEVICE;
use crate::hook::Role;

pub(super) const CAUSE: Cause = Cause {
    code: "masquerade-missing",
    title: "the endpoint answers its client directly, with an address that the client never asked",
    explanation: "\
A node translates a service's address to an endpoint's and leaves the client's address alone. The endpoint
then answers the client's address; when the way there does not lead back over the same node, nobody puts the
service's address back, and the client refuses an answer from an address that it never asked (RST, or ICMP
port unreachable).

Why: the client is in the same network as the endpoint, or the endpoint has a shorter way to it. kube-proxy
masquerades such connections by mark (KUBE-MARK-MASQ); a wrong clusterCIDR, a flushed KUBE-POSTROUTING or
net.ipv4.vs.conntrack=0 takes that away.

A pod that asks a service which leads to the pod itself is such a client too: without masquerading it gets
its own packet back with its own address as source, which no host takes. For these kube-proxy masquerades
whatever clusterCIDR says (in ipvs mode what the set KUBE-LOOP-BACK holds).

Proof: the answer came to its client with the endpoint's own address and was refused there; or the pod's own
packet came back to it translated, and was refused for its source.

Fix: masquerade (source NAT) for these clients, or give the answer the way over the node that translated.",
    references: &[
        "Kubernetes pkg/proxy/iptables/proxier.go: kube-proxy masquerades where the reply would take another \
         way (--masquerade-all, --cluster-cidr), and what an endpoint sends to itself",
        "Kubernetes pkg/proxy/ipvs/proxier.go: KUBE-LOOP-BACK, \"Kubernetes endpoints dst ip:port, source ip for \
         solving hairpin purpose\"",
    ],
    explains: &["martian-source"],
    examine,
    audit,
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut found = past_the_node(evidence);
    found.extend(to_itself(evidence));
    found
}

/// Answers that did not pass the node that translated.
fn past_the_node(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            if below_netfilter(evidence, failure).is_some() {
                return None;
            }
            let stray = stray(evidence, failure)?;
            Some((stray.client_netns, stray.asked.destination, stray.answer.source))
        })
        .into_iter()
        .filter_map(|((netns, asked, answers), failures)| {
            let first = failures.iter().find_map(|failure| stray(evidence, failure))?;
            let client = first.asked.source.ip();
            let place = evidence
                .site(netns)
                .map_or_else(|| format!("netns {netns}"), Site::name);
            let diagnosis = Diagnosis::new(
                &CAUSE,
                format!("{asked} answered by {answers}"),
                format!(
                    "{client} asked {asked} and gets its answer from {answers}: the answer does not pass the node that \
                     translated the address, and {client} ({place}) refuses it."
                ),
            )
            .stopped_flows(evidence, failures.iter().filter_map(|failure| Some(stray(evidence, failure)?.flow)))
            .prove("packet", first.words());
            Some(
                hidden(evidence, diagnosis)
                    .fix(
                        [
                            "correct clusterCIDR in kube-proxy's configuration (it is what kube-proxy does not masquerade), then restart it",
                            "or masqueradeAll: true",
                        ],
                        "endpoints see the node's address instead of the client's",
                    )
                    .fix(
                        [format!(
                            "iptables -t nat -A POSTROUTING -d {} -m conntrack --ctstate DNAT -j MASQUERADE   # on the node that translates",
                            answers.ip()
                        )],
                        "endpoints see the node's address instead of the client's",
                    )
                    .check(format!("tracer probe tcp://{asked}")),
            )
        })
        .collect()
}

/// Pods that got their own packets back from a service that leads to themselves.
fn to_itself(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (refused, why) = refused(evidence, failure)?;
            let (asked, came) = (
                failure.journey.first_tuple()?,
                failure.journey.last_tuple()?,
            );
            let own = came.source.ip() == came.destination.ip() && came.source == asked.source;
            let translated = came.destination != asked.destination;
            (why == Refusal::Source && own && translated).then_some((
                refused.netns,
                asked.protocol,
                asked.destination,
                came.destination,
            ))
        })
        .into_iter()
        .map(|((netns, number, asked, own), failures)| {
            let site = evidence.site(netns);
            let place = site.map_or_else(|| format!("netns {netns}"), Site::name);
            let (pod, name) = (own.ip(), protocol::name(number));
            let path = site.and_then(|site| site.facts.path.clone());
            let from = path.unwrap_or_else(|| netns.to_string());
            let begun = Diagnosis::new(
                &CAUSE,
                format!("{pod} by way of {asked}"),
                format!(
                    "{pod} ({place}) asked {asked}, which leads to {pod} itself, and got its packet back with its own \
                     address as source: nobody masqueraded it, and no host takes that."
                ),
            )
            .stopped(evidence, &failures)
            .prove_if(
                "packet",
                failures.first().map(|first| {
                    format!("{} came back as {own} from {pod}, {}", first.words(), first.drop_words())
                }),
            );
            let by_ipvs = failures.iter().any(|failure| failure.passed(Role::IpvsConnection));
            let known = hidden(evidence, begun);
            let looked = if by_ipvs {
                format!("ipset test KUBE-LOOP-BACK {pod},{name}:{},{pod}   # what kube-proxy masquerades; restart it where this is not in it", own.port())
            } else {
                format!("iptables-save -t nat | grep -w {pod}   # a rule that marks what comes from {pod} itself; restart kube-proxy where there is none")
            };
            known
                .fix([looked], "none: this only looks")
                .fix(
                    [format!(
                        "iptables -t nat -A POSTROUTING -s {pod} -d {pod} -j MASQUERADE   # on the node"
                    )],
                    "until kube-proxy does it: the pod sees the node's address where it asks itself",
                )
                .check(format!("tracer probe {name}://{asked} --from {from}"))
        })
        .collect()
}

/// Adds that netfilter does not see the connections of IPVS, where that is so.
fn hidden(evidence: &Evidence<'_>, diagnosis: Diagnosis) -> Diagnosis {
    let Some(site) = evidence.sites().find(|site| hides_from_netfilter(site)) else {
        return diagnosis;
    };
    diagnosis
        .prove(
            "sysctl",
            format!(
                "net.ipv4.vs.conntrack of {} is 0: netfilter cannot masquerade IPVS connections",
                site.name()
            ),
        )
        .fix([TRACK], TRACK_RISK)
}

/// Makes IPVS connections seen by netfilter.
pub(super) const TRACK: &str = "sysctl -w net.ipv4.vs.conntrack=1";
pub(super) const TRACK_RISK: &str = "IPVS connections take entries in conntrack's table";

/// It has virtual servers, and netfilter does not see their connections.
pub(super) fn hides_from_netfilter(site: &Site<'_>) -> bool {
    let serves = site
        .facts
        .ipvs
        .as_ref()
        .is_some_and(|table| !table.is_empty());
    serves && site.sysctl("net/ipv4/vs/conntrack") == Some(0)
}

/// kube-proxy in ipvs mode, which its device tells, leaves masquerading to netfilter; other users of IPVS need
/// not.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let by_kube_proxy = |site: &&Site<'_>| {
        site.facts
            .links
            .iter()
            .any(|link| link.name == SERVICE_DEVICE)
    };
    evidence
        .sites()
        .filter(by_kube_proxy)
        .filter(|site| hides_from_netfilter(site))
        .map(|site| {
            let place = site.name();
            Finding::warning(
                Diagnosis::new(
                    &CAUSE,
                    format!("IPVS of {place}"),
                    format!(
                        "Netfilter does not see the IPVS connections of {place}, so kube-proxy's rules masquerade none of \
                         them: who comes from outside by a NodePort, and whose answer does not pass this node, is \
                         answered from an address that it never asked."
                    ),
                )
                .prove("sysctl", "net.ipv4.vs.conntrack = 0")
                .fix([TRACK, "systemctl restart kube-proxy   # sets it when it starts"], TRACK_RISK)
                .check("sysctl net.ipv4.vs.conntrack   # 1"),
            )
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::bridge_nf_off::tests::answered;
    use crate::cause::constructed::{Bench, ETH0, link, node, service};

    pub(in crate::cause) fn situation() -> Bench {
        answered(false)
    }

    #[test]
    fn who_answers_instead_is_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.summary.contains("from 10.244.0.8:80"), "{found:#?}");
    }

    #[test]
    fn who_asks_a_service_that_leads_to_itself_gets_its_own_packet() {
        for (to, expected) in [
            ("10.244.0.1:8080", CAUSE.code),
            ("10.244.0.9:8080", "martian-source"),
        ] {
            let mut bench = node();
            bench
                .tcp("10.244.0.1:40000", "10.96.0.10:80")
                .at(HookId::LocalOut)
                .to(to)
                .receive(ETH0)
                .at(HookId::RouteInput)
                .at(HookId::Martian)
                .dropped("IP_LOCAL_SOURCE", "ip_rcv_finish_core");
            let found = bench.only();
            assert_eq!(
                (found.code, found.certainty),
                (expected, Certainty::Certain),
                "{found:#?}"
            );
        }
    }

    #[test]
    fn ipvs_that_netfilter_does_not_see_is_a_warning_where_kube_proxy_serves() {
        for (device, value, named) in [
            (SERVICE_DEVICE, "0", 1),
            (SERVICE_DEVICE, "1", 0),
            ("dummy0", "0", 0),
        ] {
            let mut bench = node();
            bench.site().ipvs = Some(vec![service(6, "192.0.2.1:30000", &[("10.244.0.8:80", 1)])]);
            bench.site().links.push(link(9, device));
            bench.sysctl("net/ipv4/vs/conntrack", value);
            let found = bench.with_evidence(audit);
            assert_eq!(found.len(), named, "{device} {value}: {found:#?}");
        }
    }
}
