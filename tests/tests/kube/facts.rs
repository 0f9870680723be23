//! Facts are read, and followed as they change.

use serde_json::json;
use tests::api_server::{Fault, Options as ServerOptions, Slices};
use tracer::filter::{Expression, Here};
use tracer::kube::{Cluster, ObjectName, Options, Place, Resource};

use super::*;

#[test]
fn addresses_get_their_names() {
    let server = ordinary();
    let cluster = watching(&server);
    let facts = until(&cluster, "everything is fresh", all_fresh);
    assert_eq!(facts.this_node.as_deref(), Some(NODE));
    assert_eq!(facts.version.as_deref(), Some("v1.31.0"));
    for (address, expected) in [
        ("10.96.0.10:80", Some("s/default/web:http")),
        ("10.96.0.10:81", Some("s/default/web")),
        ("192.0.2.1:30080", Some("s/default/web:http")),
        ("192.0.2.2:22", Some("n/node-b")),
        ("10.244.0.5:1234", Some("p/default/web-0")),
        ("10.244.1.5:8080", Some("p/default/web-1")),
        ("10.244.1.6:1", None),
        ("8.8.8.8:53", None),
    ] {
        assert_eq!(name(&facts, address).as_deref(), expected, "{address}");
    }
    assert_eq!(ready(&facts), [true]);
    let pod = facts
        .pod(&ObjectName::new("default", "web-0"))
        .expect("the pod of this node");
    assert_eq!(facts.policies_of(pod).count(), 1);
    assert_eq!(
        facts
            .node(NODE)
            .and_then(|node| node.kubelet_version.as_deref()),
        Some("v1.20.2")
    );
    let proxy = facts
        .proxy_configuration
        .as_ref()
        .expect("kube-proxy's configuration");
    assert_eq!(proxy.mode.as_deref(), Some("ipvs"));
}

#[test]
fn pods_of_other_nodes_are_read_when_seen() {
    let server = ordinary();
    let cluster = watching(&server);
    until(&cluster, "everything is fresh", all_fresh);
    cluster.want("10.244.1.6".parse().expect("an address"));
    cluster.want("8.8.8.8".parse().expect("an address"));
    let facts = until(&cluster, "the pod is known", |facts| {
        name(facts, "10.244.1.6:1").is_some()
    });
    assert_eq!(
        name(&facts, "10.244.1.6:1").as_deref(),
        Some("p/default/other")
    );
    // What can be no pod was not asked for.
    let single = server
        .actions()
        .iter()
        .filter(|action| action.resource == "pods" && action.verb == "list")
        .count();
    assert_eq!(single, 2);
    // A new list of this node's pods does not forget it.
    server.compact();
    server.misbehave(&[Fault::GoneInWatch("pods")]);
    until(&cluster, "the trouble shows", |facts| {
        facts.freshness(Resource::Pods).trouble().is_some()
    });
    server.misbehave(&[]);
    server.put("pods", pod("web-2", NODE, "10.244.0.6"));
    let facts = until(&cluster, "the new pod", |facts| {
        name(facts, "10.244.0.6:1").is_some()
    });
    assert_eq!(
        name(&facts, "10.244.1.6:1").as_deref(),
        Some("p/default/other")
    );
}

#[test]
fn the_server_looks_at_every_pod_only_where_no_name_leads_to_the_address() {
    for (name, lists) in [("web-1", 1), ("another", 2)] {
        let server = ordinary();
        server.delete("pods", "default", "web-1");
        server.put("pods", pod(name, "node-b", "10.244.1.5"));
        let cluster = watching(&server);
        until(&cluster, "everything is fresh", all_fresh);
        // The endpoint there names web-1.
        cluster.want("10.244.1.5".parse().expect("an address"));
        let known = ObjectName::new("default", name);
        until(&cluster, "the pod is known", |facts| {
            facts.pod(&known).is_some()
        });
        let of_all = server.actions().into_iter().filter(|action| {
            action.resource == "pods" && action.verb == "list" && action.namespace.is_none()
        });
        // One is that of this node's pods.
        assert_eq!(of_all.count(), lists, "{name}");
    }
}

#[test]
fn pods_that_may_be_stuck_are_read_though_nobody_met_them() {
    let stuck = || {
        let mut pod = pod("web-1", "node-b", "10.244.1.5");
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod
    };
    let terminating = server(ServerOptions::default());
    let mut going = slice(false);
    going["endpoints"][0]["conditions"]["terminating"] = json!(true);
    terminating.put("endpointslices", going);
    // Without the condition its node tells.
    let down = ordinary();
    let mut node = node("node-b", "192.0.2.2", "10.244.1.0/24");
    node["status"]["conditions"][0]["status"] = json!("Unknown");
    down.put("nodes", node);
    for server in [terminating, down] {
        server.put("pods", stuck());
        let cluster = watching(&server);
        let facts = until(&cluster, "everything is read", |facts| {
            all_fresh(facts) && !facts.asking()
        });
        let pod = facts.pod(&ObjectName::new("default", "web-1"));
        assert!(pod.is_some_and(|pod| pod.deletion.is_some()));
        assert!(facts.pod(&ObjectName::new("default", "other")).is_none());
    }
}

#[test]
fn a_filter_may_name_a_pod_of_another_node() {
    let server = ordinary();
    let start = |pods| {
        Cluster::start(Options {
            place: Place {
                kubeconfig: Some(server.kubeconfig()),
                context: None,
            },
            host_name: NODE.into(),
            pods,
            ..Options::default()
        })
        .expect("a thread")
    };
    let resolved = |text: &str, cluster: &Cluster| {
        let facts = until(cluster, "everything is read", |facts| {
            all_fresh(facts) && !facts.asking()
        });
        let here = Here {
            cluster: Some(facts),
            ..Here::default()
        };
        Expression::parse(text)
            .and_then(|expression| expression.resolve(&here))
            .map_err(|error| error.message().to_owned())
    };
    let text = "pod default/other";
    let named = Expression::parse(text).expect("an expression").pods();
    let by_name = resolved(text, &start(named)).expect("a filter");
    let by_address = |text: &str| {
        Expression::parse(text)
            .and_then(|expression| expression.resolve(&Here::default()))
            .expect("a filter")
    };
    assert_eq!(by_name.program(), by_address("host 10.244.1.6").program());
    // Endpoints say where a pod is that was not read.
    let cluster = start(Vec::new());
    let by_name = resolved("pod default/web-1", &cluster).expect("a filter");
    assert_eq!(by_name.program(), by_address("host 10.244.1.5").program());
    let why = resolved("pod default/none", &cluster).expect_err("no such pod");
    assert!(why.contains("no such pod"), "{why}");
}

#[test]
fn changes_arrive() {
    let server = ordinary();
    let cluster = watching(&server);
    let before = until(&cluster, "everything is fresh", all_fresh);
    server.put("endpointslices", slice(false));
    until(&cluster, "the endpoint is not ready", |facts| {
        ready(facts) == [false]
    });
    // A copy that was handed out stays as it was.
    assert_eq!(ready(&before), [true]);
    server.put("services", service("web", "10.96.0.11", "ClusterIP", 0));
    let facts = until(&cluster, "the new address", |facts| {
        name(facts, "10.96.0.11:80").is_some()
    });
    assert_eq!(name(&facts, "10.96.0.10:80"), None);
    assert_eq!(name(&facts, "192.0.2.1:30080").as_deref(), Some("n/node-a"));
    server.delete("services", "default", "web");
    until(&cluster, "the service is gone", |facts| {
        facts.service(&web()).is_none()
    });
    server.delete("endpointslices", "default", "web-x");
    let facts = until(&cluster, "the slice is gone", |facts| {
        facts.count(Resource::Endpoints) == 0
    });
    assert_eq!(name(&facts, "10.244.1.5:8080"), None);
    server.delete("configmaps", "kube-system", "kube-proxy");
    until(&cluster, "no configuration", |facts| {
        facts.proxy_configuration.is_none()
    });
}

#[test]
fn long_lists_come_in_pages() {
    let server = ordinary();
    for number in 0..1203 {
        let address = format!("10.97.{}.{}", number / 250, number % 250);
        server.put(
            "services",
            service(&format!("s{number}"), &address, "ClusterIP", 0),
        );
    }
    let cluster = watching(&server);
    let facts = until(&cluster, "everything is fresh", all_fresh);
    assert_eq!(facts.count(Resource::Services), 1204);
    assert_eq!(
        name(&facts, "10.97.4.202:80").as_deref(),
        Some("s/default/s1202:http")
    );
    let pages = server
        .actions()
        .iter()
        .filter(|action| action.resource == "services" && action.verb == "list")
        .count();
    assert_eq!(pages, 3);
}

#[test]
fn older_servers_have_other_endpoints() {
    let beta = server(ServerOptions {
        slices: Slices::V1Beta1,
        version: "v1.20.2",
        ..ServerOptions::default()
    });
    let mut object = slice(true);
    object["apiVersion"] = json!("discovery.k8s.io/v1beta1");
    let endpoint = object["endpoints"][0].as_object_mut().expect("an endpoint");
    endpoint.remove("nodeName");
    endpoint.insert(
        "topology".into(),
        json!({"kubernetes.io/hostname": "node-b"}),
    );
    beta.put("endpointslices", object);
    let oldest = server(ServerOptions {
        slices: Slices::None,
        version: "v1.16.0",
        ..ServerOptions::default()
    });
    oldest.put(
        "endpoints",
        json!({"metadata": {"namespace": "default", "name": "web"}, "subsets": [{
            "addresses": [{"ip": "10.244.1.5", "nodeName": "node-b",
                "targetRef": {"kind": "Pod", "namespace": "default", "name": "web-1"}}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}]}),
    );
    for server in [beta, oldest] {
        let cluster = watching(&server);
        let facts = until(&cluster, "everything is fresh", all_fresh);
        let service = web();
        let (endpoint, ports) = facts.endpoints_of(&service).next().expect("an endpoint");
        assert_eq!(
            endpoint.node.as_deref(),
            Some("node-b"),
            "{:?}",
            facts.version
        );
        assert!(endpoint.ready && endpoint.serving && !endpoint.terminating);
        assert_eq!(ports[0].port, Some(8080));
        assert_eq!(
            name(&facts, "10.244.1.5:8080").as_deref(),
            Some("p/default/web-1")
        );
    }
}

#[test]
fn a_forgotten_log_is_listed_anew() {
    let mut server = ordinary();
    let cluster = watching(&server);
    until(&cluster, "everything is fresh", all_fresh);
    server.stop();
    server.delete("services", "default", "web");
    server.put("services", service("new", "10.96.0.13", "ClusterIP", 0));
    server.compact();
    server.resume().expect("the server listens again");
    let facts = until(&cluster, "the new service", |facts| {
        name(facts, "10.96.0.13:80").is_some() && all_fresh(facts)
    });
    assert_eq!(name(&facts, "10.96.0.10:80"), None);
}

#[test]
fn a_machine_that_is_no_node_has_no_pods() {
    let server = ordinary();
    let cluster = Cluster::start(Options {
        place: Place {
            kubeconfig: Some(server.kubeconfig()),
            context: None,
        },
        host_name: "elsewhere".into(),
        ..Options::default()
    })
    .expect("a thread");
    let facts = until(&cluster, "the trouble shows", |facts| {
        facts.freshness(Resource::Pods).trouble().is_some()
    });
    let why = &facts
        .freshness(Resource::Pods)
        .trouble()
        .expect("a trouble")
        .why;
    assert!(
        why.contains("elsewhere is no node of this cluster"),
        "{why}"
    );
    let by_address = Cluster::start(Options {
        place: Place {
            kubeconfig: Some(server.kubeconfig()),
            context: None,
        },
        host_name: "elsewhere".into(),
        addresses: vec!["192.0.2.2".parse().expect("an address")],
        ..Options::default()
    })
    .expect("a thread");
    let facts = until(&by_address, "everything is fresh", all_fresh);
    assert_eq!(facts.this_node.as_deref(), Some("node-b"));
}
