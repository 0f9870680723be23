//! kube-proxy's iptables mode: destinations in `KUBE-SERVICES` and `KUBE-NODEPORTS` of the nat table, and
//! those without endpoints in the filter table.
//!
//! Up to 1.23 packets from outside go by `KUBE-XLB-*` or straight to `KUBE-SVC-*`, from 1.24 by
//! `KUBE-EXT-*`; with source ranges, and up to 1.23 for every load balancer, by `KUBE-FW-*` before that.

use std::net::SocketAddr;

use super::reach::{Chains, Names};
use super::{Destination, Gathered, NodePortScope, Refusal};
use crate::node::Prefix;
use crate::node::netfilter::{Action, Family, KUBE_SERVICES, Rule, RuleTable, Subject};

const NODE_PORTS: &str = "KUBE-NODEPORTS";
/// Chains of the filter table that end packets to services without endpoints.
const REFUSING: [&str; 2] = [KUBE_SERVICES, "KUBE-EXTERNAL-SERVICES"];
const NAMES: Names = Names {
    marking: &["KUBE-MARK-"],
    firewall: "KUBE-FW-",
};

pub(super) fn gather(nat: Option<&RuleTable>, filter: Option<&RuleTable>, gathered: &mut Gathered) {
    if let Some(nat) = nat {
        gather_nat(nat, gathered);
    }
    let Some(filter) = filter else {
        return;
    };
    let ipv6 = filter.family == Family::Ip6;
    for chain in REFUSING.iter().filter_map(|name| filter.chain(name)) {
        for rule in &chain.rules {
            let refusal = match rule.action {
                Action::Reject(_) => Refusal::Reject,
                Action::Drop => Refusal::Drop,
                _ => continue,
            };
            if let Some((protocol, destination)) = destination(rule, ipv6) {
                gathered.service(protocol, destination).refusal = Some(refusal);
            }
        }
    }
}

fn gather_nat(nat: &RuleTable, gathered: &mut Gathered) {
    let ipv6 = nat.family == Family::Ip6;
    let mut chains = Chains::new(nat, &[], NAMES);
    for name in [KUBE_SERVICES, NODE_PORTS] {
        let Some(chain) = chains.get(name) else {
            continue;
        };
        for rule in &chain.rules {
            let (Action::Jump(next) | Action::Goto(next)) = &rule.action else {
                continue;
            };
            if next == NODE_PORTS {
                gathered.node_ports.insert(scope(rule, ipv6));
            } else if !chains.marks(next)
                && let Some((protocol, destination)) = destination(rule, ipv6)
            {
                let reach = chains.reach(next);
                reach.add_to(gathered.service(protocol, destination));
            }
        }
    }
}

/// Where NodePorts answer by the rule that sends packets to their chain.
fn scope(rule: &Rule, ipv6: bool) -> NodePortScope {
    rule.tests
        .iter()
        .find_map(|test| match test.on {
            Subject::Destination(address, length) if !test.negated => {
                Some(NodePortScope::Within(Prefix { address, length }))
            }
            _ => None,
        })
        .unwrap_or(NodePortScope::Local { ipv6 })
}

/// The protocol and destination that a rule is for; without an address it is a NodePort's.
fn destination(rule: &Rule, ipv6: bool) -> Option<(u8, Destination)> {
    let (mut address, mut protocol, mut port) = (None, None, None);
    for test in rule.tests.iter().filter(|test| !test.negated) {
        match &test.on {
            Subject::Destination(found, length) => {
                let whole = if ipv6 { 128 } else { 32 };
                (*length == whole).then_some(())?;
                address = Some(*found);
            }
            Subject::Protocol(number) => protocol = Some(*number),
            Subject::DestinationPort(ranges) => {
                let [range] = &ranges[..] else {
                    return None;
                };
                port = (range.start() == range.end()).then_some(*range.start());
            }
            _ => {}
        }
    }
    let port = port?;
    let destination = match address {
        Some(address) => Destination::Address(SocketAddr::new(address, port)),
        None => Destination::NodePort { ipv6, port },
    };
    Some((protocol?, destination))
}
