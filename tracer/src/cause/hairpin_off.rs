//! `hairpin-off`: a pod reaches its own service, and the bridge may not send back by the same port.
//!
//! With br_netfilter the service's DNAT happens inside the bridge.

use super::audit::{Finding, pod_links};
use super::bridging::{BRIDGE_DROPS, is_blocked, port_to, port_with};
use super::evidence::{Evidence, Failure};
use super::service::has_kube_proxy;
use super::{Cause, Diagnosis, Site};
use crate::hook::Role;
use crate::kube::{ObjectName, Resource, Service};
use crate::node::{Link, NetnsId};

pub(super) const CAUSE: Cause = Cause {
    code: "hairpin-off",
    title: "a pod cannot reach itself through its own service: its bridge port has no hairpin mode",
    explanation: "\
A pod calls a service and the service picks that very pod. The packet has to leave the bridge by the port
that it came in by, and bridges do that only for ports in hairpin mode. The connection times out, and only
in as many cases as the service picks the caller itself.

Why: the CNI's bridge plugin needs hairpinMode: true (kubelet's --hairpin-mode before), or promiscMode.

Proof: the packet came in by a port, its destination after NAT is behind the same port, the bridge dropped
it, and hairpin is off on the port.

Fix: hairpinMode in the CNI configuration, and at once on the port itself.",
    references: &[
        "Linux net/bridge/br_forward.c, should_deliver: passes over the port that a frame came from unless it \
         has hairpin mode",
    ],
    explains: &[],
    examine,
    audit,
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (netns, port) = turned_back(evidence, failure)?;
            Some((netns, port.index))
        })
        .into_iter()
        .filter_map(|((netns, index), failures)| {
            let site = evidence.site(netns)?;
            let port = site.link(index)?;
            let first = failures.first()?;
            let target = first.journey.last_tuple()?.destination;
            Some(say(site, port).stopped(evidence, &failures).prove(
                "packet",
                format!(
                    "{} came in by {} and leads to {target} behind the same port, {}",
                    first.words(),
                    port.name,
                    first.drop_words()
                ),
            ))
        })
        .collect()
}

/// The port that a lost packet came in by and had to leave by.
fn turned_back<'a>(evidence: &Evidence<'a>, failure: &Failure<'_>) -> Option<(NetnsId, &'a Link)> {
    if !failure.dropped_for(&[], BRIDGE_DROPS) {
        return None;
    }
    // With br_netfilter the bridge itself is seen after its port.
    let (netns, site, port) = failure
        .journey
        .events
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, event)| matches!(event.role(), Role::Bridge | Role::Receive))
        .find_map(|(index, event)| {
            let netns = failure.netns_at(index)?;
            let site = evidence.site(netns)?;
            let port = site.link(event.ifindex?)?;
            port.bridge_port?;
            Some((netns, site, port))
        })?;
    let (first, last) = (
        failure.journey.first_tuple()?,
        failure.journey.last_tuple()?,
    );
    let bridge = port.master?;
    let target = last.destination.ip();
    let same = first.source.ip() == target
        || port_to(site, bridge, target)
            .or_else(|| port_with(evidence, site, bridge, target))
            .is_some_and(|found| found.index == port.index);
    let off = port.bridge_port?.hairpin == Some(false);
    (off && same && !is_blocked(port)).then_some((netns, port))
}

/// Ports that should have hairpin mode by the container network's own configuration, or, where that does not
/// speak of it, because a pod that calls its service can meet nobody but itself.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let cni = evidence.facts.cni.as_ref();
    let Some((cni, bridge)) = cni.and_then(|cni| Some((cni, cni.bridge.as_deref()?))) else {
        return Vec::new();
    };
    evidence
        .sites()
        .filter_map(|site| {
            let bridge = site.facts.links.iter().find(|link| link.name == bridge)?;
            let ports = pod_links(site).filter(|port| port.master == Some(bridge.index));
            let (off, on): (Vec<&Link>, Vec<&Link>) = ports.partition(|port| is_off(port));
            let (file, name) = (cni.file.display(), &bridge.name);
            if cni.hairpin == Some(true) {
                return Some(Finding::warning(say(site, off.first()?).prove(
                    "cni",
                    format!(
                        "{file} says hairpinMode: true; {} ports of {name} have it off",
                        off.len()
                    ),
                )));
            }
            if !on.is_empty() || cni.promiscuous == Some(true) {
                return None;
            }
            let (service, port) = meets_itself(evidence, site, bridge)?;
            Some(Finding::warning(
                say(site, port)
                    .prove(
                        "service",
                        format!("s/{service} has no other endpoint than the pod behind {}", port.name),
                    )
                    .prove(
                        "cni",
                        format!(
                            "{file} does not say hairpinMode: true; all {} ports of {name} have it off",
                            off.len()
                        ),
                    )
                    .lacking("that the pod calls its own service"),
            ))
        })
        .collect()
}

fn is_off(port: &Link) -> bool {
    port.bridge_port.and_then(|port| port.hairpin) == Some(false)
}

/// A service whose only endpoint is behind a port of this bridge, where the service is translated inside the
/// bridge; otherwise frames for the pod come from the bridge itself.
fn meets_itself<'a>(
    evidence: &Evidence<'a>,
    site: &Site<'a>,
    bridge: &Link,
) -> Option<(&'a ObjectName, &'a Link)> {
    let cluster = evidence
        .cluster
        .filter(|cluster| cluster.fresh(&[Resource::Services, Resource::Endpoints]))?;
    let inside = site.sysctl("net/bridge/bridge-nf-call-iptables") == Some(1);
    if !inside || !has_kube_proxy(evidence, site.facts.id) {
        return None;
    }
    let translated = |service: &&Service| !service.headless() && service.other_proxy.is_none();
    cluster.services().filter(translated).find_map(|service| {
        let endpoints = cluster.endpoints_of(&service.name);
        let mut serving = endpoints.filter(|(endpoint, _)| endpoint.serving);
        let (only, _) = serving.next()?;
        let alone = serving.all(|(other, _)| other.address == only.address);
        let port = port_with(evidence, site, bridge.index, only.address)?;
        (alone && is_off(port)).then_some((&service.name, port))
    })
}

/// The finding about one port.
fn say(site: &Site<'_>, port: &Link) -> Diagnosis {
    let bridge = port
        .master
        .map_or_else(String::new, |index| site.device(index));
    Diagnosis::new(
        &CAUSE,
        format!("{} of {bridge}", port.name),
        format!(
            "The pod behind {} reaches itself through a service, and {bridge} may not send a frame back by the port that \
             it came from: hairpin mode is off.",
            port.name
        ),
    )
    .prove("link", format!("{} master {bridge} hairpin off", port.name))
    .fix(
        [
            format!("bridge link set dev {} hairpin on", port.name),
            "\"hairpinMode\": true in the bridge plugin's CNI configuration   # for pods made later".into(),
        ],
        "none for pods",
    )
    .check(format!("bridge -d link show dev {}   # hairpin on", port.name))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::bridge_port_blocked::tests::{PORT, port};
    use crate::cause::constructed::{Bench, ETH0, ip, node};
    use crate::kube::constructed::cluster;
    use crate::node::{Address, BridgePortState, Cni, NetnsFacts};

    fn with(hairpin: bool, target: &str) -> Bench {
        let mut bench = node();
        bench
            .site()
            .links
            .push(port(BridgePortState::Forwarding, hairpin));
        bench
            .tcp("10.244.0.9:4000", "10.96.0.1:80")
            .receive(PORT)
            .at(HookId::BridgeReceive)
            .at(HookId::Nat)
            .to(target)
            .at(HookId::BridgeReceive)
            .dropped("NOT_SPECIFIED", "br_forward");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        with(false, "10.244.0.9:80")
    }

    #[test]
    fn ports_that_the_configuration_wants_otherwise_are_one_warning() {
        use crate::node::BridgePort;
        let mut bench = crate::cause::constructed::node();
        bench.site().links.push(Link {
            kind: Some("veth".into()),
            master: Some(crate::cause::constructed::CNI0),
            peer_netns: Some(NetnsId(700)),
            bridge_port: Some(BridgePort {
                state: Some(BridgePortState::Forwarding),
                hairpin: Some(false),
            }),
            ..crate::cause::constructed::link(21, "veth1")
        });
        assert_eq!(bench.with_evidence(audit), []);
        bench.facts.cni = Some(Cni {
            bridge: Some("cni0".into()),
            hairpin: Some(true),
            ..Cni::default()
        });
        assert_eq!(bench.with_evidence(audit).len(), 1);
    }

    /// A node with a pod on its bridge, a bridge plugin without the setting, and a service.
    fn with_service(endpoints: &[&str]) -> Bench {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|address| json!({"addresses": [address]}))
            .collect();
        let facts = cluster(
            "node-a",
            &[
                json!({"kind": "Node", "metadata": {"name": "node-a"}, "status": {
                    "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
                json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"},
                    "spec": {"clusterIPs": ["10.96.0.5"], "ports": [{"port": 80}]}}),
                json!({"kind": "EndpointSlice", "metadata": {"namespace": "default", "name": "web-x",
                        "labels": {"kubernetes.io/service-name": "web"}},
                    "ports": [{"port": 8080}], "endpoints": endpoints}),
            ],
        );
        let mut bench = node();
        bench.cluster = Some(facts);
        bench.sysctl("net/bridge/bridge-nf-call-iptables", "1");
        bench.site().links.push(Link {
            kind: Some("veth".into()),
            peer_netns: Some(NetnsId(700)),
            peer_index: Some(ETH0),
            ..port(BridgePortState::Forwarding, false)
        });
        let mut pod = NetnsFacts::unread(NetnsId(700), Some("pod"));
        let address = Address {
            link: ETH0,
            address: ip("10.244.0.9"),
            ..bench.site().addresses[0].clone()
        };
        pod.addresses = vec![address];
        bench.facts.namespaces.push(pod);
        bench.facts.cni = Some(Cni {
            plugins: vec!["bridge".into()],
            bridge: Some("cni0".into()),
            ..Cni::default()
        });
        bench
    }

    #[test]
    fn a_service_of_one_pod_is_a_sign_where_the_configuration_is_silent() {
        let found = with_service(&["10.244.0.9"]).with_evidence(audit);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].diagnosis.certainty, Certainty::Likely);
        let said = |bench: &Bench| bench.with_evidence(audit).len();
        assert_eq!(said(&with_service(&["10.244.0.9", "10.244.1.9"])), 0);
        assert_eq!(said(&with_service(&["10.244.1.9"])), 0);
        let mut bench = with_service(&["10.244.0.9"]);
        bench.sysctl("net/bridge/bridge-nf-call-iptables", "0");
        assert_eq!(said(&bench), 0);
        let mut bench = with_service(&["10.244.0.9"]);
        bench.facts.cni = bench.facts.cni.map(|cni| Cni {
            promiscuous: Some(true),
            ..cni
        });
        assert_eq!(said(&bench), 0);
        // Another pod's port has it, so the configuration is not silent.
        let mut bench = with_service(&["10.244.0.9"]);
        bench.site().links.push(Link {
            index: PORT + 1,
            peer_netns: Some(NetnsId(701)),
            ..port(BridgePortState::Forwarding, true)
        });
        assert_eq!(said(&bench), 0);
        let mut bench = with_service(&["10.244.0.9"]);
        bench.cluster = None;
        assert_eq!(said(&bench), 0);
    }

    #[test]
    fn a_pod_that_calls_itself_is_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
    }

    #[test]
    fn hairpin_mode_or_another_pod_are_other_cases() {
        assert_eq!(with(true, "10.244.0.9:80").codes(), [] as [&str; 0]);
        assert_eq!(with(false, "10.244.0.8:80").codes(), [] as [&str; 0]);
    }
}
