//! `pod-on-docker0`: pods get their addresses from Docker's own bridge instead of the pod network.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use super::audit::{Finding, pod_links};
use super::evidence::{Evidence, Failure};
use super::pod_network::{self, DOCKER_BRIDGE, PodRanges, gives, pod_ranges};
use super::pod_runtime::{Runtime, runtime};
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
before 0.2.5 likewise. Later ones use CNI by themselves; then these are pods of before, or Docker's own
containers, which belong there.

Where CNI is configured and the runtime leaves it unused, `tracer check` warns before the first pod.

Proof: a veth device of a pod's network namespace is a port of docker0, its address is outside the node's pod
network (podCIDRs, flannel's subnet.env, CNI configuration), and kubelet's or cri-dockerd's command line and
version say that it does not use CNI.

Fix: set the flag, restart kubelet, and recreate the pods; existing pods keep their address. Where the pods
then fail because cni0 has another address, delete cni0: it is made anew. Or give docker0 the node's pod range.",
    references: &[
        "Kubernetes pkg/kubelet/dockershim: kubelet up to 1.23 without --network-plugin=cni",
        "Mirantis/cri-dockerd, README.md: from 0.2.5 the default network plugin is cni",
        "https://github.com/kubernetes/kubernetes/issues/40182",
    ],
    explains: &[
        "forward-policy-drop",
        "no-route",
        "neighbour-failed",
        "no-listener",
    ],
    examine,
    audit,
};

/// docker0 of a node, and what is on it that does not belong there.
struct Stranded<'a> {
    /// docker0's own.
    address: &'a Address,
    ports: Vec<Port<'a>>,
    /// Where the node's pods should be.
    wanted: Vec<PodRanges<'a>>,
    runtime: Runtime<'a>,
}

impl Stranded<'_> {
    /// docker0's network.
    fn network(&self) -> String {
        format!("{}/{}", self.address.address, self.address.prefix_length)
    }
}

/// A port of docker0 and what is at its other end.
struct Port<'a> {
    link: &'a Link,
    address: Option<IpAddr>,
    /// `None` where nothing is known of the namespace there.
    is_pod: Option<bool>,
}

/// docker0 and its address.
fn docker0<'a>(site: &Site<'a>) -> Option<(&'a Link, &'a Address)> {
    let mut links = site.facts.links.iter();
    let bridge = links.find(|link| link.name == DOCKER_BRIDGE)?;
    let mut addresses = site.facts.addresses.iter();
    let own = addresses.find(|entry| entry.link == bridge.index && entry.address.is_ipv4())?;
    Some((bridge, own))
}

/// What is on docker0 of a node that has a pod network elsewhere.
fn stranded<'a>(evidence: &Evidence<'a>, site: &Site<'a>) -> Option<Stranded<'a>> {
    let (bridge, address) = docker0(site)?;
    let wanted = pod_ranges(evidence);
    let kubernetes = evidence
        .facts
        .components
        .iter()
        .any(|found| found.name == "kubelet")
        || !wanted.is_empty()
        || site.facts.links.iter().any(|link| link.name == CNI_BRIDGE);
    let ports: Vec<Port<'_>> = pod_links(site)
        .filter(|link| link.master == Some(bridge.index))
        .map(|link| port(evidence, link))
        // docker0 may be the pod network, by Docker's --bip.
        .filter(|port| !gives(&wanted, port.address.unwrap_or(address.address)))
        .collect();
    let runtime = runtime(evidence);
    let may_be_pods = ports.iter().any(|port| port.is_pod != Some(false));
    let belongs = matches!(runtime, Runtime::Cni) && !may_be_pods;
    (kubernetes && !ports.is_empty() && !belongs).then_some(Stranded {
        address,
        ports,
        wanted,
        runtime,
    })
}

/// The bridge plugin's own name for its bridge.
const CNI_BRIDGE: &str = "cni0";

fn port<'a>(evidence: &Evidence<'a>, link: &'a Link) -> Port<'a> {
    let peer = link.peer_netns.and_then(|peer| evidence.site(peer));
    let address = peer.and_then(|peer| {
        let own = peer
            .facts
            .addresses
            .iter()
            .find(|entry| Some(entry.link) == link.peer_index && entry.address.is_ipv4())?;
        Some(own.address)
    });
    // Every node may have a pod of this address.
    let registered = evidence.cluster.zip(address).is_some_and(|(cluster, own)| {
        let mut pods = cluster.pods_at(own).filter_map(|name| cluster.pod(name));
        pods.any(|pod| pod.node.is_some() && pod.node.as_deref() == cluster.this_node.as_deref())
    });
    Port {
        link,
        address,
        is_pod: peer.map(|peer| peer.facts.is_pod || registered),
    }
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let nodes: HashMap<NetnsId, Stranded<'_>> = evidence
        .sites()
        .filter_map(|site| Some((site.facts.id, stranded(evidence, site)?)))
        .collect();
    if nodes.is_empty() {
        return Vec::new();
    }
    evidence
        .group(|failure| on_docker0(&nodes, failure))
        .into_iter()
        .filter_map(|(netns, failures)| {
            Some(
                say(evidence, evidence.site(netns)?, nodes.get(&netns)?)
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
fn on_docker0(nodes: &HashMap<NetnsId, Stranded<'_>>, failure: &Failure<'_>) -> Option<NetnsId> {
    let tuples = [
        failure.journey.first_tuple()?,
        failure.journey.last_tuple()?,
    ];
    let ends = tuples.map(|tuple| [tuple.source.ip(), tuple.destination.ip()]);
    let has_an_end = |node: &Stranded<'_>| {
        let own = node.address.address;
        let network = crate::node::Prefix {
            address: own,
            length: node.address.prefix_length,
        };
        let mut ends = ends.iter().flatten();
        ends.any(|end| network.contains(*end) && *end != own)
    };
    let mut namespaces = failure.journey.namespaces().into_iter().map(NetnsId);
    namespaces.find(|netns| nodes.get(netns).is_some_and(has_an_end))
}

/// Pods on docker0, and a runtime that will put them there.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    evidence
        .sites()
        .filter_map(|site| {
            let Some(stranded) = stranded(evidence, site) else {
                return cni_unused(evidence, site);
            };
            let pods = stranded.ports.iter().any(|port| port.is_pod == Some(true));
            let diagnosis = say(evidence, site, &stranded);
            Some(if pods {
                Finding::error(diagnosis)
            } else {
                Finding::warning(diagnosis)
            })
        })
        .collect()
}

/// Bridge of the configuration that Podman's packages bring along, for containers of its own.
const PODMAN_BRIDGE: &str = "cni-podman0";

/// CNI is configured, and the runtime does not use it: nothing is wrong before the next pod.
fn cni_unused(evidence: &Evidence<'_>, site: &Site<'_>) -> Option<Finding> {
    let runtime = runtime(evidence);
    let Runtime::Docker(found) = runtime else {
        return None;
    };
    let cni =
        (evidence.facts.cni.as_ref()).filter(|cni| cni.bridge.as_deref() != Some(PODMAN_BRIDGE))?;
    let (_, address) = docker0(site)?;
    let awaited = Stranded {
        address,
        ports: Vec::new(),
        wanted: pod_ranges(evidence),
        runtime,
    };
    if gives(&awaited.wanted, address.address) {
        return None;
    }
    let (place, network) = (site.name(), awaited.network());
    let summary = format!(
        "{} runs without --network-plugin=cni: the next pod of {place} gets its address from docker0 ({network}), not from CNI.",
        found.name
    );
    let begun = Diagnosis::new(&CAUSE, format!("docker0 of {place}"), summary)
        .prove("process", without_cni(found))
        .prove("cni", format!("{} configures CNI", cni.file.display()))
        .prove("address", format!("docker0 has {network}"))
        .lacking("a pod on docker0: there is none yet");
    Some(Finding::warning(with_fixes(
        begun, evidence, site, &awaited,
    )))
}

fn without_cni(found: &Component) -> String {
    format!(
        "{} (process {}) has no --network-plugin=cni",
        found.name, found.pid
    )
}

fn say(evidence: &Evidence<'_>, site: &Site<'_>, stranded: &Stranded<'_>) -> Diagnosis {
    let place = site.name();
    let Stranded {
        ports,
        wanted,
        runtime,
        ..
    } = stranded;
    let network = stranded.network();
    let names: Vec<&str> = ports
        .iter()
        .take(4)
        .map(|port| port.link.name.as_str())
        .collect();
    let (culprit, doubt) = match *runtime {
        Runtime::Docker(found) => (Some(found), None),
        Runtime::Either(found, doubt) => (Some(found), Some(doubt)),
        Runtime::Cni | Runtime::Unknown => (
            None,
            Some("a kubelet or cri-dockerd that leaves the pods to Docker"),
        ),
    };
    let one = ports.len() == 1;
    let mut summary = format!(
        "{} of {place} {} on docker0 ({network}) instead of the pod network{}: other nodes have no way to {}.",
        if one {
            "A pod".to_owned()
        } else {
            format!("{} pods", ports.len())
        },
        if one { "is" } else { "are" },
        wanted.first().map_or_else(String::new, |wanted| format!(
            " {}",
            pod_network::words(wanted.ranges)
        )),
        if one { "it" } else { "them" }
    );
    if let Some(culprit) = culprit {
        summary += &format!(" {} runs without --network-plugin=cni.", culprit.name);
    }
    let pods: Vec<String> = ports
        .iter()
        .filter_map(|port| port.address)
        .take(4)
        .map(|address| address.to_string())
        .collect();
    let begun = Diagnosis::new(&CAUSE, format!("docker0 of {place}"), summary)
        .prove(
            "link",
            format!(
                "{} master docker0, the other end in another namespace",
                names.join(", ")
            ),
        )
        .prove("address", format!("docker0 has {network}"))
        .prove_if(
            "address",
            (!pods.is_empty()).then(|| format!("pods there have {}", pods.join(", "))),
        )
        .prove_if("process", culprit.map(without_cni));
    let proven = wanted.iter().fold(begun, |diagnosis, wanted| {
        diagnosis.prove(wanted.teller.source(), wanted.words.clone())
    });
    let proven = match doubt {
        Some(doubt) => proven.lacking(doubt),
        None => proven,
    };
    let proven = proven
        .lacking_if(
            wanted.is_empty(),
            "the node's pod network: its podCIDRs or a CNI configuration",
        )
        .lacking_if(pods.is_empty(), "the addresses of the pods there")
        .lacking_if(
            ports.iter().all(|port| port.is_pod != Some(true)),
            "that these are pods: they may be Docker's own containers",
        );
    with_fixes(proven, evidence, site, stranded)
}

/// The ways to have pods in the pod network, and what proves that they are.
fn with_fixes(
    diagnosis: Diagnosis,
    evidence: &Evidence<'_>,
    site: &Site<'_>,
    stranded: &Stranded<'_>,
) -> Diagnosis {
    let (who, flags) = match stranded.runtime {
        Runtime::Docker(found) | Runtime::Either(found, _) if found.name != "kubelet" => {
            ("cri-docker", "of cri-dockerd (cri-docker.service)")
        }
        _ => ("kubelet", "of kubelet (/var/lib/kubelet/kubeadm-flags.env)"),
    };
    diagnosis
        .fix(
            [
                format!("--network-plugin=cni   # in the flags {flags}"),
                format!("systemctl restart {who}"),
                "kubectl delete pod POD …   # recreate the pods: existing ones keep their address".into(),
            ],
            "the recreated pods' connections break",
        )
        .fix(
            [format!(
                "ip link del {}   # when the new pods fail because it \"already has an IP address different from\" theirs",
                evidence.facts.cni.as_ref().and_then(|cni| cni.bridge.as_deref()).unwrap_or(CNI_BRIDGE)
            )],
            "it is made anew with the next pod; pods on it have no network until they are recreated",
        )
        .fix(
            [
                docker_options(evidence, site, &stranded.wanted),
                "systemctl restart docker   # then recreate the pods".into(),
            ],
            "docker0 becomes the pod network, so cni0 may not have the same address; Docker's containers restart",
        )
        .check(format!(
            "kubectl get pods -A -o wide   # none in the network of {}",
            stranded.network()
        ))
}

/// flannel's over VXLAN, on network cards of 1500 bytes.
const OVERLAY_MTU: u32 = 1450;

/// Docker's options that make docker0 the node's pod network.
fn docker_options(evidence: &Evidence<'_>, site: &Site<'_>, wanted: &[PodRanges<'_>]) -> String {
    let first = wanted
        .iter()
        .flat_map(|wanted| wanted.ranges)
        .find_map(|range| match range.masked()?.address {
            IpAddr::V4(address) => {
                let gateway = Ipv4Addr::from_bits(address.to_bits() | 1);
                Some(format!("{gateway}/{}", range.length))
            }
            IpAddr::V6(_) => None,
        });
    let (first, note) = match first {
        Some(first) => (first, ""),
        None => (
            "ADDRESS/LENGTH".to_owned(),
            "; the first address of the node's podCIDR",
        ),
    };
    let overlay = || {
        let mut links = site.facts.links.iter();
        links.find(|link| link.vxlan.is_some())?.mtu
    };
    let mtu = evidence
        .facts
        .cni
        .as_ref()
        .and_then(|cni| cni.mtu)
        .or_else(overlay)
        .unwrap_or(OVERLAY_MTU);
    format!(
        "DOCKER_OPTS=\"--bip={first} --ip-masq=false --mtu={mtu}\"   # instead: Docker's flags{note}"
    )
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::audit::Severity;
    use crate::cause::constructed::{Bench, ip, link, node};
    use crate::event::Detail;
    use crate::kube::constructed::cluster;
    use crate::node::{BridgePort, BridgePortState, Cni, NetnsFacts};

    const DOCKER0: u32 = 20;
    const POD: NetnsId = NetnsId(700);

    fn address(link: u32, own: &str, prefix_length: u8) -> Address {
        Address::global(link, ip(own), prefix_length)
    }

    fn component(line: &str) -> Component {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Component {
            name: arguments[0].clone(),
            pid: 7,
            arguments,
        }
    }

    /// The node's pods are to have 10.244.0.0/24.
    fn of_version(bench: &mut Bench, version: &str) {
        bench.cluster = Some(cluster(
            "node",
            &[json!({"kind": "Node", "metadata": {"name": "node"},
                "spec": {"podCIDRs": ["10.244.0.0/24"]}, "status": {"nodeInfo": {"kubeletVersion": version}}})],
        ));
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        let site = bench.site();
        site.links.push(link(DOCKER0, DOCKER_BRIDGE));
        site.links.push(Link {
            kind: Some("veth".into()),
            master: Some(DOCKER0),
            peer_netns: Some(POD),
            peer_index: Some(2),
            bridge_port: Some(BridgePort {
                state: Some(BridgePortState::Forwarding),
                hairpin: Some(true),
            }),
            ..link(21, "veth1a2b")
        });
        site.addresses.push(address(DOCKER0, "172.17.0.1", 16));
        let mut pod = NetnsFacts::unread(POD, Some("p/default/web-0"));
        pod.is_pod = true;
        pod.addresses.push(address(2, "172.17.0.2", 16));
        bench.facts.namespaces.push(pod);
        bench.facts.components = vec![component("kubelet")];
        of_version(&mut bench, "v1.20.15");
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

    /// What is on docker0 is a container of Docker's own.
    fn of_docker(line: &str, version: &str) -> Bench {
        let mut bench = situation();
        bench.facts.namespaces[1].is_pod = false;
        bench.facts.components = vec![component(line)];
        of_version(&mut bench, version);
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
        let text = format!("{found:?}");
        for words in [
            "10.244.0.0/24",
            "ip link del cni0",
            "--bip=10.244.0.1/24 --ip-masq=false --mtu=1450",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let audited = bench.with_evidence(audit);
        assert_eq!(audited.len(), 1);
        assert_eq!(audited[0].severity, Severity::Error);
    }

    #[test]
    fn a_runtime_that_leaves_cni_unused_is_told_before_the_first_pod() {
        let mut bench = situation();
        bench.site().links.retain(|link| link.kind.is_none());
        assert_eq!(
            bench.with_evidence(audit),
            [],
            "Docker's network may be wanted"
        );
        bench.facts.cni = Some(Cni {
            file: "/etc/cni/net.d/10-flannel.conflist".into(),
            ..Cni::default()
        });
        let found = bench.with_evidence(audit);
        assert_eq!(
            (found[0].severity, found[0].diagnosis.certainty),
            (Severity::Warning, Certainty::Likely)
        );
        assert!(found[0].diagnosis.summary.contains("the next pod"));
        assert!(!found[0].diagnosis.check.is_empty());
        let cni = bench.facts.cni.clone();
        bench.facts.cni = cni.clone().map(|cni| Cni {
            bridge: Some(PODMAN_BRIDGE.into()),
            ..cni
        });
        assert_eq!(bench.with_evidence(audit), []);
        bench.facts.cni = cni;
        bench.facts.components = vec![component("kubelet --network-plugin=cni")];
        assert_eq!(bench.with_evidence(audit), []);
    }

    #[test]
    fn a_host_of_docker_alone_is_healthy() {
        let mut bench = situation();
        bench.facts.components.clear();
        bench.cluster = None;
        bench.site().links.retain(|link| link.name != CNI_BRIDGE);
        assert_eq!(bench.with_evidence(audit), []);
        bench.facts.components = vec![component("kubelet --network-plugin=cni")];
        let found = bench.with_evidence(audit);
        assert_eq!(found[0].diagnosis.certainty, Certainty::Likely);
    }

    #[test]
    fn docker0_with_the_node_s_pod_range_is_the_pod_network() {
        let mut bench = situation();
        let site = bench.site();
        site.addresses.retain(|entry| entry.link != DOCKER0);
        site.addresses.push(address(DOCKER0, "10.244.0.1", 24));
        bench.facts.namespaces[1].addresses = vec![address(2, "10.244.0.9", 24)];
        assert_eq!(bench.with_evidence(audit), []);
        // Without the range nobody knows.
        bench.cluster = None;
        let found = bench.with_evidence(audit);
        assert_eq!(found[0].diagnosis.certainty, Certainty::Likely);
    }

    #[test]
    fn docker_s_own_containers_are_not_pods_for_certain() {
        let found = of_docker("cri-dockerd", "v1.30.1").with_evidence(audit);
        assert_eq!(
            (found[0].severity, found[0].diagnosis.certainty),
            (Severity::Warning, Certainty::Likely)
        );
        let missing = found[0].diagnosis.missing.join("; ");
        assert!(missing.contains("0.2.5") && missing.contains("pods"));
        let old = of_docker("kubelet", "v1.23.5").with_evidence(audit);
        assert_eq!(old[0].diagnosis.missing.len(), 1);
        let new = of_docker("kubelet --config=/var/lib/kubelet/config.yaml", "v1.34.0");
        assert_eq!(new.with_evidence(audit), []);
    }

    #[test]
    fn a_kubelet_of_unknown_version_is_not_blamed_for_certain() {
        let mut bench = situation();
        of_version(&mut bench, "");
        let found = bench.with_evidence(audit);
        assert_eq!(found[0].diagnosis.certainty, Certainty::Likely);
        assert!(found[0].diagnosis.missing[0].contains("1.24"));
        bench.facts.components = vec![component("cri-dockerd --network-plugin=")];
        let found = bench.with_evidence(audit);
        assert_eq!(found[0].diagnosis.certainty, Certainty::Certain);
    }
}
