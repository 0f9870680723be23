//! `vip-nodeport-unbound` without traffic: NodePorts that are served on some of the node's addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::audit::Finding;
use super::evidence::Evidence;
use super::vip_nodeport_reason::on_service_device;
use super::vip_nodeport_unbound::{Subject, judge};
use super::{Certainty, Site};
use crate::node::{Scope, VirtualServerKey};

/// Addresses of the node that lack what its other addresses have; one finding for each address.
pub(super) fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    evidence
        .sites()
        .flat_map(|site| {
            let ports = node_ports(site);
            own_addresses(site)
                .into_iter()
                .filter_map(|address| one(evidence, site, address, &ports))
                .collect::<Vec<_>>()
        })
        .collect()
}

type NodePorts = BTreeMap<(u8, u16), BTreeSet<IpAddr>>;

/// Ports with a virtual server on an address of the node itself, and on which.
fn node_ports(site: &Site<'_>) -> NodePorts {
    let mut ports = NodePorts::new();
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
    ports
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
        Certainty::Certain => Finding::error(diagnosis),
        Certainty::Likely => Finding::warning(diagnosis),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cause::audit::{Severity, audit as audit_all};
    use crate::cause::constructed::{Bench, ETH0, ip, node, route, service};
    use crate::node::{Address, Route, RouteKind};

    /// A node with a second address, whose local route has this source, and NodePorts on all others.
    pub(in crate::cause) fn with_vip(source: &str) -> Bench {
        let mut bench = node();
        let site = bench.site();
        site.addresses.push(Address {
            link: ETH0,
            address: ip("192.0.2.9"),
            prefix_length: 24,
            secondary: source != "192.0.2.9",
            flags: 0,
            label: None,
            scope: Scope::Global,
            created_ns: None,
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
