//! Entries without NAT, and entries that the audit meets.

use serde_json::json;
use tracer_ebpf::hook::HookId;

use super::super::*;
use super::tuple;
use crate::cause::Certainty;
use crate::cause::audit::Severity;
use crate::cause::constructed::{Bench, CNI0, NODE, node, service};
use crate::kube::constructed::{cluster, configured};
use crate::node::NetnsFacts;

/// A node in iptables mode with a DNS service of one endpoint.
fn with_dns(endpoints: &[&str]) -> Bench {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|address| json!({"addresses": [address]}))
        .collect();
    let facts = cluster(
        "node-a",
        &[
            json!({"kind": "Node", "metadata": {"name": "node-a"}, "status": {
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
                "nodeInfo": {"kubeletVersion": "v1.31.0"}}}),
            json!({"kind": "Service", "metadata": {"namespace": "default", "name": "dns"},
                "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.10"],
                    "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}]}}),
            json!({"kind": "EndpointSlice", "metadata": {"namespace": "default", "name": "dns-x",
                    "labels": {"kubernetes.io/service-name": "dns"}},
                "ports": [{"port": 53, "protocol": "UDP"}], "endpoints": endpoints}),
        ],
    );
    let mut bench = node();
    bench.cluster = Some(configured(facts, "mode: iptables"));
    bench
}

/// A packet that meets an entry without NAT, and then no route.
fn untranslated(bench: &mut Bench, netns: u32, status: u16) {
    let client = "10.244.0.9:4000";
    let conntrack = Detail::Conntrack {
        original: tuple(client, "10.96.0.10:53"),
        reply: tuple("10.96.0.10:53", client),
        destination_nat: false,
        relation: None,
        status,
        zone: 0,
    };
    bench.site().routes.retain(|route| route.gateway.is_none());
    let unreachable = Detail::Route {
        kind: 7,
        error: 101,
        ifindex: None,
    };
    bench
        .udp(client, "10.96.0.10:53")
        .netns(netns)
        .with(HookId::ConntrackUdp, conntrack)
        .netns(NODE)
        .receive(CNI0)
        .with(HookId::RouteError, unreachable)
        .dropped("IP_OUTNOROUTES", "ip_error");
}

#[test]
fn an_older_entry_without_nat_is_the_root() {
    for (netns, status, endpoints, named) in [
        (NODE, CONFIRMED, &["10.244.0.8"] as &[_], true),
        // The packet made the entry itself.
        (NODE, 0, &["10.244.0.8"], false),
        // The client's own namespace translates nothing.
        (300, CONFIRMED, &["10.244.0.8"], false),
        // There is nothing to translate to.
        (NODE, CONFIRMED, &[], false),
    ] {
        let mut bench = with_dns(endpoints);
        untranslated(&mut bench, netns, status);
        let found = bench.diagnose();
        let own = found.iter().find(|found| found.code == CAUSE.code);
        assert_eq!(own.is_some(), named, "{netns} {status}: {found:#?}");
        if let Some(own) = own {
            assert_eq!((found.len(), own.certainty), (1, Certainty::Certain));
            assert_eq!(own.consequences[0].code, "no-route");
            assert!(own.summary.contains("older than"), "{own:#?}");
        }
    }
}

#[test]
fn an_entry_that_the_packet_made_itself_is_not_stale_once_it_has_nat() {
    let (client, service) = ("10.244.0.9:4000", "10.96.0.10:53");
    let met = |answers: &str| Detail::Conntrack {
        original: tuple(client, service),
        reply: tuple(answers, client),
        destination_nat: false,
        relation: None,
        status: 0,
        zone: 0,
    };
    // The first event tells whether the entry had its NAT before the packet came.
    for (first, named) in [(service, false), ("10.244.0.7:53", true)] {
        let mut bench = with_dns(&["10.244.0.8"]);
        bench.site().routes.retain(|route| route.gateway.is_none());
        let unreachable = Detail::Route {
            kind: 7,
            error: 101,
            ifindex: None,
        };
        bench
            .udp(client, service)
            .netns(NODE)
            .receive(CNI0)
            .with(HookId::ConntrackUdp, met(first))
            .with(HookId::ConntrackUdp, met("10.244.0.7:53"))
            .with(HookId::RouteError, unreachable)
            .dropped("IP_OUTNOROUTES", "ip_error");
        let codes = bench.codes();
        assert_eq!(codes.contains(&CAUSE.code), named, "{first}: {codes:?}");
    }
}

#[test]
fn the_audit_takes_an_entry_without_nat_for_no_more_than_a_sign() {
    let entry = |service: &str, target: &str| ConntrackEntry {
        original: tuple("10.244.0.9:4000", service),
        reply: tuple(target, "10.244.0.9:4000"),
        replied: false,
        expires: Some(29),
    };
    let (sure, sign) = (
        Some((Severity::Error, Certainty::Certain)),
        Some((Severity::Warning, Certainty::Likely)),
    );
    for (service, target, expected) in [
        ("10.96.0.10:53", "10.244.0.7:53", sure),
        ("192.0.2.1:30053", "10.244.0.7:53", sure),
        // Another address of the node than the cluster knows.
        ("10.244.0.1:30053", "10.244.0.7:53", sure),
        ("10.96.0.10:53", "10.96.0.10:53", sign),
        ("10.96.0.10:53", "10.244.0.8:53", None),
        ("192.0.2.53:30053", "192.0.2.53:30053", None),
    ] {
        let mut bench = with_dns(&["10.244.0.8"]);
        let mut pod = NetnsFacts::unread(NetnsId(300), Some("pod"));
        pod.udp_entries = Some(vec![entry(service, target)]);
        bench.facts.namespaces.push(pod);
        assert_eq!(bench.with_evidence(audit), [], "of a pod: {service}");
        bench.site().udp_entries = Some(vec![entry(service, target)]);
        let found = bench.with_evidence(audit);
        let said = found
            .first()
            .map(|finding| (finding.severity, finding.diagnosis.certainty));
        assert_eq!(said, expected, "{service} {target}: {found:#?}");
        assert!(found.len() <= 1, "{found:#?}");
    }
}

#[test]
fn what_ipvs_translates_has_entries_without_nat() {
    let mut bench = with_dns(&["10.244.0.8"]);
    bench.site().ipvs = Some(vec![service(17, "10.96.0.10:53", &[("10.244.0.8:53", 1)])]);
    bench.site().udp_entries = Some(vec![ConntrackEntry {
        original: tuple("10.244.0.9:4000", "10.96.0.10:53"),
        reply: tuple("10.96.0.10:53", "10.244.0.9:4000"),
        replied: false,
        expires: None,
    }]);
    assert_eq!(bench.with_evidence(audit), []);
}
