//! What kube-proxy's versions make of hints.

use serde_json::json;

use super::*;

/// Hints of both endpoints: zones of the one here, of the one there, then nodes.
type Hints<'a> = [&'a [&'a str]; 4];

const BY_ZONE: Hints<'_> = [&["a"], &["b"], &[], &[]];
const HERE: &[&str] = &["10.244.0.5:8080"];
const THERE: &[&str] = &["10.244.1.5:8080"];
const BOTH: &[&str] = &["10.244.0.5:8080", "10.244.1.5:8080"];
const CLUSTER_IP: &str = "10.96.0.10:80";
const NODE_PORT: &str = "192.0.2.1:30080";

/// Two ready endpoints with hints, and one that is not ready and has none; a service with annotations; the
/// node in a zone.
fn facts(spec: Value, annotations: Value, hints: Hints<'_>, zone: Option<&str>) -> ClusterFacts {
    let named = |names: &[&str]| -> Vec<Value> {
        let name = |name: &&str| json!({"name": name});
        names.iter().map(name).collect()
    };
    let [here, there, node_here, node_there] = hints.map(named);
    let mut endpoints = slice(&[READY_HERE, READY_THERE, UNREADY]);
    endpoints["endpoints"][0]["hints"] = json!({"forZones": here, "forNodes": node_here});
    endpoints["endpoints"][1]["hints"] = json!({"forZones": there, "forNodes": node_there});
    let mut node = node_object();
    node["metadata"]["labels"] = match zone {
        Some(zone) => json!({"topology.kubernetes.io/zone": zone}),
        None => json!({}),
    };
    let mut service = service(spec);
    service["metadata"]["annotations"] = annotations;
    cluster(NODE, &[node, service, endpoints])
}

fn told(facts: &ClusterFacts, proxy: &Proxy, address: &str) -> Result<Vec<String>, Unsure> {
    let servers = expected(facts, &node(), proxy);
    let server = servers
        .into_iter()
        .find(|server| server.key.address == at(address))
        .expect("the server");
    Ok(server.endpoints?.iter().map(ToString::to_string).collect())
}

fn words(list: &[&str]) -> Result<Vec<String>, Unsure> {
    Ok(list.iter().map(|text| (*text).to_owned()).collect())
}

#[test]
fn hints_of_zones_count_as_version_and_annotation_say() {
    let annotation =
        |name: &str, value: &str| json!({format!("service.kubernetes.io/{name}"): value});
    for (annotations, first) in [
        (annotation("topology-aware-hints", "Auto"), 24),
        (annotation("topology-aware-hints", "auto"), 24),
        (annotation("topology-aware-hints", "example.com/own"), 27),
        (annotation("topology-mode", "Auto"), 27),
        (annotation("topology-mode", "Disabled"), 31),
        // spec.trafficDistribution is for the control plane.
        (json!({}), 31),
    ] {
        let facts = facts(json!({}), annotations.clone(), BY_ZONE, Some("b"));
        for minor in [20, 21, 23, 24, 26, 27, 30, 31, 36] {
            for mode in [Mode::Ipvs, Mode::Iptables, Mode::Nftables] {
                let found = told(&facts, &Proxy::new(mode, Some(minor), &[]), CLUSTER_IP);
                let wanted = if minor >= first { THERE } else { BOTH };
                assert_eq!(found, words(wanted), "1.{minor} {mode:?} {annotations}");
            }
        }
    }
}

#[test]
fn hints_count_only_where_all_have_them_and_one_is_for_this_node() {
    let none: &[&str] = &[];
    for (hints, zone, minor, wanted) in [
        (BY_ZONE, Some("a"), 36, HERE),
        ([&["a", "b"][..], &["b"], none, none], Some("b"), 36, BOTH),
        // No endpoint for this zone, no zone, and an endpoint without a hint.
        (BY_ZONE, Some("c"), 36, BOTH),
        (BY_ZONE, None, 36, BOTH),
        ([&["a"][..], none, none, none], Some("a"), 36, BOTH),
        // Hints of nodes go before those of zones, in the versions that know them.
        ([&["a"], &["b"], &[NODE], &["node-b"]], Some("b"), 33, THERE),
        ([&["a"], &["b"], &[NODE], &["node-b"]], Some("b"), 34, HERE),
        ([none, none, &[NODE], &["node-b"]], None, 36, HERE),
        (
            [&["a"], &["b"], &["node-c"], &["node-b"]],
            Some("b"),
            36,
            THERE,
        ),
        ([&["a"], &["b"], &[NODE], none], Some("b"), 36, THERE),
    ] {
        let found = told(
            &facts(json!({}), json!({}), hints, zone),
            &proxy(minor, &[]),
            CLUSTER_IP,
        );
        assert_eq!(found, words(wanted), "1.{minor} {hints:?} {zone:?}");
    }
}

#[test]
fn a_policy_of_local_goes_before_hints() {
    let facts = facts(
        json!({"externalTrafficPolicy": "Local"}),
        json!({}),
        BY_ZONE,
        Some("b"),
    );
    assert_eq!(told(&facts, &proxy(36, &[]), NODE_PORT), words(HERE));
    assert_eq!(told(&facts, &proxy(36, &[]), CLUSTER_IP), words(THERE));
}

#[test]
fn an_endpoint_for_others_is_surplus() {
    let facts = facts(json!({}), json!({}), BY_ZONE, Some("b"));
    let proxy = Proxy::new(Mode::Iptables, Some(36), &[]);
    let servers = expected(&facts, &node(), &proxy);
    let made = |server: &ExpectedServer| Programmed {
        key: server.key,
        endpoints: BOTH.iter().map(|text| at(text)).collect(),
        affinity: None,
        sources: None,
    };
    let actual: Vec<Programmed> = servers.iter().map(made).collect();
    let found = compare(&servers, &actual, &facts, &proxy);
    assert_eq!(found.len(), servers.len(), "{found:?}");
    for difference in found {
        assert!(
            matches!(
                difference,
                Difference::SurplusEndpoint { endpoint, surplus: Surplus::HintedAway, .. }
                    if endpoint == at(HERE[0])
            ),
            "{difference:?}"
        );
    }
}

#[test]
fn gates_turn_hints_on_and_off() {
    let annotated = json!({"service.kubernetes.io/topology-aware-hints": "Auto"});
    let node = [&[][..], &[], &[NODE], &["node-b"]];
    for (gate, on, minor, annotations, hints, wanted) in [
        // What it did when it was new differs from what it does.
        (
            "TopologyAwareHints",
            true,
            23,
            &annotated,
            BY_ZONE,
            Err(Unsure::Version),
        ),
        (
            "TopologyAwareHints",
            false,
            24,
            &annotated,
            BY_ZONE,
            words(BOTH),
        ),
        (
            "TopologyAwareHints",
            false,
            33,
            &annotated,
            BY_ZONE,
            words(THERE),
        ),
        (
            "ServiceTrafficDistribution",
            true,
            30,
            &json!({}),
            BY_ZONE,
            words(THERE),
        ),
        (
            "ServiceTrafficDistribution",
            false,
            31,
            &json!({}),
            BY_ZONE,
            words(BOTH),
        ),
        (
            "PreferSameTrafficDistribution",
            true,
            33,
            &json!({}),
            node,
            words(HERE),
        ),
        (
            "PreferSameTrafficDistribution",
            false,
            34,
            &json!({}),
            node,
            words(BOTH),
        ),
        (
            "PreferSameTrafficDistribution",
            false,
            35,
            &json!({}),
            node,
            words(HERE),
        ),
    ] {
        let facts = facts(json!({}), annotations.clone(), hints, Some("b"));
        let mut proxy = proxy(minor, &[]);
        proxy.gates.insert(gate.to_owned(), on);
        assert_eq!(
            told(&facts, &proxy, CLUSTER_IP),
            wanted,
            "{gate}={on} 1.{minor}"
        );
    }
}

#[test]
fn what_hints_come_to_is_not_guessed() {
    let known = facts(json!({}), json!({}), BY_ZONE, Some("b"));
    let unknown = Proxy::new(Mode::Ipvs, None, &[]);
    assert_eq!(told(&known, &unknown, CLUSTER_IP), Err(Unsure::Version));
    // Without its object nobody knows the node's zone.
    let mut service = service(json!({}));
    service["metadata"]["name"] = json!("web");
    let mut endpoints = slice(&[READY_HERE]);
    endpoints["endpoints"][0]["hints"] = json!({"forZones": [{"name": "a"}]});
    let without = cluster(NODE, &[service, endpoints]);
    assert_eq!(
        told(&without, &proxy(36, &[]), CLUSTER_IP),
        Err(Unsure::Node)
    );
    // The comparison says so, and finds nothing wrong with any endpoint.
    let mut node = node();
    node.ipvs = Some(Vec::new());
    let compared = Comparison::of(&known, &node, &unknown).expect("a comparison");
    let said: Vec<String> = compared.not_compared().collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("s/default/web") && said[0].contains("version"),
        "{said:?}"
    );
    let compared = Comparison::of(&known, &node, &proxy(36, &[])).expect("a comparison");
    assert_eq!(compared.not_compared().count(), 0);
}
