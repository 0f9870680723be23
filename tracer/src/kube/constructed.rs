//! Facts for tests, made of objects as the API server writes them.

use serde_json::Value;

use super::objects::read;
use super::{ClusterFacts, Resource};

/// Facts of the objects, each with its kind, as this node knows them; every kind is complete.
pub(crate) fn cluster(this_node: &str, objects: &[Value]) -> ClusterFacts {
    ClusterFacts::of_objects(this_node, objects).expect("objects with a name and a known kind")
}

/// The same facts with one more object.
pub(crate) fn add(mut facts: ClusterFacts, object: &Value) -> ClusterFacts {
    facts.put(read(object).expect("an object with a name and a known kind"));
    facts
}

/// Facts with kube-proxy's configuration.
pub(crate) fn configured(facts: ClusterFacts, yaml: &str) -> ClusterFacts {
    facts.configured(yaml).expect("a configuration")
}

impl ClusterFacts {
    /// The same facts of a server that is away.
    pub(crate) fn with_trouble(mut self, why: &str) -> Self {
        self.set_server(Err(why.to_owned()));
        self
    }

    /// The same facts, of which one kind cannot be read any more.
    pub(crate) fn without(mut self, resource: Resource, why: &str) -> Self {
        self.sources[resource as usize].fail(why.to_owned());
        self
    }
}
