//! `masquerade-missing`: the endpoint answers its client directly, past the node that translated.
//!
//! A reply is only translated back where the conntrack or IPVS entry is.

use super::audit::Finding;
use super::bridge_nf_off::below_netfilter;
use super::evidence::Evidence;
use super::unnatted::stray;
use super::{Cause, Diagnosis, Site};
use crate::expectation::SERVICE_DEVICE;

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

Proof: the answer came to its client with the endpoint's own address and was refused there.

Fix: masquerade (source NAT) for these clients, or give the answer the way over the node that translated.",
    references: &[
        "Kubernetes pkg/proxy/iptables/proxier.go: kube-proxy masquerades where the reply would take another \
         way (--masquerade-all, --cluster-cidr)",
    ],
    explains: &[],
    examine,
    audit,
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
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
            let vs_conntrack = evidence.sites().find(|site| hides_from_netfilter(site));
            let diagnosis = Diagnosis::new(
                &CAUSE,
                format!("{asked} answered by {answers}"),
                format!(
                    "{client} asked {asked} and gets its answer from {answers}: the answer does not pass the node that \
                     translated the address, and {client} ({place}) refuses it."
                ),
            )
            .stopped_flows(evidence, failures.iter().filter_map(|failure| Some(stray(evidence, failure)?.flow)))
            .prove("packet", first.words())
            .prove_if(
                "sysctl",
                vs_conntrack.map(|site| {
                    format!("net.ipv4.vs.conntrack of {} is 0: netfilter cannot masquerade IPVS connections", site.name())
                }),
            );
            let diagnosis = match vs_conntrack {
                Some(_) => diagnosis.fix([TRACK], TRACK_RISK),
                None => diagnosis,
            };
            Some(
                diagnosis
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
    use super::*;
    use crate::cause::Certainty;
    use crate::cause::bridge_nf_off::tests::answered;
    use crate::cause::constructed::{Bench, link, node, service};

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
