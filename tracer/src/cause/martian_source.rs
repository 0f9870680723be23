//! `martian-source`: the packet's source address cannot come from another host.

use super::audit::nothing;
use super::evidence::Evidence;
use super::source_check::{Refusal, device_setting, is_impossible, refused};
use super::{Cause, Diagnosis, Site};

pub(super) const CAUSE: Cause = Cause {
    code: "martian-source",
    title: "the packet carries a source address that cannot come from outside",
    explanation: "\
A packet came in by a device with a source address that no other host may have: an address of this very
host, 127.0.0.0/8, 0.0.0.0/8, multicast or broadcast. The kernel calls it martian and drops it silently
(with net.ipv4.conf.all.log_martians=1 it logs it).

Why: another host has the same address, a packet was looped back by a bridge or a wrong route, NAT was
left out, or the sender forges its address.

Proof: the kernel's source check refused the packet for another reason than the reverse path, and the
address is local here or special.

Fix: take the address from the one who has it wrongly, or take the loop away. net.ipv4.conf.DEVICE.accept_local=1
lets a host take packets from its own addresses, where that is wanted.",
    references: &[
        "Linux net/ipv4/route.c, ip_route_input_slow: refuses multicast, broadcast, 0.0.0.0/8 and 127.0.0.0/8 \
         as source",
        "Linux net/ipv4/fib_frontend.c, fib_validate_source: refuses an address of this host",
        "Linux net/ipv4/route.c, ip_handle_martian_source: logs it where log_martians is set",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| match refused(evidence, failure)? {
            (refused, Refusal::Source) => Some(refused),
            (_, Refusal::ReversePath) => None,
        })
        .into_iter()
        .map(|(refused, failures)| {
            let site = evidence.site(refused.netns);
            let place = site.map_or_else(|| format!("netns {}", refused.netns), Site::name);
            let source = refused.source;
            let device = site.map_or_else(
                || format!("if{}", refused.ifindex),
                |site| site.device(refused.ifindex),
            );
            let own = site.is_some_and(|site| site.is_local(source));
            let explained = is_impossible(site, source);
            let why = if own {
                format!("{source} is an address of {place} itself")
            } else {
                format!("{source} is no address that another host may send from")
            };
            let diagnosis = Diagnosis::new(
                &CAUSE,
                format!("{source} by {device}"),
                format!("{place} drops packets from {source} that come in by {device}: {why}."),
            )
            .stopped(evidence, &failures)
            .prove_if(
                "packet",
                failures.first().map(|first| {
                    format!(
                        "{} came in by {device}, {}",
                        first.words(),
                        first.drop_words()
                    )
                }),
            )
            .prove_if(
                "route",
                site.and_then(|site| {
                    site.local_route(source)
                        .map(|route| site.route_words(route))
                }),
            )
            .lacking_if(
                !explained,
                format!("why {source} is impossible here; it may have been local then"),
            )
            .fix(
                [
                    format!("tcpdump -eni {device} src {source}   # the sender's hardware address"),
                    format!(
                        "take {source} from that host, or take away what sends the packet back here"
                    ),
                ],
                "the other host loses the address",
            );
            let diagnosis = if own {
                diagnosis.fix(
                    [format!(
                        "sysctl -w {}=1   # only where it is wanted",
                        device_setting(&device, "accept_local")
                    )],
                    "packets that claim to come from this host are taken from the network",
                )
            } else {
                diagnosis
            };
            diagnosis
                .check(format!("arping -D -c 3 -I {device} {source}"))
                .typed_for(site)
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, node};

    fn with(source: &str, reason: &str) -> Bench {
        let mut bench = node();
        bench
            .udp(source, "192.0.2.1:80")
            .receive(ETH0)
            .at(HookId::RouteInput)
            .at(HookId::Martian)
            .dropped(reason, "ip_rcv_finish_core");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        with("10.244.0.1:4000", "IP_LOCAL_SOURCE")
    }

    #[test]
    fn own_and_special_addresses_are_martian() {
        for source in ["10.244.0.1:4000", "127.0.0.9:4000", "224.0.0.5:4000"] {
            for reason in ["IP_LOCAL_SOURCE", "NOT_SPECIFIED", ""] {
                let found = with(source, reason).only();
                assert_eq!(
                    (found.code, found.certainty),
                    (CAUSE.code, Certainty::Certain)
                );
            }
        }
    }

    #[test]
    fn an_address_that_is_nobodys_is_only_likely() {
        let found = with("203.0.113.5:4000", "IP_INVALID_SOURCE").only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Likely)
        );
    }
}
