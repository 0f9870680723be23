//! Facts made of objects as the API server writes them, without a server: for reproductions and tests.

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::facts::Object;
use super::{ClusterFacts, NetworkPolicy, Node, Pod, Resource, Service, Slice};
use crate::node::ProxyConfiguration;

impl ClusterFacts {
    /// Facts of the objects, each with its kind, as this node knows them; every kind is complete.
    ///
    /// # Errors
    /// With an object that has no name, an unknown kind, or another shape than its kind has.
    pub fn of_objects(this_node: &str, objects: &[Value]) -> anyhow::Result<Self> {
        let mut facts = Self::unread("https://192.0.2.100:6443");
        facts.this_node = Some(this_node.into());
        for object in objects {
            facts.put(read(object)?);
        }
        for resource in Resource::ALL {
            facts.complete(resource);
        }
        Ok(facts)
    }

    /// The same facts with kube-proxy's configuration.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn configured(mut self, yaml: &str) -> anyhow::Result<Self> {
        let configuration = ProxyConfiguration::parse(yaml)
            .map_err(|error| anyhow::anyhow!("kube-proxy's configuration: {error:?}"))?;
        self.proxy_configuration = Some(configuration.into());
        Ok(self)
    }
}

/// One object.
pub(super) fn read(object: &Value) -> anyhow::Result<Object> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let found = match kind {
        "Service" => Service::read(parsed(object)?).map(Object::Service),
        "EndpointSlice" => Slice::read(parsed(object)?).map(Object::Slice),
        "Pod" => Pod::read(parsed(object)?).map(Object::Pod),
        "Node" => Node::read(parsed(object)?).map(Object::Node),
        "NetworkPolicy" => NetworkPolicy::read(parsed(object)?).map(Object::Policy),
        _ => bail!("objects of kind {kind:?} are not known"),
    };
    found.with_context(|| format!("a {kind} without a name"))
}

fn parsed<T: DeserializeOwned>(object: &Value) -> anyhow::Result<T> {
    serde_json::from_value(object.clone()).context("an object of another shape than its kind has")
}
