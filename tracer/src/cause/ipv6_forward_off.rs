//! `ipv6-forward-off`: an IPv6 packet for somebody else came in, and this host does not forward.

use super::audit::nothing;
use super::evidence::Evidence;
use super::{Cause, Diagnosis, Site};
use crate::hook::Role;

pub(super) const CAUSE: Cause = Cause {
    code: "ipv6-forward-off",
    title: "the host does not forward IPv6 packets (net.ipv6.conf.all.forwarding is 0)",
    explanation: "\
An IPv6 packet came in whose destination is another host, and IPv6 forwarding is off. The kernel drops it
and sends no answer. On dual-stack clusters IPv4 then works and IPv6 does not.

Only net.ipv6.conf.all.forwarding decides; setting it also changes how the host treats router
advertisements (accept_ra must be 2 to keep an address that came from one).

Proof: the packet was dropped in ip6_forward (IP_INADDRERRORS where the kernel gives reasons), and the
setting reads 0.

Fix: sysctl -w net.ipv6.conf.all.forwarding=1, and the same in /etc/sysctl.d so that it lasts.",
    references: &[
        "Linux net/ipv6/ip6_output.c, ip6_forward: drops first of all when net.ipv6.conf.all.forwarding is 0, \
         and counts Ip6InAddrErrors",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

const SETTING: &str = "net/ipv6/conf/all/forwarding";

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (index, _) = failure.last(Role::Forward)?;
            let tuple = failure.packet_at(index)?.tuple;
            let dropped = tuple.destination.is_ipv6()
                && failure.dropped_for(&["IP_INADDRERRORS"], &["ip6_forward"]);
            let netns = failure.netns_at(index)?;
            let off = evidence.site(netns).and_then(|site| site.sysctl(SETTING));
            (dropped && matches!(off, Some(0) | None)).then_some(netns)
        })
        .into_iter()
        .map(|(netns, failures)| {
            let site = evidence.site(netns);
            let place = site.map_or_else(|| format!("netns {netns}"), Site::name);
            let known = site.and_then(|site| site.sysctl(SETTING)).is_some();
            Diagnosis::new(
                &CAUSE,
                place.clone(),
                format!(
                    "{place} does not forward IPv6 packets: net.ipv6.conf.all.forwarding is 0. Packets for other hosts \
                     and pods are dropped without an answer."
                ),
            )
            .stopped(evidence, &failures)
            .prove_if(
                "packet",
                failures
                    .first()
                    .map(|first| format!("{} {} before any rule was asked", first.words(), first.drop_words())),
            )
            .prove_if("sysctl", known.then_some("net.ipv6.conf.all.forwarding = 0"))
            .lacking_if(!known, "the value of net.ipv6.conf.all.forwarding")
            .fix(
                [
                    "sysctl -w net.ipv6.conf.all.forwarding=1",
                    "echo 'net.ipv6.conf.all.forwarding = 1' > /etc/sysctl.d/99-forwarding6.conf   # after a reboot too",
                ],
                "the host becomes a router; an address from router advertisements is lost unless accept_ra=2",
            )
            .check("sysctl net.ipv6.conf.all.forwarding")
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, node};

    fn with(value: Option<&str>, reason: &str) -> Bench {
        let mut bench = node();
        if let Some(value) = value {
            bench.sysctl(SETTING, value);
        }
        bench
            .tcp("[2001:db8::10]:40000", "[2001:db8:1::9]:80")
            .receive(ETH0)
            .at(HookId::Ip6Receive)
            .at(HookId::Forward6)
            .dropped(reason, "ip6_forward");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        with(Some("0"), "IP_INADDRERRORS")
    }

    #[test]
    fn forwarding_is_off() {
        for reason in ["IP_INADDRERRORS", "NOT_SPECIFIED", ""] {
            let found = with(Some("0"), reason).only();
            assert_eq!(
                (found.code, found.certainty),
                (CAUSE.code, Certainty::Certain)
            );
        }
        assert_eq!(with(None, "").only().certainty, Certainty::Likely);
    }

    #[test]
    fn other_drops_and_forwarding_hosts_are_other_cases() {
        assert_eq!(with(Some("1"), "").codes(), [] as [&str; 0]);
        assert!(!with(Some("0"), "IP_INHDR").codes().contains(&CAUSE.code));
    }
}
