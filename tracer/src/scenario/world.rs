//! What a case is made of while it lives: hosts, servers, processes that stand in for others, and
//! what the cluster says.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use super::kube_proxy::StandIn;
use super::namespace::{Announce, Namespace};
use super::options::{HOSTS, Options};
use super::traffic::Server;
use crate::kube::ClusterFacts;
use crate::node::NetnsHandle;

/// Everything that a case made; it is gone when this is dropped.
pub struct World {
    /// Addresses, ports and names.
    pub options: Options,
    /// What the cluster says, for causes that need its objects.
    pub cluster: Option<Arc<ClusterFacts>>,
    /// Processes that stand in for kube-proxy or the kubelet.
    pub stand_ins: Vec<StandIn>,
    announce: Arc<Mutex<Announce>>,
    hosts: Vec<Namespace>,
    servers: Vec<Server>,
}

impl World {
    pub(super) fn new(options: Options, announce: Announce) -> Self {
        Self {
            options,
            cluster: None,
            stand_ins: Vec::new(),
            announce: Arc::new(Mutex::new(announce)),
            hosts: Vec::new(),
            servers: Vec::new(),
        }
    }

    /// A new host: one of [`HOSTS`], called as the options say.
    pub(super) fn host(&mut self, name: &str) -> anyhow::Result<Namespace> {
        let place = HOSTS.iter().position(|host| *host == name);
        let called = place.and_then(|place| self.options.hosts.get(place));
        let host = Namespace::new(called.map_or(name, String::as_str), &self.announce)?;
        host.run("ip link set lo up")?;
        self.hosts.push(host.clone());
        Ok(host)
    }

    /// Answers TCP connections on a port of a host.
    pub(super) fn serve_tcp(&mut self, host: &Namespace, port: u16) -> anyhow::Result<()> {
        self.servers.push(Server::tcp(host, port)?);
        Ok(())
    }

    /// Answers UDP datagrams on a port of a host.
    pub(super) fn serve_udp(&mut self, host: &Namespace, port: u16) -> anyhow::Result<()> {
        self.servers.push(Server::udp(host, port)?);
        Ok(())
    }

    pub(super) fn namespaces(&self) -> Vec<NetnsHandle> {
        self.hosts
            .iter()
            .map(|host| host.handle().clone())
            .collect()
    }
}

/// An address and port.
pub(super) fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}
