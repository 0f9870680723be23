//! `pod-on-docker0`: pods get their addresses from Docker's own bridge instead of the pod network.
//!
//! Source: kubelet up to 1.23 without `--network-plugin=cni` (dockershim), cri-dockerd before 0.2.5
//! likewise; kubernetes/kubernetes #40182 for Docker's FORWARD policy.

use super::audit::{Finding, pod_links};
use super::evidence::{Evidence, Failure};
use super::{Cause, Diagnosis, Site};
use crate::node::{Address, Component, Link, NetnsId};

pub(super) const CAUSE: Cause = Cause {
    code: "pod-on-docker0",
    title: "pods are on docker0 (172.17.0.0/16) instead of the pod network",
    explanation: "\
Docker put the pods on its own bridge, docker0, with addresses of 172.17.0.0/16. Every node has the same
range, no other node has a route to it, and Docker's FORWARD policy DROP keeps other bridges away: the pods
reach their own node and, masqueraded, the outside, and nobody reaches them.

Why: the runtime was not told to use CNI: kubelet up to 1.23 runs without --network-plugin=cni, cri-dockerd
before 0.2.5 likewise; or the CNI configuration was not there when the pods were made.

Proof: a veth device of another network namespace is a port of docker0, the node is configured for another
pod network (CNI configuration, cni0), and kubelet's or cri-dockerd's command line lacks the flag.

Fix: set the flag, restart kubelet, and recreate the pods; existing pods keep their address.",
    explains: &[
        "forward-policy-drop",
        "no-route",
        "neighbour-failed",
        "no-listener",
    ],
    examine,
    audit,
};

const DOCKER_BRIDGE: &str = "docker0";

/// docker0 of a node, its address, and pods' devices on it.
struct Stranded<'a> {
    address: &'a Address,
    ports: Vec<&'a Link>,
}

/// Whether other namespaces are on docker0 of a node that has a pod network elsewhere.
fn stranded<'a>(evidence: &Evidence<'a>, site: &Site<'a>) -> Option<Stranded<'a>> {
    let bridge = site
        .facts
        .links
        .iter()
        .find(|link| link.name == DOCKER_BRIDGE)?;
    let address = site
        .facts
        .addresses
        .iter()
        .find(|entry| entry.link == bridge.index && entry.address.is_ipv4())?;
    let elsewhere =
        pod_network(evidence).is_some() || site.facts.links.iter().any(|link| link.name == "cni0");
    let kubernetes = evidence
        .facts
        .components
        .iter()
        .any(|found| found.name == "kubelet")
        || elsewhere;
    let ports: Vec<&Link> = pod_links(site)
        .filter(|link| link.master == Some(bridge.index))
        .collect();
    (kubernetes && !ports.is_empty()).then_some(Stranded { address, ports })
}

/// Where pods should be, by the CNI configuration.
fn pod_network(evidence: &Evidence<'_>) -> Option<String> {
    let cni = evidence.facts.cni.as_ref()?;
    let subnet = cni.subnets.first()?;
    Some(format!("{subnet} ({})", cni.file.display()))
}

/// The program that does not use CNI: kubelet of dockershim, or cri-dockerd.
fn without_cni<'a>(evidence: &Evidence<'a>) -> Option<&'a Component> {
    let components = &evidence.facts.components;
    let docker = components
        .iter()
        .find(|found| found.name == "cri-dockerd")
        .or_else(|| {
            components.iter().find(|found| {
                found.name == "kubelet"
                    && found
                        .flag("container-runtime")
                        .is_none_or(|runtime| runtime == "docker")
                    && found.flag("container-runtime-endpoint").is_none()
            })
        })?;
    (docker.flag("network-plugin").as_deref() != Some("cni")).then_some(docker)
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let netns = on_docker0(evidence, failure)?;
            stranded(evidence, evidence.site(netns)?).map(|_| netns)
        })
        .into_iter()
        .filter_map(|(netns, failures)| {
            let site = evidence.site(netns)?;
            Some(
                say(evidence, site, &stranded(evidence, site)?)
                    .stopped(evidence, &failures)
                    .prove_if(
                        "packet",
                        failures
                            .first()
                            .map(|first| format!("{} {}", first.words(), first.drop_words())),
                    ),
            )
        })
        .collect()
}

/// The node whose docker0 has an end of a lost packet.
fn on_docker0(evidence: &Evidence<'_>, failure: &Failure<'_>) -> Option<NetnsId> {
    let tuples = [
        failure.journey.first_tuple()?,
        failure.journey.last_tuple()?,
    ];
    failure
        .journey
        .namespaces()
        .into_iter()
        .map(NetnsId)
        .find(|&netns| {
            let found = evidence
                .site(netns)
                .and_then(|site| Some((site, stranded(evidence, site)?.address)));
            found.is_some_and(|(_, entry)| {
                let network = crate::node::Prefix {
                    address: entry.address,
                    length: entry.prefix_length,
                };
                tuples.iter().any(|tuple| {
                    [tuple.source.ip(), tuple.destination.ip()]
                        .into_iter()
                        .any(|address| network.contains(address) && address != entry.address)
                })
            })
        })
}

/// Pods on docker0.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    evidence
        .sites()
        .filter_map(|site| {
            let stranded = stranded(evidence, site)?;
            Some(Finding::error(say(evidence, site, &stranded)))
        })
        .collect()
}

fn say(evidence: &Evidence<'_>, site: &Site<'_>, stranded: &Stranded<'_>) -> Diagnosis {
    let place = site.name();
    let network = format!(
        "{}/{}",
        stranded.address.address, stranded.address.prefix_length
    );
    let names: Vec<&str> = stranded
        .ports
        .iter()
        .take(4)
        .map(|link| link.name.as_str())
        .collect();
    let wanted = pod_network(evidence);
    let culprit = without_cni(evidence);
    let who = culprit.map_or("kubelet", |found| found.name.as_str());
    let mut summary = format!(
        "{} of {place} {} on docker0 ({network}) instead of the pod network{}: other nodes have no way to {}.",
        match names.len() {
            1 => "A pod".to_owned(),
            _ => format!("{} pods", stranded.ports.len()),
        },
        if names.len() == 1 { "is" } else { "are" },
        wanted
            .as_ref()
            .map_or_else(String::new, |network| format!(" {network}")),
        if names.len() == 1 { "it" } else { "them" }
    );
    if let Some(culprit) = culprit {
        summary += &format!(" {} runs without --network-plugin=cni.", culprit.name);
    }
    let pods: Vec<String> = stranded
        .ports
        .iter()
        .filter_map(|port| {
            let peer = evidence.site(port.peer_netns?)?;
            let entry = peer
                .facts
                .addresses
                .iter()
                .find(|entry| Some(entry.link) == port.peer_index && entry.address.is_ipv4())?;
            Some(entry.address.to_string())
        })
        .take(4)
        .collect();
    Diagnosis::new(&CAUSE, format!("docker0 of {place}"), summary)
        .prove("link", format!("{} master docker0, the other end in another namespace", names.join(", ")))
        .prove("address", format!("docker0 has {network}"))
        .prove_if("address", (!pods.is_empty()).then(|| format!("pods there have {}", pods.join(", "))))
        .prove_if(
            "process",
            culprit.map(|found| format!("{} (process {}) has no --network-plugin=cni", found.name, found.pid)),
        )
        .prove_if("cni", wanted)
        .lacking_if(
            culprit.is_none(),
            "a kubelet or cri-dockerd without --network-plugin=cni: these may be Docker's own containers",
        )
        .fix(
            [
                format!("--network-plugin=cni   # in the flags of {who} (/var/lib/kubelet/kubeadm-flags.env)"),
                format!("systemctl restart {who}"),
                "kubectl delete pod POD …   # recreate the pods: existing ones keep their address".into(),
            ],
            "the recreated pods' connections break",
        )
        .check("kubectl get pods -A -o wide | grep 172.17   # none")
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ip, link, node};
    use crate::event::Detail;
    use crate::node::{BridgePort, BridgePortState, Scope};

    const DOCKER0: u32 = 20;

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        let site = bench.site();
        site.links.push(link(DOCKER0, DOCKER_BRIDGE));
        site.links.push(Link {
            kind: Some("veth".into()),
            master: Some(DOCKER0),
            peer_netns: Some(NetnsId(700)),
            peer_index: Some(2),
            bridge_port: Some(BridgePort {
                state: Some(BridgePortState::Forwarding),
                hairpin: Some(true),
            }),
            ..link(21, "veth1a2b")
        });
        site.addresses.push(Address {
            link: DOCKER0,
            address: ip("172.17.0.1"),
            prefix_length: 16,
            secondary: false,
            flags: 0,
            label: None,
            scope: Scope::Global,
        });
        bench.facts.components = vec![Component {
            name: "kubelet".into(),
            pid: 7,
            arguments: vec!["kubelet".into()],
        }];
        bench
            .udp("172.17.0.2:4000", "203.0.113.5:53")
            .receive(DOCKER0)
            .with(
                HookId::RouteError,
                Detail::Route {
                    kind: 7,
                    error: 101,
                    ifindex: None,
                },
            )
            .dropped("NOT_SPECIFIED", "ip_error");
        bench
    }

    #[test]
    fn kubelet_without_the_flag_is_the_cause() {
        let mut bench = situation();
        bench
            .site()
            .routes
            .retain(|route| route.destination.length != 0);
        let found = bench.only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.consequences[0].code, "no-route");
        let audited = bench.with_evidence(audit);
        assert_eq!(audited.len(), 1);
    }

    #[test]
    fn a_host_of_docker_alone_is_healthy() {
        let mut bench = situation();
        bench.facts.components.clear();
        bench.site().links.retain(|link| link.name != "cni0");
        assert_eq!(bench.with_evidence(audit), []);
        bench.facts.components = vec![Component {
            name: "kubelet".into(),
            pid: 7,
            arguments: vec!["kubelet".into(), "--network-plugin=cni".into()],
        }];
        let found = bench.with_evidence(audit);
        assert_eq!(found[0].diagnosis.certainty, Certainty::Likely);
    }
}
