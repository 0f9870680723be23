//! Facts of the node: what its network namespaces were like at one moment, as plain owned values.
//!
//! Map: `namespace` finds and enters namespaces, `netlink` asks the kernel for a `table`, and one
//! file per kind of fact (`link`, `address`, `route`, `neighbour`, `ipvs`, `socket`, `sysctl`) holds
//! its type and turns the kernel's bytes into it. `facts` puts them together for one namespace and
//! looks things up; `kube_proxy` and `pod` read processes instead; `numbered` makes the enumerations.
//!
//! Invariants:
//! - A cause never does I/O: it is given a [`Snapshot`]. This module never decides: it has no
//!   opinion about what it reads.
//! - No netlink type leaves this module.
//! - Unknown is `None`, never 0. A fact that could not be read is [`Missing`], which is data: no
//!   failure ends a snapshot.
//! - Reading changes nothing: no module is loaded, and the caller's thread never changes its namespace.

mod address;
mod facts;
mod ipvs;
mod kube_proxy;
mod link;
mod namespace;
mod neighbour;
mod netlink;
mod numbered;
mod pod;
mod route;
mod socket;
mod sysctl;
mod table;

use std::time::SystemTime;

use nix::time::{ClockId, clock_gettime};

pub use address::{Address, Scope};
pub use facts::NetnsFacts;
pub use ipvs::{ForwardingMethod, Persistence, RealServer, VirtualServer, VirtualServerKey};
pub use kube_proxy::KubeProxy;
pub use link::{BridgePort, BridgePortState, Link, Mac, OperState};
pub use namespace::{Directory, NetnsHandle, NetnsId};
pub use neighbour::{Neighbour, NeighbourState};
pub use route::{NextHop, NotAPrefix, Prefix, Route, RouteKind, RouteProtocol};
pub use socket::{ListeningSocket, Process, find_owners};
pub use sysctl::Sysctls;

/// What the node was like at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// When reading began, for people.
    pub taken: SystemTime,
    /// The same by CLOCK_MONOTONIC in nanoseconds, to compare with events; `None` if the clock could not be read.
    pub taken_ns: Option<u64>,
    /// The namespaces that were asked for and could be opened.
    pub namespaces: Vec<NetnsFacts>,
    /// kube-proxy processes, in whatever namespace.
    pub kube_proxies: Vec<KubeProxy>,
    /// What could not be read at all; what is missing of one namespace is in its facts.
    pub missing: Vec<Missing>,
}

/// A fact that could not be read.
#[derive(Clone, PartialEq, Eq, Debug)]
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
            kube_proxies: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// Reads the namespaces one after the other.
    pub fn take(directory: &Directory, ids: &[NetnsId]) -> Self {
        let mut snapshot = Self {
            taken: SystemTime::now(),
            taken_ns: monotonic_ns(),
            namespaces: Vec::with_capacity(ids.len()),
            kube_proxies: KubeProxy::running(),
            missing: Vec::new(),
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

    /// The facts of a namespace.
    pub fn namespace(&self, id: NetnsId) -> Option<&NetnsFacts> {
        self.namespaces.iter().find(|facts| facts.id == id)
    }

    /// The kube-proxy processes that work in a namespace.
    pub fn kube_proxies_in(&self, id: NetnsId) -> impl Iterator<Item = &KubeProxy> {
        self.kube_proxies
            .iter()
            .filter(move |proxy| proxy.netns == Some(id))
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
