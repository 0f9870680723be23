//! `service-no-endpoints`: a service that has no endpoint at all.

use std::collections::HashSet;

use super::audit::nothing;
use super::evidence::Evidence;
use super::service::{Target, lacking_fresh, prove_refusal, refused};
use super::{Cause, Diagnosis, Failure, service_rejected};
use crate::kube::Resource;

pub(super) const CAUSE: Cause = Cause {
    code: "service-no-endpoints",
    title: "the service has no endpoints: no pod matches its selector",
    explanation: "\
The packet was for an address of a service, and the cluster has no endpoint for that service: its selector
matches no pod, its deployment is scaled to 0, or nobody keeps the endpoints of a service without selector.
kube-proxy then makes a virtual server without real servers (ipvs) or a rule that refuses (iptables,
nftables), and clients see \"connection refused\".

Proof: the service's EndpointSlices are empty, and the packet was given back where an endpoint is chosen.

Fix: make the selector and the pods' labels the same, or scale the deployment up.",
    references: &[
        "Kubernetes pkg/proxy/iptables/proxier.go: a REJECT rule with the comment \"NAMESPACE/NAME:PORT has no \
         endpoints\"",
        "Kubernetes pkg/proxy/nftables/proxier.go: reject-chain",
        "Kubernetes pkg/proxy/ipvs/proxier.go: a virtual server without real servers",
    ],
    explains: &["ipvs-no-destination", "no-listener"],
    examine,
    audit: nothing,
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut found: Vec<_> = refused(evidence, |target| target.endpoints().next().is_none())
        .into_iter()
        .map(|(target, failures)| judge(evidence, &target, &failures))
        .collect();
    let named: HashSet<u64> = found
        .iter()
        .flat_map(|diagnosis| diagnosis.flows.clone())
        .collect();
    found.extend(
        service_rejected::diagnoses(evidence)
            .into_iter()
            .filter(|diagnosis| !diagnosis.flows.iter().any(|flow| named.contains(flow))),
    );
    found
}

fn judge(evidence: &Evidence<'_>, target: &Target<'_>, failures: &[&Failure<'_>]) -> Diagnosis {
    let name = &target.service.name;
    let selector = target.selector();
    let summary = match &selector {
        Some(selector) => format!(
            "{} has no endpoints: no pod of namespace {} that has an address matches its selector {selector}.",
            target.words(),
            name.namespace
        ),
        None => format!(
            "{} has no endpoints and no selector: somebody has to keep its endpoints by hand.",
            target.words()
        ),
    };
    let diagnosis = Diagnosis::new(&CAUSE, target.words(), summary)
        .stopped(evidence, failures)
        .prove(
            "service",
            format!("the EndpointSlices of s/{name} hold no endpoint"),
        );
    let diagnosis = prove_refusal(evidence, diagnosis, failures);
    let needed = [Resource::Services, Resource::Endpoints];
    let diagnosis = lacking_fresh(diagnosis, target.cluster, &needed);
    let look = match selector {
        Some(selector) => format!(
            "kubectl get pods -n {} -l {selector} -o wide   # are there any, and do they have addresses?",
            name.namespace
        ),
        None => format!(
            "kubectl get endpointslices -n {}   # who keeps them?",
            name.namespace
        ),
    };
    diagnosis
        .fix(
            [
                look,
                format!(
                    "kubectl edit service -n {} {}   # correct the selector",
                    name.namespace, name.name
                ),
            ],
            "another selector sends the service's clients to other pods",
        )
        .check(target.probe())
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::Bench;
    use crate::cause::ipvs_no_destination;
    use crate::kube::ClusterFacts;
    use crate::kube::constructed::cluster;

    pub(in crate::cause) fn facts(slice: Option<serde_json::Value>) -> ClusterFacts {
        let mut objects = vec![
            json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"},
            "spec": {"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "selector": {"app": "web"},
                "ports": [{"port": 80, "targetPort": 8080}]}}),
        ];
        objects.extend(slice);
        cluster("node-a", &objects)
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = ipvs_no_destination::tests::situation();
        bench.cluster = Some(facts(None));
        bench
    }

    #[test]
    fn the_selector_is_named_and_ipvs_is_the_consequence() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.summary.contains("app=web"), "{found:#?}");
        assert_eq!(found.consequences[0].code, "ipvs-no-destination");
    }

    #[test]
    fn stale_facts_make_it_likely() {
        let mut bench = situation();
        bench.cluster = bench
            .cluster
            .map(|facts| facts.with_trouble("connection refused"));
        let found = bench.diagnose();
        let own = found
            .iter()
            .find(|found| found.code == CAUSE.code)
            .expect("the cause");
        assert_eq!(own.certainty, Certainty::Likely);
        assert!(
            own.missing
                .iter()
                .any(|missing| missing.contains("connection refused"))
        );
    }

    #[test]
    fn without_a_cluster_it_says_nothing() {
        let mut bench = situation();
        bench.cluster = None;
        assert_eq!(bench.codes(), ["ipvs-no-destination"]);
    }
}
