//! Facts of the node: what its network namespaces were like at one moment, as plain owned values.
//!
//! Map: `namespace` finds and enters namespaces, `netlink` asks the kernel for a `table`, and one
//! file per kind of fact (`link`, `address`, `route`, `policy_rule`, `neighbour`, `fdb`, `ipvs`,
//! `ipvs_connection`, `conntrack`, `queue`, `device_filter`, `netfilter`, `service_rules`, `socket`, `sysctl`,
//! `counter`) holds its type and turns the kernel's bytes into it. `facts` puts them together for one namespace and
//! looks things up; `source` is where facts come from, this machine or a capture; `kube_proxy`,
//! `proxy_report`, `proxy_log`, `component` and `pod` read processes instead, `cni` and `neighbour_table` files;
//! `pod_index` finds pods by their addresses; `numbered` makes the enumerations.
//!
//! Invariants:
//! - A cause never does I/O: it is given a [`Snapshot`]. This module never decides: it has no
//!   opinion about what it reads.
//! - No netlink type leaves this module.
//! - Unknown is `None`, never 0. A fact that could not be read is [`Missing`], which is data: no
//!   failure ends a snapshot.
//! - The fact values are plain data without behaviour, so a capture stores them as they are, by name of
//!   field: a twin of each would say the same twice. A field that is added gets `#[serde(default)]` unless
//!   it is an `Option`, so that older captures stay readable.
//! - Reading changes nothing: no module is loaded, and the caller's thread never changes its namespace.

mod address;
mod cni;
mod component;
mod conntrack;
mod counter;
mod device_filter;
mod facts;
mod fdb;
mod ipvs;
mod ipvs_connection;
mod kube_proxy;
mod link;
mod namespace;
mod neighbour;
mod neighbour_table;
pub mod netfilter;
mod netlink;
mod numbered;
mod pod;
mod pod_index;
mod policy_rule;
mod proxy_configuration;
mod proxy_log;
mod proxy_report;
mod queue;
mod route;
mod service_rules;
mod socket;
mod source;
mod sysctl;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use pod_index::PodIndex;

pub use address::{Address, Scope};
pub use cni::Cni;
pub use component::{COMPONENTS, Component};
pub use conntrack::ConntrackEntry;
pub use counter::Counters;
pub use device_filter::{BpfProgram, DeviceFilter, FilterPlace, GENERIC_XDP};
pub use facts::NetnsFacts;
pub use fdb::FdbEntry;
pub use ipvs::{ForwardingMethod, Persistence, RealServer, VirtualServer, VirtualServerKey};
pub use ipvs_connection::IpvsConnection;
pub use kube_proxy::KubeProxy;
pub use link::{BridgePort, BridgePortState, Link, Mac, OperState, Vxlan};
pub use namespace::{Directory, NetnsHandle, NetnsId};
pub use neighbour::{Neighbour, NeighbourState};
pub use neighbour_table::NeighbourTable;
pub use netfilter::Ruleset;
pub use policy_rule::{PolicyRule, RuleAction};
pub use proxy_configuration::ProxyConfiguration;
pub use proxy_log::ProxyLog;
pub use proxy_report::ProxyReport;
pub use queue::QueueDiscipline;
pub use route::{NextHop, Prefix, Route, RouteKind, RouteProtocol};
pub use service_rules::{
    Destination, NodePortScope, PacketFilter, Refusal, ServiceRule, ServiceRules,
};
pub use socket::{HalfOpen, ListeningSocket, Process, find_owners};
pub use source::{Occasion, Reading, Source};
pub use sysctl::Sysctls;

/// What the node was like at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// When reading began, for people.
    pub taken: SystemTime,
    /// The same by CLOCK_MONOTONIC in nanoseconds, to compare with events; `None` if the clock could not be read.
    pub taken_ns: Option<u64>,
    /// The namespaces that were asked for and could be opened.
    pub namespaces: Vec<NetnsFacts>,
    /// The neighbour tables, which all namespaces share.
    #[serde(default)]
    pub neighbour_tables: Vec<NeighbourTable>,
    /// kube-proxy processes, in whatever namespace.
    pub kube_proxies: Vec<KubeProxy>,
    /// kubelet, container runtimes and overlay daemons, once [`Snapshot::read_node`] has looked.
    pub components: Vec<Component>,
    /// The container network's configuration, once [`Snapshot::read_node`] has looked.
    pub cni: Option<Cni>,
    /// kube-proxy's log, where one was given.
    pub proxy_log: Option<Arc<ProxyLog>>,
    /// What could not be read at all; what is missing of one namespace is in its facts.
    pub missing: Vec<Missing>,
    #[serde(skip)]
    by_address: PodIndex,
}

/// A fact that could not be read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Missing {
    /// The fact.
    pub what: String,
    /// Why not.
    pub why: String,
    /// What would help.
    pub remedy: Option<String>,
}

impl Snapshot {
    /// Nothing known yet.
    pub fn empty() -> Self {
        Self {
            taken: SystemTime::UNIX_EPOCH,
            taken_ns: None,
            namespaces: Vec::new(),
            neighbour_tables: Vec::new(),
            kube_proxies: Vec::new(),
            components: Vec::new(),
            cni: None,
            proxy_log: None,
            missing: Vec::new(),
            by_address: PodIndex::default(),
        }
    }

    /// Reads the namespaces one after the other.
    pub fn take(directory: &Directory, ids: &[NetnsId]) -> Self {
        let mut snapshot = Self {
            taken: SystemTime::now(),
            taken_ns: monotonic_ns(),
            namespaces: Vec::with_capacity(ids.len()),
            neighbour_tables: NeighbourTable::read(),
            kube_proxies: KubeProxy::running(),
            components: Vec::new(),
            cni: None,
            proxy_log: None,
            missing: Vec::new(),
            by_address: PodIndex::default(),
        };
        for id in ids {
            match directory.open(*id) {
                Some(handle) => snapshot
                    .namespaces
                    .push(NetnsFacts::read(&handle, directory)),
                None => snapshot.missing.push(Missing {
                    what: format!("network namespace {id}"),
                    why: "no process and no name leads to it (any more)".to_owned(),
                    remedy: None,
                }),
            }
        }
        snapshot
    }

    /// Reads what a node has once: its programs and the container network's configuration.
    pub fn read_node(&mut self) {
        self.components = Component::running();
        self.cni = cni::read(Path::new("/"), &mut self.missing);
    }

    /// Asks the kube-proxies of the namespaces read what they say of themselves: see [`ProxyReport::read`].
    pub fn ask_kube_proxies(&mut self) {
        let Self {
            namespaces,
            kube_proxies,
            ..
        } = self;
        let read = |proxy: &&mut KubeProxy| {
            let own = proxy.netns;
            namespaces.iter().any(|facts| own == Some(facts.id))
        };
        for proxy in kube_proxies.iter_mut().filter(read) {
            proxy.report = Some(ProxyReport::read(proxy));
        }
    }

    /// Reads the UDP conntrack entries of every namespace: a large table, for an audit.
    pub fn read_udp_entries(&mut self, directory: &Directory) {
        for facts in &mut self.namespaces {
            if let Some(handle) = directory.open(facts.id) {
                facts.read_udp_entries(&handle);
            }
        }
    }

    /// The facts of a namespace.
    pub fn namespace(&self, id: NetnsId) -> Option<&NetnsFacts> {
        self.namespaces.iter().find(|facts| facts.id == id)
    }

    /// The pod with an address, by the cgroups of its processes: `p/namespace/name`, or with its UID where
    /// only that is known.
    pub fn pod_at(&self, address: IpAddr) -> Option<&str> {
        let place = self.by_address.place(&self.namespaces, address)?;
        self.namespaces.get(place)?.pod_name()
    }

    /// The kube-proxy processes that work in a namespace.
    pub fn kube_proxies_in(&self, id: NetnsId) -> impl Iterator<Item = &KubeProxy> {
        self.kube_proxies
            .iter()
            .filter(move |proxy| proxy.netns == Some(id))
    }

    /// Reads the IPVS connections of these clients: see [`NetnsFacts::read_connections`].
    pub fn read_connections(
        &mut self,
        directory: &Directory,
        clients: &BTreeMap<NetnsId, BTreeSet<SocketAddr>>,
    ) {
        for facts in &mut self.namespaces {
            let wanted = clients.get(&facts.id);
            if let Some((clients, handle)) = wanted.zip(directory.open(facts.id)) {
                facts.read_connections(&handle, clients);
            }
        }
    }

    /// Reads the packet filter rules of these namespaces.
    pub fn read_rules(&mut self, directory: &Directory, wanted: &BTreeSet<NetnsId>) {
        for facts in &mut self.namespaces {
            if wanted.contains(&facts.id)
                && let Some(handle) = directory.open(facts.id)
            {
                facts.read_rules(&handle);
            }
        }
    }

    /// Reads what kube-proxy's rules do with packets for services, in the namespaces where it works.
    pub fn read_service_rules(&mut self, directory: &Directory, wanted: &BTreeSet<NetnsId>) {
        for facts in &mut self.namespaces {
            if wanted.contains(&facts.id)
                && let Some(handle) = directory.open(facts.id)
            {
                facts.read_service_rules(&handle);
            }
        }
    }

    /// Fills in the owners of all listening sockets: see [`find_owners`].
    pub fn find_owners(&mut self) {
        find_owners(
            self.namespaces
                .iter_mut()
                .flat_map(|facts| &mut facts.sockets),
        );
    }
}

fn monotonic_ns() -> Option<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?;
    let seconds = u64::try_from(time.tv_sec()).ok()?;
    Some(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).ok()?)
}
