//! `qdisc-drop`: the queue in front of a device drops the packet.

use super::audit::nothing;
use super::evidence::{Evidence, Failure};
use super::veth_peer_down::dead_end;
use super::{Cause, Diagnosis, Site};
use crate::hook::Role;
use crate::node::{NetnsId, QueueDiscipline};

pub(super) const CAUSE: Cause = Cause {
    code: "qdisc-drop",
    title: "the queue in front of a device drops the packet",
    explanation: "\
Between the stack and a device's driver is a queueing discipline (tc qdisc). It drops what finds the queue
full, what is over a limited rate, or what it was told to drop: tbf and htb limit a rate (the bandwidth plugin
of CNI sets tbf for the annotations kubernetes.io/ingress-bandwidth and egress-bandwidth of a pod), netem drops
on purpose (experiments with chaos), fq_codel and others drop when packets wait too long. tbf never lets a
packet through that is larger than its burst.

TCP slows down by the loss of data, as it should, so that is no finding; what opens a connection, and packets
without a connection, are.

Proof: the packet was dropped with reason QDISC_DROP (other names on some kernels), and the device has such a
queue. Where the kernel gives no reason (before 5.17): in the function that frees what queues drop, and the
device's queue counts drops.

Fix: raise the rate or the burst, or take the limit away.",
    references: &[
        "Linux net/core/dev.c, __dev_xmit_skb: frees what the discipline gave back with reason QDISC_DROP",
        "Linux net/sched/sch_tbf.c, tbf_enqueue: drops what is larger than the burst",
        "CNI plugins, plugins/meta/bandwidth: limits a pod's rate by tbf on its veth and on an ifb device",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

const REASONS: &[&str] = &[
    "QDISC_DROP",
    "QDISC_OVERLIMIT",
    "QDISC_CONGESTED",
    "QDISC_BURST_DROP",
    "CAKE_FLOOD",
    "FQ_BAND_LIMIT",
    "FQ_HORIZON_LIMIT",
    "FQ_FLOW_LIMIT",
];
/// It frees what was split into fragments or segments too, so the queue must have counted drops.
const FUNCTIONS: &[&str] = &["kfree_skb_list"];

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| dropped(evidence, failure))
        .into_iter()
        .map(|((netns, link), failures)| judge(evidence, netns, link, &failures))
        .collect()
}

/// Namespace and device whose queue dropped the packet.
fn dropped(evidence: &Evidence<'_>, failure: &Failure<'_>) -> Option<(NetnsId, u32)> {
    if !failure.dropped_for(REASONS, FUNCTIONS) || failure.slows_down() {
        return None;
    }
    let netns = failure.netns()?;
    let (_, event) = failure.last(Role::Drop)?;
    let link = event.ifindex?;
    let site = evidence.site(netns);
    // The queue of a device without carrier is there to drop: veth-peer-down.
    if dead_end(evidence, failure).is_some() {
        return None;
    }
    let counted = || queues(site, link).any(|queue| queue.dropped > Some(0));
    (failure.dropped_for(REASONS, &[]) || counted()).then_some((netns, link))
}

fn queues<'a>(site: Option<&Site<'a>>, link: u32) -> impl Iterator<Item = &'a QueueDiscipline> {
    let all = site.map_or(&[][..], |site| site.facts.queues.as_slice());
    all.iter().filter(move |queue| queue.link == link)
}

/// What a queue dropped so far, in words.
fn counted(queue: &QueueDiscipline, device: &str) -> String {
    let dropped = queue.dropped.map_or_else(
        || "it does not say how many packets it dropped".into(),
        |dropped| format!("{dropped} packets dropped since it was set up"),
    );
    format!("{} on {device}: {dropped}", queue.kind)
}

fn judge(
    evidence: &Evidence<'_>,
    netns: NetnsId,
    link: u32,
    failures: &[&Failure<'_>],
) -> Diagnosis {
    let site = evidence.site(netns);
    let place = site.map_or_else(|| format!("netns {netns}"), Site::name);
    let device = site.map_or_else(|| format!("if{link}"), |site| site.device(link));
    // A card has one for each of its own queues. One inside another is more to the point than the one around it.
    let busiest = queues(site, link).max_by_key(|queue| (queue.dropped, !queue.root));
    let kind = busiest.map_or("", |queue| queue.kind.as_str());
    let without_carrier = site
        .and_then(|site| site.link(link))
        .is_some_and(|link| link.carrier == Some(false));
    let why = match kind {
        "tbf" | "htb" | "hfsc" => {
            " It limits the rate of what goes out there; a CNI's bandwidth plugin sets such limits for pods."
        }
        "netem" => " netem drops packets because somebody told it to.",
        _ if without_carrier => " The device has no carrier, so nothing can go out there.",
        _ => "",
    };
    let named = match kind {
        "" => "The queue".to_owned(),
        kind => format!("The queue ({kind})"),
    };
    let begun = Diagnosis::new(
        &CAUSE,
        format!("{device} of {place}"),
        format!(
            "{named} in front of {device} of {place} drops packets that are to go out there.{why}"
        ),
    )
    .stopped(evidence, failures)
    .prove_if(
        "packet",
        failures
            .first()
            .map(|first| format!("{} was {}, at {device}", first.words(), first.drop_words())),
    );
    begun
        .prove_if("queue", busiest.map(|queue| counted(queue, &device)))
        .lacking_if(
            busiest.is_none(),
            format!("the queue of {device}: it is gone, or could not be read"),
        )
        .fix(
            ["find out who set the queue up (for a pod: its bandwidth annotations), and give it more room or a higher rate"],
            "none, where the device carries more",
        )
        .fix(
            [format!("tc qdisc del dev {device} root")],
            "nothing limits or orders any more what goes out there; who set it up may set it up again",
        )
        .check(format!("tc -s qdisc show dev {device}   # dropped no longer rises"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, node, sent_in_vain};
    use crate::event::tcp_flag;

    fn queue(kind: &str, dropped: u32) -> QueueDiscipline {
        QueueDiscipline {
            link: ETH0,
            kind: kind.into(),
            root: true,
            dropped: Some(dropped),
        }
    }

    fn with(reason: &str, function: &str) -> Bench {
        let mut bench = node();
        bench
            .udp("192.0.2.1:40000", "192.0.2.77:53")
            .transmit(ETH0)
            .dropped(reason, function);
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = with("QDISC_DROP", "__dev_queue_xmit");
        bench.site().queues = vec![queue("tbf", 4)];
        bench
    }

    #[test]
    fn the_queue_is_named_with_what_it_dropped() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(
            found.summary.contains("The queue (tbf) in front of eth0"),
            "{found:#?}"
        );
        let counted = "tbf on eth0: 4 packets dropped since it was set up";
        assert!(
            found.evidence.iter().any(|proof| proof.text == counted),
            "{found:#?}"
        );
        let gone = with("QDISC_DROP", "__dev_queue_xmit").only();
        assert_eq!(gone.certainty, Certainty::Likely);
    }

    #[test]
    fn data_of_tcp_is_no_finding() {
        for (flags, codes) in [(tcp_flag::ACK, &[][..]), (tcp_flag::SYN, &[CAUSE.code])] {
            let bench = sent_in_vain(flags, "QDISC_DROP", "__dev_queue_xmit");
            assert_eq!(bench.codes(), codes);
        }
    }

    #[test]
    fn without_reasons_the_queue_must_have_counted() {
        for (dropped, codes) in [(0, &[][..]), (3, &[CAUSE.code])] {
            let mut bench = with("", "kfree_skb_list");
            bench.site().queues = vec![queue("netem", dropped)];
            assert_eq!(bench.codes(), codes);
        }
    }
}
