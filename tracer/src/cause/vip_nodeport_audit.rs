//! `vip-nodeport-unbound` without traffic: NodePorts that are served on some of the node's addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::audit::Finding;
use super::evidence::Evidence;
use super::nodeport_taken::is_kube_proxy;
use super::service::is_this_nodes;
use super::vip_nodeport_reason::{Reason, left_out, on_service_device};
use super::vip_nodeport_unbound::{Subject, judge};
use super::{Certainty, Site};
use crate::expectation::{Mode, Proxy};
use crate::kube::{ClusterFacts, Resource};
use crate::node::{Scope, VirtualServerKey};

/// Addresses of the node that lack what its other addresses have; one finding for each address.
pub(super) fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    evidence
        .sites()
        .flat_map(|site| {
            let mut ports = served_node_ports(evidence, site);
            if node_cluster(evidence, site).is_none() {
                // A program that listens there may be what the virtual server is for.
                ports.retain(|&(protocol, port), _| {
                    site.sockets_on_port(protocol, port).all(is_kube_proxy)
                });
            }
            own_addresses(site)
                .into_iter()
                .filter_map(|address| one(evidence, site, address, &ports))
                .collect::<Vec<_>>()
        })
        .collect()
}

pub(super) type NodePorts = BTreeMap<(u8, u16), BTreeSet<IpAddr>>;

/// The cluster, where it knows the services and this is its node's namespace.
fn node_cluster<'a>(evidence: &Evidence<'a>, site: &Site<'_>) -> Option<&'a ClusterFacts> {
    evidence
        .cluster
        .filter(|cluster| cluster.fresh(&[Resource::Services]) && is_this_nodes(evidence, site))
}

/// NodePorts with a virtual server on an address of the node itself, and on which: NodePorts by the cluster,
/// else what is served on a first address of a device. Others are not kube-proxy's, which makes none beside ipvs mode.
pub(super) fn served_node_ports(evidence: &Evidence<'_>, site: &Site<'_>) -> NodePorts {
    let running = evidence.facts.kube_proxies_in(site.facts.id);
    let mut ports = NodePorts::new();
    if Proxy::known(evidence.cluster, running).is_some_and(|proxy| proxy.mode != Mode::Ipvs) {
        return ports;
    }
    for server in site.facts.ipvs.iter().flatten() {
        if let VirtualServerKey::Endpoint {
            protocol,
            address,
            port,
        } = server.key
            && site.is_local(address)
            && !on_service_device(site, address)
        {
            ports.entry((protocol, port)).or_default().insert(address);
        }
    }
    let cluster = node_cluster(evidence, site);
    ports.retain(|&(protocol, port), served| match cluster {
        Some(cluster) => cluster.node_port(protocol, port).is_some(),
        None => served.iter().any(|&address| is_first(site, address)),
    });
    ports
}

/// The first address of its family on its device.
fn is_first(site: &Site<'_>, address: IpAddr) -> bool {
    site.addresses(address).any(|own| {
        let mut others = site.facts.addresses.iter().filter(|other| {
            other.link == own.link
                && other.scope == Scope::Global
                && other.address.is_ipv4() == address.is_ipv4()
        });
        let loopback = site.link(own.link).is_some_and(|link| link.name == "lo");
        !loopback && others.next().is_some_and(|first| first.address == address)
    })
}

/// Addresses on which NodePorts are expected.
fn own_addresses(site: &Site<'_>) -> BTreeSet<IpAddr> {
    site.facts
        .addresses
        .iter()
        .filter(|entry| entry.scope == Scope::Global && !entry.address.is_loopback())
        .map(|entry| entry.address)
        .filter(|&address| !on_service_device(site, address))
        .collect()
}

/// Whether one device carries both addresses.
fn share_a_link(site: &Site<'_>, one: IpAddr, other: IpAddr) -> bool {
    site.addresses(one)
        .any(|one| site.addresses(other).any(|other| other.link == one.link))
}

fn one(
    evidence: &Evidence<'_>,
    site: &Site<'_>,
    address: IpAddr,
    ports: &NodePorts,
) -> Option<Finding> {
    let lacking: Vec<(u8, u16)> = ports
        .iter()
        .filter(|(_, served)| {
            !served.contains(&address)
                && served
                    .iter()
                    .any(|other| other.is_ipv4() == address.is_ipv4())
        })
        .map(|(&port, _)| port)
        .collect();
    let &(protocol, port) = lacking.first()?;
    let intended = match left_out(evidence, site, address)?.reason {
        Reason::Primary | Reason::PrimaryByDefault => return None,
        // A list leaves out other devices on purpose.
        Reason::Configured { .. } | Reason::Unknown => {
            let beside = |served: &IpAddr| share_a_link(site, *served, address);
            if !ports[&(protocol, port)].iter().any(beside) {
                return None;
            }
            true
        }
        Reason::Secondary { .. } | Reason::ServiceAddress | Reason::Late => false,
    };
    let subject = Subject {
        netns: site.facts.id.0,
        protocol,
        address: SocketAddr::new(address, port),
    };
    let diagnosis = judge(evidence, subject, &[])?;
    let more = lacking.len() - 1;
    let diagnosis = diagnosis.prove_if(
        "ipvs",
        (more > 0).then(|| format!("{more} more NodePorts are missing on {address} too")),
    );
    Some(match diagnosis.certainty {
        Certainty::Certain if !intended => Finding::error(diagnosis),
        Certainty::Certain | Certainty::Likely => Finding::warning(diagnosis),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::cause::audit::{Severity, audit as audit_all};
    use crate::cause::constructed::{Bench, ETH0, NODE, ip, link, node, route, service, socket};
    use crate::expectation::SERVICE_DEVICE;
    use crate::kube::constructed::cluster;
    use crate::node::{Address, KubeProxy, NetnsId, Process, Route, RouteKind};

    /// Number of the device of service addresses.
    pub(in crate::cause) const KUBE_IPVS0: u32 = 9;
    const MINUTE: u64 = 60_000_000_000;

    /// A node of kube-proxy in ipvs mode with a second address, a minute old, whose local route has this source, and
    /// NodePorts on all others.
    pub(in crate::cause) fn with_vip(source: &str) -> Bench {
        let mut bench = node();
        bench.facts.taken_ns = Some(2 * MINUTE);
        let site = bench.site();
        site.links.push(link(KUBE_IPVS0, SERVICE_DEVICE));
        let service_address = Address::global(KUBE_IPVS0, ip("10.96.0.1"), 32);
        site.addresses.push(service_address);
        site.addresses.push(Address {
            link: ETH0,
            address: ip("192.0.2.9"),
            prefix_length: 24,
            secondary: source != "192.0.2.9",
            flags: 0,
            label: None,
            scope: Scope::Global,
            created_ns: Some(MINUTE),
        });
        site.routes.push(Route {
            table: Route::LOCAL_TABLE,
            kind: RouteKind::Local,
            preferred_source: Some(ip(source)),
            ..route("192.0.2.9", 32, ETH0)
        });
        let serve = |address: &str| service(6, address, &[("10.244.0.8:80", 1)]);
        site.ipvs = Some(vec![
            serve("192.0.2.1:30000"),
            serve("192.0.2.1:30001"),
            serve("10.244.0.1:30000"),
            serve("10.244.0.1:30001"),
        ]);
        bench
    }

    #[test]
    fn an_address_without_node_ports_is_one_error() {
        let bench = with_vip("192.0.2.1");
        let found = bench.with_evidence(audit_all);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].severity, Severity::Error);
        assert_eq!(found[0].diagnosis.code, "vip-nodeport-unbound");
        let more = found[0]
            .diagnosis
            .evidence
            .last()
            .map(|proof| proof.text.clone());
        assert!(
            more.is_some_and(|text| text.starts_with("1 more")),
            "{found:#?}"
        );
    }

    /// The same with NodePorts on the node's address alone, and a kube-proxy of this command line.
    fn with_proxy(line: &str) -> Bench {
        let mut bench = with_vip("192.0.2.1");
        bench.site().ipvs = Some(vec![service(6, "192.0.2.1:30000", &[("10.244.0.8:80", 1)])]);
        let mut proxy = KubeProxy::constructed(line);
        proxy.netns = Some(NetnsId(NODE));
        bench.facts.kube_proxies = vec![proxy];
        bench
    }

    fn found(bench: &Bench) -> Vec<(Severity, String)> {
        let found = bench.with_evidence(audit).into_iter();
        found
            .map(|found| (found.severity, found.diagnosis.subject))
            .collect()
    }

    #[test]
    fn another_balancer_s_address_is_a_warning() {
        let mut bench = with_vip("192.0.2.1");
        bench.site().links.retain(|link| link.index != KUBE_IPVS0);
        let found = bench.with_evidence(audit_all);
        let severities: Vec<_> = found.iter().map(|found| found.severity).collect();
        assert_eq!(severities, [Severity::Warning], "{found:#?}");
    }

    #[test]
    fn what_the_list_leaves_out_is_meant_so() {
        let vip = "tcp 192.0.2.9:30000".to_owned();
        let bridge = "tcp 10.244.0.1:30000".to_owned();
        use Severity::{Error, Warning};
        for (list, wanted) in [
            // The bridge is on no device that the list serves.
            ("=192.0.2.1/32", vec![(Warning, vip.clone())]),
            ("=primary", vec![]),
            ("=0.0.0.0/0", vec![(Warning, bridge), (Error, vip)]),
        ] {
            let bench = with_proxy(&format!(
                "kube-proxy --proxy-mode=ipvs --nodeport-addresses{list}"
            ));
            assert_eq!(found(&bench), wanted, "{list}");
        }
        assert_eq!(found(&with_proxy("kube-proxy --proxy-mode=iptables")), []);
    }

    #[test]
    fn other_virtual_servers_are_no_node_ports() {
        // Keepalived balances the API servers on its address.
        let mut bench = with_vip("192.0.2.9");
        bench.site().ipvs = Some(vec![service(6, "192.0.2.9:6443", &[("192.0.2.1:6443", 1)])]);
        assert_eq!(bench.with_evidence(audit_all), []);
        // On the node's own address, where the API server listens.
        bench.site().ipvs = Some(vec![service(6, "192.0.2.1:6443", &[("192.0.2.2:6443", 1)])]);
        let mut holder = socket(6, "0.0.0.0", 6443);
        holder.owner = Some(Process {
            pid: 7,
            command: "kube-apiserver".into(),
        });
        bench.site().sockets = vec![holder];
        assert_eq!(found(&bench), []);
    }

    #[test]
    fn the_cluster_knows_its_node_ports() {
        let mut bench = with_vip("192.0.2.1");
        let objects = |port: u16| {
            cluster(
                "node-a",
                &[
                    json!({"kind": "Node", "metadata": {"name": "node-a"},
                        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
                    json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"},
                        "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.5"],
                            "ports": [{"port": 80, "nodePort": port}]}}),
                ],
            )
        };
        bench.cluster = Some(objects(30001));
        assert_eq!(
            found(&bench),
            [(Severity::Error, "tcp 192.0.2.9:30001".into())]
        );
        bench.cluster = Some(objects(31000));
        assert_eq!(found(&bench), []);
    }

    #[test]
    fn addresses_that_are_all_served_are_healthy() {
        let mut bench = with_vip("192.0.2.1");
        let table = bench.site().ipvs.as_mut().expect("a table");
        for port in ["192.0.2.9:30000", "192.0.2.9:30001"] {
            table.push(service(6, port, &[("10.244.0.8:80", 1)]));
        }
        assert_eq!(bench.with_evidence(audit_all), []);
    }
}
