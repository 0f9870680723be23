//! The catalogue of causes and how they are ranked.
//!
//! Map: `evidence` is what causes see, with indices over flows and (`site`) one namespace's facts;
//! `diagnosis` is what they say; `audit` asks them about the facts alone; `filtered` finds the rule that ended a
//! packet; `rank` puts the root before its consequences. Then one file per
//! cause, named by its code.
//! Invariants: a cause never does I/O; it sees [`Evidence`] and nothing else, so that replay equals
//! live. It says *certain* only with all its decisive evidence. Judging is linear in flows: a cause
//! goes over the failures once and looks facts up.

use std::collections::{HashMap, HashSet};

mod audit;
mod diagnosis;
mod evidence;
mod filtered;
mod rank;
mod site;

#[cfg(test)]
mod benchmark;
#[cfg(test)]
mod constructed;

mod bridging;
mod confirm;
mod dns_stale_log;
mod mtu_audit;
mod pod_network;
mod pod_runtime;
mod service;
mod source_check;
mod unnatted;
mod vip_nodeport_audit;
mod vip_nodeport_reason;
mod vip_nodeport_rules;

mod accept_queue_full;
mod answer_lost;
mod backlog_full;
mod bad_checksum;
mod bridge_nf_off;
mod bridge_port_blocked;
mod conntrack_full;
mod conntrack_insert_clash;
mod conntrack_invalid;
mod data_lost;
mod dns_stale_conntrack;
mod duplicate_address;
mod endpoint_not_ready;
mod etp_local_no_endpoint;
mod filter_rule_drop;
mod forward_policy_drop;
mod hairpin_off;
mod ip_forward_off;
mod ipv6_forward_off;
mod ipvs_conn_reuse;
mod ipvs_no_destination;
mod ipvs_stale_connection;
mod ipvs_weight_zero;
mod kube_proxy_stale;
mod late_answer;
mod lb_source_range;
mod martian_source;
mod masquerade_missing;
mod mtu_exceeded;
mod neighbour_failed;
mod network_policy_drop;
mod no_answer;
mod no_listener;
mod no_route;
mod nodeport_localhost;
mod nodeport_taken;
mod pod_on_docker0;
mod pod_outside_cidr;
mod qdisc_drop;
mod receive_buffer_full;
mod refused_elsewhere;
mod route_blackhole;
mod rp_filter;
mod service_no_endpoints;
mod service_no_port;
mod service_rejected;
mod service_unknown;
mod snat_exhausted;
mod source_address_ambiguous;
mod syn_flood;
mod tc_or_xdp_drop;
mod terminating_endpoint;
mod ttl_expired;
mod veth_peer_down;
mod vip_nodeport_unbound;
mod vxlan_checksum;
mod vxlan_no_fdb;
mod vxlan_udp_blocked;

pub use audit::{Finding, Severity, audit};
pub use diagnosis::{Certainty, Consequence, Diagnosis, Fix, Proof};
pub use evidence::{DropNames, DropSite, Evidence, Failure};
pub use receive_buffer_full::REFUSE_DATAGRAMS;
pub use site::Site;

/// A cause of the catalogue.
pub struct Cause {
    /// Stable code, used in commands and files.
    pub code: &'static str,
    /// One line.
    pub title: &'static str,
    /// What it is, how it is proven, how it is fixed.
    pub explanation: &'static str,
    /// Where its facts come from, one each: functions of the kernel and of programs with their file, and
    /// what they do; full addresses of issues and documentation.
    pub references: &'static [&'static str],
    /// Codes of the causes that it brings about: with shared flows they are its consequences.
    pub explains: &'static [&'static str],
    /// Looks for it among the packets that were lost.
    pub examine: fn(&Evidence<'_>) -> Vec<Diagnosis>,
    /// Looks for it in the facts alone.
    pub audit: fn(&Evidence<'_>) -> Vec<Finding>,
}

/// The catalogue, the more special causes first; the order is the order of ranking among equals.
pub const CATALOGUE: &[Cause] = &[
    vip_nodeport_unbound::CAUSE,
    nodeport_taken::CAUSE,
    pod_on_docker0::CAUSE,
    pod_outside_cidr::CAUSE,
    terminating_endpoint::CAUSE,
    service_no_endpoints::CAUSE,
    endpoint_not_ready::CAUSE,
    etp_local_no_endpoint::CAUSE,
    kube_proxy_stale::CAUSE,
    service_no_port::CAUSE,
    service_unknown::CAUSE,
    duplicate_address::CAUSE,
    vxlan_udp_blocked::CAUSE,
    source_address_ambiguous::CAUSE,
    ipvs_no_destination::CAUSE,
    lb_source_range::CAUSE,
    network_policy_drop::CAUSE,
    conntrack_invalid::CAUSE,
    tc_or_xdp_drop::CAUSE,
    qdisc_drop::CAUSE,
    backlog_full::CAUSE,
    forward_policy_drop::CAUSE,
    filter_rule_drop::CAUSE,
    ip_forward_off::CAUSE,
    ipv6_forward_off::CAUSE,
    rp_filter::CAUSE,
    martian_source::CAUSE,
    route_blackhole::CAUSE,
    no_route::CAUSE,
    neighbour_failed::CAUSE,
    mtu_exceeded::CAUSE,
    ttl_expired::CAUSE,
    conntrack_full::CAUSE,
    accept_queue_full::CAUSE,
    syn_flood::CAUSE,
    receive_buffer_full::CAUSE,
    dns_stale_conntrack::CAUSE,
    ipvs_conn_reuse::CAUSE,
    ipvs_weight_zero::CAUSE,
    ipvs_stale_connection::CAUSE,
    vxlan_no_fdb::CAUSE,
    bridge_port_blocked::CAUSE,
    veth_peer_down::CAUSE,
    hairpin_off::CAUSE,
    conntrack_insert_clash::CAUSE,
    snat_exhausted::CAUSE,
    vxlan_checksum::CAUSE,
    bad_checksum::CAUSE,
    nodeport_localhost::CAUSE,
    bridge_nf_off::CAUSE,
    masquerade_missing::CAUSE,
    late_answer::CAUSE,
    no_listener::CAUSE,
    refused_elsewhere::CAUSE,
    no_answer::CAUSE,
    answer_lost::CAUSE,
    data_lost::CAUSE,
];

/// Causes that only say where a connection ended beyond what is traced: any other of the same connection says more.
const BEYOND: &[&str] = &[
    refused_elsewhere::CAUSE.code,
    no_answer::CAUSE.code,
    answer_lost::CAUSE.code,
    data_lost::CAUSE.code,
];

/// The cause with this code.
pub fn find(code: &str) -> Option<&'static Cause> {
    CATALOGUE.iter().find(|cause| cause.code == code)
}

/// Asks every cause; roots before what they bring about, the most certain first.
pub fn diagnose(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut found = CATALOGUE
        .iter()
        .flat_map(|cause| (cause.examine)(evidence))
        .collect();
    give_way(&mut found);
    let places: HashMap<&str, usize> = CATALOGUE
        .iter()
        .enumerate()
        .map(|(place, cause)| (cause.code, place))
        .collect();
    rank::rank(
        found,
        |code| find(code).map_or(&[], |cause| cause.explains),
        |code| places.get(code).copied().unwrap_or(usize::MAX),
    )
}

/// Leaves out what only says less.
fn give_way(found: &mut Vec<Diagnosis>) {
    let beyond = |diagnosis: &Diagnosis| BEYOND.contains(&diagnosis.code);
    let explained: HashSet<u64> = found
        .iter()
        .filter(|diagnosis| !beyond(diagnosis))
        .flat_map(|diagnosis| &diagnosis.flows)
        .copied()
        .collect();
    found.retain(|diagnosis| {
        !beyond(diagnosis) || !diagnosis.flows.iter().all(|flow| explained.contains(flow))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beyond_gives_way_to_a_cause_of_the_same_connections() {
        let about = |cause: &Cause, flows: &[u64]| Diagnosis {
            flows: flows.to_vec(),
            ..Diagnosis::new(cause, "", "")
        };
        for (flows, left) in [(&[1, 2, 3][..], 1), (&[1], 2), (&[], 2)] {
            let mut found = vec![
                about(&no_answer::CAUSE, &[1, 2]),
                about(&no_listener::CAUSE, flows),
            ];
            give_way(&mut found);
            assert_eq!(found.len(), left, "{flows:?}");
        }
    }

    #[test]
    fn codes_are_unique_and_explained() {
        for (index, cause) in CATALOGUE.iter().enumerate() {
            assert!(
                CATALOGUE[..index]
                    .iter()
                    .all(|other| other.code != cause.code)
            );
            assert!(
                !cause.title.is_empty() && cause.explanation.len() > 200,
                "{}",
                cause.code
            );
            assert!(!cause.references.is_empty(), "{}", cause.code);
            for reference in cause.references {
                assert!(
                    !reference.trim().is_empty() && !reference.contains('\n'),
                    "{}: {reference:?} is not one line",
                    cause.code
                );
                assert!(
                    !reference.starts_with("http") || !reference.contains(char::is_whitespace),
                    "{}: {reference:?} is no address",
                    cause.code
                );
            }
        }
    }

    type Situation = (&'static str, fn() -> constructed::Bench);

    /// One situation for each cause that has one: the node and the packets that it stops.
    const SITUATIONS: &[Situation] = &[
        (
            "terminating-endpoint",
            terminating_endpoint::tests::situation,
        ),
        (
            "service-no-endpoints",
            service_no_endpoints::tests::situation,
        ),
        ("endpoint-not-ready", endpoint_not_ready::tests::situation),
        (
            "etp-local-no-endpoint",
            etp_local_no_endpoint::tests::situation,
        ),
        ("service-no-port", service_no_port::tests::situation),
        ("service-unknown", service_unknown::tests::situation),
        ("duplicate-address", duplicate_address::tests::situation),
        ("vxlan-udp-blocked", vxlan_udp_blocked::tests::situation),
        (
            "source-address-ambiguous",
            source_address_ambiguous::tests::situation,
        ),
        ("nodeport-taken", nodeport_taken::tests::situation),
        ("conntrack-invalid", conntrack_invalid::tests::situation),
        ("tc-or-xdp-drop", tc_or_xdp_drop::tests::situation),
        ("qdisc-drop", qdisc_drop::tests::situation),
        ("backlog-full", backlog_full::tests::situation),
        ("ipvs-conn-reuse", ipvs_conn_reuse::tests::situation),
        ("ipvs-weight-zero", ipvs_weight_zero::tests::situation),
        ("syn-flood", syn_flood::tests::situation),
        ("ipvs-no-destination", ipvs_no_destination::tests::situation),
        ("lb-source-range", lb_source_range::tests::situation),
        ("forward-policy-drop", forward_policy_drop::tests::situation),
        ("filter-rule-drop", filter_rule_drop::tests::situation),
        ("ip-forward-off", ip_forward_off::tests::situation),
        ("ipv6-forward-off", ipv6_forward_off::tests::situation),
        ("rp-filter", rp_filter::tests::situation),
        ("martian-source", martian_source::tests::situation),
        ("route-blackhole", route_blackhole::tests::situation),
        ("no-route", no_route::tests::situation),
        ("neighbour-failed", neighbour_failed::tests::situation),
        ("mtu-exceeded", mtu_exceeded::tests::situation),
        ("ttl-expired", ttl_expired::tests::situation),
        ("conntrack-full", conntrack_full::tests::situation),
        ("accept-queue-full", accept_queue_full::tests::situation),
        ("receive-buffer-full", receive_buffer_full::tests::situation),
        ("dns-stale-conntrack", dns_stale_conntrack::tests::situation),
        (
            "ipvs-stale-connection",
            ipvs_stale_connection::tests::situation,
        ),
        ("vxlan-no-fdb", vxlan_no_fdb::tests::situation),
        ("bridge-port-blocked", bridge_port_blocked::tests::situation),
        ("veth-peer-down", veth_peer_down::tests::situation),
        ("hairpin-off", hairpin_off::tests::situation),
        (
            "conntrack-insert-clash",
            conntrack_insert_clash::tests::situation,
        ),
        ("snat-exhausted", snat_exhausted::tests::situation),
        ("vxlan-checksum", vxlan_checksum::tests::situation),
        ("bad-checksum", bad_checksum::tests::situation),
        ("nodeport-localhost", nodeport_localhost::tests::situation),
        ("bridge-nf-off", bridge_nf_off::tests::situation),
        ("masquerade-missing", masquerade_missing::tests::situation),
        ("late-answer", late_answer::tests::situation),
        ("no-listener", no_listener::tests::situation),
        ("refused-elsewhere", refused_elsewhere::tests::situation),
    ];

    #[test]
    fn no_cause_speaks_in_another_ones_situation() {
        for (code, situation) in SITUATIONS {
            let found = situation().diagnose();
            assert_eq!(found.len(), 1, "{code}: {found:#?}");
            assert_eq!(found[0].code, *code);
            assert_eq!(found[0].certainty, Certainty::Certain, "{found:#?}");
            assert!(
                found[0].failed > 0 && !found[0].evidence.is_empty(),
                "{code}"
            );
            assert!(
                !found[0].fixes.is_empty() && !found[0].check.is_empty(),
                "{code}"
            );
        }
    }

    #[test]
    fn explained_causes_exist_and_never_explain_each_other() {
        for cause in CATALOGUE {
            for code in cause.explains {
                let other = find(code);
                assert!(other.is_some(), "{} explains {code}", cause.code);
                let back = other.is_some_and(|other| other.explains.contains(&cause.code));
                assert!(!back && *code != cause.code, "{} and {code}", cause.code);
            }
        }
    }
}
