//! `kube-proxy-stale`: IPVS, iptables or nftables hold something other than what kube-proxy should have
//! made of the cluster's objects.
//!
//! The expectation is that of the `expectation` module.

use std::collections::{BTreeMap, BTreeSet};

use super::audit::Finding;
use super::evidence::{Evidence, Failure};
use super::service::{asked, is_this_nodes, lacking_fresh, unserved};
use super::{Cause, Diagnosis, Site};
use crate::event::protocol;
use crate::expectation::{Comparison, Difference, Mode, Proxy, ServerKey, Surplus, Told};
use crate::flow::Flow;
use crate::kube::{ClusterFacts, Resource};

pub(super) const CAUSE: Cause = Cause {
    code: "kube-proxy-stale",
    title: "the kernel does not hold what kube-proxy should have made of the services and endpoints",
    explanation: "\
kube-proxy turns services and endpoints into virtual servers (ipvs mode) or rules (iptables and nftables
mode). When it is stopped, cannot reach the API server, or fails to sync, they stay as they were: new services
have none, new endpoints are not used, and traffic goes on to endpoints that are long gone.

Proof: the cluster's services and EndpointSlices, by the rules of kube-proxy's mode, version and
configuration, ask for a virtual server, rule or endpoint that the kernel does not have, or the kernel still
sends to one that is no endpoint any more; and kube-proxy says that it is not healthy.

Fix: look at kube-proxy's health and log, and restart it.",
    references: &[
        "Kubernetes pkg/proxy/healthcheck/proxy_health.go: kube-proxy syncs on every change, at the latest \
         after its sync period (30 s), and finds itself unhealthy after two without a sync",
    ],
    explains: &[
        "ipvs-no-destination",
        "vip-nodeport-unbound",
        "service-no-port",
        "service-unknown",
        "neighbour-failed",
        "no-route",
        "no-listener",
        "ip-forward-off",
        "ttl-expired",
        "refused-elsewhere",
        "no-answer",
    ],
    examine,
    audit,
};

/// Differences that are named one by one.
const NAMED: usize = 6;
/// What the comparison relies on.
const NEEDED: [Resource; 3] = [Resource::Services, Resource::Endpoints, Resource::Nodes];

/// What differs on a node, and from where kube-proxy's mode is known; nothing when it is not, or what it
/// made was not read.
fn comparison(
    evidence: &Evidence<'_>,
    cluster: &ClusterFacts,
    site: &Site<'_>,
) -> Option<(Comparison, Told)> {
    let running = evidence.facts.kube_proxies_in(site.facts.id);
    let proxy =
        Proxy::known(Some(cluster), running).or_else(|| Proxy::of_kernel(cluster, site.facts))?;
    let comparison = Comparison::of(cluster, site.facts, &proxy)?;
    Some((comparison, proxy.told))
}

/// In words, that the kube-proxy of a node does not sync, by what it says of itself.
fn stalled(evidence: &Evidence<'_>, site: &Site<'_>) -> Option<String> {
    evidence
        .facts
        .kube_proxies_in(site.facts.id)
        .find_map(|running| {
            // Its own verdict, not the age: that is measured by a period which it alone knows.
            let report = running.report.as_ref()?;
            if report.healthy != Some(false) {
                return None;
            }
            let age = report.sync_age.map_or_else(String::new, |age| {
                format!(": its last sync was {} s ago", age.as_secs())
            });
            Some(format!(
                "process {} says that it is not healthy{age}",
                running.pid
            ))
        })
}

/// The namespace in which kube-proxy works: the one with the node's addresses.
fn node_site<'e, 'a>(evidence: &'e Evidence<'a>) -> Option<&'e Site<'a>> {
    evidence.sites().find(|site| is_this_nodes(evidence, site))
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let Some(cluster) = evidence.cluster else {
        return Vec::new();
    };
    let nothing = evidence.failures().is_empty()
        && evidence.stalled().is_empty()
        && evidence.refused().is_empty();
    if nothing {
        return Vec::new();
    }
    let Some(site) = node_site(evidence) else {
        return Vec::new();
    };
    let Some((comparison, told)) = comparison(evidence, cluster, site) else {
        return Vec::new();
    };
    let mode = comparison.mode;
    let stalled = stalled(evidence, site);
    let mut by_key: BTreeMap<ServerKey, Vec<Difference>> = BTreeMap::new();
    for difference in comparison.differences {
        if let Some(key) = key(&difference) {
            by_key.entry(key).or_default().push(difference);
        }
    }
    if by_key.is_empty() {
        return Vec::new();
    }
    let mut stopped: BTreeMap<ServerKey, Stopped> = BTreeMap::new();
    let failures = evidence.group(|failure| {
        let tuple = failure.journey.first_tuple()?;
        let key = ServerKey {
            protocol: tuple.protocol,
            address: tuple.destination,
        };
        let stops = |difference: &&Difference| stops(difference, failure);
        by_key.get(&key)?.iter().find(stops).map(|_| key)
    });
    for (key, failures) in failures {
        let group = stopped.entry(key).or_default();
        group
            .flows
            .extend(failures.iter().map(|failure| failure.flow.id));
        let first = failures.first();
        group.packet = first.map(|first| format!("{} did not arrive", first.words()));
    }
    for (flow, key) in left(evidence, &by_key) {
        let group = stopped.entry(key).or_default();
        group.flows.insert(flow.id);
        group.packet.get_or_insert_with(|| {
            let client = flow.client;
            format!(
                "{} {} → {} was sent on to no endpoint",
                protocol::name(client.protocol),
                client.source,
                client.destination
            )
        });
    }
    stopped
        .into_iter()
        .map(|(key, group)| {
            let diagnosis = judge(
                cluster,
                (mode, told),
                subject(&key),
                &by_key[&key],
                stalled.as_deref(),
            )
            .prove_if("packet", group.packet);
            diagnosis
                .stopped_flows(evidence, group.flows.into_iter())
                .check(format!(
                    "tracer probe {}",
                    subject(&key).replace(' ', "://")
                ))
        })
        .collect()
}

/// What a difference stopped.
#[derive(Default)]
struct Stopped {
    flows: BTreeSet<u64>,
    /// One of its packets, in words.
    packet: Option<String>,
}

/// Flows without an answer for services that rules should take and do not: without a rule their packets follow the routes
/// of the node, and are not lost there.
fn left<'e>(
    evidence: &'e Evidence<'_>,
    by_key: &'e BTreeMap<ServerKey, Vec<Difference>>,
) -> impl Iterator<Item = (&'e Flow, ServerKey)> {
    unserved(evidence).filter_map(|flow| {
        let (protocol, address) = asked(flow);
        let key = ServerKey { protocol, address };
        let missing = |difference: &Difference| {
            matches!(
                difference,
                Difference::MissingServer { .. } | Difference::MissingEndpoint { .. }
            )
        };
        let differs = by_key.get(&key)?.iter().any(missing);
        (differs && (flow.is_stalled() || flow.refused)).then_some((flow, key))
    })
}

fn subject(key: &ServerKey) -> String {
    format!("{} {}", protocol::name(key.protocol), key.address)
}

/// The virtual server whose packets a difference can stop.
fn key(difference: &Difference) -> Option<ServerKey> {
    match difference {
        Difference::MissingServer { expected } => Some(expected.key),
        Difference::MissingEndpoint { key, .. } | Difference::SurplusEndpoint { key, .. } => {
            Some(*key)
        }
        Difference::SurplusServer { .. }
        | Difference::Affinity { .. }
        | Difference::Sources { .. } => None,
    }
}

/// Whether a difference is why this packet was lost.
fn stops(difference: &Difference, failure: &Failure<'_>) -> bool {
    let real = failure.journey.last_tuple().map(|last| last.destination);
    let sent_on = real != failure.journey.first_tuple().map(|first| first.destination);
    match difference {
        Difference::MissingServer { .. } | Difference::MissingEndpoint { .. } => !sent_on,
        Difference::SurplusEndpoint {
            endpoint, surplus, ..
        } => *surplus == Surplus::Gone && real == Some(*endpoint),
        Difference::SurplusServer { .. }
        | Difference::Affinity { .. }
        | Difference::Sources { .. } => false,
    }
}

const fn evidence_label(mode: Mode) -> &'static str {
    match mode {
        Mode::Ipvs => "ipvs",
        Mode::Iptables => "iptables",
        Mode::Nftables => "nftables",
    }
}

fn judge(
    cluster: &ClusterFacts,
    (mode, told): (Mode, Told),
    subject: String,
    differences: &[Difference],
    stalled: Option<&str>,
) -> Diagnosis {
    let holder = mode.holder();
    let summary = format!(
        "{holder} differs in {} from what kube-proxy should have made of the cluster's services and endpoints: {}.",
        match differences.len() {
            1 => "one place".to_owned(),
            count => format!("{count} places"),
        },
        differences
            .first()
            .map_or_else(String::new, |first| first.words(mode))
    );
    let mut diagnosis = Diagnosis::new(&CAUSE, subject, summary);
    for difference in differences.iter().take(NAMED) {
        diagnosis = diagnosis.prove(evidence_label(mode), difference.words(mode));
    }
    let node = cluster.this_node.as_deref().unwrap_or("NODE");
    let configuration: &[_] = match told {
        Told::Itself => &[],
        Told::ConfigMap | Told::ModeAlone | Told::Kernel => &[Resource::ProxyConfiguration],
    };
    let diagnosis = lacking_fresh(diagnosis, cluster, &NEEDED);
    lacking_fresh(diagnosis, cluster, configuration)
        .lacking_if(told.lacks().is_some(), told.lacks().unwrap_or_default())
        .prove_if("kube-proxy", stalled)
        .lacking_if(
            stalled.is_none(),
            "that it stays so for longer than a sync period (30 s)",
        )
        .fix(
            [
                "curl -s http://127.0.0.1:10256/healthz   # when did it last sync?".to_owned(),
                "kubectl logs -n kube-system -l k8s-app=kube-proxy --tail=50   # or: journalctl -u kube-proxy".to_owned(),
            ],
            "none: this only looks",
        )
        .fix(
            [format!("kubectl delete pod -n kube-system -l k8s-app=kube-proxy --field-selector spec.nodeName={node}   # or: systemctl restart kube-proxy")],
            "kube-proxy starts anew and syncs; established connections go on",
        )
}

fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let Some(cluster) = evidence.cluster.filter(|cluster| cluster.fresh(&NEEDED)) else {
        return Vec::new();
    };
    let Some(site) = node_site(evidence) else {
        return Vec::new();
    };
    let Some((comparison, told)) = comparison(evidence, cluster, site) else {
        return Vec::new();
    };
    let (mode, differences) = (comparison.mode, &comparison.differences);
    if differences.is_empty() {
        return Vec::new();
    }
    let keys: BTreeSet<_> = differences.iter().filter_map(key).collect();
    let subject = format!("{} service addresses of {}", keys.len(), site.name());
    let stalled = stalled(evidence, site);
    let mut diagnosis = judge(
        cluster,
        (mode, told),
        subject,
        differences,
        stalled.as_deref(),
    )
    .check("tracer cluster differences");
    for words in comparison.not_compared() {
        diagnosis = diagnosis.prove(evidence_label(mode), words);
    }
    vec![if stalled.is_some() {
        Finding::error(diagnosis)
    } else {
        Finding::warning(diagnosis)
    }]
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::audit::Severity;
    use crate::cause::constructed::{Bench, CNI0, ETH0, NODE, link, node, service};
    use crate::event::Detail;
    use crate::expectation::SERVICE_DEVICE;
    use crate::kube::constructed::{cluster, configured};
    use crate::node::{
        Destination, KubeProxy, NetnsId, PacketFilter, ProxyReport, ServiceRule, ServiceRules,
    };

    /// A node in ipvs mode whose service was made and whose endpoint is new.
    fn bench(real: &[(&str, u32)]) -> Bench {
        let mut bench = node();
        let facts = cluster(
            "node-a",
            &[
                json!({"kind": "Node", "metadata": {"name": "node-a"}, "status": {
                    "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
                    "nodeInfo": {"kubeletVersion": "v1.31.0"}}}),
                json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"},
                    "spec": {"clusterIPs": ["10.96.0.5"], "ports": [{"port": 80}]}}),
                json!({"kind": "EndpointSlice", "metadata": {"namespace": "default", "name": "web-x",
                        "labels": {"kubernetes.io/service-name": "web"}},
                    "ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.244.0.9"]}]}),
            ],
        );
        bench.cluster = Some(configured(facts, "mode: ipvs"));
        bench.site().ipvs = Some(vec![service(6, "10.96.0.5:80", real)]);
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = bench(&[]);
        bench
            .tcp("192.0.2.10:40000", "10.96.0.5:80")
            .receive(ETH0)
            .at(HookId::LocalDeliver)
            .at(HookId::IpvsSchedule)
            .at(HookId::IpvsLeave)
            .with(HookId::IcmpSend, Detail::Icmp { kind: 3, code: 3 })
            .dropped("NETFILTER_DROP", "nf_hook_slow");
        bench
    }

    #[test]
    fn a_ready_endpoint_that_ipvs_lacks() {
        let found = situation().diagnose();
        let own = found
            .iter()
            .find(|found| found.code == CAUSE.code)
            .expect("the cause");
        assert_eq!((own.certainty, own.failed), (Certainty::Likely, 1));
        assert!(
            own.summary
                .contains("lacks the ready endpoint 10.244.0.9:8080"),
            "{own:#?}"
        );
    }

    /// A kube-proxy that says this of itself.
    fn with_report(mut bench: Bench, healthy: bool, sync_age: u64) -> Bench {
        let mut proxy = KubeProxy::constructed("kube-proxy --proxy-mode=ipvs");
        proxy.netns = Some(NetnsId(NODE));
        proxy.report = Some(ProxyReport {
            healthy: Some(healthy),
            sync_age: Some(Duration::from_secs(sync_age)),
            ..ProxyReport::default()
        });
        bench.facts.kube_proxies = vec![proxy];
        bench
    }

    #[test]
    fn a_kube_proxy_that_does_not_sync_is_the_root() {
        let found = with_report(situation(), false, 95).only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.consequences[0].code, "ipvs-no-destination");
        let said = found
            .evidence
            .iter()
            .find(|proof| proof.source == "kube-proxy");
        let said = said.map(|proof| proof.text.as_str()).unwrap_or_default();
        assert!(said.contains("95 s ago"), "{said}");
        // The difference may be of this moment, or its sync period longer than is known here.
        for age in [20, 95] {
            let found = with_report(situation(), true, age).only();
            assert_eq!(
                (found.code, found.certainty),
                (CAUSE.code, Certainty::Likely)
            );
            assert_eq!(found.consequences[0].code, "ipvs-no-destination");
        }
    }

    #[test]
    fn a_difference_is_an_error_once_kube_proxy_does_not_sync() {
        for (healthy, wanted) in [(false, Severity::Error), (true, Severity::Warning)] {
            let found = with_report(bench(&[]), healthy, 1).with_evidence(audit);
            let found: Vec<_> = found.iter().map(|found| found.severity).collect();
            assert_eq!(found, [wanted]);
        }
        let healthy = bench(&[("10.244.0.9:8080", 1)]);
        assert_eq!(with_report(healthy, false, 95).with_evidence(audit), []);
    }

    #[test]
    fn an_endpoint_that_is_gone() {
        let mut bench = bench(&[("10.244.0.9:8080", 1), ("10.244.0.8:8080", 1)]);
        bench
            .tcp("192.0.2.10:40000", "10.96.0.5:80")
            .receive(ETH0)
            .at(HookId::IpvsSchedule)
            .to("10.244.0.8:8080")
            .dropped("", "ip_forward");
        let found = bench.diagnose();
        assert!(
            found
                .iter()
                .any(|found| found.code == CAUSE.code && found.summary.contains("10.244.0.8:8080"))
        );
    }

    /// The same node in iptables mode.
    fn by_rules(endpoint: &str) -> Bench {
        let mut bench = bench(&[]);
        bench.cluster = bench
            .cluster
            .map(|facts| configured(facts, "mode: iptables"));
        bench.site().ipvs = None;
        bench.site().service_rules = Some(vec![ServiceRules {
            filter: PacketFilter::Iptables,
            services: vec![ServiceRule {
                protocol: protocol::TCP,
                destination: Destination::Address("10.96.0.5:80".parse().expect("an address")),
                endpoints: [endpoint.parse().expect("an endpoint")].into(),
                affinity: None,
                sources: None,
                refusal: None,
            }],
            node_ports: Vec::new(),
        }]);
        bench
    }

    #[test]
    fn rules_that_send_to_an_endpoint_that_is_gone() {
        for (endpoint, named) in [("10.244.0.8:8080", 1), ("10.244.0.9:8080", 0)] {
            let mut bench = by_rules(endpoint);
            assert_eq!(bench.with_evidence(audit).len(), named, "{endpoint}");
            bench
                .tcp("192.0.2.10:40000", "10.96.0.5:80")
                .receive(ETH0)
                .to(endpoint)
                .dropped("", "ip_forward");
            let found = bench.diagnose();
            let own: Vec<_> = found
                .iter()
                .filter(|found| found.code == CAUSE.code)
                .collect();
            assert_eq!(own.len(), named, "{endpoint}: {found:#?}");
            let said = own.iter().flat_map(|own| &own.evidence);
            let words = "iptables rule for tcp 10.96.0.5:80 of s/default/web still sends to";
            let sends = said.filter(|proof| proof.text.starts_with(words)).count();
            assert_eq!(sends, named, "{found:#?}");
        }
    }

    #[test]
    fn packets_that_no_rule_takes_leave_the_node() {
        for (address, named) in [("10.96.0.6:80", true), ("10.96.0.5:80", false)] {
            let mut bench = by_rules("10.244.0.9:8080");
            let rules = bench.site().service_rules.as_mut().expect("rules");
            rules[0].services[0].destination =
                Destination::Address(address.parse().expect("an address"));
            for _ in 0..2 {
                bench
                    .tcp("10.244.0.7:40000", "10.96.0.5:80")
                    .receive(CNI0)
                    .at(HookId::Forward)
                    .transmit(ETH0)
                    .ends();
            }
            assert_eq!(bench.codes().contains(&CAUSE.code), named, "{address}");
        }
    }

    /// A node whose API server does not give kube-proxy's ConfigMap.
    fn without_map(mut bench: Bench) -> Bench {
        let mut facts = bench.cluster.take().expect("a cluster");
        facts.proxy_configuration = None;
        bench.cluster = Some(facts.without(Resource::ProxyConfiguration, "forbidden"));
        bench
    }

    #[test]
    fn without_the_config_map_the_process_says_its_mode() {
        let by_line = |line: &str, report: Option<ProxyReport>| {
            let mut bench = without_map(bench(&[]));
            let mut proxy = KubeProxy::constructed(line);
            proxy.netns = Some(NetnsId(NODE));
            proxy.report = report;
            bench.facts.kube_proxies = vec![proxy];
            bench.with_evidence(audit)
        };
        let unhealthy = |mode: Option<&str>| {
            Some(ProxyReport {
                healthy: Some(false),
                mode: mode.map(str::to_owned),
                ..ProxyReport::default()
            })
        };
        // Its flags are all there is: nothing is missing.
        let found = by_line("kube-proxy --proxy-mode=ipvs", unhealthy(None));
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].diagnosis.certainty,
            Certainty::Certain,
            "{found:#?}"
        );
        // A file that nobody could read, and its answer on /proxyMode.
        let found = by_line("kube-proxy --config=/etc/k.yml", unhealthy(Some("ipvs")));
        assert_eq!(found.len(), 1);
        let diagnosis = &found[0].diagnosis;
        assert_eq!(diagnosis.certainty, Certainty::Likely);
        let missing = diagnosis.missing.join("; ");
        for said in ["forbidden", "kube-proxy's configuration: without it"] {
            assert!(missing.contains(said), "{missing}");
        }
        assert!(diagnosis.summary.contains("10.244.0.9:8080"));
    }

    #[test]
    fn without_anybodys_word_the_tables_say_the_mode() {
        let by_ipvs = |device: bool| {
            let mut bench = without_map(bench(&[]));
            if device {
                bench.site().links.push(link(9, SERVICE_DEVICE));
            }
            bench
        };
        let by_rules = || without_map(by_rules("10.244.0.8:8080"));
        for mut bench in [by_ipvs(true), by_rules()] {
            let found = bench.with_evidence(audit);
            assert_eq!(found.len(), 1);
            let diagnosis = &found[0].diagnosis;
            assert_eq!(diagnosis.certainty, Certainty::Likely);
            let missing = diagnosis.missing.join("; ");
            assert!(
                missing.contains("the mode is that of what the kernel holds"),
                "{missing}"
            );
            // What nobody may have asked kube-proxy for is not held against it.
            if let Some(servers) = &mut bench.site().ipvs {
                servers.push(service(6, "192.0.2.77:80", &[]));
            }
            assert_eq!(
                bench.with_evidence(audit)[0].diagnosis.summary,
                diagnosis.summary
            );
        }
        // Another program may balance by IPVS, and two modes' tables tell neither.
        assert_eq!(by_ipvs(false).with_evidence(audit), []);
        let mut both = by_ipvs(true);
        both.site().service_rules = by_rules().site().service_rules.take();
        assert_eq!(both.with_evidence(audit), []);
    }

    #[test]
    fn an_old_config_map_is_used_and_named() {
        let mut bench = bench(&[]);
        let facts = bench.cluster.take().expect("a cluster");
        bench.cluster = Some(facts.without(Resource::ProxyConfiguration, "away"));
        let found = bench.with_evidence(audit);
        assert_eq!(found.len(), 1);
        let missing = found[0].diagnosis.missing.join("; ");
        assert!(
            missing.contains("fresh facts of kube-proxy's configuration"),
            "{missing}"
        );
    }

    #[test]
    fn a_synced_table_is_no_finding() {
        let healthy = bench(&[("10.244.0.9:8080", 1)]);
        assert_eq!(healthy.with_evidence(audit), []);
        let stale = bench(&[]);
        assert_eq!(stale.with_evidence(audit).len(), 1);
        let mut stale = stale;
        stale.cluster = stale.cluster.map(|facts| facts.with_trouble("away"));
        assert_eq!(stale.with_evidence(audit), []);
    }
}
