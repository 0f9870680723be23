//! `pod-outside-cidr`: a pod has an address that the container network's configuration does not give.
//!
//! Source: the CNI configuration names the ranges that pods get addresses from (host-local's `subnet` and
//! `ranges`, flannel's subnet.env); a pod keeps the address that it was made with.

use std::collections::BTreeMap;

use super::audit::{Finding, pod_links};
use super::evidence::Evidence;
use super::{Cause, Diagnosis, Site};
use crate::node::{Address, Cni, Link, Scope};

pub(super) const CAUSE: Cause = Cause {
    code: "pod-outside-cidr",
    title: "a pod's address is outside the pod network",
    explanation: "\
A pod on this node has an address that the container network's configuration (/etc/cni/net.d) does not give.
Routes, masquerading and policies are made for the configured range, so other nodes have no way to such a pod
and what it sends is translated wrongly or not at all. It was made before the configuration changed (another
podSubnet, another plugin first by name), or something else than CNI gave it its network.

Proof: the pod's own address, the device that leads to it, and the configuration's ranges.

Fix: recreate the pod; a pod keeps its address for life. Where new pods get such addresses too, the wrong
configuration file is the first by name.",
    explains: &[],
    examine: |_| Vec::new(),
    audit,
};

/// Docker's own bridge, which `pod-on-docker0` speaks of.
const DOCKER_BRIDGE: &str = "docker0";
/// Pods that are named.
const NAMED: usize = 4;

/// A pod, the node's device that leads to it, and its address.
type Stray<'a> = (&'a Site<'a>, &'a Link, &'a Address);

fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let Some(cni) = &evidence.facts.cni else {
        return Vec::new();
    };
    evidence
        .sites()
        .flat_map(|site| by_bridge(evidence, site, cni))
        .collect()
}

/// One finding for each bridge of a node.
fn by_bridge(evidence: &Evidence<'_>, site: &Site<'_>, cni: &Cni) -> Vec<Finding> {
    let mut strays = BTreeMap::<Option<u32>, Vec<Stray<'_>>>::new();
    for link in pod_links(site) {
        let bridge = link.master.and_then(|index| site.link(index));
        if bridge.is_some_and(|bridge| bridge.name == DOCKER_BRIDGE) {
            continue;
        }
        let Some(pod) = link.peer_netns.and_then(|peer| evidence.site(peer)) else {
            continue;
        };
        if !pod.facts.is_pod {
            continue;
        }
        // A pod may have further networks beside the one that the configuration gives it.
        let given = |entry: &&Address| entry.scope == Scope::Global && gives_family(cni, entry);
        let mut addresses = pod.facts.addresses.iter().filter(given);
        if addresses.clone().any(|entry| gives(cni, entry)) {
            continue;
        }
        if let Some(address) = addresses.find(|entry| Some(entry.link) == link.peer_index) {
            let stray = (pod, link, address);
            strays.entry(link.master).or_default().push(stray);
        }
    }
    strays
        .into_iter()
        .map(|(bridge, strays)| {
            let place = site.name();
            let behind = bridge.map_or_else(
                || place.clone(),
                |index| format!("{} of {place}", site.device(index)),
            );
            Finding::error(say(cni, &behind, &strays))
        })
        .collect()
}

/// Whether the configuration gives addresses of this one's family.
fn gives_family(cni: &Cni, entry: &Address) -> bool {
    let is4 = entry.address.is_ipv4();
    (cni.subnets.iter()).any(|range| range.address.is_ipv4() == is4)
}

/// Whether the configuration gives this address.
fn gives(cni: &Cni, entry: &Address) -> bool {
    (cni.subnets.iter()).any(|range| range.contains(entry.address))
}

fn say(cni: &Cni, behind: &str, strays: &[Stray<'_>]) -> Diagnosis {
    let named: Vec<String> = strays
        .iter()
        .take(NAMED)
        .map(|(pod, link, address)| {
            format!(
                "{} has {} behind {}",
                pod.name(),
                address.address,
                link.name
            )
        })
        .collect();
    let ranges: Vec<String> = cni.subnets.iter().map(ToString::to_string).collect();
    let pods = match strays.len() {
        1 => "A pod has an address".to_owned(),
        count => format!("{count} pods have addresses"),
    };
    Diagnosis::new(
        &CAUSE,
        format!("pods behind {behind}"),
        format!(
            "{pods} outside the pod network {}: other nodes have no way there.",
            ranges.join(", ")
        ),
    )
    .prove("address", named.join("; "))
    .prove(
        "cni",
        format!("{} gives {}", cni.file.display(), ranges.join(", ")),
    )
    .fix(
        [
            "kubectl delete pod POD   # its controller makes it anew, with an address of the range"
                .to_owned(),
        ],
        "the pod's connections break; a pod without a controller is gone",
    )
    .check("kubectl get pods -A -o wide   # every address in the range")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::constructed::{Bench, CNI0, ip, link, node};
    use crate::node::{NetnsFacts, NetnsId, Prefix};

    const POD: NetnsId = NetnsId(700);

    fn bench(address: &str, is_pod: bool) -> Bench {
        let mut bench = node();
        bench.facts.cni = Some(Cni {
            file: "/etc/cni/net.d/10-flannel.conflist".into(),
            subnets: vec![Prefix {
                address: ip("10.244.1.0"),
                length: 24,
            }],
            ..Cni::default()
        });
        bench.site().links.push(Link {
            kind: Some("veth".into()),
            master: Some(CNI0),
            peer_netns: Some(POD),
            peer_index: Some(2),
            ..link(40, "veth77")
        });
        let mut pod = NetnsFacts::unread(POD, Some("p/default/web-0"));
        pod.is_pod = is_pod;
        pod.addresses.push(Address {
            link: 2,
            address: ip(address),
            prefix_length: 24,
            secondary: false,
            flags: 0,
            label: None,
            scope: Scope::Global,
        });
        bench.facts.namespaces.push(pod);
        bench
    }

    #[test]
    fn an_address_of_another_range_is_found() {
        let found = bench("10.88.0.7", true).with_evidence(audit);
        assert_eq!(found.len(), 1);
        let text = format!("{:?}", found[0].diagnosis);
        for word in [
            "p/default/web-0",
            "10.88.0.7",
            "veth77",
            "10.244.1.0/24",
            "cni0",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn pods_of_the_range_and_other_containers_are_healthy() {
        assert_eq!(bench("10.244.1.7", true).with_evidence(audit), []);
        assert_eq!(bench("10.88.0.7", false).with_evidence(audit), []);
        // A second network, of a plugin that gives more than one.
        let mut second = bench("10.88.0.7", true);
        let own = second.facts.namespaces.last_mut().expect("the pod");
        own.addresses.push(Address {
            link: 3,
            address: ip("10.244.1.7"),
            ..own.addresses[0].clone()
        });
        assert_eq!(second.with_evidence(audit), []);
        // The configuration gives no IPv6 addresses, so it says nothing of them.
        assert_eq!(bench("fd00::7", true).with_evidence(audit), []);
    }
}
