//! The cluster's facts as a capture stores them: the objects, from which everything else follows.

use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::facts::Object;
use super::source::Source;
use super::{ClusterFacts, NetworkPolicy, Node, Pod, Resource, Service, Slice, Trouble};
use crate::node::ProxyConfiguration;

/// What a capture stores of a cluster.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct StoredCluster {
    taken: SystemTime,
    server: String,
    version: Option<String>,
    this_node: Option<Arc<str>>,
    proxy_configuration: Option<Arc<ProxyConfiguration>>,
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<Slice>>,
    pods: Vec<Arc<Pod>>,
    nodes: Vec<Arc<Node>>,
    policies: Vec<Arc<NetworkPolicy>>,
    sources: [Source; Resource::ALL.len()],
    trouble: Option<Trouble>,
}

impl ClusterFacts {
    /// What a capture stores.
    pub fn stored(&self) -> StoredCluster {
        StoredCluster {
            taken: self.taken,
            server: self.server.clone(),
            version: self.version.clone(),
            this_node: self.this_node.clone(),
            proxy_configuration: self.proxy_configuration.clone(),
            services: self.services.values().cloned().collect(),
            slices: self.slices.values().cloned().collect(),
            pods: self.pods.values().cloned().collect(),
            nodes: self.nodes.values().cloned().collect(),
            policies: self.policies.values().cloned().collect(),
            sources: self.sources.clone(),
            trouble: self.trouble.clone(),
        }
    }
}

impl ClusterFacts {
    /// These facts with the objects that another node knows beside them: each reads its own pods only.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let mut all = other.stored();
        let own = self.stored();
        // What comes later replaces what was there.
        all.services.extend(own.services);
        all.slices.extend(own.slices);
        all.pods.extend(own.pods);
        all.nodes.extend(own.nodes);
        all.policies.extend(own.policies);
        StoredCluster {
            services: all.services,
            slices: all.slices,
            pods: all.pods,
            nodes: all.nodes,
            policies: all.policies,
            ..self.stored()
        }
        .into()
    }
}

impl From<StoredCluster> for ClusterFacts {
    fn from(stored: StoredCluster) -> Self {
        let mut facts = Self::unread(stored.server);
        facts.taken = stored.taken;
        facts.version = stored.version;
        facts.this_node = stored.this_node;
        facts.proxy_configuration = stored.proxy_configuration;
        facts.sources = stored.sources;
        facts.trouble = stored.trouble;
        let objects = (stored
            .services
            .into_iter()
            .map(|found| Object::Service(owned(found))))
        .chain(
            stored
                .slices
                .into_iter()
                .map(|found| Object::Slice(owned(found))),
        )
        .chain(
            stored
                .pods
                .into_iter()
                .map(|found| Object::Pod(owned(found))),
        )
        .chain(
            stored
                .nodes
                .into_iter()
                .map(|found| Object::Node(owned(found))),
        )
        .chain(
            stored
                .policies
                .into_iter()
                .map(|found| Object::Policy(owned(found))),
        );
        for object in objects {
            facts.put(object);
        }
        facts
    }
}

fn owned<T: Clone>(shared: Arc<T>) -> T {
    Arc::unwrap_or_clone(shared)
}
