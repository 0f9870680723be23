//! `ip-forward-off`: a packet for somebody else came in, and this host does not forward.

use super::audit::{Finding, is_node, pod_links};
use super::evidence::Evidence;
use super::source_check::device_setting;
use super::{Cause, Diagnosis, Site};
use crate::hook::Role;
use crate::node::NetnsId;

pub(super) const CAUSE: Cause = Cause {
    code: "ip-forward-off",
    title: "the host does not forward IPv4 packets (ip_forward or the device's forwarding is 0)",
    explanation: "\
A packet came in whose destination is another host, and IPv4 forwarding is off for the device that it came
in by. The kernel drops it and sends no answer; the sender sees a timeout. Pods then reach their own node
and nothing else.

Why: net.ipv4.ip_forward was never set, or was reset by a reload of the sysctl files, by a firewall or by
a network manager. net.ipv4.conf.DEVICE.forwarding decides for each device; ip_forward sets them all.

Proof: routing refused the packet (ip_error, IP_INADDRERRORS) and the setting of the input device reads 0.

Fix: sysctl -w net.ipv4.ip_forward=1, and the same in /etc/sysctl.d so that it lasts.",
    references: &[
        "Linux net/ipv4/route.c, ip_route_input_slow: gives EHOSTUNREACH when the input device's forwarding is \
         off",
        "Linux net/ipv4/route.c, ip_error: counts IpInAddrErrors and answers nothing",
    ],
    explains: &[],
    examine,
    audit,
};

/// The setting that decides for a device.
fn setting(site: &Site<'_>, ifindex: u32) -> String {
    format!("net/ipv4/conf/{}/forwarding", site.device(ifindex))
}

/// Whether packets that come in by a device are forwarded; `None` when the setting was not read.
pub(super) fn forwards(site: &Site<'_>, ifindex: u32) -> Option<bool> {
    site.sysctl(&setting(site, ifindex))
        .or_else(|| site.sysctl("net/ipv4/ip_forward"))
        .map(|value| value != 0)
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (index, _) = failure.last(Role::RouteError)?;
            failure
                .packet_at(index)?
                .tuple
                .destination
                .is_ipv4()
                .then_some(())?;
            let refused = failure.dropped_for(&["IP_INADDRERRORS"], &["ip_error"]);
            let (netns, ifindex) = (failure.netns_at(index)?, failure.ingress(index)?);
            let forwards = evidence
                .site(netns)
                .and_then(|site| forwards(site, ifindex));
            (forwards == Some(false)
                || refused && forwards.is_none() && failure.drop?.reason.is_some())
            .then_some((netns, ifindex))
        })
        .into_iter()
        .map(|((netns, ifindex), failures)| {
            let first = failures.first().map(|failure| failure.words());
            let place = evidence
                .site(netns)
                .map_or_else(|| format!("netns {netns}"), Site::name);
            say(evidence, netns, ifindex, &place)
                .stopped(evidence, &failures)
                .prove_if(
                    "packet",
                    first.map(|words| {
                        format!("{words} was refused by routing: it is for another host")
                    }),
                )
                .check("sysctl net.ipv4.ip_forward")
        })
        .collect()
}

fn say(evidence: &Evidence<'_>, netns: NetnsId, ifindex: u32, place: &str) -> Diagnosis {
    let site = evidence.site(netns);
    let device = site.map_or_else(|| format!("if{ifindex}"), |site| site.device(ifindex));
    let all = site.and_then(|site| site.sysctl("net/ipv4/ip_forward"));
    let known = site.and_then(|site| forwards(site, ifindex));
    let only_device = all == Some(1);
    let name = if only_device {
        device_setting(&device, "forwarding")
    } else {
        "net.ipv4.ip_forward".into()
    };
    Diagnosis::new(
        &CAUSE,
        format!("{place} {device}"),
        format!(
            "{place} does not forward IPv4 packets that come in by {device}: {name} is 0. Packets for other hosts \
             and pods are dropped without an answer."
        ),
    )
    .prove_if("sysctl", known.map(|_| format!("{name} = 0")))
    .lacking_if(known.is_none(), format!("the value of {name}"))
    .fix(
        [
            format!("sysctl -w {name}=1"),
            format!("echo '{name} = 1' > /etc/sysctl.d/99-forwarding.conf   # after a reboot too"),
        ],
        "the host becomes a router between its networks; its FORWARD rules decide what passes",
    )
}

/// Nodes that do not forward.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    evidence
        .sites()
        .filter(|site| is_node(evidence, site))
        .filter_map(|site| {
            // One device with the host's route is enough to say it; the setting is named.
            let link = pod_links(site)
                .map(|link| link.master.unwrap_or(link.index))
                .find(|&index| forwards(site, index) == Some(false))?;
            Some(Finding::error(
                say(evidence, site.facts.id, link, &site.name())
                    .check("sysctl net.ipv4.ip_forward"),
            ))
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ETH0, link, node};
    use crate::event::Detail;
    use crate::node::{Link, NetnsId};

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        bench.sysctl("net/ipv4/ip_forward", "0");
        bench.sysctl("net/ipv4/conf/eth0/forwarding", "0");
        bench
            .udp("192.0.2.10:40000", "10.244.0.9:80")
            .receive(ETH0)
            .at(HookId::RouteInput)
            .with(
                HookId::RouteError,
                Detail::Route {
                    kind: 7,
                    error: 113,
                    ifindex: None,
                },
            )
            .dropped("IP_INADDRERRORS", "ip_error");
        bench
    }

    #[test]
    fn forwarding_is_off() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.fixes[0].lines[0], "sysctl -w net.ipv4.ip_forward=1");
    }

    #[test]
    fn one_device_alone_is_named() {
        let mut bench = situation();
        bench.sysctl("net/ipv4/ip_forward", "1");
        let found = bench.only();
        assert_eq!(
            found.fixes[0].lines[0],
            "sysctl -w net.ipv4.conf.eth0.forwarding=1"
        );
    }

    #[test]
    fn without_the_setting_it_is_likely() {
        let mut bench = situation();
        bench.without_sysctl("net/ipv4/conf/eth0/forwarding");
        bench.without_sysctl("net/ipv4/ip_forward");
        assert_eq!(bench.only().certainty, Certainty::Likely);
    }

    #[test]
    fn a_host_that_forwards_is_another_case() {
        let mut bench = situation();
        bench.sysctl("net/ipv4/conf/eth0/forwarding", "1");
        assert!(!bench.codes().contains(&CAUSE.code));
    }

    #[test]
    fn a_bridge_without_an_address_only_switches() {
        for (addressed, named) in [(true, 1), (false, 0)] {
            let mut bench = node();
            bench.sysctl("net/ipv4/ip_forward", "0");
            bench.sysctl("net/ipv4/conf/cni0/forwarding", "0");
            let site = bench.site();
            site.links.push(Link {
                kind: Some("veth".into()),
                master: Some(CNI0),
                peer_netns: Some(NetnsId(700)),
                ..link(9, "vethpod")
            });
            site.addresses.retain(|own| addressed || own.link != CNI0);
            assert_eq!(bench.with_evidence(audit).len(), named, "{addressed}");
        }
    }
}
