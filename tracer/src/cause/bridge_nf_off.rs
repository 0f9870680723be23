//! `bridge-nf-off`: the answer of a pod on the same bridge goes back below netfilter, untranslated.

use super::audit::{Finding, pod_links};
use super::evidence::{Evidence, Failure};
use super::unnatted::{Stray, stray};
use super::{Cause, Diagnosis, Site};
use crate::hook::Role;
use crate::node::NetnsId;

pub(super) const CAUSE: Cause = Cause {
    code: "bridge-nf-off",
    title: "answers between pods of one bridge bypass NAT (bridge-nf-call-iptables is off)",
    explanation: "\
A pod calls a service and the service picks a pod on the same node. The request passes the node, which puts
the pod's address in the place of the service's. The answer goes straight over the bridge; the node has to
look into it there to put the service's address back, and does so only with the module br_netfilter and
net.bridge.bridge-nf-call-iptables=1. Without it the client gets an answer from an address that it never
asked, and refuses it. Services work from other nodes and fail from pods beside their endpoint.

Proof: the answer came to its client over a bridge with the endpoint's own address and was refused, and the
setting reads 0 or br_netfilter is not loaded.

Fix: modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1.",
    references: &[
        "Linux net/bridge/br_netfilter_hooks.c: without bridge-nf-call-iptables a bridge passes frames between \
         two of its ports without asking conntrack, which would put the service's address back",
    ],
    explains: &[],
    examine,
    audit,
};

/// The setting of an IP version, and its value; `None` without the module.
fn setting(site: &Site<'_>, ipv6: bool) -> (&'static str, Option<i64>) {
    let (path, name) = if ipv6 {
        (
            "net/bridge/bridge-nf-call-ip6tables",
            "net.bridge.bridge-nf-call-ip6tables",
        )
    } else {
        (
            "net/bridge/bridge-nf-call-iptables",
            "net.bridge.bridge-nf-call-iptables",
        )
    };
    (name, site.sysctl(path))
}

/// An answer that passed a bridge where netfilter does not look.
pub(super) fn below_netfilter(evidence: &Evidence<'_>, failure: &Failure<'_>) -> Option<NetnsId> {
    let stray = stray(evidence, failure)?;
    let (index, _) = failure.last(Role::Bridge)?;
    let netns = failure.netns_at(index)?;
    let (_, value) = setting(evidence.site(netns)?, stray.answer.source.is_ipv6());
    value.is_none_or(|value| value == 0).then_some(netns)
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| below_netfilter(evidence, failure))
        .into_iter()
        .filter_map(|(netns, failures)| {
            let site = evidence.site(netns)?;
            let first = failures
                .iter()
                .find_map(|failure| stray(evidence, failure))?;
            Some(
                say(site, &first).stopped_flows(
                    evidence,
                    failures
                        .iter()
                        .filter_map(|failure| Some(stray(evidence, failure)?.flow)),
                ),
            )
        })
        .collect()
}

fn say(site: &Site<'_>, first: &Stray<'_>) -> Diagnosis {
    let (name, value) = setting(site, first.answer.source.is_ipv6());
    let place = site.name();
    Diagnosis::new(
        &CAUSE,
        format!("service answers on bridges of {place}"),
        format!(
            "{} asked {} and is answered by {}: both pods are on one bridge of {place}, and netfilter does not see what \
             passes there, so the service's address is not put back.",
            first.asked.source.ip(),
            first.asked.destination,
            first.answer.source
        ),
    )
    .prove("packet", first.words())
    .prove(
        "sysctl",
        match value {
            Some(value) => format!("{name} = {value}"),
            None => "br_netfilter is not loaded".into(),
        },
    )
    .fix(
        commands(name, value.is_none()),
        "all rules see traffic between pods of one bridge too; a FORWARD policy DROP then holds for it",
    )
    .check(format!("sysctl {name}"))
}

/// Nodes with services and bridged pods where netfilter does not look into bridges.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    evidence
        .sites()
        .filter(|site| {
            let serves = site.facts.ipvs.as_ref().is_some_and(|table| !table.is_empty())
                || evidence.facts.kube_proxies_in(site.facts.id).next().is_some();
            let bridged = pod_links(site).filter(|link| link.master.is_some()).count();
            serves && bridged > 1
        })
        .filter_map(|site| {
            let (name, value) = setting(site, false);
            let proof = match value {
                Some(0) => format!("{name} = 0"),
                Some(_) => return None,
                None => "br_netfilter is not loaded".into(),
            };
            let place = site.name();
            Some(Finding::error(
                Diagnosis::new(
                    &CAUSE,
                    format!("bridges of {place}"),
                    format!(
                        "Netfilter does not see what passes between two pods of one bridge of {place}: a pod that calls a \
                         service and gets a pod beside itself is answered from the wrong address."
                    ),
                )
                .prove("sysctl", proof)
                .fix(
                    commands(name, value.is_none()),
                    "all rules see traffic between pods of one bridge too; a FORWARD policy DROP then holds for it",
                )
                .check(format!("sysctl {name}")),
            ))
        })
        .collect()
}

/// What turns it on, now and after a reboot.
fn commands(name: &str, unloaded: bool) -> Vec<String> {
    let mut commands = vec![format!("sysctl -w {name}=1")];
    if unloaded {
        commands.insert(0, "modprobe br_netfilter".into());
    }
    commands.push(format!(
        "echo br_netfilter > /etc/modules-load.d/br_netfilter.conf; echo '{name} = 1' > /etc/sysctl.d/99-bridge.conf"
    ));
    commands
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ETH0, node};
    use crate::event::{Transport, protocol, tcp_flag};

    const POD: u32 = 300;

    pub(in crate::cause) fn answered(bridged: bool) -> Bench {
        let mut bench = node();
        bench
            .tcp("10.244.0.9:4000", "10.96.0.1:80")
            .receive(CNI0)
            .to("10.244.0.8:80")
            .at(HookId::Forward)
            .transmit(CNI0)
            .ends();
        let flags = tcp_flag::SYN | tcp_flag::ACK;
        let way = bench
            .packet(
                protocol::TCP,
                "10.244.0.8:80",
                "10.244.0.9:4000",
                Transport::tcp(9, flags),
            )
            .receive(ETH0);
        let way = if bridged {
            way.at(HookId::BridgeReceive)
        } else {
            way
        };
        way.netns(POD)
            .receive(ETH0)
            .at(HookId::TcpReceive)
            .at(HookId::TcpReset)
            .dropped("NO_SOCKET", "tcp_v4_rcv");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        answered(true)
    }

    #[test]
    fn the_setting_or_the_missing_module_is_named() {
        let mut bench = situation();
        let found = bench.only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.fixes[0].lines[0], "modprobe br_netfilter");
        bench.sysctl("net/bridge/bridge-nf-call-iptables", "0");
        assert!(bench.only().fixes[0].lines[0].starts_with("sysctl -w"));
    }

    #[test]
    fn with_the_setting_on_it_is_another_case() {
        let mut bench = situation();
        bench.sysctl("net/bridge/bridge-nf-call-iptables", "1");
        assert!(!bench.codes().contains(&CAUSE.code));
    }
}
