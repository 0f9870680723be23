//! `ipvs-conn-reuse`: a new connection from a port that IPVS still remembers goes to the old real server, or
//! its first SYN is dropped.

use super::audit::Finding;
use super::evidence::{Evidence, Failure};
use super::ipvs_stale_connection::swallowed;
use super::ipvs_weight_zero::{Pinned, is_syn, pinned, weightless};
use super::{Cause, Diagnosis, Site};
use crate::event::protocol;
use crate::flow::{Direction, Flow};
use crate::hook::Role;
use crate::node::NetnsId;

pub(super) const CAUSE: Cause = Cause {
    code: "ipvs-conn-reuse",
    title: "a client port that IPVS still remembers is used again: 1 s delay, or a pod that is gone",
    explanation: "\
Clients with many short connections use their source ports again while IPVS still has the old connection.
With net.ipv4.vs.conn_reuse_mode=0 the new connection goes to the old one's real server, even when its
weight is 0 and its pod is gone: timeouts during every rollout. With 1 IPVS chooses anew; kernels before 5.9
always, later ones while the old conntrack entry is alive, drop the first SYN for that, and the client waits
1 s for its retransmission.

Proof: a SYN met a connection that IPVS knew. Either conn_reuse_mode is 0, the packet went to a real server
of weight 0 and was lost; or it was dropped there although the connection's real server is in use, and a
later SYN of the same connection went on.

Fix: Linux 5.9 or later with conn_reuse_mode=1.",
    references: &[
        "Linux net/netfilter/ipvs/ip_vs_core.c, ip_vs_in: with conn_reuse_mode=0 a SYN that meets an entry goes \
         to the entry's real server; otherwise IPVS expires the entry and chooses anew, and drops the SYN while \
         a conntrack entry of the old connection is still there (every such SYN before 5.9)",
        "https://github.com/kubernetes/kubernetes/issues/93297",
        "https://github.com/kubernetes/kubernetes/issues/81775",
    ],
    explains: &["ipvs-weight-zero", "neighbour-failed", "no-route", "route-blackhole", "no-listener"],
    examine,
    audit,
};

const SETTING: &str = "net/ipv4/vs/conn_reuse_mode";

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut found = to_the_old(evidence);
    found.extend(delayed(evidence));
    found
}

/// New connections that went to the old one's real server.
fn to_the_old(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (pinned, packet) = pinned(failure)?;
            let site = evidence.site(pinned.netns)?;
            let (_, real) = weightless(site, pinned)?;
            let reuses = site.sysctl(SETTING).is_none_or(|mode| mode == 0);
            (is_syn(packet) && real.weight == 0 && reuses).then_some(pinned)
        })
        .into_iter()
        .map(|(pinned, failures)| {
            let Pinned { netns, service, real, .. } = pinned;
            let name = protocol::name(pinned.protocol);
            let mode = evidence.site(netns).and_then(|site| site.sysctl(SETTING));
            let diagnosis = Diagnosis::new(
                &CAUSE,
                format!("{name} {service} → {real}"),
                format!(
                    "New connections to {name} {service} from client ports that IPVS still remembers go to {real}, which \
                     takes no new connections (weight 0) and does not answer: IPVS does not choose anew."
                ),
            )
            .stopped(evidence, &failures)
            .prove_if(
                "packet",
                failures.first().map(|first| {
                    format!("{} opens a connection and went on by an old one to {real}, {}", first.words(), first.drop_words())
                }),
            )
            .prove("ipvs", format!("{name} {service} has {real} with weight 0"))
            .prove_if("sysctl", mode.map(|mode| format!("net.ipv4.vs.conn_reuse_mode = {mode}")))
            .lacking_if(mode.is_none(), "the value of net.ipv4.vs.conn_reuse_mode");
            heal(diagnosis)
        })
        .collect()
}

/// SYNs that IPVS dropped to choose anew.
fn delayed(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (netns, index) = swallowed(failure)?;
            let packet = failure.packet_at(index)?;
            let tuple = packet.tuple;
            let used = connected(evidence, failure, netns) || went_on(failure.flow);
            (is_syn(packet) && used).then_some((netns, tuple.protocol, tuple.destination))
        })
        .into_iter()
        .map(|((netns, number, service), failures)| {
            let name = protocol::name(number);
            let mode = evidence.site(netns).and_then(|site| site.sysctl(SETTING));
            let later = failures.iter().any(|failure| went_on(failure.flow));
            let diagnosis = Diagnosis::new(
                &CAUSE,
                format!("{name} {service}"),
                format!(
                    "IPVS dropped the first SYN of connections to {name} {service} from client ports that it still \
                     remembered: their clients wait 1 s for the second one."
                ),
            )
            .stopped(evidence, &failures)
            .prove_if(
                "packet",
                failures
                    .first()
                    .map(|first| format!("{} met a connection that IPVS knew and was dropped there", first.words())),
            )
            .prove_if("packet", later.then_some("a later SYN of the same connection went on to a real server"))
            .prove_if("sysctl", mode.map(|mode| format!("net.ipv4.vs.conn_reuse_mode = {mode}")))
            .lacking_if(!later, "the second SYN, which goes on");
            heal(diagnosis)
        })
        .collect()
}

/// The entry that the packet met leads to a real server that is in use: it is not stale.
fn connected(evidence: &Evidence<'_>, failure: &Failure<'_>, netns: NetnsId) -> bool {
    let found = || {
        let site = evidence.site(netns)?;
        let tuple = failure.journey.first_tuple()?;
        let connection = site
            .facts
            .ipvs_connections
            .iter()
            .find(|found| found.client == tuple.source && found.service == tuple.destination)?;
        let pinned = Pinned {
            netns,
            protocol: tuple.protocol,
            service: tuple.destination,
            real: connection.real,
        };
        weightless(site, pinned).map(drop)
    };
    found().is_some()
}

/// The SYN was dropped so that IPVS could choose anew, and it did.
pub(super) fn is_delayed(failure: &Failure<'_>) -> bool {
    failure.packet_at(0).is_some_and(is_syn) && went_on(failure.flow)
}

/// A later SYN of the flow was given a real server.
fn went_on(flow: &Flow) -> bool {
    flow.of(Direction::Request).any(|journey| {
        let opens = journey
            .events
            .iter()
            .find_map(|event| event.packet.as_ref())
            .is_some_and(is_syn);
        opens && journey.passed(Role::IpvsTransmit)
    })
}

/// A setting that sends new connections to old real servers.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    evidence
        .sites()
        .filter(|site| site.facts.ipvs.as_ref().is_some_and(|table| !table.is_empty()))
        .filter(|site| site.sysctl(SETTING) == Some(0))
        .map(|site| {
            let place = Site::name(site);
            Finding::warning(heal(
                Diagnosis::new(
                    &CAUSE,
                    place.clone(),
                    format!(
                        "In {place} new connections from client ports that IPVS still remembers go to the old real server, \
                         even one that is going away."
                    ),
                )
                .prove("sysctl", "net.ipv4.vs.conn_reuse_mode = 0"),
            ))
        })
        .collect()
}

fn heal(diagnosis: Diagnosis) -> Diagnosis {
    diagnosis
        .fix(
            [
                "uname -r   # 5.9 or later; kube-proxy sets conn_reuse_mode=0 on older ones",
                "sysctl -w net.ipv4.vs.conn_reuse_mode=1",
            ],
            "before 5.9 each reused port then costs its client 1 s",
        )
        .fix(
            ["let clients keep their connections open, or use more source ports (net.ipv4.ip_local_port_range)"],
            "none",
        )
        .check("sysctl net.ipv4.vs.conn_reuse_mode   # 1")
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::audit::audit as audit_all;
    use crate::cause::constructed::{Bench, CNI0, ETH0, at, ip, node, service};
    use crate::event::{Detail, NetfilterHook};
    use crate::node::IpvsConnection;

    fn table() -> Bench {
        let mut bench = node();
        bench.site().ipvs = Some(vec![service(
            6,
            "10.96.0.5:80",
            &[("10.244.0.7:80", 0), ("10.244.0.8:80", 1)],
        )]);
        bench.sysctl(SETTING, "0");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = table();
        let gone = Detail::Neighbour {
            address: ip("10.244.0.7"),
            ifindex: CNI0,
        };
        bench
            .tcp("192.0.2.10:4000", "10.96.0.5:80")
            .receive(ETH0)
            .at(HookId::LocalDeliver)
            .at(HookId::IpvsLookup)
            .at(HookId::IpvsNatTransmit)
            .to("10.244.0.7:80")
            .with(HookId::NeighbourQueue, gone.clone())
            .with(HookId::NeighbourFailed, gone)
            .dropped("NEIGH_FAILED", "arp_error_report");
        bench
    }

    fn dropped(bench: &mut Bench) {
        bench
            .tcp("192.0.2.10:4000", "10.96.0.5:80")
            .receive(ETH0)
            .at(HookId::LocalDeliver)
            .netfilter(NetfilterHook::Input)
            .at(HookId::IpvsLookup)
            .dropped("NETFILTER_DROP", "nf_hook_slow");
    }

    #[test]
    fn a_new_connection_goes_to_the_old_real_server() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        let mut unknown = situation();
        unknown.without_sysctl(SETTING);
        let found = unknown.diagnose();
        let own = found.iter().find(|found| found.code == CAUSE.code);
        assert_eq!(own.map(|own| own.certainty), Some(Certainty::Likely));
    }

    #[test]
    fn the_first_syn_is_dropped_and_the_second_goes_on() {
        let mut bench = table();
        bench.sysctl(SETTING, "1");
        dropped(&mut bench);
        bench
            .tcp("192.0.2.10:4000", "10.96.0.5:80")
            .receive(ETH0)
            .at(HookId::LocalDeliver)
            .at(HookId::IpvsLookup)
            .at(HookId::IpvsSchedule)
            .at(HookId::IpvsNatTransmit)
            .to("10.244.0.8:80")
            .transmit(CNI0)
            .ends();
        let found = bench.only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
    }

    #[test]
    fn a_dropped_syn_alone_is_likely_when_its_real_server_is_there() {
        let mut bench = table();
        bench.site().ipvs_connections = vec![IpvsConnection {
            protocol: 6,
            client: at("192.0.2.10:4000"),
            service: at("10.96.0.5:80"),
            real: at("10.244.0.8:80"),
            state: "TIME_WAIT".into(),
            expires: 60,
        }];
        dropped(&mut bench);
        assert_eq!(bench.only().certainty, Certainty::Likely);
    }

    #[test]
    fn the_setting_alone_is_a_warning() {
        let mut bench = table();
        let found = bench.with_evidence(audit_all);
        assert_eq!(found.len(), 1, "{found:#?}");
        bench.sysctl(SETTING, "1");
        assert_eq!(bench.with_evidence(audit_all), []);
    }
}
