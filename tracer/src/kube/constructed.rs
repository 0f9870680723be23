//! Facts for tests, made of objects as the API server writes them.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::facts::Object;
use super::{ClusterFacts, NetworkPolicy, Node, Pod, Resource, Service, Slice};
use crate::node::ProxyConfiguration;

/// Facts of the objects, each with its kind, as this node knows them; every kind is complete.
pub(crate) fn cluster(this_node: &str, objects: &[Value]) -> ClusterFacts {
    let mut facts = ClusterFacts::unread("https://192.0.2.100:6443");
    facts.this_node = Some(this_node.into());
    for object in objects {
        facts.put(read(object));
    }
    for resource in Resource::ALL {
        facts.complete(resource);
    }
    facts
}

/// The same facts with one more object.
pub(crate) fn add(mut facts: ClusterFacts, object: &Value) -> ClusterFacts {
    facts.put(read(object));
    facts
}

/// Facts with kube-proxy's configuration.
pub(crate) fn configured(mut facts: ClusterFacts, yaml: &str) -> ClusterFacts {
    let configuration = ProxyConfiguration::parse(yaml).expect("a configuration");
    facts.proxy_configuration = Some(configuration.into());
    facts
}

impl ClusterFacts {
    /// The same facts of a server that is away.
    pub(crate) fn with_trouble(mut self, why: &str) -> Self {
        self.set_server(Err(why.to_owned()));
        self
    }
}

fn read(object: &Value) -> Object {
    let found = match object["kind"].as_str() {
        Some("Service") => Service::read(parsed(object)).map(Object::Service),
        Some("EndpointSlice") => Slice::read(parsed(object)).map(Object::Slice),
        Some("Pod") => Pod::read(parsed(object)).map(Object::Pod),
        Some("Node") => Node::read(parsed(object)).map(Object::Node),
        Some("NetworkPolicy") => NetworkPolicy::read(parsed(object)).map(Object::Policy),
        _ => None,
    };
    found.expect("an object with a name and a known kind")
}

fn parsed<T: DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).expect("an object of its kind")
}
