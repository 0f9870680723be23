//! What the cluster is like, and how to look things up in it.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rpds::{HashTrieMapSync, RedBlackTreeSetSync};

use super::asks::ASKED_AGAIN;
use super::source::Source;
use super::{
    Endpoint, EndpointPort, Freshness, NetworkPolicy, Node, ObjectName, Pod, Resource, Service,
    Slice, Trouble,
};
use crate::node::{ProxyConfiguration, Snapshot};

pub(super) type Table<T> = HashTrieMapSync<ObjectName, Arc<T>>;

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
    /// When pods of other nodes were read.
    pub(super) read: HashTrieMapSync<ObjectName, SystemTime>,
    /// Pods of other nodes were asked for, and the answer is to come.
    pub(super) asking: bool,
    pub(super) nodes: Table<Node>,
    pub(super) policies: Table<NetworkPolicy>,
    /// Who has an address, and which object says so.
    pub(super) claims: RedBlackTreeSetSync<(IpAddr, Claim, Origin)>,
    /// Slices by service.
    pub(super) slices_of: RedBlackTreeSetSync<(ObjectName, ObjectName)>,
    /// Services by protocol and NodePort.
    pub(super) node_ports: HashTrieMapSync<(u8, u16), ObjectName>,
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

    pub(super) const fn resource(&self) -> Resource {
        match self {
            Self::Service(_) => Resource::Services,
            Self::Slice(_) => Resource::Endpoints,
            Self::Pod(_) => Resource::Pods,
            Self::Node(_) => Resource::Nodes,
            Self::Policy(_) => Resource::NetworkPolicies,
            Self::Configuration(..) => Resource::ProxyConfiguration,
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
            read: HashTrieMapSync::new_sync(),
            asking: false,
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

    /// What is wrong with the server as a whole.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// How long a kind of object has not been fresh by now; zero while it is, `None` when it was
    /// never complete.
    pub fn stale_for(&self, resource: Resource, now: SystemTime) -> Option<Duration> {
        match self.freshness(resource) {
            Freshness::Fresh => Some(Duration::ZERO),
            // A clock that was set back makes nothing old.
            Freshness::Stale(trouble) => {
                Some(now.duration_since(trouble.since).unwrap_or_default())
            }
            Freshness::Waiting | Freshness::Unavailable(_) => None,
        }
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

    /// Addresses of a pod; of one that was not read those that endpoints have of it. `None` when nothing
    /// knows it.
    pub fn addresses_of_pod(&self, name: &ObjectName) -> Option<Vec<IpAddr>> {
        if let Some(pod) = self.pod(name) {
            return Some(pod.addresses.clone());
        }
        let mut found: Vec<_> = self
            .slices
            .values()
            .flat_map(|slice| slice.endpoints())
            .filter(|endpoint| endpoint.pod.as_ref() == Some(name))
            .map(|endpoint| endpoint.address)
            .collect();
        found.sort_unstable();
        found.dedup();
        (!found.is_empty()).then_some(found)
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

    /// Whether pods of other nodes were asked for and the answer is to come.
    pub const fn asking(&self) -> bool {
        self.asking
    }

    /// Whether a pod of another node may have an address and was not read lately: such pods are read
    /// only when they are asked for.
    pub fn to_be_read(&self, address: IpAddr) -> bool {
        let mut known = self.claims(address).peekable();
        if known.peek().is_some() {
            return known.any(|claim| match claim {
                Claim::Pod(pod) => !self.on_this_node(pod) && !self.read_within(pod, ASKED_AGAIN),
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

    /// Whether a known pod is on this node, so that it is watched.
    pub(super) fn on_this_node(&self, name: &ObjectName) -> bool {
        self.pod(name).is_some_and(|pod| self.is_here(pod))
    }

    pub(super) fn is_here(&self, pod: &Pod) -> bool {
        self.this_node.is_some() && pod.node.as_deref() == self.this_node.as_deref()
    }

    /// Whether a pod of another node was read that lately.
    pub(super) fn read_within(&self, name: &ObjectName, most: Duration) -> bool {
        let read = self.read.get(name);
        // After the clock was set back it is read again.
        read.is_some_and(|read| read.elapsed().is_ok_and(|age| age < most))
    }

    /// The pods of other nodes that are to be read though no packet met them: their endpoint is going, and
    /// they were not seen to be deleted, or their node is down and they were not read at all.
    pub(super) fn doubtful(&self) -> Vec<ObjectName> {
        if self.freshness(Resource::Nodes) == Freshness::Waiting {
            return Vec::new();
        }
        let down: HashSet<&str> = self
            .nodes()
            .filter(|node| node.ready != Some(true))
            .map(|node| &*node.name.name)
            .collect();
        let is_down = |endpoint: &Endpoint| {
            let node = endpoint.node.as_deref();
            node.is_some_and(|node| down.contains(node))
        };
        self.slices
            .values()
            .flat_map(|slice| slice.endpoints())
            .filter(|endpoint| {
                endpoint.node.is_none() || endpoint.node.as_deref() != self.this_node.as_deref()
            })
            .filter(|endpoint| endpoint.terminating || is_down(endpoint))
            .filter_map(|endpoint| {
                let name = endpoint.pod.as_ref()?;
                let settled = self
                    .pod(name)
                    .is_some_and(|pod| !endpoint.terminating || pod.deletion.is_some());
                (!settled && !self.read_within(name, ASKED_AGAIN)).then(|| name.clone())
            })
            .collect()
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

    /// The same on this node, where a NodePort counts on every address: also on one that the cluster does not
    /// know, such as a VIP that moves between nodes.
    pub fn service_here(
        &self,
        node: &Snapshot,
        protocol: u8,
        address: SocketAddr,
    ) -> Option<&Service> {
        self.service_at(protocol, address).or_else(|| {
            let service = self.node_port(protocol, address.port())?;
            let known = &self.node(self.this_node.as_deref()?)?.internal_ips;
            let mut of_node = (node.namespaces.iter())
                .filter(|facts| known.iter().any(|&own| facts.is_local_address(own)));
            let is_free = self.claims(address.ip()).next().is_none();
            (is_free && of_node.any(|facts| facts.is_local_address(address.ip())))
                .then_some(service)
        })
    }

    /// What people call an address and port: `s/namespace/service:port`, `p/namespace/pod`,
    /// `n/node`. `None` when nobody has it.
    pub fn name(&self, node: &Snapshot, protocol: u8, address: SocketAddr) -> Option<String> {
        if let Some(service) = self.service_here(node, protocol, address) {
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
        self.name_of(address.ip())
    }

    /// What people call an address.
    pub fn name_of(&self, address: IpAddr) -> Option<String> {
        self.claims(address).next().map(|claim| match claim {
            Claim::Node(name) => format!("n/{name}"),
            Claim::Pod(name) => format!("p/{name}"),
            Claim::Service(name) => format!("s/{name}"),
        })
    }
}
