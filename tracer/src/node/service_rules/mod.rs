//! What kube-proxy's rules do with packets for services: which destinations they take, and to which
//! endpoints they send a client from outside the node.
//!
//! Map: `iptables` and `nftables` find the destinations in the tables that `netfilter` read, each in its
//! mode's way; `reach` follows a destination's chains down to the endpoints. What is kept is one row for
//! each destination: the tables themselves may hold 200,000 rules.
//!
//! Invariants: chains and rules decide, not their names' hashes or the comments; what a chain does for
//! clients of this node or its pods alone is not followed.
//!
//! Sources: kubernetes pkg/proxy/iptables/proxier.go and pkg/proxy/nftables/proxier.go.

mod iptables;
mod nftables;
mod reach;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::netfilter::{Family, TableWithSets, Tool, read_services};
use super::{Missing, Prefix};

/// The packet filter that a mode of kube-proxy writes its rules into.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum PacketFilter {
    /// iptables, legacy and nft.
    Iptables,
    /// nftables, table `kube-proxy`.
    Nftables,
}

/// What one packet filter's rules for services do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceRules {
    /// Whose rules.
    pub filter: PacketFilter,
    /// One row for each destination.
    pub services: Vec<ServiceRule>,
    /// Where NodePorts answer.
    pub node_ports: Vec<NodePortScope>,
}

/// What becomes of packets to one destination.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceRule {
    /// IP protocol number.
    pub protocol: u8,
    /// The destination.
    pub destination: Destination,
    /// Endpoints that a client from outside the node reaches.
    pub endpoints: BTreeSet<SocketAddr>,
    /// How long a client keeps its endpoint.
    pub affinity: Option<Duration>,
    /// Sources that are let through; `None`: all.
    pub sources: Option<BTreeSet<Prefix>>,
    /// What happens to a packet that goes to no endpoint.
    pub refusal: Option<Refusal>,
}

/// Where a packet is sent to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Destination {
    /// An address and port.
    Address(SocketAddr),
    /// A port on the node's addresses.
    NodePort {
        /// IPv6, else IPv4.
        ipv6: bool,
        /// The port.
        port: u16,
    },
}

/// How a packet without an endpoint ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Refusal {
    /// The client is told.
    Reject,
    /// The client is not told.
    Drop,
}

/// Addresses on which NodePorts answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum NodePortScope {
    /// Every local address of a family.
    Local {
        /// IPv6, else IPv4.
        ipv6: bool,
    },
    /// Addresses in a range.
    Within(Prefix),
}

/// Reads what the rules of the calling thread's namespace do; one value for each packet filter that has
/// rules for services.
pub(super) fn read(missing: &mut Vec<Missing>) -> Vec<ServiceRules> {
    of_tables(&read_services(missing))
}

fn of_tables(tables: &[TableWithSets]) -> Vec<ServiceRules> {
    let mut found: BTreeMap<PacketFilter, Gathered> = BTreeMap::new();
    for (tool, family) in [Tool::IptablesLegacy, Tool::IptablesNft]
        .into_iter()
        .flat_map(|tool| [(tool, Family::Ip), (tool, Family::Ip6)])
    {
        let table = |name| {
            let wanted = |found: &&TableWithSets| {
                let table = &found.table;
                (table.tool, table.family, table.name.as_str()) == (tool, family, name)
            };
            tables.iter().find(wanted).map(|found| &found.table)
        };
        let (nat, filter) = (table("nat"), table("filter"));
        if nat.is_some() || filter.is_some() {
            let gathered = found.entry(PacketFilter::Iptables).or_default();
            iptables::gather(nat, filter, gathered);
        }
    }
    for found_table in tables.iter().filter(|found| found.table.tool == Tool::Nft) {
        let gathered = found.entry(PacketFilter::Nftables).or_default();
        nftables::gather(found_table, gathered);
    }
    found
        .into_iter()
        .map(|(filter, gathered)| gathered.finish(filter))
        .collect()
}

/// What was found so far, several rules of one destination put together.
#[derive(Default)]
struct Gathered {
    services: BTreeMap<(u8, Destination), ServiceRule>,
    node_ports: BTreeSet<NodePortScope>,
}

impl Gathered {
    fn service(&mut self, protocol: u8, destination: Destination) -> &mut ServiceRule {
        self.services
            .entry((protocol, destination))
            .or_insert_with(|| ServiceRule {
                protocol,
                destination,
                endpoints: BTreeSet::new(),
                affinity: None,
                sources: None,
                refusal: None,
            })
    }

    fn finish(self, filter: PacketFilter) -> ServiceRules {
        ServiceRules {
            filter,
            services: self.services.into_values().collect(),
            node_ports: self.node_ports.into_iter().collect(),
        }
    }
}

impl NodePortScope {
    /// Whether NodePorts answer on a local address.
    pub fn covers(&self, address: IpAddr) -> bool {
        match self {
            Self::Local { ipv6 } => *ipv6 == address.is_ipv6(),
            Self::Within(prefix) => prefix.contains(address),
        }
    }
}
