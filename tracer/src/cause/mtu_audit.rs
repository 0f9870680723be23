//! `mtu-exceeded` without traffic: the chain from pods to other nodes, and which of its devices takes less than the one
//! before it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::audit::{Finding, pod_links};
use super::evidence::Evidence;
use super::mtu_exceeded::CAUSE;
use super::{Diagnosis, Site};
use crate::node::{Link, Route};

/// What VXLAN puts around a packet: Ethernet, VXLAN, UDP and IP headers.
const VXLAN_OVER_IPV4: u32 = 14 + 8 + 8 + 20;
const VXLAN_OVER_IPV6: u32 = 14 + 8 + 8 + 40;
/// The chain pod, bridge, tunnel, network: what may send larger packets than the next device takes.
pub(super) fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for site in evidence.sites() {
        let links = site.facts.links.iter();
        let outgrown = links.filter_map(|link| outgrown(site, link));
        found.extend(outgrown.map(Finding::warning));
        let tunnel = site
            .facts
            .links
            .iter()
            .filter(|link| link.kind.as_deref() == Some("vxlan") && link.up)
            .min_by_key(|link| link.mtu);
        let beyond = tunnel.or_else(|| network_interface(site));
        let mut wide: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for pod in pod_links(site) {
            let peer = pod
                .peer_netns
                .zip(pod.peer_index)
                .and_then(|(netns, index)| {
                    let place = evidence.site(netns)?;
                    Some((place, place.link(index)?))
                });
            let Some((place, peer)) = peer else { continue };
            let bridge = pod.master.and_then(|index| site.link(index));
            let beyond = beyond.filter(|_| is_of_pod_network(evidence, place, bridge));
            let way = beyond.into_iter().chain(bridge).chain([pod]);
            let least = way
                .filter(|link| link.mtu.is_some())
                .min_by_key(|link| link.mtu);
            if let Some(least) = least.filter(|least| peer.mtu > least.mtu) {
                let own = peer.mtu.unwrap_or_default();
                wide.entry(least.index).or_default().push(format!(
                    "{} of {} has MTU {own}",
                    peer.name,
                    place.name()
                ));
            }
        }
        found.extend(wide.into_iter().filter_map(|(index, pods)| {
            Some(Finding::warning(wider(site, site.link(index)?, &pods)))
        }));
    }
    found
}

/// What pods' packets to other nodes leave by, where no tunnel takes them: the device of the routes to other nodes' pods
/// (host-gw), else that of the default route.
fn network_interface<'a>(site: &Site<'a>) -> Option<&'a Link> {
    let by_gateway = |route: &&Route| {
        route.table == Route::MAIN_TABLE && route.gateway.is_some() && route.destination.length > 0
    };
    let links = site.facts.routes.iter().filter(by_gateway);
    let narrowest = links
        .filter_map(|route| site.link(route.link?))
        .min_by_key(|link| link.mtu);
    narrowest.or_else(|| {
        let default = site.main_route(IpAddr::V4(Ipv4Addr::UNSPECIFIED))?;
        let hop = default.next_hops.first().map(|hop| hop.link);
        site.link(default.link.or(hop)?)
    })
}

/// Whether what is behind a port may go by the tunnel: other containers, as Docker's own, do not.
fn is_of_pod_network(evidence: &Evidence<'_>, place: &Site<'_>, bridge: Option<&Link>) -> bool {
    let named = evidence
        .facts
        .cni
        .as_ref()
        .and_then(|cni| cni.bridge.as_deref());
    match named.zip(bridge) {
        Some((named, bridge)) => bridge.name == named,
        None => place.facts.is_pod,
    }
}

/// A tunnel whose packets are too large for the device below once they are wrapped.
fn outgrown(site: &Site<'_>, tunnel: &Link) -> Option<Diagnosis> {
    let vxlan = tunnel.vxlan.filter(|_| tunnel.up)?;
    // Of a device that was made elsewhere the index below says nothing here.
    let made_here = tunnel.peer_netns.is_none_or(|netns| netns == site.facts.id);
    let by_address = || Some(site.addresses(vxlan.local?).next()?.link);
    let below = site
        .link(vxlan.link.or_else(by_address)?)
        .filter(|_| made_here)?;
    let headers = match vxlan.local {
        Some(IpAddr::V6(_)) => VXLAN_OVER_IPV6,
        Some(IpAddr::V4(_)) | None => VXLAN_OVER_IPV4,
    };
    let (own, limit) = (tunnel.mtu?, below.mtu?);
    if own.saturating_add(headers) <= limit {
        return None;
    }
    let fits = limit.saturating_sub(headers);
    let (place, tunnel, below) = (site.name(), &tunnel.name, &below.name);
    Some(
        Diagnosis::new(
            &CAUSE,
            format!("{below} of {place}"),
            format!(
                "{below} of {place} takes packets of {limit} bytes, and {tunnel} sends larger ones by it: it takes {own} \
                 bytes and adds {headers} of its own. Large packets to other nodes are cut or lost."
            ),
        )
        .prove("link", format!("{tunnel} has MTU {own}, {below} has MTU {limit}"))
        .fix(
            [
                format!("set mtu: {fits} in the CNI's configuration and recreate the pods"),
                format!("ip link set dev {tunnel} mtu {fits}   # at once"),
            ],
            "none beyond a little more overhead for each byte",
        )
        .check(format!("ip link show dev {tunnel}; ip link show dev {below}")),
    )
}

fn wider(site: &Site<'_>, link: &Link, pods: &[String]) -> Diagnosis {
    let limit = link.mtu.unwrap_or_default();
    let mut shown = pods.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
    if pods.len() > 4 {
        shown += &format!(" and {} more", pods.len() - 4);
    }
    Diagnosis::new(
        &CAUSE,
        format!("{} of {}", link.name, site.name()),
        format!(
            "{} of {} takes packets of {limit} bytes, and {} pods may send larger ones: large packets that go by it are \
             cut or lost.",
            link.name,
            site.name(),
            pods.len()
        ),
    )
    .prove("link", format!("{} has MTU {limit}; {shown}", link.name))
    .fix(
        [
            format!("set mtu: {limit} in the CNI's configuration and recreate the pods"),
            format!("ip link set dev DEVICE mtu {limit}   # at once, in the pod"),
        ],
        "none beyond a little more overhead for each byte",
    )
    .check(format!("ip link show dev {}", link.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::constructed::{CNI0, ETH0, ip, link, node, route};
    use crate::node::{Cni, NetnsFacts, NetnsId, Vxlan};

    #[test]
    fn the_audit_tells_of_all_wide_pods_at_once() {
        let mut bench = node();
        bench.site().links[2].mtu = Some(1450);
        for number in 0..3 {
            bench.site().links.push(Link {
                kind: Some("veth".into()),
                master: Some(CNI0),
                peer_netns: Some(NetnsId(300)),
                peer_index: Some(ETH0),
                ..link(30 + number, &format!("veth{number}"))
            });
        }
        let mut pod = NetnsFacts::unread(NetnsId(300), Some("pod"));
        pod.links = vec![link(ETH0, "eth0")];
        bench.facts.namespaces.push(pod);
        let found = bench.with_evidence(audit);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].diagnosis.summary.contains("3 pods"), "{found:#?}");
        bench.site().links[2].mtu = Some(1500);
        assert_eq!(bench.with_evidence(audit), []);
    }

    /// A tunnel by eth0.
    fn tunnel(mtu: u32, local: &str) -> Link {
        Link {
            kind: Some("vxlan".into()),
            mtu: Some(mtu),
            vxlan: Some(Vxlan {
                id: Some(1),
                port: Some(8472),
                local: Some(ip(local)),
                link: Some(ETH0),
            }),
            ..link(40, "flannel.1")
        }
    }

    #[test]
    fn the_audit_reckons_with_what_the_tunnel_adds() {
        for (mtu, local, below, named) in [
            (1450, "192.0.2.1", 1400, true),
            (1450, "192.0.2.1", 1500, false),
            (1450, "2001:db8::1", 1500, true),
            (1430, "2001:db8::1", 1500, false),
        ] {
            let mut bench = node();
            bench.site().links[1].mtu = Some(below);
            bench.site().links.push(tunnel(mtu, local));
            let found = bench.with_evidence(audit);
            assert_eq!(found.len(), usize::from(named), "{mtu} {below}: {found:#?}");
            if let Some(found) = found.first() {
                let proof = &found.diagnosis.evidence[0].text;
                assert_eq!(
                    proof,
                    &format!("flannel.1 has MTU {mtu}, eth0 has MTU {below}")
                );
            }
        }
    }

    #[test]
    fn the_device_below_a_tunnel_is_that_of_its_own_namespace() {
        let found = |change: fn(&mut Link)| {
            let mut bench = node();
            bench.site().links[1].mtu = Some(1400);
            let mut tunnel = tunnel(1450, "192.0.2.1");
            change(&mut tunnel);
            bench.site().links.push(tunnel);
            bench.with_evidence(audit).len()
        };
        let by_address = |tunnel: &mut Link| {
            tunnel.vxlan = tunnel.vxlan.map(|vxlan| Vxlan {
                link: None,
                ..vxlan
            });
        };
        assert_eq!(found(by_address), 1);
        assert_eq!(found(|tunnel| tunnel.up = false), 0);
        assert_eq!(found(|tunnel| tunnel.peer_netns = Some(NetnsId(300))), 0);
    }

    #[test]
    fn the_tunnel_is_on_the_way_of_pods_only() {
        for (bridge, cni, is_pod, named) in [
            ("cni0", Some("cni0"), false, true),
            ("docker0", Some("cni0"), false, false),
            ("docker0", None, false, false),
            ("cali-net", None, true, true),
        ] {
            let mut bench = node();
            bench.site().links[2].name = bridge.into();
            bench.site().links.push(tunnel(1450, "192.0.2.1"));
            bench.site().links.push(Link {
                kind: Some("veth".into()),
                master: Some(CNI0),
                peer_netns: Some(NetnsId(300)),
                peer_index: Some(ETH0),
                ..link(30, "veth0")
            });
            let mut pod = NetnsFacts::unread(NetnsId(300), Some("pod"));
            pod.links = vec![link(ETH0, "eth0")];
            pod.is_pod = is_pod;
            bench.facts.namespaces.push(pod);
            bench.facts.cni = cni.map(|name| Cni {
                bridge: Some(name.into()),
                ..Cni::default()
            });
            let found = bench.with_evidence(audit);
            assert_eq!(found.len(), usize::from(named), "{bridge}: {found:#?}");
        }
    }

    #[test]
    fn without_a_tunnel_the_network_interface_is_the_end_of_the_chain() {
        for (pods, below, is_pod, named) in [
            (9000, 1500, true, true),
            (9000, 9000, true, false),
            (1500, 9000, true, false),
            // Docker's own containers; the CNI's bridge is another.
            (9000, 1500, false, false),
        ] {
            let mut bench = node();
            let site = bench.site();
            site.links[1].mtu = Some(below);
            site.links[2].mtu = Some(pods);
            site.links.push(Link {
                kind: Some("veth".into()),
                mtu: Some(pods),
                master: Some(CNI0),
                peer_netns: Some(NetnsId(300)),
                peer_index: Some(ETH0),
                ..link(30, "veth0")
            });
            let mut pod = NetnsFacts::unread(NetnsId(300), Some("pod"));
            pod.links = vec![Link {
                mtu: Some(pods),
                ..link(ETH0, "eth0")
            }];
            pod.is_pod = is_pod;
            bench.facts.namespaces.push(pod);
            let found = bench.with_evidence(audit);
            assert_eq!(
                found.len(),
                usize::from(named),
                "{pods} {below}: {found:#?}"
            );
            if let Some(found) = found.first() {
                assert_eq!(found.diagnosis.subject, "eth0 of node");
                // Other nodes' pods are behind another device.
                let wide = Link {
                    mtu: Some(pods),
                    ..link(5, "eth1")
                };
                bench.site().links.push(wide);
                bench.site().routes.push(Route {
                    gateway: Some(ip("198.51.100.3")),
                    ..route("10.244.2.0", 24, 5)
                });
                assert_eq!(bench.with_evidence(audit), []);
            }
        }
    }
}
