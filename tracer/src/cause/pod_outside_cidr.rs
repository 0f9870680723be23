//! `pod-outside-cidr`: a pod has an address that the container network's configuration does not give.

use std::collections::BTreeMap;

use super::audit::{Finding, is_node, pod_links};
use super::evidence::Evidence;
use super::pod_network::{DOCKER_BRIDGE, PodRanges, Teller, overlap, pod_ranges, words};
use super::{Cause, Diagnosis, Site};
use crate::node::{Address, Cni, Link, Prefix, Scope};

pub(super) const CAUSE: Cause = Cause {
    code: "pod-outside-cidr",
    title: "a pod's address is outside the pod network",
    explanation: "\
A pod on this node has an address outside of the range that the node was given for its pods: by flannel's
subnet.env, the Node's podCIDRs, or else the container network's configuration (/etc/cni/net.d). Routes,
masquerading and policies are made for that range, so other nodes have no way to such a pod and what it sends
is translated wrongly or not at all. It was made before the range changed, something else than CNI gave it its
network, or the wrong configuration file is the first by name, which is the one that runtimes use.

The audit also finds what makes the next pod go wrong: a first file with other ranges or one that is damaged,
and a bridge with an address of another range, with which the bridge plugin makes no pod.

Proof: the pod's own address, the device that leads to it, and the range with those who give it.

Fix: take the wrong file away, then recreate the pods that it gave addresses; a pod keeps its address for
life.",
    references: &[
        "containerd/go-cni, opts.go: takes the first configuration file by name, and nothing when that is \
         damaged",
        "containernetworking/plugins, plugins/main/bridge, ensureAddr: makes no pod when its bridge has another \
         IPv4 address",
    ],
    explains: &[],
    examine: |_| Vec::new(),
    audit,
};

/// Pods that are named.
const NAMED: usize = 4;

/// A pod, the node's device that leads to it, and its address.
type Stray<'a> = (&'a Site<'a>, &'a Link, &'a Address);

/// The range that pods are measured by, and what the file gives.
struct Reference<'a> {
    right: PodRanges<'a>,
    file: &'a [Prefix],
}

impl<'a> Reference<'a> {
    /// flannel's or the Node's, where the file says what it gives itself; else the file's own. Without that
    /// another program gives addresses, of ranges that may not be the Node's.
    fn of(evidence: &Evidence<'a>, cni: &'a Cni) -> Option<Self> {
        let file = cni.subnets.as_slice();
        let mut said = pod_ranges(evidence);
        let of_file = said.pop().filter(|last| last.teller == Teller::File)?;
        let agreed = said
            .iter()
            .position(|said| agree(said.ranges, file))
            .unwrap_or(0);
        let right = said.into_iter().nth(agreed).unwrap_or(of_file);
        Some(Self { right, file })
    }

    /// The file gives other addresses of a family than the node's.
    fn disagrees(&self, ipv4: bool) -> bool {
        let of = |ranges: &[Prefix]| -> Vec<Prefix> {
            let all = ranges.iter().copied();
            all.filter(|range| range.address.is_ipv4() == ipv4)
                .collect()
        };
        let (right, file) = (of(self.right.ranges), of(self.file));
        !right.is_empty() && !file.is_empty() && !agree(&right, &file)
    }

    /// Whether anything is known of addresses of this one's family.
    fn knows_family(&self, entry: &Address) -> bool {
        let is4 = entry.address.is_ipv4();
        (self.right.ranges.iter()).any(|range| range.address.is_ipv4() == is4)
    }

    /// An address that is none of the node's. Where the file is wrong, what it gave; what neither gives may
    /// be right.
    fn is_outside(&self, entry: &Address) -> bool {
        let within = |ranges: &[Prefix]| (ranges.iter()).any(|range| range.contains(entry.address));
        let wrong_file = self.disagrees(entry.address.is_ipv4());
        !within(self.right.ranges) && within(self.file) == wrong_file
    }
}

/// Whether two lists have addresses in common.
fn agree(one: &[Prefix], other: &[Prefix]) -> bool {
    (one.iter()).any(|&range| other.iter().any(|&second| overlap(range, second)))
}

fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let Some(cni) = &evidence.facts.cni else {
        return Vec::new();
    };
    if let Some(why) = &cni.damaged {
        return vec![Finding::error(damaged(cni, why))];
    }
    let Some(reference) = Reference::of(evidence, cni) else {
        return Vec::new();
    };
    let mut found: Vec<Finding> = wrong_file(cni, &reference).into_iter().collect();
    for site in evidence.sites() {
        found.extend(by_bridge(evidence, site, cni, &reference));
        if is_node(evidence, site) && !reference.disagrees(true) {
            found.extend(wrong_bridge(site, cni));
        }
    }
    found
}

/// The first file is none.
fn damaged(cni: &Cni, why: &str) -> Diagnosis {
    let file = cni.file.display();
    Diagnosis::new(
        &CAUSE,
        file.to_string(),
        format!(
            "{file}, the first CNI configuration by name, cannot be parsed: containerd makes no new pods, and other \
             runtimes take the next file."
        ),
    )
    .prove("cni", format!("{file}: {why}"))
    .prove_if("cni", others(cni))
    .fix(
        [format!(
            "mv {file} /root/   # or correct it, or have the container network write it again"
        )],
        "the next file by name counts then",
    )
    .check(format!("jq . {file}"))
}

/// The files that are not used.
fn others(cni: &Cni) -> Option<String> {
    let names: Vec<String> = cni
        .others
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    (!names.is_empty()).then(|| format!("not used, because later by name: {}", names.join(", ")))
}

/// The command that lets the next file by name count.
fn put_away(cni: &Cni) -> String {
    let file = cni.file.display();
    match cni.others.first() {
        Some(next) => format!("mv {file} /root/   # {} counts then", next.display()),
        None => format!("correct the ranges in {file}"),
    }
}

/// The first file gives addresses of other ranges than the node's.
fn wrong_file(cni: &Cni, reference: &Reference<'_>) -> Option<Finding> {
    if ![true, false]
        .into_iter()
        .any(|ipv4| reference.disagrees(ipv4))
    {
        return None;
    }
    let file = cni.file.display();
    let given = words(&cni.subnets);
    let right = &reference.right;
    let diagnosis = Diagnosis::new(
        &CAUSE,
        file.to_string(),
        format!(
            "{file}, the first CNI configuration by name, gives new pods addresses of {given}, and this node's range is \
             {}: other nodes have no way there.",
            words(right.ranges)
        ),
    )
    .prove("cni", format!("{file} gives {given}"))
    .prove(right.teller.source(), right.words.clone())
    .prove_if("cni", others(cni))
    .lacking_if(
        cni.others.is_empty(),
        "another configuration file, of the pod network: this one may be meant so",
    )
    .fix([put_away(cni)], "pods that it gave addresses keep them until they are recreated")
    .check("ls /etc/cni/net.d   # the pod network's file is the first by name");
    Some(Finding::error(diagnosis))
}

/// The bridge has an address of another range than the plugin is to give it.
fn wrong_bridge(site: &Site<'_>, cni: &Cni) -> Option<Finding> {
    let of_family = |range: &&Prefix| range.address.is_ipv4();
    let name = cni.bridge.as_deref().filter(|_| cni.gateway)?;
    let mut wanted = cni.subnets.iter().filter(of_family).peekable();
    wanted.peek()?;
    let bridge = (site.facts.links.iter()).find(|link| link.name == name)?;
    let own = site.facts.addresses.iter().filter(|entry| {
        entry.link == bridge.index && entry.address.is_ipv4() && entry.scope == Scope::Global
    });
    let first = own.clone().next()?;
    if wanted.any(|range| own.clone().any(|entry| range.contains(entry.address))) {
        return None;
    }
    let (place, file) = (site.name(), cni.file.display());
    let (given, address) = (words(&cni.subnets), first.address);
    let diagnosis = Diagnosis::new(
        &CAUSE,
        format!("{name} of {place}"),
        format!(
            "{name} of {place} has {address}, and the pods' range is {given}: the bridge plugin makes no new pods, it \
             says that {name} already has an IP address different from that of the range."
        ),
    )
    .prove("address", format!("{name} has {address}/{}", first.prefix_length))
    .prove("cni", format!("{file} gives {given}"))
    .fix(
        [
            format!("ip link del {name}   # the plugin makes it anew with the next pod"),
            "kubectl delete pod POD …   # those that were behind it".into(),
        ],
        "every pod behind it has no network until it is recreated",
    )
    .check(format!("ip addr show {name}   # an address of {given}"));
    Some(Finding::error(diagnosis))
}

/// One finding for each bridge of a node.
fn by_bridge(
    evidence: &Evidence<'_>,
    site: &Site<'_>,
    cni: &Cni,
    reference: &Reference<'_>,
) -> Vec<Finding> {
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
        let given =
            |entry: &&Address| entry.scope == Scope::Global && reference.knows_family(entry);
        let mut addresses = pod.facts.addresses.iter().filter(given);
        if addresses.clone().any(|entry| !reference.is_outside(entry)) {
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
            Finding::error(say(cni, reference, &behind, &strays))
        })
        .collect()
}

fn say(cni: &Cni, reference: &Reference<'_>, behind: &str, strays: &[Stray<'_>]) -> Diagnosis {
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
    let right = &reference.right;
    let by_file = (strays.iter()).any(|(.., entry)| reference.disagrees(entry.address.is_ipv4()));
    let recreate =
        "kubectl delete pod POD   # its controller makes it anew, with an address of the range";
    let pods = match strays.len() {
        1 => "A pod has an address".to_owned(),
        count => format!("{count} pods have addresses"),
    };
    Diagnosis::new(
        &CAUSE,
        format!("pods behind {behind}"),
        format!(
            "{pods} outside the pod network {}: other nodes have no way there.",
            words(right.ranges)
        ),
    )
    .prove("address", named.join("; "))
    .prove(right.teller.source(), right.words.clone())
    .prove_if(
        "cni",
        by_file.then(|| format!("{} gives {}", cni.file.display(), words(&cni.subnets))),
    )
    .fix(
        by_file
            .then(|| put_away(cni))
            .into_iter()
            .chain([recreate.to_owned()]),
        "the pod's connections break; a pod without a controller is gone",
    )
    .check("kubectl get pods -A -o wide   # every address in the range")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cause::constructed::{Bench, CNI0, ip, link, node};
    use crate::kube::constructed::cluster;
    use crate::node::{NetnsFacts, NetnsId};

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
        pod.addresses.push(Address::global(2, ip(address), 24));
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

    fn range(text: &str) -> Vec<Prefix> {
        vec![Prefix::parse(text).expect("a range")]
    }

    /// A file of the runtime's package comes before flannel's; the pod has an address.
    fn with_wrong_file(address: &str) -> Bench {
        let mut bench = bench(address, true);
        bench.facts.cni = Some(Cni {
            file: "/etc/cni/net.d/10-containerd-net.conflist".into(),
            others: vec!["/etc/cni/net.d/10-flannel.conflist".into()],
            subnets: range("10.88.0.0/16"),
            ..Cni::default()
        });
        bench.cluster = Some(cluster(
            "node",
            &[
                json!({"kind": "Node", "metadata": {"name": "node"}, "spec": {"podCIDRs": ["10.244.1.0/24"]}}),
            ],
        ));
        bench
    }

    #[test]
    fn the_wrong_file_is_named_and_what_it_gave() {
        // A pod of before is no stray, and one of a third range is nobody's.
        for address in ["10.244.1.5", "192.168.7.7"] {
            let found = with_wrong_file(address).with_evidence(audit);
            assert_eq!(found.len(), 1, "{found:#?}");
            let text = format!("{:?}", found[0].diagnosis);
            for word in [
                "10-containerd-net.conflist",
                "10-flannel.conflist",
                "10.88.0.0/16",
                "10.244.1.0/24",
                "podCIDRs of node node",
            ] {
                assert!(text.contains(word), "{word}: {text}");
            }
            assert!(!text.contains("kubectl delete pod"), "{text}");
        }
        let found = with_wrong_file("10.88.0.7").with_evidence(audit);
        assert_eq!(found.len(), 2, "{found:#?}");
        let lines = &found[1].diagnosis.fixes[0].lines;
        assert!(lines[0].starts_with("mv /etc/cni/net.d/10-containerd"));
        assert!(lines[1].starts_with("kubectl delete pod"));
    }

    #[test]
    fn what_flannel_gave_this_node_counts_before_the_node_object() {
        let mut bench = with_wrong_file("10.77.0.5");
        let cni = bench.facts.cni.as_mut().expect("a configuration");
        (cni.subnets, cni.flannel) = (range("10.77.0.0/24"), range("10.77.0.0/24"));
        assert_eq!(bench.with_evidence(audit), []);
        // A program that says no ranges may give any.
        let cni = bench.facts.cni.as_mut().expect("a configuration");
        (cni.subnets, cni.flannel) = (Vec::new(), Vec::new());
        assert_eq!(bench.with_evidence(audit), []);
    }

    #[test]
    fn a_damaged_file_is_found() {
        let mut bench = bench("10.244.1.7", true);
        bench.facts.cni = Some(Cni {
            file: "/etc/cni/net.d/10-flannel.conflist".into(),
            damaged: Some("EOF while parsing".into()),
            ..Cni::default()
        });
        let found = bench.with_evidence(audit);
        assert_eq!(found.len(), 1);
        assert!(format!("{:?}", found[0]).contains("EOF while parsing"));
    }

    #[test]
    fn a_bridge_of_another_range_is_found() {
        // The bridge has 10.244.0.1.
        let mut bench = bench("10.244.1.7", true);
        let cni = bench.facts.cni.as_mut().expect("a configuration");
        cni.bridge = Some("cni0".into());
        assert_eq!(bench.with_evidence(audit), []);
        let cni = bench.facts.cni.as_mut().expect("a configuration");
        cni.gateway = true;
        let found = bench.with_evidence(audit);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].diagnosis.fixes[0].lines[0],
            "ip link del cni0   # the plugin makes it anew with the next pod"
        );
        let cni = bench.facts.cni.as_mut().expect("a configuration");
        cni.subnets = range("10.244.0.0/16");
        assert_eq!(bench.with_evidence(audit), []);
    }
}
