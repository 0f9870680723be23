//! `endpoint-not-ready`: a service has endpoints, and none of them is ready.

use super::audit::nothing;
use super::evidence::Evidence;
use super::service::{Target, lacking_fresh, prove_refusal, refused};
use super::{Cause, Diagnosis, Failure};
use crate::kube::{Endpoint, Resource};

pub(super) const CAUSE: Cause = Cause {
    code: "endpoint-not-ready",
    title: "the service has endpoints, and none of them is ready",
    explanation: "\
The packet was for an address of a service whose pods are there and not ready: a readiness probe fails, a
container has not started, or the pods are going. kube-proxy sends nothing to endpoints that are not ready,
so clients see \"connection refused\", while the pods themselves may well answer.

Proof: every endpoint in the service's EndpointSlices has ready=false, and the packet was given back where
an endpoint is chosen.

Fix: see why the pods are not ready (kubectl describe pod: the probe's own words), and repair that.",
    references: &[
        "Kubernetes pkg/proxy/topology.go: kube-proxy serves ready endpoints only; from 1.26, when there is \
         none, also those that are going and still answer",
    ],
    explains: &["ipvs-no-destination", "no-listener"],
    examine,
    audit: nothing,
};

/// Endpoints that are named one by one.
const NAMED: usize = 4;

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let none_ready = |target: &Target<'_>| {
        target.endpoints().next().is_some() && target.endpoints().all(|endpoint| !endpoint.ready)
    };
    refused(evidence, none_ready)
        .into_iter()
        .map(|(target, failures)| judge(evidence, &target, &failures))
        .collect()
}

fn judge(evidence: &Evidence<'_>, target: &Target<'_>, failures: &[&Failure<'_>]) -> Diagnosis {
    let name = &target.service.name;
    let count = target.endpoints().count();
    let going = target
        .endpoints()
        .filter(|endpoint| endpoint.terminating)
        .count();
    let mut summary = format!(
        "{} has {count} endpoints, and none of them is ready, so kube-proxy sends nothing to them.",
        target.words()
    );
    if going > 0 {
        summary += &format!(" {going} of them are going away.");
    }
    let mut diagnosis = Diagnosis::new(&CAUSE, target.words(), summary).stopped(evidence, failures);
    for endpoint in target.endpoints().take(NAMED) {
        diagnosis = diagnosis.prove("endpoint", words(target, endpoint));
    }
    let diagnosis = prove_refusal(evidence, diagnosis, failures);
    let needed = [Resource::Services, Resource::Endpoints];
    let diagnosis = lacking_fresh(diagnosis, target.cluster, &needed);
    let look = match target
        .endpoints()
        .find_map(|endpoint| endpoint.pod.as_ref())
    {
        Some(pod) => format!(
            "kubectl describe pod -n {} {}   # the probe's own words are at the end",
            pod.namespace, pod.name
        ),
        None => format!(
            "kubectl get endpointslices -n {} -o yaml   # who keeps them?",
            name.namespace
        ),
    };
    diagnosis
        .fix(
            [look],
            "none: this only looks; repair what makes the probe fail",
        )
        .check(target.probe())
}

/// An endpoint and why it is not ready, where its pod is known.
fn words(target: &Target<'_>, endpoint: &Endpoint) -> String {
    let mut text = endpoint.address.to_string();
    if let Some(pod) = &endpoint.pod {
        text = format!("p/{pod} {text}");
    }
    text += " ready=false";
    if endpoint.terminating {
        text += " terminating=true";
    }
    let why = endpoint
        .pod
        .as_ref()
        .and_then(|pod| target.cluster.pod(pod)?.not_ready_because.as_ref());
    match why {
        Some(why) => format!("{text}: {why}"),
        None => text,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::Bench;
    use crate::cause::{ipvs_no_destination, service_no_endpoints};
    use crate::kube::constructed::add;

    fn slice(conditions: Value) -> Value {
        json!({"kind": "EndpointSlice", "metadata": {"namespace": "default", "name": "web-x",
                "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.244.0.9"], "nodeName": "node-a", "conditions": conditions,
                "targetRef": {"kind": "Pod", "namespace": "default", "name": "web-0"}}]})
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = ipvs_no_destination::tests::situation();
        bench.cluster = Some(service_no_endpoints::tests::facts(Some(slice(
            json!({"ready": false}),
        ))));
        bench
    }

    #[test]
    fn the_pod_says_why() {
        let mut bench = situation();
        let pod = json!({"kind": "Pod", "metadata": {"namespace": "default", "name": "web-0"},
            "status": {"conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady",
                "message": "containers with unready status: [web]"}]}});
        bench.cluster = bench.cluster.map(|facts| add(facts, &pod));
        let found = bench.only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        let said = |part: &str| found.evidence.iter().any(|proof| proof.text.contains(part));
        assert!(
            said("p/default/web-0 10.244.0.9 ready=false: containers with unready status"),
            "{found:#?}"
        );
    }

    #[test]
    fn a_ready_endpoint_is_another_story() {
        let mut bench = situation();
        bench.cluster = Some(service_no_endpoints::tests::facts(Some(slice(
            json!({"ready": true}),
        ))));
        assert_eq!(bench.codes(), ["ipvs-no-destination"]);
    }
}
