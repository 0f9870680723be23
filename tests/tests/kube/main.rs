//! Facts of a cluster, read from an API server that behaves, and from one that does not.
//!
//! Map: `facts` are read and followed, `trouble` is what servers and networks do to that, `shown` is what
//! becomes of it in views, and whether kubectl takes the server for a real one, `place` which server is
//! chosen.

mod facts;
mod place;
mod shown;
mod trouble;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::api_server::{ApiServer, Options as ServerOptions};
use tracer::event::protocol;
use tracer::kube::{Cluster, ClusterFacts, ObjectName, Options, Place, Resource, State};
use tracer::node::Snapshot;

/// Long enough for a slow machine; what is waited for comes much sooner.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const NODE: &str = "node-a";

pub(crate) fn server(options: ServerOptions) -> ApiServer {
    let server = ApiServer::start(options).expect("an API server");
    server.put("nodes", node(NODE, "192.0.2.1", "10.244.0.0/24"));
    server.put("nodes", node("node-b", "192.0.2.2", "10.244.1.0/24"));
    server.put("services", service("web", "10.96.0.10", "NodePort", 30080));
    server.put("pods", pod("web-0", NODE, "10.244.0.5"));
    server.put("pods", pod("web-1", "node-b", "10.244.1.5"));
    server.put("pods", pod("other", "node-b", "10.244.1.6"));
    server.put(
        "networkpolicies",
        json!({"metadata": {"namespace": "default", "name": "limit"},
            "spec": {"podSelector": {"matchLabels": {"app": "web-0"}}}}),
    );
    server.put(
        "configmaps",
        json!({"metadata": {"namespace": "kube-system", "name": "kube-proxy"},
            "data": {"config.conf": "mode: ipvs\nnodePortAddresses: [192.0.2.0/24]\n"}}),
    );
    server.put(
        "secrets",
        json!({"metadata": {"namespace": "default", "name": "key"}}),
    );
    server
}

/// A server with the usual objects and a v1 slice.
pub(crate) fn ordinary() -> ApiServer {
    let server = server(ServerOptions::default());
    server.put("endpointslices", slice(true));
    server
}

pub(crate) fn node(name: &str, address: &str, pods: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
    "spec": {"podCIDR": pods, "podCIDRs": [pods]},
    "status": {
        "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
        "conditions": [{"type": "Ready", "status": "True"}],
        "nodeInfo": {"kubeletVersion": "v1.20.2", "containerRuntimeVersion": "docker://19.3.11"},
    }})
}

pub(crate) fn service(name: &str, address: &str, kind: &str, node_port: u16) -> Value {
    json!({"metadata": {"namespace": "default", "name": name},
        "spec": {"type": kind, "clusterIP": address, "clusterIPs": [address],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http", "nodePort": node_port}]}})
}

pub(crate) fn pod(name: &str, node: &str, address: &str) -> Value {
    json!({"metadata": {"namespace": "default", "name": name, "uid": format!("uid-of-{name}"), "labels": {"app": name}},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}]}})
}

pub(crate) fn slice(ready: bool) -> Value {
    json!({"metadata": {"namespace": "default", "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": ["10.244.1.5"], "conditions": {"ready": ready}, "nodeName": "node-b",
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "web-1"}}]})
}

pub(crate) fn watching(server: &ApiServer) -> Cluster {
    Cluster::start(Options {
        place: Place {
            kubeconfig: Some(server.kubeconfig()),
            context: None,
        },
        host_name: "Node-A".into(),
        sign_of_life: Duration::from_millis(500),
        ..Options::default()
    })
    .expect("a thread")
}

/// Waits until the facts are so.
pub(crate) fn until(
    cluster: &Cluster,
    what: &str,
    so: impl Fn(&ClusterFacts) -> bool,
) -> Arc<ClusterFacts> {
    let begun = Instant::now();
    loop {
        let state = cluster.state();
        if let Some(facts) = state.facts().filter(|facts| so(facts)) {
            return Arc::clone(facts);
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "in vain: {what}; {}",
            words(&state)
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A state in few words.
pub(crate) fn words(state: &State) -> String {
    let Some(facts) = state.facts() else {
        return format!("{state:?}");
    };
    let kinds = Resource::ALL.map(|kind| (kind, facts.count(kind), facts.freshness(kind)));
    format!("server {:?}, {kinds:?}", facts.trouble())
}

pub(crate) fn all_fresh(facts: &ClusterFacts) -> bool {
    facts.fresh(&Resource::ALL)
}

pub(crate) fn web() -> ObjectName {
    ObjectName::new("default", "web")
}

pub(crate) fn ready(facts: &ClusterFacts) -> Vec<bool> {
    let service = web();
    facts
        .endpoints_of(&service)
        .map(|(endpoint, _)| endpoint.ready)
        .collect()
}

pub(crate) fn name(facts: &ClusterFacts, address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().expect("an address");
    facts.name(&Snapshot::empty(), protocol::TCP, address)
}
