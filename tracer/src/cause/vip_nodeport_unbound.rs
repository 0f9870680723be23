//! `vip-nodeport-unbound`: a NodePort answers on one address of the node and not on another, because
//! kube-proxy in ipvs mode made no virtual server for the other, or in another mode no rule.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::vip_nodeport_audit::audit;
use super::vip_nodeport_reason::{LeftOut, Reason, left_out, on_service_device};
use super::{Cause, Certainty, Diagnosis, Evidence, Proof, Site, vip_nodeport_rules};
use crate::event::{Detail, Event, protocol};
use crate::flow::{Direction, Flow};
use crate::hook::Role;
use crate::journey::Journey;
use crate::node::{NetnsId, VirtualServer, VirtualServerKey};

pub(super) const CAUSE: Cause = Cause {
    code: "vip-nodeport-unbound",
    title: "a NodePort answers on the node's own address but not on a virtual address",
    explanation: "\
In ipvs mode kube-proxy makes one virtual server per node address and NodePort. An address for which it
makes none is delivered to the node itself: where nothing listens, TCP answers with RST and UDP with ICMP
port unreachable; kube-proxy up to 1.23 holds a listening socket on the NodePort, so there the handshake
completes and the connection hangs.

Why an address is left out:
  * kube-proxy up to 1.22 takes its addresses from the source (`src`) of the kernel's local routes. An
    address in the prefix of an earlier one is secondary, and its local route carries the earlier
    address as src. The prefix decides, not the length: a /32 or another prefix has its own src.
  * nodePortAddresses leaves the address out; `primary` (from 1.31) leaves out all but the node's first.
  * kube-proxy 1.23 to 1.26 takes away addresses that are also on kube-ipvs0 (a LoadBalancer address).

In nftables and iptables mode a packet to an address that nodePortAddresses leaves out is refused in the
same way: no rule translates it. nftables mode takes the node's first address of each family only, unless
nodePortAddresses says otherwise.

Proof: the address is local; a virtual server of the same port exists on another address of the node and
none on this one; and kube-proxy's configuration or version leaves it out. Where its version is not known:
the local route's src is the other address, and kube-proxy had a sync period (30 s) for it. With rules: they
have the NodePort, and take it on other addresses only. Where nothing shows kube-proxy (its process, its
ConfigMap, its device kube-ipvs0) a virtual server that is missing is no more than likely: others balance by
IPVS too.

Fix: give the virtual address its own prefix (/32) and restart kube-proxy; or name its prefix in
nodePortAddresses; or upgrade kube-proxy to 1.27 or later.",
    references: &[
        "Kubernetes pkg/proxy/ipvs/netlink_linux.go: up to 1.22 kube-proxy takes node addresses from the src of \
         the local routes",
        "Kubernetes pkg/proxy/nftables/proxier.go: set nodeport-ips, which holds the primary addresses without \
         nodePortAddresses",
        "https://github.com/kubernetes/kubernetes/issues/75443",
        "https://github.com/kubernetes/kubernetes/issues/101429",
        "https://github.com/kubernetes/kubernetes/issues/114815",
        "https://github.com/kubernetes/kubernetes/issues/115019",
        "https://github.com/kubernetes/kubernetes/issues/123105",
    ],
    explains: &["no-listener", "accept-queue-full"],
    examine,
    audit,
};

/// One address and port that IPVS does not serve, in one namespace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Subject {
    pub(super) netns: u32,
    pub(super) protocol: u8,
    pub(super) address: SocketAddr,
}

/// What became of a packet that IPVS did not serve.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Answered with RST or an ICMP error.
    Refused,
    /// Taken by a socket of the node.
    Held,
}

pub(super) struct Missed<'a> {
    flow: &'a Flow,
    journey: &'a Journey,
    fate: Fate,
}

/// The virtual server of the same NodePort on another address of the node.
#[derive(Clone, Copy)]
struct Sibling<'a> {
    address: SocketAddr,
    server: &'a VirtualServer,
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut subjects: BTreeMap<Subject, Vec<Missed<'_>>> = BTreeMap::new();
    for failure in evidence.failures() {
        if failure.direction != Direction::Request {
            continue;
        }
        let (flow, journey) = (failure.flow, failure.journey);
        let Some((subject, fate)) = missed(journey) else {
            continue;
        };
        let missed = subjects.entry(subject).or_default();
        // One connection counts once, however many packets it tried with.
        if missed.last().is_none_or(|last| last.flow.id != flow.id) {
            missed.push(Missed {
                flow,
                journey,
                fate,
            });
        }
    }
    let by_ipvs = subjects
        .into_iter()
        .filter_map(|(subject, missed)| judge(evidence, subject, &missed));
    by_ipvs
        .chain(vip_nodeport_rules::diagnoses(evidence))
        .collect()
}

/// A packet for which IPVS looked for a virtual server in vain and which then did not get through.
fn missed(journey: &Journey) -> Option<(Subject, Fate)> {
    let (index, address, protocol) = journey.ipvs_miss()?;
    let netns = journey.namespace_at(index)?;
    let taken = |event: &Event| event.role() == Role::Deliver;
    let fate = if journey.rejected() {
        Fate::Refused
    } else if journey.events[index..].iter().any(taken) {
        Fate::Held
    } else {
        return None;
    };
    Some((
        Subject {
            netns,
            protocol,
            address,
        },
        fate,
    ))
}

pub(super) fn judge(
    evidence: &Evidence<'_>,
    subject: Subject,
    missed: &[Missed<'_>],
) -> Option<Diagnosis> {
    let facts = evidence.site(NetnsId(subject.netns))?;
    let vip = subject.address.ip();
    let port = subject.address.port();
    // Loopback addresses are never served: nodeport-localhost.
    if vip.is_loopback()
        || !facts.is_local(vip)
        || facts.virtual_server(subject.protocol, vip, port).is_some()
    {
        return None;
    }
    let left_out = left_out(evidence, facts, vip)?;
    let sibling = sibling(facts, subject, &left_out.reason)?;
    if !missed.is_empty()
        && missed.iter().all(|missed| missed.fate == Fate::Held)
        && !held_by_kube_proxy(facts, subject)
    {
        // Another process serves this address on purpose.
        return None;
    }
    let held = missed.iter().any(|missed| missed.fate == Fate::Held);
    let certainty = if left_out.missing.is_empty() {
        Certainty::Certain
    } else {
        Certainty::Likely
    };
    let mut flows: Vec<u64> = missed.iter().map(|missed| missed.flow.id).collect();
    flows.sort_unstable();
    Some(Diagnosis {
        code: CAUSE.code,
        subject: format!("{} {}", protocol::name(subject.protocol), subject.address),
        certainty,
        summary: summary(facts, subject, sibling, &left_out, held),
        evidence: proofs(evidence, facts, subject, sibling, &left_out, missed),
        fixes: left_out.fixes(facts, vip),
        missing: left_out.missing,
        check: format!(
            "tracer probe {}://{}",
            protocol::name(subject.protocol),
            subject.address
        ),
        failed: missed.len(),
        total: evidence.connections_beside(&flows).max(missed.len()),
        flows,
        consequences: Vec::new(),
    })
}

/// The virtual server that shows that this port is a NodePort: same port, on another address that the
/// node itself has. Addresses of services live on their own interface and prove nothing.
fn sibling<'a>(facts: &Site<'a>, subject: Subject, reason: &Reason) -> Option<Sibling<'a>> {
    facts
        .virtual_servers_on_port(subject.protocol, subject.address.port())
        .filter_map(|server| match server.key {
            VirtualServerKey::Endpoint { address, port, .. } => Some(Sibling {
                address: SocketAddr::new(address, port),
                server,
            }),
            VirtualServerKey::Mark { .. } => None,
        })
        .filter(|sibling| {
            sibling.address != subject.address && !sibling.server.destinations.is_empty()
        })
        .filter(|sibling| {
            let address = sibling.address.ip();
            facts.is_local(address) && !on_service_device(facts, address)
        })
        .find(|sibling| match reason {
            Reason::Secondary { source } => sibling.address.ip() == *source,
            _ => true,
        })
}

fn held_by_kube_proxy(facts: &Site<'_>, subject: Subject) -> bool {
    facts
        .listeners(
            subject.protocol,
            subject.address.ip(),
            subject.address.port(),
        )
        .any(|socket| {
            socket
                .owner
                .as_ref()
                .is_some_and(|owner| owner.command == "kube-proxy")
        })
}

fn summary(
    facts: &Site<'_>,
    subject: Subject,
    sibling: Sibling<'_>,
    left_out: &LeftOut,
    held: bool,
) -> String {
    let (vip, port) = (subject.address.ip(), subject.address.port());
    let mut text = format!(
        "NodePort {port} answers on {} but not on {vip}: kube-proxy made no virtual server for {vip}. ",
        sibling.address.ip()
    );
    text += &left_out.words(facts, vip);
    if held {
        text += " kube-proxy (up to 1.23) holds the port with a socket that it never serves, so connections are \
                 accepted and then hang.";
    }
    text
}

fn proofs(
    evidence: &Evidence<'_>,
    facts: &Site<'_>,
    subject: Subject,
    sibling: Sibling<'_>,
    left_out: &LeftOut,
    missed: &[Missed<'_>],
) -> Vec<Proof> {
    let vip = subject.address.ip();
    let name = protocol::name(subject.protocol);
    let served = sibling.address;
    let real: Vec<String> = sibling
        .server
        .destinations
        .iter()
        .map(|real| SocketAddr::new(real.address, real.port).to_string())
        .collect();
    let mut proofs = vec![Proof {
        source: "ipvs",
        text: format!(
            "{name} {served} → {} exists; {} does not",
            real.join(", "),
            subject.address
        ),
    }];
    if let Some(route) = facts.local_route(vip) {
        let device = route
            .link
            .and_then(|index| facts.link(index))
            .map_or("?", |link| link.name.as_str());
        let source = route
            .preferred_source
            .map_or_else(|| "none".to_owned(), |source| source.to_string());
        proofs.push(Proof {
            source: "route",
            text: format!("local {vip} dev {device} table local src {source}"),
        });
    }
    proofs.extend(left_out.proof());
    if missed.iter().any(|missed| missed.fate == Fate::Held) {
        proofs.push(Proof {
            source: "socket",
            text: format!(
                "kube-proxy listens on {name} port {} and accepts nothing",
                subject.address.port()
            ),
        });
    }
    if let Some(first) = missed.first() {
        proofs.push(Proof {
            source: "packet",
            text: format!(
                "#{} delivered locally, no IPVS match, {}",
                first.journey.id,
                match first.fate {
                    Fate::Refused if first.journey.was_reset() => "no socket, RST sent",
                    Fate::Refused => "no socket, ICMP port unreachable sent",
                    Fate::Held => "taken by the node's own socket",
                }
            ),
        });
        if let Some(text) = healthy_twin(evidence, first.flow, served) {
            proofs.push(Proof {
                source: "packet",
                text,
            });
        }
    }
    proofs
}

/// The same client's packet to the address that is served.
fn healthy_twin(evidence: &Evidence<'_>, failed: &Flow, served: SocketAddr) -> Option<String> {
    evidence
        .flows_to(failed.client.protocol, served)
        .iter()
        .filter(|flow| flow.client.source.ip() == failed.client.source.ip())
        .flat_map(|flow| flow.of(Direction::Request))
        .filter(|journey| journey.passed(Role::IpvsTransmit))
        .min_by_key(|journey| journey.id)
        .map(|journey| {
            let real = journey
                .last_tuple()
                .map_or_else(String::new, |tuple| tuple.destination.to_string());
            format!(
                "#{} same client to {} reached {real}; the two paths part at \"ipvs\"",
                journey.id,
                served.ip()
            )
        })
}

impl Journey {
    /// Index, address and protocol of an IPVS lookup that found no virtual server.
    pub fn ipvs_miss(&self) -> Option<(usize, SocketAddr, u8)> {
        let (index, address, protocol) =
            self.events
                .iter()
                .enumerate()
                .rev()
                .find_map(|(index, event)| {
                    let Detail::Service { address, protocol } = event.detail else {
                        return None;
                    };
                    Some((index, address, protocol))
                })?;
        let found = |role| {
            matches!(
                role,
                Role::IpvsSchedule | Role::IpvsNoDestination | Role::IpvsTransmit
            )
        };
        let rest = &self.events[index + 1..];
        (!rest.is_empty() && !rest.iter().any(|event| found(event.role())))
            .then_some((index, address, protocol))
    }
}
