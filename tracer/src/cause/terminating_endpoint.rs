//! `terminating-endpoint`: packets go to an endpoint whose pod is to be gone and is not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use super::audit::Finding;
use super::evidence::{Evidence, Failure};
use super::service::lacking_fresh;
use super::{Cause, Diagnosis};
use crate::event::{Packet, protocol};
use crate::flow::{Direction, Flow};
use crate::hook::Role;
use crate::journey::Journey;
use crate::kube::{ClusterFacts, Endpoint, Pod, Resource, Service};

pub(super) const CAUSE: Cause = Cause {
    code: "terminating-endpoint",
    title: "packets go to a pod that is Terminating and does not answer any more",
    explanation: "\
A pod was deleted, and its object is still there long after its grace period: its node is down, so nobody
says that its containers ended, or a finalizer is never done. Its address stays in the service's
EndpointSlices. Connections from before go on to it, which is right while it answers; kube-proxy from 1.26
also sends new ones when no other endpoint is ready. Packets then meet a neighbour that does not answer, no
route, or silence.

Proof: the pod's deletionTimestamp has passed, and finalizers or its node's state say why it stays; and
packets to its address were lost.

Fix: bring its node back. Only when the node is surely down, or the container surely gone: force the
deletion, then clear the finalizers. Force deletion removes the object, not necessarily the container: a pod
of a StatefulSet may then run twice, and its address may be given to another.",
    references: &[
        "Kubernetes pkg/proxy/topology.go: from 1.26 kube-proxy serves endpoints that are going only when none \
         is ready",
        "https://github.com/kubernetes/kubernetes/issues/128479",
    ],
    explains: &["neighbour-failed", "no-route", "ipvs-stale-connection", "no-listener"],
    examine,
    audit,
};

/// Longer than this after its time a pod is stuck, not slow.
const SLOW: Duration = Duration::from_secs(30);

/// Flows by their number, each with a packet that was lost.
type Lost<'a> = BTreeMap<u64, (&'a Flow, &'a Journey)>;

/// What is known of the endpoint that packets went to.
#[derive(Clone, Copy)]
struct Going<'a> {
    cluster: &'a ClusterFacts,
    service: Option<&'a Service>,
    endpoint: Option<&'a Endpoint>,
    pod: Option<&'a Pod>,
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let Some(cluster) = evidence.cluster else {
        return Vec::new();
    };
    let mut lost: BTreeMap<(u8, SocketAddr), Lost<'_>> = BTreeMap::new();
    let failures = evidence
        .failures()
        .iter()
        .filter(|failure| failure.direction == Direction::Request)
        .map(|failure: &Failure<'_>| (failure.flow, failure.journey));
    let stalled = evidence.stalled().iter().filter_map(|flow| {
        let journey = flow.of(Direction::Request).last()?;
        Some((*flow, journey))
    });
    for (flow, journey) in failures.chain(stalled) {
        if let Some(last) = journey.last_tuple() {
            let group = lost.entry((last.protocol, last.destination)).or_default();
            group.entry(flow.id).or_insert((flow, journey));
        }
    }
    lost.into_iter()
        .filter_map(|((number, real), lost)| {
            let lost: Vec<_> = lost.into_values().collect();
            let client = lost.first()?.0.client;
            let going = going(cluster, number, client.destination, real)?;
            Some(judge(evidence, going, number, real, &lost))
        })
        .collect()
}

/// The endpoint at an address, when it is going.
fn going(
    cluster: &ClusterFacts,
    number: u8,
    service: SocketAddr,
    real: SocketAddr,
) -> Option<Going<'_>> {
    let service = cluster.service_at(number, service);
    let endpoint = service.and_then(|service| {
        cluster
            .endpoints_of(&service.name)
            .map(|(endpoint, _)| endpoint)
            .find(|endpoint| endpoint.address == real.ip())
    });
    let pod = cluster
        .pods_at(real.ip())
        .filter_map(|name| cluster.pod(name))
        .find(|pod| pod.deletion.is_some());
    // Another pod may have the address by now; its own pod is older than the endpoint that says it goes.
    let own = endpoint
        .filter(|endpoint| endpoint.terminating)
        .and_then(|endpoint| endpoint.pod.as_ref());
    let taken_over = cluster
        .pods_at(real.ip())
        .filter_map(|name| cluster.pod(name))
        .any(|pod| pod.deletion.is_none() && own != Some(&pod.name));
    let is_going = pod.is_some() || endpoint.is_some_and(|endpoint| endpoint.terminating);
    (is_going && !taken_over).then_some(Going {
        cluster,
        service,
        endpoint,
        pod,
    })
}

fn judge(
    evidence: &Evidence<'_>,
    going: Going<'_>,
    number: u8,
    real: SocketAddr,
    lost: &[(&Flow, &Journey)],
) -> Diagnosis {
    let now = evidence.facts.taken.max(going.cluster.taken);
    let name = going
        .pod
        .map(|pod| &pod.name)
        .or_else(|| going.endpoint?.pod.as_ref());
    let who = name.map_or_else(|| format!("the pod of {real}"), |name| format!("p/{name}"));
    let through = going
        .service
        .map_or_else(String::new, |service| format!(" of s/{}", service.name));
    let opening = lost.iter().filter(|(_, journey)| opens(journey)).count();
    let late = going.pod.and_then(|pod| overdue(pod, now));
    let mut summary = format!("Packets go to {real}{through}, and {who} is Terminating");
    summary += &match late {
        Some(late) => format!(": it was to be gone {} ago.", words(late)),
        None => ".".to_owned(),
    };
    summary += match (opening, lost.len() - opening) {
        (0, 0) => "",
        (0, _) => " They belong to connections from before, which kube-proxy leaves alone.",
        (_, 0) => " They open new connections",
        _ => {
            " Some belong to connections from before, which kube-proxy leaves alone; others open new ones"
        }
    };
    if opening > 0 {
        summary += why_new(going, real);
    }
    let mut diagnosis = Diagnosis::new(
        &CAUSE,
        format!("{} {real}", protocol::name(number)),
        summary,
    );
    if !lost.is_empty() {
        diagnosis = diagnosis.stopped_flows(evidence, lost.iter().map(|(flow, _)| flow.id));
    }
    for (source, text) in proofs(going, now) {
        diagnosis = diagnosis.prove(source, text);
    }
    let needed = [Resource::Endpoints, Resource::Nodes];
    let diagnosis = lacking_fresh(diagnosis, going.cluster, &needed)
        .prove_if(
            "packet",
            lost.first().map(|(_, journey)| fate(journey, real)),
        )
        .lacking_if(
            going.pod.is_none(),
            "the pod's object: since when it is to be gone, and what holds it",
        )
        .lacking_if(
            going.pod.is_some() && late.is_none_or(|late| late < SLOW),
            "that its grace period is long over",
        )
        .lacking_if(
            going
                .pod
                .is_some_and(|pod| pod.finalizers.is_empty() && down(going).is_none()),
            "why it stays: it has no finalizer, and its node is not known to be down",
        )
        .check(format!("tracer probe {}://{real}", protocol::name(number)));
    fixes(diagnosis, going)
}

/// Why new connections go to it, as the end of a sentence.
fn why_new(going: Going<'_>, real: SocketAddr) -> &'static str {
    let Some(service) = going.service else {
        return ", to the pod itself.";
    };
    if service.publish_not_ready {
        return ": its service publishes endpoints whether or not they are ready (publishNotReadyAddresses).";
    }
    let mut others = going.cluster.endpoints_of(&service.name);
    if others.any(|(other, _)| other.ready && other.address != real.ip()) {
        " though another endpoint is ready: kube-proxy has not taken it out."
    } else {
        ", as no other endpoint is ready."
    }
}

/// How long ago a pod was to be gone; `None` while it still has time.
fn overdue(pod: &Pod, now: SystemTime) -> Option<Duration> {
    now.duration_since(pod.deletion?.due).ok()
}

fn opens(journey: &Journey) -> bool {
    journey
        .events
        .iter()
        .find_map(|event| event.packet.as_ref())
        .is_none_or(Packet::opens)
}

fn fate(journey: &Journey, real: SocketAddr) -> String {
    let what = if journey.passed(Role::NeighbourFailed) {
        "its neighbour does not answer"
    } else if journey.passed(Role::RouteError) {
        "there is no route to it"
    } else if journey.failed() {
        "it was lost"
    } else {
        "nothing came back"
    };
    format!("#{} was for {real}: {what}", journey.id)
}

fn proofs(going: Going<'_>, now: SystemTime) -> Vec<(&'static str, String)> {
    let mut proofs = Vec::new();
    if let Some(pod) = going.pod {
        let grace = pod
            .deletion
            .and_then(|deletion| deletion.grace)
            .map_or_else(String::new, |grace| {
                format!(", grace period {} s", grace.as_secs())
            });
        let late = overdue(pod, now).map_or_else(
            || "deleted".to_owned(),
            |late| format!("was to be gone {} ago", words(late)),
        );
        proofs.push(("pod", format!("p/{} {late}{grace}", pod.name)));
        if !pod.finalizers.is_empty() {
            let text = format!("its finalizers: {}", pod.finalizers.join(", "));
            proofs.push(("pod", text));
        }
    }
    if let Some(endpoint) = going.endpoint {
        proofs.push((
            "endpoint",
            format!(
                "{} ready={} serving={} terminating={}",
                endpoint.address, endpoint.ready, endpoint.serving, endpoint.terminating
            ),
        ));
    }
    if let Some(node) = down(going) {
        proofs.push(("node", format!("n/{node} is not ready")));
    }
    proofs
}

/// The pod's node, when it is not ready or not heard of.
fn down<'a>(going: Going<'a>) -> Option<&'a str> {
    let of_pod = going.pod.and_then(|pod| pod.node.as_deref());
    let name = of_pod.or_else(|| going.endpoint?.node.as_deref())?;
    let node = going.cluster.node(name)?;
    (node.ready != Some(true)).then_some(name)
}

fn fixes(diagnosis: Diagnosis, going: Going<'_>) -> Diagnosis {
    const RISK: &str = "the object goes, not necessarily the container: it may run twice, and its address may be \
                        given to another pod while it still answers";
    let diagnosis = match down(going) {
        Some(node) => diagnosis.fix(
            [format!(
                "kubectl describe node {node}   # bring it back: its kubelet then ends the pod"
            )],
            "none: this only looks",
        ),
        None => diagnosis,
    };
    let Some(name) = going
        .pod
        .map(|pod| &pod.name)
        .or_else(|| going.endpoint?.pod.as_ref())
    else {
        return diagnosis.fix(
            ["kubectl get pods -A -o wide   # which pod has the address, and what holds it"],
            "none: this only looks",
        );
    };
    let diagnosis = diagnosis.fix(
        [
            "# danger: only when the node is surely down or the container surely gone".to_owned(),
            format!(
                "kubectl delete pod -n {} {} --grace-period=0 --force",
                name.namespace, name.name
            ),
        ],
        RISK,
    );
    let held = going.pod.is_none_or(|pod| !pod.finalizers.is_empty());
    if !held {
        return diagnosis;
    }
    diagnosis.fix(
        [
            "# danger: what the finalizer was to clean up stays".to_owned(),
            format!(
                "kubectl patch pod -n {} {} -p '{{\"metadata\":{{\"finalizers\":null}}}}'",
                name.namespace, name.name
            ),
        ],
        RISK,
    )
}

/// A duration for people.
fn words(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

/// Pods that are long to be gone and still stand among the endpoints of services.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let Some(cluster) = evidence.cluster else {
        return Vec::new();
    };
    let now = evidence.facts.taken.max(cluster.taken);
    let mut found = Vec::new();
    for service in cluster.services() {
        for (endpoint, ports) in cluster.endpoints_of(&service.name) {
            let Some(pod) = endpoint.pod.as_ref().and_then(|name| cluster.pod(name)) else {
                continue;
            };
            if overdue(pod, now).is_none_or(|late| late < SLOW) {
                continue;
            }
            for port in ports {
                let going = Going {
                    cluster,
                    service: Some(service),
                    endpoint: Some(endpoint),
                    pod: Some(pod),
                };
                let real = SocketAddr::new(endpoint.address, port.port.unwrap_or(0));
                found.push(Finding::warning(judge(
                    evidence,
                    going,
                    port.protocol,
                    real,
                    &[],
                )));
            }
        }
    }
    found
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, neighbour, node};
    use crate::event::Detail;
    use crate::kube::constructed::cluster;
    use crate::node::NeighbourState;

    fn objects(pod: Value) -> Vec<Value> {
        vec![
            json!({"kind": "Node", "metadata": {"name": "node-b"},
                "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}),
            json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"},
                "spec": {"clusterIPs": ["10.96.0.5"], "ports": [{"port": 80}]}}),
            json!({"kind": "EndpointSlice", "metadata": {"namespace": "default", "name": "web-x",
                    "labels": {"kubernetes.io/service-name": "web"}},
                "ports": [{"port": 8080}],
                "endpoints": [{"addresses": ["192.0.2.77"], "nodeName": "node-b",
                    "conditions": {"ready": false, "serving": true, "terminating": true},
                    "targetRef": {"kind": "Pod", "namespace": "default", "name": "web-0"}}]}),
            pod,
        ]
    }

    fn pod(deleted: &str) -> Value {
        json!({"kind": "Pod", "metadata": {"namespace": "default", "name": "web-0", "deletionTimestamp": deleted,
                "deletionGracePeriodSeconds": 30, "finalizers": ["example.org/cleanup"]},
            "spec": {"nodeName": "node-b"}, "status": {"podIP": "192.0.2.77"}})
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        bench.cluster = Some(cluster("node-a", &objects(pod("2020-01-01T00:00:00Z"))));
        bench.site().neighbours = vec![neighbour(ETH0, "192.0.2.77", NeighbourState::Failed)];
        let failed = Detail::Neighbour {
            address: "192.0.2.77".parse().expect("an address"),
            ifindex: ETH0,
        };
        bench
            .tcp("10.244.0.9:40000", "10.96.0.5:80")
            .receive(ETH0)
            .at(HookId::IpvsSchedule)
            .to("192.0.2.77:8080")
            .with(HookId::NeighbourFailed, failed)
            .dropped("NEIGH_FAILED", "neigh_invalidate");
        bench
    }

    fn own(bench: &Bench) -> Diagnosis {
        let mut found = bench.diagnose().into_iter();
        found
            .find(|found| found.code == CAUSE.code)
            .expect("the cause")
    }

    #[test]
    fn the_pod_its_node_and_the_danger_are_said() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        let said = |part: &str| found.evidence.iter().any(|proof| proof.text.contains(part));
        for part in [
            "p/default/web-0 was to be gone",
            "example.org/cleanup",
            "n/node-b",
            "terminating=true",
        ] {
            assert!(said(part), "{part}: {found:#?}");
        }
        let forced = found
            .fixes
            .iter()
            .find(|fix| fix.lines.iter().any(|line| line.contains("--force")));
        assert!(forced.expect("a fix").lines[0].starts_with("# danger"));
        assert_eq!(found.consequences[0].code, "neighbour-failed");
    }

    #[test]
    fn a_pod_that_nothing_holds_is_likely() {
        let mut bench = situation();
        let mut free = pod("2020-01-01T00:00:00Z");
        free["metadata"]["finalizers"] = json!([]);
        let mut objects = objects(free);
        objects[0]["status"]["conditions"][0]["status"] = json!("True");
        bench.cluster = Some(cluster("node-a", &objects));
        let found = own(&bench);
        assert_eq!(found.certainty, Certainty::Likely);
        assert!(
            found
                .missing
                .iter()
                .any(|what| what.contains("why it stays"))
        );
    }

    #[test]
    fn why_new_connections_come_is_told_from_the_endpoints() {
        let said = |publishes: bool, other: bool| {
            let mut bench = situation();
            let mut objects = objects(pod("2020-01-01T00:00:00Z"));
            objects[1]["spec"]["publishNotReadyAddresses"] = json!(publishes);
            if other {
                let ready = json!({"addresses": ["192.0.2.78"], "conditions": {"ready": true}});
                objects[2]["endpoints"]
                    .as_array_mut()
                    .expect("endpoints")
                    .push(ready);
            }
            bench.cluster = Some(cluster("node-a", &objects));
            bench.only().summary
        };
        assert!(said(false, false).ends_with("new connections, as no other endpoint is ready."));
        assert!(said(false, true).contains("though another endpoint is ready"));
        assert!(said(true, false).contains("publishNotReadyAddresses"));
    }

    #[test]
    fn within_its_grace_period_or_without_the_pod_it_is_likely() {
        let mut bench = situation();
        bench.cluster = Some(cluster("node-a", &objects(pod("2099-01-01T00:00:00Z"))));
        assert_eq!(own(&bench).certainty, Certainty::Likely);
        let without = &objects(json!(null))[..3];
        bench.cluster = Some(cluster("node-a", without));
        assert_eq!(own(&bench).certainty, Certainty::Likely);
    }

    #[test]
    fn a_new_owner_of_the_address_is_another_story() {
        let mut bench = situation();
        let new = json!({"kind": "Pod", "metadata": {"namespace": "default", "name": "new"},
            "spec": {"nodeName": "node-b"}, "status": {"podIP": "192.0.2.77", "phase": "Running"}});
        bench.cluster = bench
            .cluster
            .map(|facts| crate::kube::constructed::add(facts, &new));
        assert_eq!(bench.codes(), ["neighbour-failed"]);
    }

    #[test]
    fn a_pod_that_was_read_before_it_was_deleted_is_not_a_new_owner() {
        let mut bench = situation();
        let mut before = pod("2020-01-01T00:00:00Z");
        before["metadata"] = json!({"namespace": "default", "name": "web-0"});
        bench.cluster = Some(cluster("node-a", &objects(before)));
        let own = own(&bench);
        assert_eq!(own.certainty, Certainty::Likely);
        assert!(own.summary.contains("p/default/web-0"), "{own:?}");
    }

    #[test]
    fn the_audit_finds_it_without_packets() {
        let bench = situation();
        let found = bench.with_evidence(audit);
        assert_eq!(found.len(), 1);
        assert!(found[0].diagnosis.summary.contains("192.0.2.77:8080"));
    }
}
