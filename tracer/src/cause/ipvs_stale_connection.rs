//! `ipvs-stale-connection`: IPVS keeps a connection to a real server that was taken away.

use std::net::SocketAddr;

use super::audit::Finding;
use super::evidence::{Evidence, Failure};
use super::ipvs_conn_reuse::is_delayed;
use super::{Cause, Diagnosis};
use crate::event::{Detail, protocol};
use crate::hook::Role;
use crate::node::{IpvsConnection, NetnsId, VirtualServer};

pub(super) const CAUSE: Cause = Cause {
    code: "ipvs-stale-connection",
    title: "IPVS keeps a connection to a real server that was taken away, and drops its packets",
    explanation: "\
IPVS remembers for each client address and port which real server it chose. When that real server is taken
away, the entry stays until its timeout (TCP 15 min, UDP 5 min by default), each packet of the client renews
it, and the packets are dropped without an answer while net.ipv4.vs.expire_nodest_conn is 0. DNS resolvers
and other UDP clients that keep one source port then hang for as long as they try.

Proof: IPVS looked up a connection for the packet, asked for no virtual server, sent nothing, and the packet
was dropped there, although the virtual server exists; the connection's real server (ipvsadm -Lnc) is not
among the virtual server's (ipvsadm -Ln).

Fix: net.ipv4.vs.expire_nodest_conn=1 (kube-proxy sets it from 1.13 on in ipvs mode): the next packet makes
a new connection.",
    references: &[
        "Linux net/netfilter/ipvs/ip_vs_core.c, ip_vs_in: drops packets of a connection whose real server is no \
         longer available, silently while expire_nodest_conn is 0; the entry lives until its timeout",
    ],
    explains: &[],
    examine,
    audit,
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (netns, index) = swallowed(failure)?;
            let tuple = failure.packet_at(index)?.tuple;
            let server = evidence.site(netns)?.virtual_server(
                tuple.protocol,
                tuple.destination.ip(),
                tuple.destination.port(),
            )?;
            // Where every real server is still there nothing is stale.
            let connection = connection(evidence, failure, netns, tuple.destination);
            let known = connection.is_some_and(|found| has(server, found.real));
            (!known && !is_delayed(failure)).then_some((netns, tuple.protocol, tuple.destination))
        })
        .into_iter()
        .map(|((netns, number, address), failures)| {
            judge(evidence, netns, number, address, &failures)
        })
        .collect()
}

/// IPVS had a connection for the packet and did not send it on.
pub(super) fn swallowed(failure: &Failure<'_>) -> Option<(NetnsId, usize)> {
    let (index, _) = failure.last(Role::IpvsLookup)?;
    let rest = &failure.journey.events[index + 1..];
    let went_on = rest.iter().any(|event| {
        let later_hook = matches!(event.detail, Detail::Netfilter(hook) if hook.is_of_ip());
        later_hook
            || matches!(
                event.role(),
                Role::IpvsService
                    | Role::IpvsSchedule
                    | Role::IpvsTransmit
                    | Role::IpvsNoDestination
                    | Role::LocalInFinish
                    | Role::Transport
                    | Role::Output
            )
    });
    let dropped = failure.dropped_for(&["NETFILTER_DROP"], &["nf_hook_slow"]);
    (!went_on && dropped).then_some(())?;
    Some((failure.netns_at(index)?, index))
}

fn has(server: &VirtualServer, real: SocketAddr) -> bool {
    server
        .destinations
        .iter()
        .any(|found| (found.address, found.port) == (real.ip(), real.port()))
}

fn connection<'a>(
    evidence: &Evidence<'a>,
    failure: &Failure<'_>,
    netns: NetnsId,
    service: SocketAddr,
) -> Option<&'a IpvsConnection> {
    let client = failure.journey.first_tuple()?.source;
    evidence
        .site(netns)?
        .facts
        .ipvs_connections
        .iter()
        .find(|found| found.client == client && found.service == service)
}

fn judge(
    evidence: &Evidence<'_>,
    netns: NetnsId,
    number: u8,
    address: SocketAddr,
    failures: &[&Failure<'_>],
) -> Diagnosis {
    let site = evidence.site(netns);
    let found = failures
        .iter()
        .find_map(|failure| connection(evidence, failure, netns, address));
    let server = site.and_then(|site| site.virtual_server(number, address.ip(), address.port()));
    let setting = site.and_then(|site| site.sysctl("net/ipv4/vs/expire_nodest_conn"));
    let name = protocol::name(number);
    let real = found.map_or_else(
        || "a real server that is gone".to_owned(),
        |found| format!("{}, which is no real server of it any more", found.real),
    );
    let now: Vec<String> = server
        .iter()
        .flat_map(|server| &server.destinations)
        .take(4)
        .map(|real| SocketAddr::new(real.address, real.port).to_string())
        .collect();
    let now = if now.is_empty() {
        "none".to_owned()
    } else {
        now.join(", ")
    };
    let diagnosis = Diagnosis::new(
        &CAUSE,
        format!("{name} {address}"),
        format!(
            "IPVS still has connections of clients of {name} {address} to {real}, and drops their packets without an \
             answer. New clients go to: {now}."
        ),
    )
    .stopped(evidence, failures)
    .prove_if(
        "packet",
        failures
            .first()
            .map(|first| format!("{} met a connection that IPVS knows and was dropped there", first.words())),
    )
    .prove_if(
        "ipvs",
        found.map(|found| {
            format!(
                "connection {} → {} → {} {}, expires in {} s; the virtual server has {now}",
                found.client, found.service, found.real, found.state, found.expires
            )
        }),
    )
    .prove_if(
        "sysctl",
        setting.map(|value| format!("net.ipv4.vs.expire_nodest_conn = {value}")),
    )
    .lacking_if(
        found.is_none(),
        "the connection's entry (/proc/net/ip_vs_conn): it has expired, or could not be read",
    );
    heal(diagnosis).check(format!(
        "ipvsadm -Lnc | grep {address}   # every destination is in ipvsadm -Ln"
    ))
}

/// Settings with which connections to a real server that is taken away are dropped.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    evidence
        .sites()
        .filter(|site| site.facts.ipvs.as_ref().is_some_and(|table| !table.is_empty()))
        .filter(|site| site.sysctl("net/ipv4/vs/expire_nodest_conn") == Some(0))
        .map(|site| {
            let place = site.name();
            let diagnosis = heal(
                Diagnosis::new(
                    &CAUSE,
                    place.clone(),
                    format!(
                        "When a real server is taken away, {place} goes on dropping the packets of its clients until their \
                         connections expire."
                    ),
                )
                .prove("sysctl", "net.ipv4.vs.expire_nodest_conn = 0"),
            );
            Finding::warning(diagnosis.check("sysctl net.ipv4.vs.expire_nodest_conn"))
        })
        .collect()
}

fn heal(diagnosis: Diagnosis) -> Diagnosis {
    diagnosis.fix(
        [
            "sysctl -w net.ipv4.vs.expire_nodest_conn=1",
            "echo 'net.ipv4.vs.expire_nodest_conn = 1' > /etc/sysctl.d/99-ipvs.conf   # after a reboot too",
        ],
        "connections to a real server that is only gone for a moment are cut",
    )
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, at, node, service};
    use crate::event::NetfilterHook;

    fn with(real: Option<&str>) -> Bench {
        let mut bench = node();
        bench.site().ipvs = Some(vec![service(17, "10.96.0.10:53", &[("10.244.0.8:53", 1)])]);
        bench.site().ipvs_connections = real
            .into_iter()
            .map(|real| IpvsConnection {
                protocol: 17,
                client: at("192.0.2.10:4000"),
                service: at("10.96.0.10:53"),
                real: at(real),
                state: "UDP".into(),
                expires: 299,
            })
            .collect();
        bench
            .udp("192.0.2.10:4000", "10.96.0.10:53")
            .receive(ETH0)
            .at(HookId::LocalDeliver)
            .netfilter(NetfilterHook::Input)
            .at(HookId::IpvsLookup)
            .dropped("NETFILTER_DROP", "nf_hook_slow");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        with(Some("10.244.0.7:53"))
    }

    #[test]
    fn the_real_server_that_is_gone_is_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.summary.contains("10.244.0.7:53"), "{found:#?}");
    }

    #[test]
    fn without_the_entry_it_is_likely() {
        assert_eq!(with(None).only().certainty, Certainty::Likely);
    }

    #[test]
    fn a_connection_to_a_present_real_server_is_another_case() {
        assert_eq!(with(Some("10.244.0.8:53")).codes(), [] as [&str; 0]);
    }
}
