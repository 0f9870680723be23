//! kube-proxy's nftables mode: the maps of its table `kube-proxy`, the same from 1.29 on.

use std::net::SocketAddr;

use super::reach::{Chains, Names};
use super::{Destination, Gathered, NodePortScope, Refusal};
use crate::node::Prefix;
use crate::node::netfilter::address_of;
use crate::node::netfilter::{Action, Family, Rule, Subject, TableWithSets};

const SERVICES: &str = "services";
const SERVICE_IPS: &str = "service-ips";
const SERVICE_NODE_PORTS: &str = "service-nodeports";
const NO_ENDPOINTS: [&str; 2] = ["no-endpoint-services", "no-endpoint-nodeports"];
const FIREWALL_IPS: &str = "firewall-ips";
/// Bytes of a key's protocol and port, each filled up to four.
const PROTOCOL_AND_PORT: usize = 8;
const NAMES: Names = Names {
    marking: &["mark-for-masquerade"],
    // Source ranges have a map of their own, before that of the services.
    firewall: "\0",
};

pub(super) fn gather(found: &TableWithSets, gathered: &mut Gathered) {
    let ipv6 = found.table.family == Family::Ip6;
    let mut chains = Chains::new(&found.table, &found.sets, NAMES);
    let services = [SERVICE_IPS, SERVICE_NODE_PORTS].map(|name| chains.set(name));
    for set in services.into_iter().flatten() {
        for element in &set.elements {
            if let Some((protocol, destination)) = destination(&element.key, ipv6)
                && let Some(Action::Jump(next) | Action::Goto(next)) = &element.verdict
            {
                let reach = chains.reach(next);
                reach.add_to(gathered.service(protocol, destination));
            }
        }
    }
    for set in NO_ENDPOINTS.iter().filter_map(|name| chains.set(name)) {
        for element in &set.elements {
            if let Some((protocol, destination)) = destination(&element.key, ipv6) {
                gathered.service(protocol, destination).refusal = Some(match element.verdict {
                    Some(Action::Drop) => Refusal::Drop,
                    _ => Refusal::Reject,
                });
            }
        }
    }
    let firewall = chains
        .set(FIREWALL_IPS)
        .map_or(&[][..], |set| &set.elements);
    for element in firewall {
        let Some((protocol, destination)) = destination(&element.key, ipv6) else {
            continue;
        };
        if let Some(Action::Jump(name) | Action::Goto(name)) = &element.verdict
            && let Some(chain) = chains.get(name)
        {
            let mut dropping = chain
                .rules
                .iter()
                .filter(|rule| rule.action == Action::Drop);
            // A chain that drops nothing lets everyone through.
            if let Some(rule) = dropping.next() {
                let allowed = allowed(rule, &chains);
                let service = gathered.service(protocol, destination);
                service.sources.get_or_insert_default().extend(allowed);
            }
        }
    }
    let rules = chains.get(SERVICES).map_or(&[][..], |chain| &chain.rules);
    for rule in rules {
        if matches!(&rule.action, Action::Map { set, .. } if set == SERVICE_NODE_PORTS) {
            gathered.node_ports.extend(scopes(rule, ipv6, &chains));
        }
    }
}

/// Address, protocol and port of a key; without an address it is a NodePort's.
fn destination(key: &[u8], ipv6: bool) -> Option<(u8, Destination)> {
    let (address, rest) = key.split_at_checked(key.len().checked_sub(PROTOCOL_AND_PORT)?)?;
    let port = u16::from_be_bytes([rest[4], rest[5]]);
    let destination = if address.is_empty() {
        Destination::NodePort { ipv6, port }
    } else {
        Destination::Address(SocketAddr::new(address_of(address)?, port))
    };
    Some((rest[0], destination))
}

/// The sources that a rule of a firewall chain does not drop.
fn allowed(rule: &Rule, chains: &Chains<'_>) -> Vec<Prefix> {
    let tests = rule.tests.iter().filter(|test| test.negated);
    tests
        .flat_map(|test| match &test.on {
            Subject::Set { set, .. } => chains.set(set).map_or_else(Vec::new, |set| set.prefixes()),
            Subject::Source(address, length) => vec![Prefix {
                address: *address,
                length: *length,
            }],
            _ => Vec::new(),
        })
        .collect()
}

/// Where NodePorts answer by the rule that looks them up: on the addresses of a set, else on all.
fn scopes(rule: &Rule, ipv6: bool, chains: &Chains<'_>) -> Vec<NodePortScope> {
    let whole = if ipv6 { 128 } else { 32 };
    let set = rule.tests.iter().find_map(|test| match &test.on {
        Subject::Set { set, .. } if !test.negated => Some(chains.set(set)),
        _ => None,
    });
    match set {
        None => vec![NodePortScope::Local { ipv6 }],
        Some(set) => set
            .into_iter()
            .flat_map(|set| set.addresses())
            .map(|address| {
                NodePortScope::Within(Prefix {
                    address,
                    length: whole,
                })
            })
            .collect(),
    }
}
