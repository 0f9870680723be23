//! The cluster's objects around one application, as the API server would give them.

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::options::Options;
use super::topology::network;
use crate::kube::ClusterFacts;

/// Namespace of the application.
pub(super) const NAMESPACE: &str = "default";

/// The objects of a case: the node, and what is added to it.
pub(super) struct Objects {
    node: String,
    app: String,
    list: Vec<Value>,
}

/// An endpoint of the application.
#[derive(Clone, Copy)]
pub(super) struct Endpoint {
    pub(super) address: Ipv4Addr,
    /// On this node; else on another.
    pub(super) here: bool,
    pub(super) ready: bool,
    pub(super) terminating: bool,
}

impl Endpoint {
    /// A ready one on this node.
    pub(super) const fn ready(address: Ipv4Addr) -> Self {
        Self {
            address,
            here: true,
            ready: true,
            terminating: false,
        }
    }
}

impl Objects {
    /// The node alone.
    pub(super) fn new(options: &Options) -> Self {
        let name = options.hosts.get(1).cloned().unwrap_or_default();
        Self {
            list: vec![node(&name, options.node)],
            node: name,
            app: options.app.clone(),
        }
    }

    /// The range of the node's pods, as the controller gives it: that of its bridge.
    pub(super) fn pod_range(mut self, options: &Options) -> Self {
        if let Some(Value::Object(node)) = self.list.first_mut() {
            let range = format!("{}/24", network(options.bridge_address));
            node.insert("spec".into(), json!({"podCIDRs": [range]}));
        }
        self
    }

    /// The second node.
    pub(super) fn peer(mut self, options: &Options) -> Self {
        let name = options.hosts.get(4).cloned().unwrap_or_default();
        self.list.push(node(&name, options.peer));
        self
    }

    /// The service with its ClusterIP and its NodePort; `more` goes over its spec.
    pub(super) fn service(mut self, options: &Options, protocol: &str, more: Value) -> Self {
        let mut spec = json!({"clusterIP": options.service, "clusterIPs": [options.service],
            "type": "NodePort", "selector": {"app": self.app},
            "ports": [{"name": "main", "protocol": protocol, "port": options.service_port,
                "targetPort": options.pod_port, "nodePort": options.node_port}]});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        self.list.push(json!({"kind": "Service", "spec": spec,
            "metadata": {"namespace": NAMESPACE, "name": self.app}}));
        self
    }

    /// A service of somebody else's.
    pub(super) fn other_service(mut self, name: &str, address: Ipv4Addr) -> Self {
        self.list.push(json!({"kind": "Service",
            "metadata": {"namespace": NAMESPACE, "name": name},
            "spec": {"clusterIP": address, "clusterIPs": [address], "ports": [{"port": 443}]}}));
        self
    }

    /// Its slice with these endpoints.
    pub(super) fn slice(
        mut self,
        options: &Options,
        protocol: &str,
        endpoints: &[Endpoint],
    ) -> Self {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .enumerate()
            .map(|(index, endpoint)| {
                let node = if endpoint.here {
                    self.node.clone()
                } else {
                    format!("{}-other", self.node)
                };
                json!({"addresses": [endpoint.address], "nodeName": node,
                    "conditions": {"ready": endpoint.ready, "serving": endpoint.ready,
                        "terminating": endpoint.terminating},
                    "targetRef": {"kind": "Pod", "namespace": NAMESPACE,
                        "name": format!("{}-{index}", self.app)}})
            })
            .collect();
        self.list.push(
            json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"namespace": NAMESPACE, "name": format!("{}-x", self.app),
                "labels": {"kubernetes.io/service-name": self.app}},
            "ports": [{"name": "main", "protocol": protocol, "port": options.pod_port}]}),
        );
        self
    }

    /// The pod of the slice's first endpoint; `more` goes over its metadata.
    pub(super) fn pod(mut self, address: Ipv4Addr, more: Value) -> Self {
        let mut metadata = json!({"namespace": NAMESPACE, "name": format!("{}-0", self.app),
            "labels": {"app": self.app}});
        if let (Some(metadata), Value::Object(more)) = (metadata.as_object_mut(), more) {
            metadata.extend(more);
        }
        self.list.push(
            json!({"kind": "Pod", "metadata": metadata, "spec": {"nodeName": self.node},
            "status": {"podIP": address, "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": "True"}]}}),
        );
        self
    }

    /// A policy that lets nothing in to the application's pods.
    pub(super) fn deny_all(mut self) -> Self {
        self.list.push(json!({"kind": "NetworkPolicy",
            "metadata": {"namespace": NAMESPACE, "name": format!("{}-deny", self.app)},
            "spec": {"podSelector": {"matchLabels": {"app": self.app}}, "policyTypes": ["Ingress"]}}));
        self
    }

    /// What the cluster says, with kube-proxy in this mode.
    pub(super) fn facts(self, mode: &str) -> anyhow::Result<Option<Arc<ClusterFacts>>> {
        let facts = ClusterFacts::of_objects(&self.node, &self.list)?;
        Ok(Some(Arc::new(
            facts.configured(&format!("mode: {mode}\n"))?,
        )))
    }
}

fn node(name: &str, address: Ipv4Addr) -> Value {
    json!({"kind": "Node", "metadata": {"name": name}, "status": {
        "addresses": [{"type": "InternalIP", "address": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
        "nodeInfo": {"kubeletVersion": "v1.20.15"}}})
}
