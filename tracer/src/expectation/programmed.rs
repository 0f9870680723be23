//! What the kernel really holds for services, in one shape for every mode.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::node_address::is_usable;
use super::{Mode, ServerKey};
use crate::node::{
    Destination, NetnsFacts, PacketFilter, Prefix, ServiceRule, ServiceRules, VirtualServer,
    VirtualServerKey,
};

/// What the kernel does with packets to one address and port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Programmed {
    /// Protocol, address and port.
    pub key: ServerKey,
    /// Endpoints that new connections go to.
    pub endpoints: BTreeSet<SocketAddr>,
    /// How long a client keeps its endpoint.
    pub affinity: Option<Duration>,
    /// Sources that are let through; `None`: all, or not known.
    pub sources: Option<BTreeSet<Prefix>>,
}

/// What a namespace holds for a mode; `None` when it was not read, or there is nothing of that mode at
/// all.
pub fn programmed(facts: &NetnsFacts, mode: Mode) -> Option<Vec<Programmed>> {
    let filter = match mode {
        Mode::Ipvs => return Some(facts.ipvs.as_ref()?.iter().filter_map(of_server).collect()),
        Mode::Iptables => PacketFilter::Iptables,
        Mode::Nftables => PacketFilter::Nftables,
    };
    let mut rules = facts.service_rules.iter().flatten();
    let rules = rules.find(|rules| rules.filter == filter)?;
    Some(of_rules(rules, facts))
}

/// Real servers of weight 0 only finish their connections.
fn of_server(server: &VirtualServer) -> Option<Programmed> {
    let VirtualServerKey::Endpoint {
        protocol,
        address,
        port,
    } = server.key
    else {
        return None;
    };
    let taking = server.destinations.iter().filter(|real| real.weight > 0);
    Some(Programmed {
        key: ServerKey {
            protocol,
            address: SocketAddr::new(address, port),
        },
        endpoints: taking
            .map(|real| SocketAddr::new(real.address, real.port))
            .collect(),
        affinity: server.persistence.as_ref().map(|found| found.timeout),
        sources: None,
    })
}

fn of_rules(rules: &ServiceRules, facts: &NetnsFacts) -> Vec<Programmed> {
    let node: BTreeSet<IpAddr> = facts
        .addresses
        .iter()
        .map(|found| found.address)
        .filter(is_usable)
        .filter(|address| rules.node_ports.iter().any(|scope| scope.covers(*address)))
        .collect();
    let mut found = Vec::new();
    for service in &rules.services {
        match service.destination {
            Destination::Address(address) => found.push(of_rule(service, address)),
            Destination::NodePort { ipv6, port } => found.extend(
                node.iter()
                    .filter(|address| address.is_ipv6() == ipv6)
                    .map(|address| of_rule(service, SocketAddr::new(*address, port))),
            ),
        }
    }
    found
}

fn of_rule(service: &ServiceRule, address: SocketAddr) -> Programmed {
    Programmed {
        key: ServerKey {
            protocol: service.protocol,
            address,
        },
        endpoints: service.endpoints.clone(),
        affinity: service.affinity,
        sources: service.sources.clone(),
    }
}
