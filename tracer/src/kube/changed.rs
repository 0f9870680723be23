//! What the watcher changes in the facts.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::asks::Question;
use super::facts::{Object, Table};
use super::source::fail;
use super::{Claim, ClusterFacts, ObjectName, Pod, Resource};

/// A pod of another node is forgotten when it was not met for so long.
const UNMET: Duration = Duration::from_secs(600);

impl ClusterFacts {
    /// A copy of now.
    pub(super) fn taken_now(&self) -> Self {
        Self {
            taken: SystemTime::now(),
            ..self.clone()
        }
    }

    /// Puts an object in place of what was known of it.
    pub(super) fn put(&mut self, object: Object) {
        let source = &mut self.sources[object.resource() as usize];
        source.damaged.remove(object.name());
        match object {
            Object::Service(service) => {
                self.forget_service(&service.name);
                for port in &service.ports {
                    if let Some(node_port) = port.node_port {
                        let key = (port.protocol, node_port);
                        self.node_ports.insert_mut(key, service.name.clone());
                    }
                }
                self.claim(Resource::Services, &service.name, service.claims());
                let name = service.name.clone();
                self.services.insert_mut(name, Arc::new(service));
            }
            Object::Slice(slice) => {
                self.forget_slice(&slice.name);
                if let Some(service) = &slice.service {
                    let pair = (service.clone(), slice.name.clone());
                    self.slices_of.insert_mut(pair);
                }
                self.claim(Resource::Endpoints, &slice.name, slice.claims());
                let name = slice.name.clone();
                self.slices.insert_mut(name, Arc::new(slice));
            }
            Object::Pod(pod) => {
                self.forget_pod(&pod.name);
                self.claim(Resource::Pods, &pod.name, pod.claims());
                let name = pod.name.clone();
                self.pods.insert_mut(name, Arc::new(pod));
            }
            Object::Node(node) => {
                self.forget_node(&node.name);
                self.claim(Resource::Nodes, &node.name, node.claims());
                let name = node.name.clone();
                self.nodes.insert_mut(name, Arc::new(node));
            }
            Object::Policy(policy) => {
                let name = policy.name.clone();
                self.policies.insert_mut(name, Arc::new(policy));
            }
            Object::Configuration(_, configuration) => {
                self.proxy_configuration = Some(Arc::new(configuration));
            }
        }
    }

    /// The pods that a question is about, as they are now.
    pub(super) fn put_seen(&mut self, question: &Question, pods: Vec<Pod>) {
        let before: Vec<ObjectName> = match question {
            Question::Address(address, _) => self.pods_at(*address).cloned().collect(),
            Question::Name(name) => vec![name.clone()],
        };
        for name in before {
            if !self.on_this_node(&name) {
                self.forget_pod(&name);
            }
        }
        for pod in pods {
            // Those of this node are watched, and younger than the server's cache.
            if !self.is_here(&pod) {
                let name = pod.name.clone();
                self.put(Object::Pod(pod));
                self.read.insert_mut(name, SystemTime::now());
            }
        }
    }

    /// Forgets pods of other nodes that were not read for long, and the oldest of too many; true when there
    /// were any.
    pub(super) fn forget_unmet(&mut self, most: usize) -> bool {
        let mut read: Vec<_> = self.read.iter().map(|(name, at)| (*at, name)).collect();
        read.sort_unstable();
        let surplus = read.len().saturating_sub(most);
        let unmet: Vec<ObjectName> = read
            .iter()
            .enumerate()
            .filter(|(place, (_, name))| *place < surplus || !self.read_within(name, UNMET))
            .map(|(_, (_, name))| (*name).clone())
            .collect();
        for name in &unmet {
            self.forget_pod(name);
        }
        !unmet.is_empty()
    }

    /// Forgets an object.
    pub(super) fn forget(&mut self, resource: Resource, name: &ObjectName) {
        self.sources[resource as usize].damaged.remove(name);
        match resource {
            Resource::Services => self.forget_service(name),
            Resource::Endpoints => self.forget_slice(name),
            Resource::Pods => self.forget_pod(name),
            Resource::Nodes => self.forget_node(name),
            Resource::NetworkPolicies => {
                self.policies.remove_mut(name);
            }
            Resource::ProxyConfiguration => self.proxy_configuration = None,
        }
    }

    /// Forgets every object of a kind that a complete list did not name.
    pub(super) fn keep_only(&mut self, resource: Resource, named: &HashSet<ObjectName>) {
        let damaged = &mut self.sources[resource as usize].damaged;
        damaged.retain(|name, _| named.contains(name));
        let gone: Vec<ObjectName> = match resource {
            Resource::Services => unnamed(&self.services, named),
            Resource::Endpoints => unnamed(&self.slices, named),
            // Pods of other nodes were read one by one.
            Resource::Pods => unnamed(&self.pods, named)
                .into_iter()
                .filter(|name| self.on_this_node(name))
                .collect(),
            Resource::Nodes => unnamed(&self.nodes, named),
            Resource::NetworkPolicies => unnamed(&self.policies, named),
            Resource::ProxyConfiguration => {
                if named.is_empty() {
                    self.proxy_configuration = None;
                }
                Vec::new()
            }
        };
        for name in gone {
            self.forget(resource, &name);
        }
    }

    /// A kind of object is complete.
    pub(super) fn complete(&mut self, resource: Resource) {
        let source = &mut self.sources[resource as usize];
        source.listed = Some(SystemTime::now());
        source.arriving();
    }

    /// Changes of a kind of object arrive again.
    pub(super) fn arriving(&mut self, resource: Resource) {
        self.sources[resource as usize].arriving();
    }

    /// An object cannot be read as it is now; what was known of it from before stays.
    pub(super) fn damaged(&mut self, resource: Resource, name: ObjectName, why: String) {
        self.sources[resource as usize].damaged.insert(name, why);
    }

    /// Something is wrong with a kind of object.
    pub(super) fn fail(&mut self, resource: Resource, why: String) {
        self.sources[resource as usize].fail(why);
    }

    /// The server answers, or why it does not.
    pub(super) fn set_server(&mut self, answer: Result<(), String>) {
        match answer {
            Ok(()) => self.trouble = None,
            Err(why) => fail(&mut self.trouble, why),
        }
    }

    fn claim(
        &mut self,
        resource: Resource,
        name: &ObjectName,
        claims: impl Iterator<Item = (IpAddr, Claim)>,
    ) {
        for (address, claim) in claims {
            self.claims
                .insert_mut((address, claim, (resource, name.clone())));
        }
    }

    fn release(
        &mut self,
        resource: Resource,
        name: &ObjectName,
        claims: impl Iterator<Item = (IpAddr, Claim)>,
    ) {
        for (address, claim) in claims {
            self.claims
                .remove_mut(&(address, claim, (resource, name.clone())));
        }
    }

    fn forget_service(&mut self, name: &ObjectName) {
        let Some(service) = self.services.get(name).map(Arc::clone) else {
            return;
        };
        self.services.remove_mut(name);
        self.release(Resource::Services, name, service.claims());
        for port in &service.ports {
            let Some(node_port) = port.node_port else {
                continue;
            };
            let key = (port.protocol, node_port);
            if self.node_ports.get(&key) == Some(name) {
                self.node_ports.remove_mut(&key);
            }
        }
    }

    fn forget_slice(&mut self, name: &ObjectName) {
        let Some(slice) = self.slices.get(name).map(Arc::clone) else {
            return;
        };
        self.slices.remove_mut(name);
        self.release(Resource::Endpoints, name, slice.claims());
        if let Some(service) = &slice.service {
            self.slices_of.remove_mut(&(service.clone(), name.clone()));
        }
    }

    fn forget_pod(&mut self, name: &ObjectName) {
        if let Some(pod) = self.pods.get(name).map(Arc::clone) {
            self.pods.remove_mut(name);
            self.read.remove_mut(name);
            self.release(Resource::Pods, name, pod.claims());
        }
    }

    fn forget_node(&mut self, name: &ObjectName) {
        if let Some(node) = self.nodes.get(name).map(Arc::clone) {
            self.nodes.remove_mut(name);
            self.release(Resource::Nodes, name, node.claims());
        }
    }
}

fn unnamed<T>(table: &Table<T>, named: &HashSet<ObjectName>) -> Vec<ObjectName> {
    table
        .keys()
        .filter(|name| !named.contains(*name))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kube::constructed::cluster;
    use crate::kube::objects::read;

    const ADDRESS: &str = "10.244.1.6";

    fn pod(name: &str) -> Pod {
        pod_on("node-b", name)
    }

    fn pod_on(node: &str, name: &str) -> Pod {
        let object = json!({"kind": "Pod", "metadata": {"namespace": "default", "name": name},
            "spec": {"nodeName": node}, "status": {"podIP": ADDRESS}});
        match read(&object) {
            Ok(Object::Pod(pod)) => pod,
            other => panic!("{other:?}"),
        }
    }

    fn facts() -> (ClusterFacts, IpAddr) {
        let address: IpAddr = ADDRESS.parse().expect("an address");
        let mut facts = cluster("node-a", &[]);
        facts.put_seen(&Question::Address(address, None), vec![pod("old")]);
        (facts, address)
    }

    fn age(facts: &mut ClusterFacts, name: &str, seconds: u64) {
        let read = SystemTime::now() - Duration::from_secs(seconds);
        facts
            .read
            .insert_mut(ObjectName::new("default", name), read);
    }

    #[test]
    fn what_was_read_is_read_again_after_a_while() {
        let (mut facts, address) = facts();
        assert!(!facts.to_be_read(address));
        age(&mut facts, "old", 31);
        assert!(facts.to_be_read(address));
        // Another pod has the address by now.
        facts.put_seen(&Question::Address(address, None), vec![pod("new")]);
        assert!(!facts.to_be_read(address));
        let names: Vec<_> = facts.pods().map(|pod| &*pod.name.name).collect();
        assert_eq!(names, ["new"]);
        facts.put_seen(
            &Question::Name(ObjectName::new("default", "new")),
            Vec::new(),
        );
        assert_eq!(facts.pods().count(), 0);
    }

    #[test]
    fn pods_of_this_node_come_from_the_watch_alone() {
        let (mut facts, address) = facts();
        facts.put(Object::Pod(pod_on("node-a", "watched")));
        // The server's cache is behind: it lacks one that is there, and has one that is gone.
        let answer = vec![pod_on("node-a", "gone")];
        facts.put_seen(&Question::Address(address, None), answer);
        let names: Vec<_> = facts.pods().map(|pod| &*pod.name.name).collect();
        assert_eq!(names, ["watched"]);
        assert!(!facts.to_be_read(address));
        assert!(!facts.forget_unmet(0));
    }

    #[test]
    fn what_is_met_no_more_is_forgotten() {
        let (mut facts, _) = facts();
        assert!(!facts.forget_unmet(1));
        for name in ["older", "oldest"] {
            let question = Question::Name(ObjectName::new("default", name));
            facts.put_seen(&question, vec![pod(name)]);
        }
        age(&mut facts, "older", 20);
        age(&mut facts, "oldest", 30);
        assert!(facts.forget_unmet(1));
        let names: Vec<_> = facts.pods().map(|pod| &*pod.name.name).collect();
        assert_eq!(names, ["old"]);
        age(&mut facts, "old", 601);
        assert!(facts.forget_unmet(1));
        assert_eq!(facts.pods().count(), 0);
    }
}
