//! `duplicate-address`: two hosts of one link have the same address.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::audit::Finding;
use super::bridging::ports;
use super::evidence::Evidence;
use super::{Cause, Diagnosis, Site};
use crate::node::{Link, Mac, NeighbourState, NetnsId, Scope};

pub(super) const CAUSE: Cause = Cause {
    code: "duplicate-address",
    title: "two hosts on one link have the same address: packets go now to one, now to the other",
    explanation: "\
Two pods (or a pod and a host) behind one bridge carry the same address. Each answers ARP with its own
hardware address, the others believe whoever answered last, and connections reach the wrong one: refused,
reset in the middle, or silent. Leftovers of a network plugin that lost its list of addresses (a wiped
/var/lib/cni/networks, two plugins with one subnet), a restored virtual machine, or an address set by hand.

Proof: two devices on the same bridge, with different hardware addresses, have the address; or the kernel's
own duplicate detection (IPv6) found it taken.

Fix: take the address from the one that should not have it: recreate that pod.",
    references: &[
        "Linux net/ipv4/arp.c, arp_process: whoever answers ARP last is believed, so packets go now to the one, \
         now to the other",
        "Linux net/ipv6/addrconf.c: the kernel asks first and leaves an address that is taken unused \
         (IFA_F_DADFAILED)",
    ],
    explains: &["no-listener", "neighbour-failed"],
    examine,
    audit,
};

/// The kernel's duplicate detection found the address taken.
const DAD_FAILED: u32 = libc::IFA_F_DADFAILED;

/// Who has an address.
struct Holder {
    place: String,
    device: String,
    mac: Mac,
}

/// An address that several hosts of a bridge have.
struct Shared {
    netns: NetnsId,
    bridge: u32,
    address: IpAddr,
    holders: Vec<Holder>,
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    if evidence.failures().is_empty() && evidence.stalled().is_empty() {
        return Vec::new();
    }
    shared(evidence)
        .iter()
        .filter_map(|shared| {
            let about = |address: IpAddr| address == shared.address;
            let failed = evidence.failures().iter().filter(|failure| {
                failure
                    .journey
                    .tuples()
                    .any(|tuple| about(tuple.source.ip()) || about(tuple.destination.ip()))
            });
            let stalled = evidence.stalled().iter().filter(|flow| {
                flow.kept().any(|(_, journey)| {
                    journey
                        .last_tuple()
                        .is_some_and(|tuple| about(tuple.destination.ip()))
                })
            });
            let first = failed.clone().next();
            let mut flows: Vec<u64> = failed
                .map(|failure| failure.flow.id)
                .chain(stalled.map(|flow| flow.id))
                .collect();
            flows.dedup();
            (!flows.is_empty()).then(|| {
                say(evidence, shared)
                    .stopped_flows(evidence, flows.into_iter())
                    .prove_if(
                        "packet",
                        first.map(|failure| {
                            let at = failure.netns().and_then(|netns| evidence.site(netns));
                            format!(
                                "{} came to {}, {}",
                                failure.words(),
                                at.map_or_else(|| "one of them".to_owned(), Site::name),
                                failure.drop_words()
                            )
                        }),
                    )
            })
        })
        .collect()
}

/// Addresses that several hosts behind one bridge have, with different hardware addresses.
fn shared(evidence: &Evidence<'_>) -> Vec<Shared> {
    let mut found = Vec::new();
    for site in evidence.sites() {
        let bridges = site
            .facts
            .links
            .iter()
            .filter(|link| link.kind.as_deref() == Some("bridge"));
        for bridge in bridges {
            let mut holders: BTreeMap<IpAddr, Vec<Holder>> = BTreeMap::new();
            let mut hold = |place: &Site<'_>, link: &Link| {
                let Some(mac) = link.mac else { return };
                let own = place
                    .facts
                    .addresses
                    .iter()
                    .filter(|entry| entry.link == link.index && entry.scope == Scope::Global);
                for entry in own {
                    holders.entry(entry.address).or_default().push(Holder {
                        place: place.name(),
                        device: link.name.clone(),
                        mac,
                    });
                }
            };
            hold(site, bridge);
            for port in ports(site, bridge.index) {
                let peer = || {
                    let place = evidence.site(port.peer_netns?)?;
                    Some((place, place.link(port.peer_index?)?))
                };
                if let Some((place, link)) = peer() {
                    hold(place, link);
                }
            }
            found.extend(holders.into_iter().filter_map(|(address, holders)| {
                let first = holders.first()?.mac;
                holders
                    .iter()
                    .any(|holder| holder.mac != first)
                    .then_some(Shared {
                        netns: site.facts.id,
                        bridge: bridge.index,
                        address,
                        holders,
                    })
            }));
        }
    }
    found
}

fn say(evidence: &Evidence<'_>, shared: &Shared) -> Diagnosis {
    let Shared {
        netns,
        bridge,
        address,
        holders,
    } = shared;
    let site = evidence.site(*netns);
    let device = site.map_or_else(|| format!("if{bridge}"), |site| site.device(*bridge));
    let names: Vec<String> = holders
        .iter()
        .map(|holder| format!("{} of {} ({})", holder.device, holder.place, holder.mac))
        .collect();
    let believed = site
        .and_then(|site| site.neighbour(*bridge, *address))
        .filter(|entry| entry.state != NeighbourState::Failed)
        .and_then(|entry| entry.mac);
    Diagnosis::new(
        &CAUSE,
        format!("{address} on {device}"),
        format!(
            "{} hosts behind {device} have the address {address}: {}. Packets go to whoever answered ARP last.",
            holders.len(),
            names.join(" and ")
        ),
    )
    .prove("address", format!("{address} is on {}", names.join(" and on ")))
    .prove_if(
        "neighbour",
        believed.map(|mac| format!("{device} sends packets for {address} to {mac} now")),
    )
    .fix(
        [
            "kubectl delete pod POD   # the one that should not have it; its successor gets another address".to_owned(),
            format!("ip neigh flush to {address}"),
        ],
        "connections of that pod break",
    )
    .fix(
        ["ls /var/lib/cni/networks/*   # the addresses that host-local has given away"],
        "none: this only looks",
    )
    .check(format!("arping -D -c 2 -I {device} {address}; ip neigh show {address}"))
}

/// Shared addresses, and those that the kernel itself found taken.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let mut found: Vec<Finding> = shared(evidence)
        .iter()
        .map(|shared| Finding::error(say(evidence, shared)))
        .collect();
    for site in evidence.sites() {
        let taken = site
            .facts
            .addresses
            .iter()
            .filter(|entry| entry.address.is_ipv6() && entry.flags & DAD_FAILED != 0);
        found.extend(taken.map(|entry| {
            let device = site.device(entry.link);
            let address = entry.address;
            Finding::error(
                Diagnosis::new(
                    &CAUSE,
                    format!("{address} on {device}"),
                    format!(
                        "{device} of {} does not use its address {address}: another host on the link has it.",
                        site.name()
                    ),
                )
                .prove("address", format!("{address} dev {device} dadfailed"))
                .fix(
                    [format!("ip -6 addr del {address}/{} dev {device}   # on the host that should not have it", entry.prefix_length)],
                    "that host loses the address",
                )
                .check(format!("ip -6 addr show dev {device} dadfailed   # none")),
            )
        }));
    }
    found
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::audit::audit as audit_all;
    use crate::cause::constructed::{Bench, CNI0, ETH0, ip, link, node};
    use crate::node::{Address, BridgePort, BridgePortState, NetnsFacts};

    /// Two pods behind cni0; the first has 10.244.0.9.
    fn pods(second: &str) -> Bench {
        let mut bench = node();
        for (number, address) in [(1, "10.244.0.9"), (2, second)] {
            let netns = 700 + number;
            bench.site().links.push(Link {
                kind: Some("veth".into()),
                master: Some(CNI0),
                peer_netns: Some(NetnsId(netns)),
                peer_index: Some(ETH0),
                bridge_port: Some(BridgePort {
                    state: Some(BridgePortState::Forwarding),
                    hairpin: Some(true),
                }),
                ..link(20 + number, &format!("veth{number}"))
            });
            let mut pod = NetnsFacts::unread(NetnsId(netns), Some("pod"));
            pod.links.push(Link {
                mac: Some(Mac([2, 0, 0, 0, 0, number as u8])),
                ..link(ETH0, "eth0")
            });
            pod.addresses.push(Address::global(ETH0, ip(address), 24));
            bench.facts.namespaces.push(pod);
        }
        bench
            .tcp("192.0.2.10:4000", "10.244.0.9:80")
            .receive(ETH0)
            .transmit(CNI0)
            .netns(702)
            .receive(ETH0)
            .at(HookId::TcpReceive)
            .at(HookId::TcpReset)
            .dropped("NO_SOCKET", "tcp_v4_rcv");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        pods("10.244.0.9")
    }

    #[test]
    fn both_holders_are_named() {
        let bench = situation();
        let found = bench.only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.summary.contains("02:00:00:00:00:02"), "{found:#?}");
        assert_eq!(found.consequences[0].code, "no-listener");
        assert_eq!(bench.with_evidence(audit_all).len(), 1);
    }

    #[test]
    fn different_addresses_are_healthy() {
        let bench = pods("10.244.0.8");
        assert_eq!(bench.codes(), ["no-listener"]);
        assert_eq!(bench.with_evidence(audit_all), []);
    }
}
