//! What a case is made of while it lives: hosts, servers, processes that stand in for others, and
//! what the cluster says.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::kube_proxy::StandIn;
use super::namespace::{Announce, Namespace};
use super::options::{HOSTS, Options};
use super::traffic::{QUESTION_WAIT, Server};
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
    /// Sockets that are held and never served.
    sockets: Vec<OwnedFd>,
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
            sockets: Vec::new(),
        }
    }

    /// A new host: one of [`HOSTS`], called as the options say.
    pub(super) fn host(&mut self, name: &str) -> anyhow::Result<Namespace> {
        let place = HOSTS.iter().position(|host| *host == name);
        let called = place.and_then(|place| self.options.hosts.get(place).cloned());
        let host = self.elsewhere(called.as_deref().unwrap_or(name))?;
        self.hosts.push(host.clone());
        Ok(host)
    }

    /// A new host that is not traced.
    pub(super) fn elsewhere(&self, name: &str) -> anyhow::Result<Namespace> {
        let host = Namespace::new(name, &self.announce)?;
        host.run("ip link set lo up")?;
        Ok(host)
    }

    /// Answers TCP connections on a port of a host.
    pub(super) fn serve_tcp(&mut self, host: &Namespace, port: u16) -> anyhow::Result<()> {
        self.serve_tcp_on(host, Ipv4Addr::UNSPECIFIED.into(), port)
    }

    /// Answers TCP connections on a port of one address of a host.
    pub(super) fn serve_tcp_on(
        &mut self,
        host: &Namespace,
        address: IpAddr,
        port: u16,
    ) -> anyhow::Result<()> {
        self.serve_tcp_patiently(host, SocketAddr::new(address, port), QUESTION_WAIT)
    }

    /// The same, and waits so long for each question.
    pub(super) fn serve_tcp_patiently(
        &mut self,
        host: &Namespace,
        place: SocketAddr,
        wait: Duration,
    ) -> anyhow::Result<()> {
        self.servers.push(Server::tcp(host, place, wait)?);
        Ok(())
    }

    /// Asks an address over TCP again and again until the case ends.
    pub(super) fn load(&mut self, from: &Namespace, to: SocketAddr) {
        self.servers.push(Server::load(from, to));
    }

    /// Stops every server.
    pub(super) fn stop_servers(&mut self) {
        self.servers.clear();
    }

    /// Opens sockets in a host and holds them without ever reading from them.
    pub(super) fn hold<S: Into<OwnedFd> + Send>(
        &mut self,
        host: &Namespace,
        open: impl FnOnce() -> io::Result<Vec<S>> + Send,
    ) -> anyhow::Result<()> {
        let opened = host.enter(open)?;
        self.sockets.extend(opened.into_iter().map(Into::into));
        Ok(())
    }

    /// Closes what is held.
    pub(super) fn let_go(&mut self) {
        self.sockets.clear();
    }

    /// Answers UDP datagrams on a port of a host.
    pub(super) fn serve_udp(&mut self, host: &Namespace, port: u16) -> anyhow::Result<()> {
        self.serve_udp_slowly(host, port, Duration::ZERO)
    }

    /// The same, and thinks so long about each.
    pub(super) fn serve_udp_slowly(
        &mut self,
        host: &Namespace,
        port: u16,
        think: Duration,
    ) -> anyhow::Result<()> {
        self.servers.push(Server::udp(host, port, think)?);
        Ok(())
    }

    /// The host that is called so.
    pub(super) fn host_called(&self, name: &str) -> Option<&Namespace> {
        self.hosts.iter().find(|host| host.name() == name)
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
