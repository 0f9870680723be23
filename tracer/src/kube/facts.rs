//! What the cluster is like, and how to look things up in it.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use rpds::{HashTrieMapSync, RedBlackTreeSetSync};

use super::source::{Source, fail};
use super::{
    Endpoint, EndpointPort, Freshness, NetworkPolicy, Node, ObjectName, Pod, Resource, Service,
    Slice, Trouble,
};
use crate::node::ProxyConfiguration;

type Table<T> = HashTrieMapSync<ObjectName, Arc<T>>;

/// What the cluster is like at one moment. Copies share their content, so that one is cheap to take
/// and never changes.
#[derive(Clone, Debug)]
pub struct ClusterFacts {
    /// When the copy was made.
    pub taken: SystemTime,
    /// Address of the API server.
    pub server: String,
    /// Its version: `v1.20.2`.
    pub version: Option<String>,
    /// Name of this node; `None` while it is not known, or when this machine is none.
    pub this_node: Option<Arc<str>>,
    /// kube-proxy's configuration in its ConfigMap.
    pub proxy_configuration: Option<Arc<ProxyConfiguration>>,
    pub(super) services: Table<Service>,
    pub(super) slices: Table<Slice>,
    pub(super) pods: Table<Pod>,
    pub(super) nodes: Table<Node>,
    pub(super) policies: Table<NetworkPolicy>,
    /// Who has an address, and which object says so.
    claims: RedBlackTreeSetSync<(IpAddr, Claim, Origin)>,
    /// Slices by service.
    slices_of: RedBlackTreeSetSync<(ObjectName, ObjectName)>,
    /// Services by protocol and NodePort.
    node_ports: HashTrieMapSync<(u8, u16), ObjectName>,
    pub(super) sources: [Source; Resource::ALL.len()],
    /// What is wrong with the server as a whole.
    pub(super) trouble: Option<Trouble>,
}

/// Who has an address. The order is the order of preference among names of one address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Claim {
    /// A node.
    Node(Arc<str>),
    /// A pod.
    Pod(ObjectName),
    /// A service.
    Service(ObjectName),
}

/// Kind and name of the object that a claim comes from.
type Origin = (Resource, ObjectName);

/// An object, or that there is none.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Object {
    Service(Service),
    Slice(Slice),
    Pod(Pod),
    Node(Node),
    Policy(NetworkPolicy),
    Configuration(ObjectName, ProxyConfiguration),
}

impl Object {
    pub(super) const fn name(&self) -> &ObjectName {
        match self {
            Self::Service(found) => &found.name,
            Self::Slice(found) => &found.name,
            Self::Pod(found) => &found.name,
            Self::Node(found) => &found.name,
            Self::Policy(found) => &found.name,
            Self::Configuration(name, _) => name,
        }
    }
}

impl ClusterFacts {
    /// Nothing known yet.
    pub fn unread(server: impl Into<String>) -> Self {
        Self {
            taken: SystemTime::now(),
            server: server.into(),
            version: None,
            this_node: None,
            proxy_configuration: None,
            services: Table::new_sync(),
            slices: Table::new_sync(),
            pods: Table::new_sync(),
            nodes: Table::new_sync(),
            policies: Table::new_sync(),
            claims: RedBlackTreeSetSync::new_sync(),
            slices_of: RedBlackTreeSetSync::new_sync(),
            node_ports: HashTrieMapSync::new_sync(),
            sources: Default::default(),
            trouble: None,
        }
    }

    /// How far one kind of object can be relied on.
    pub fn freshness(&self, resource: Resource) -> Freshness<'_> {
        self.sources[resource as usize].freshness(self.trouble.as_ref())
    }

    /// When a kind of object was last complete.
    pub fn listed(&self, resource: Resource) -> Option<SystemTime> {
        self.sources[resource as usize].listed
    }

    /// Whether a diagnosis may rely on these kinds of object.
    pub fn fresh(&self, resources: &[Resource]) -> bool {
        resources
            .iter()
            .all(|&resource| self.freshness(resource) == Freshness::Fresh)
    }

    /// The kinds of object that are still being read for the first time.
    pub fn waiting(&self) -> Vec<Resource> {
        let waiting = |&resource: &Resource| self.freshness(resource) == Freshness::Waiting;
        Resource::ALL.into_iter().filter(waiting).collect()
    }

    /// Number of objects of a kind.
    pub fn count(&self, resource: Resource) -> usize {
        match resource {
            Resource::Services => self.services.size(),
            Resource::Endpoints => self.slices.size(),
            Resource::Pods => self.pods.size(),
            Resource::Nodes => self.nodes.size(),
            Resource::NetworkPolicies => self.policies.size(),
            Resource::ProxyConfiguration => usize::from(self.proxy_configuration.is_some()),
        }
    }

    /// Every service.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().map(Arc::as_ref)
    }

    /// A service.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name).map(Arc::as_ref)
    }

    /// The slices of a service.
    pub fn slices_of<'a>(&'a self, service: &'a ObjectName) -> impl Iterator<Item = &'a Slice> {
        let first = (service.clone(), ObjectName::new("", ""));
        self.slices_of
            .range(first..)
            .take_while(move |(owner, _)| owner == service)
            .filter_map(|(_, slice)| self.slices.get(slice).map(Arc::as_ref))
    }

    /// The endpoints of a service with the ports that each serves.
    pub fn endpoints_of<'a>(
        &'a self,
        service: &'a ObjectName,
    ) -> impl Iterator<Item = (&'a Endpoint, &'a [EndpointPort])> {
        self.slices_of(service)
            .flat_map(|slice| &slice.groups)
            .flat_map(|group| {
                group
                    .endpoints
                    .iter()
                    .map(|endpoint| (endpoint, group.ports.as_slice()))
            })
    }

    /// A pod of this node, or one that was asked for.
    pub fn pod(&self, name: &ObjectName) -> Option<&Pod> {
        self.pods.get(name).map(Arc::as_ref)
    }

    /// The known pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().map(Arc::as_ref)
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(&ObjectName::new("", name)).map(Arc::as_ref)
    }

    /// Every node.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().map(Arc::as_ref)
    }

    /// The policies that limit a pod.
    pub fn policies_of<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a NetworkPolicy> {
        self.policies
            .values()
            .map(Arc::as_ref)
            .filter(|policy| policy.selects(pod))
    }

    /// Who has an address; more than one when the cluster's objects disagree.
    pub fn claims(&self, address: IpAddr) -> impl Iterator<Item = &Claim> {
        let nothing = || ObjectName::new("", "");
        let first = (
            address,
            Claim::Node("".into()),
            (Resource::Services, nothing()),
        );
        let mut last = None;
        self.claims
            .range(first..)
            .take_while(move |(found, ..)| *found == address)
            .map(|(_, claim, _)| claim)
            .filter(move |claim| last.replace(*claim) != Some(*claim))
    }

    /// The pods that have an address.
    pub fn pods_at(&self, address: IpAddr) -> impl Iterator<Item = &ObjectName> {
        self.claims(address).filter_map(|claim| match claim {
            Claim::Pod(pod) => Some(pod),
            Claim::Node(_) | Claim::Service(_) => None,
        })
    }

    /// Whether a pod may have an address and its object is not known: pods of other nodes are read
    /// only when they are asked for.
    pub fn may_be_unread_pod(&self, address: IpAddr) -> bool {
        let mut known = self.claims(address).peekable();
        if known.peek().is_some() {
            return known.any(|claim| match claim {
                Claim::Pod(pod) => !self.pods.contains_key(pod),
                Claim::Node(_) | Claim::Service(_) => false,
            });
        }
        let mut prefixes = self.nodes().flat_map(|node| &node.pod_prefixes).peekable();
        if prefixes.peek().is_none() {
            // Some network plug-ins give out addresses without telling the nodes.
            return match address {
                IpAddr::V4(address) => address.is_private(),
                IpAddr::V6(address) => address.is_unique_local(),
            };
        }
        prefixes.any(|prefix| prefix.contains(address))
    }

    /// The service of a NodePort.
    pub fn node_port(&self, protocol: u8, port: u16) -> Option<&Service> {
        self.service(self.node_ports.get(&(protocol, port))?)
    }

    /// The service that packets to an address and port are for: one of its own addresses, or its
    /// NodePort on an address of a node.
    pub fn service_at(&self, protocol: u8, address: SocketAddr) -> Option<&Service> {
        let mut of_node = false;
        for claim in self.claims(address.ip()) {
            match claim {
                Claim::Service(name) => {
                    let service = self.service(name)?;
                    if service.port(protocol, address.port()).is_some() {
                        return Some(service);
                    }
                }
                Claim::Node(_) => of_node = true,
                Claim::Pod(_) => {}
            }
        }
        of_node
            .then(|| self.node_port(protocol, address.port()))
            .flatten()
    }

    /// What people call an address and port: `s/namespace/service:port`, `p/namespace/pod`,
    /// `n/node`. `None` when nobody has it.
    pub fn name(&self, protocol: u8, address: SocketAddr) -> Option<String> {
        if let Some(service) = self.service_at(protocol, address) {
            let port = service
                .ports
                .iter()
                .find(|port| {
                    port.protocol == protocol
                        && (port.port == address.port() || port.node_port == Some(address.port()))
                })
                .map_or_else(|| address.port().to_string(), |port| port.label());
            return Some(format!("s/{}:{port}", service.name));
        }
        self.claims(address.ip()).next().map(|claim| match claim {
            Claim::Node(name) => format!("n/{name}"),
            Claim::Pod(name) => format!("p/{name}"),
            Claim::Service(name) => format!("s/{name}"),
        })
    }
}

/// What the watcher changes.
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

    /// The pods that have an address now, as read for that address alone.
    pub(super) fn put_seen(&mut self, address: IpAddr, pods: Vec<Pod>) {
        let before: Vec<ObjectName> = self
            .pods_at(address)
            .filter(|name| self.pods.contains_key(name) && !self.on_this_node(name))
            .cloned()
            .collect();
        for name in before {
            self.forget_pod(&name);
        }
        for pod in pods {
            self.put(Object::Pod(pod));
        }
    }

    /// Whether a known pod is on this node, so that it is watched.
    fn on_this_node(&self, name: &ObjectName) -> bool {
        self.pod(name)
            .is_some_and(|pod| pod.node.as_deref() == self.this_node.as_deref())
    }

    /// Forgets an object.
    pub(super) fn forget(&mut self, resource: Resource, name: &ObjectName) {
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
        self.sources[resource as usize] = Source {
            listed: Some(SystemTime::now()),
            trouble: None,
        };
    }

    /// Changes of a kind of object arrive again.
    pub(super) fn arriving(&mut self, resource: Resource) {
        self.sources[resource as usize].trouble = None;
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

    /// What is wrong with the server as a whole.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
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
