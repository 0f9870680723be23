//! `tc-or-xdp-drop`: a program or filter on a device dropped the packet, before or behind the stack.
//!
//! 5.10 has no reasons, and there both handlers of tc are inlined into `__netif_receive_skb_core` and
//! `__dev_queue_xmit`.

use super::audit::nothing;
use super::evidence::{DropSite, Evidence, Failure};
use super::{Cause, Diagnosis, Site};
use crate::hook::Role;
use crate::node::{DeviceFilter, FilterPlace, GENERIC_XDP, NetnsId};

pub(super) const CAUSE: Cause = Cause {
    code: "tc-or-xdp-drop",
    title: "an XDP program or a tc filter on a device drops the packet",
    explanation: "\
Programs on a device see packets before the stack does (XDP, tc ingress) or last of all (tc egress). Cilium,
Calico's eBPF data path, load balancers, DDoS filters and traffic shapers use them. What they drop no
netfilter rule and no socket ever sees, and neither iptables nor nft lists them.

Proof: the packet was dropped with reason XDP, TC_INGRESS or TC_EGRESS (before 5.17: in the function that
runs them), and the device has a program or a filter there. Where there are several, which of them dropped
it is for them to say.

Fix: ask whom the program belongs to (bpftool prog show), change its rules; take it off only when nobody
needs it.",
    references: &[
        "Linux net/core/dev.c, do_xdp_generic: frees with reason XDP",
        "Linux net/core/dev.c, sch_handle_ingress: frees with reason TC_INGRESS",
        "Linux net/core/dev.c, sch_handle_egress: frees with reason TC_EGRESS",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

/// What freed the packet, and where the program sits.
const REASONS: &[(&str, FilterPlace)] = &[
    ("XDP", FilterPlace::Xdp),
    ("TC_INGRESS", FilterPlace::Ingress),
    ("TC_EGRESS", FilterPlace::Egress),
];
/// The same where the kernel gives no reason; the functions do other things too, so the device must have
/// a filter there.
const FUNCTIONS: &[(&str, FilterPlace)] = &[
    ("do_xdp_generic", FilterPlace::Xdp),
    ("netif_receive_generic_xdp", FilterPlace::Xdp),
    ("veth_xdp_rcv_skb", FilterPlace::Xdp),
    ("veth_xdp_rcv", FilterPlace::Xdp),
    ("veth_poll", FilterPlace::Xdp),
    ("__netif_receive_skb_core", FilterPlace::Ingress),
    ("__dev_queue_xmit", FilterPlace::Egress),
];

/// Where a packet was dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Dropped {
    netns: NetnsId,
    link: u32,
    place: FilterPlace,
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| dropped(evidence, failure))
        .into_iter()
        .map(|(dropped, failures)| judge(evidence, dropped, &failures))
        .collect()
}

fn dropped(evidence: &Evidence<'_>, failure: &Failure<'_>) -> Option<Dropped> {
    let DropSite { reason, function } = failure.drop?;
    let found = |table: &[(&str, FilterPlace)], name: &str| {
        let row = table.iter().find(|(known, _)| *known == name)?;
        Some(row.1)
    };
    let place = match reason {
        Some(reason) => found(REASONS, reason)?,
        None => found(FUNCTIONS, function?)?,
    };
    let netns = failure.netns()?;
    let link = device(failure, place)?;
    let dropped = Dropped { netns, link, place };
    let named = reason.is_some() || filters(evidence.site(netns), dropped).next().is_some();
    named.then_some(dropped)
}

/// The device whose program it was: the one that the packet is at.
fn device(failure: &Failure<'_>, place: FilterPlace) -> Option<u32> {
    let (index, event) = failure.last(Role::Drop)?;
    let at = event.ifindex;
    match place {
        FilterPlace::Egress => at,
        FilterPlace::Xdp | FilterPlace::Ingress => at.or_else(|| failure.ingress(index)),
    }
}

/// The programs and filters there.
fn filters<'a>(
    site: Option<&Site<'a>>,
    dropped: Dropped,
) -> impl Iterator<Item = &'a DeviceFilter> {
    let all = site.map_or(&[][..], |site| site.facts.device_filters.as_slice());
    all.iter().filter(move |filter| {
        let may = filter.program.is_some() || filter.drops == Some(true);
        may && filter.link == dropped.link && filter.place == dropped.place
    })
}

/// A filter in words: `bpf program 17 (deny)`.
fn words(filter: &DeviceFilter) -> String {
    let kind = match (filter.kind.as_str(), filter.drops) {
        ("xdp", _) => "XDP".to_owned(),
        (GENERIC_XDP, _) => "generic XDP".to_owned(),
        (kind, Some(true)) => format!("{kind} filter with action drop"),
        (kind, _) => kind.to_owned(),
    };
    let program = filter.program.as_ref().map(|program| {
        let name = program.name.as_deref().unwrap_or("without a name");
        format!("program {} ({name})", program.id)
    });
    let preference = filter
        .preference
        .map(|preference| format!("preference {preference}"));
    std::iter::once(kind)
        .chain(program)
        .chain(preference)
        .collect::<Vec<_>>()
        .join(", ")
}

fn judge(evidence: &Evidence<'_>, dropped: Dropped, failures: &[&Failure<'_>]) -> Diagnosis {
    let Dropped { netns, link, place } = dropped;
    let site = evidence.site(netns);
    let namespace = site.map_or_else(|| format!("netns {netns}"), Site::name);
    let device = site.map_or_else(|| format!("if{link}"), |site| site.device(link));
    let found: Vec<&DeviceFilter> = filters(site, dropped).collect();
    let what = match found.as_slice() {
        [] => "a program or filter".to_owned(),
        [one] => words(one),
        several => format!("one of {} programs and filters", several.len()),
    };
    let place_words = place.name();
    let mut diagnosis = Diagnosis::new(
        &CAUSE,
        format!("{device} {place_words} of {namespace}"),
        format!(
            "{device} of {namespace} drops packets at {place_words}: {what}. Neither netfilter's rules nor sockets see them."
        ),
    )
    .stopped(evidence, failures)
    .prove_if(
        "packet",
        failures
            .first()
            .map(|first| format!("{} was {}, at {device}", first.words(), first.drop_words())),
    );
    for filter in &found {
        diagnosis = diagnosis.prove(
            match filter.place {
                FilterPlace::Xdp => "xdp",
                FilterPlace::Ingress | FilterPlace::Egress => "tc",
            },
            format!("{device} {place_words}: {}", words(filter)),
        );
    }
    let program = found.iter().find_map(|filter| filter.program.as_ref());
    diagnosis
        .lacking_if(
            found.is_empty(),
            format!("the program or filter at {place_words} of {device}: it is gone, or could not be read"),
        )
        .fix(
            [match program {
                Some(program) => format!("bpftool prog show id {}   # whose it is, and its maps", program.id),
                None => format!("tc -s filter show dev {device} {place_words}   # which one counts drops"),
            }],
            "none: this only looks; then change the rules of whoever loaded it",
        )
        .fix(
            [remove(&device, place, found.first().copied())],
            "everything else that it does on this device ends too; Cilium and Calico put theirs back",
        )
        .check(match place {
            FilterPlace::Xdp => format!("ip -d link show dev {device}"),
            FilterPlace::Ingress | FilterPlace::Egress => {
                format!("tc -s filter show dev {device} {place_words}")
            }
        })
}

fn remove(device: &str, place: FilterPlace, filter: Option<&DeviceFilter>) -> String {
    let place_words = place.name();
    match (place, filter) {
        // Of a device whose driver runs programs too, `xdp off` leaves the stack's own where it is.
        (FilterPlace::Xdp, Some(filter)) => format!("ip link set dev {device} {} off", filter.kind),
        (FilterPlace::Xdp, None) => format!("ip link set dev {device} xdp off"),
        (_, Some(filter)) if filter.kind == "tcx" => {
            format!("bpftool net detach tcx_{place_words} dev {device}")
        }
        (
            _,
            Some(DeviceFilter {
                preference: Some(preference),
                ..
            }),
        ) => {
            format!("tc filter del dev {device} {place_words} pref {preference}")
        }
        _ => format!("tc filter del dev {device} {place_words}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, node};
    use crate::node::BpfProgram;

    fn filter(place: FilterPlace, kind: &str) -> DeviceFilter {
        DeviceFilter {
            link: ETH0,
            place,
            kind: kind.into(),
            preference: (kind != "xdp").then_some(49_152),
            drops: None,
            program: Some(BpfProgram {
                id: 17,
                name: Some("deny".into()),
            }),
        }
    }

    fn with(reason: &str, function: &str) -> Bench {
        let mut bench = node();
        bench
            .udp("192.0.2.77:40000", "192.0.2.1:53")
            .receive(ETH0)
            .dropped(reason, function);
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = with("TC_INGRESS", "__netif_receive_skb_core");
        bench.site().device_filters = vec![
            filter(FilterPlace::Ingress, "bpf"),
            filter(FilterPlace::Egress, "bpf"),
        ];
        bench
    }

    #[test]
    fn the_program_is_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.summary.contains("program 17 (deny)"), "{found:#?}");
        assert_eq!(
            found.fixes[1].lines[0],
            "tc filter del dev eth0 ingress pref 49152"
        );
    }

    #[test]
    fn without_reasons_the_function_and_the_device_tell() {
        for (function, place, kind) in [
            ("__netif_receive_skb_core", FilterPlace::Ingress, "bpf"),
            ("do_xdp_generic", FilterPlace::Xdp, "xdp"),
            ("netif_receive_generic_xdp", FilterPlace::Xdp, GENERIC_XDP),
        ] {
            let mut bench = with("", function);
            assert_eq!(
                bench.codes(),
                [] as [&str; 0],
                "{function} without a program"
            );
            bench.site().device_filters = vec![filter(place, kind)];
            assert_eq!(bench.only().certainty, Certainty::Certain, "{function}");
        }
    }

    #[test]
    fn a_filter_that_does_not_drop_is_no_culprit() {
        let mut bench = situation();
        bench.site().device_filters = vec![DeviceFilter {
            program: None,
            drops: Some(false),
            ..filter(FilterPlace::Ingress, "flower")
        }];
        assert_eq!(bench.only().certainty, Certainty::Likely);
    }
}
