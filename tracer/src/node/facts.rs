//! What one network namespace was like, and how to look things up in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use netlink_packet_core::{Emitable as _, Parseable as _};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidHeader, NsidMessage};
use serde::{Deserialize, Serialize};

use super::link::{LinkRow, PeerPlace};
use super::netlink::{Conversation, ReadError, attributes};
use super::table::rows_or_missing;
use super::{
    Address, ConntrackEntry, Counters, DeviceFilter, Directory, FdbEntry, HalfOpen, IpvsConnection,
    Link, ListeningSocket, Missing, Neighbour, NetnsHandle, NetnsId, PolicyRule, QueueDiscipline,
    Route, RouteKind, Ruleset, ServiceRules, Sysctls, VirtualServer, VirtualServerKey, address,
    conntrack, counter, device_filter, fdb, ipvs, ipvs_connection, link, neighbour, netfilter,
    policy_rule, queue, route, service_rules, socket, sysctl,
};

/// What one network namespace was like.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetnsFacts {
    /// Which namespace.
    pub id: NetnsId,
    /// Its name: of its file, or the one it was given.
    pub name: Option<String>,
    /// A file that leads to it, for `nsenter --net=`; `None` where only a descriptor does.
    #[serde(default)]
    pub path: Option<String>,
    /// A pod's, by the cgroups of its processes.
    #[serde(default)]
    pub is_pod: bool,
    /// Devices.
    pub links: Vec<Link>,
    /// Addresses of the devices.
    pub addresses: Vec<Address>,
    /// Routes of every table.
    pub routes: Vec<Route>,
    /// Neighbours, without those that need no resolution.
    pub neighbours: Vec<Neighbour>,
    /// Virtual servers. `None`: the kernel has no ip_vs loaded, or `missing` says why they could not be read.
    pub ipvs: Option<Vec<VirtualServer>>,
    /// Sockets that wait for packets.
    pub sockets: Vec<ListeningSocket>,
    /// Half-open connections, where listeners had to turn connections away and the kernel could be asked.
    pub half_open: Option<Vec<HalfOpen>>,
    /// Kernel settings.
    pub sysctls: Sysctls,
    /// Counters of the kernel.
    pub counters: Counters,
    /// Forwarding databases of bridges and VXLAN devices.
    pub fdb: Vec<FdbEntry>,
    /// Policy rules.
    pub rules: Vec<PolicyRule>,
    /// XDP programs and traffic control filters of the devices.
    #[serde(default)]
    pub device_filters: Vec<DeviceFilter>,
    /// Queueing disciplines that keep packets.
    #[serde(default)]
    pub queues: Vec<QueueDiscipline>,
    /// IPVS connections that were asked for; see [`NetnsFacts::read_connections`].
    pub ipvs_connections: Vec<IpvsConnection>,
    /// UDP conntrack entries with another destination or without a reply; `None` before
    /// [`NetnsFacts::read_udp_entries`], or when `missing` says why they could not be read.
    pub udp_entries: Option<Vec<ConntrackEntry>>,
    /// Packet filter rules; `None` before [`NetnsFacts::read_rules`].
    pub ruleset: Option<Ruleset>,
    /// What kube-proxy's packet filter rules do with packets for services; `None` before
    /// [`NetnsFacts::read_service_rules`], or when they could not be read whole.
    pub service_rules: Option<Vec<ServiceRules>>,
    /// What could not be read.
    pub missing: Vec<Missing>,
}

impl NetnsFacts {
    /// Reads everything about a namespace; what cannot be read is in `missing`. The directory
    /// tells in which namespaces the peers of its links are.
    pub fn read(handle: &NetnsHandle, directory: &Directory) -> Self {
        // What a container runtime calls a namespace says nothing to a person.
        let pod = directory.pod(handle.id());
        let mut facts = Self::unread(handle.id(), pod.as_deref().or(handle.name()));
        facts.path = directory.path(handle.id());
        facts.is_pod = pod.is_some();
        if let Err(error) = handle.run(|| facts.fill(directory)) {
            let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
            facts.missing.push(Missing {
                what: "everything in this network namespace".to_owned(),
                why: format!("it could not be entered: {error}"),
                remedy: denied
                    .then(|| "run as root, or with CAP_SYS_ADMIN and CAP_NET_ADMIN".to_owned()),
            });
        }
        facts
    }

    /// A namespace of which nothing was read.
    pub fn unread(id: NetnsId, name: Option<&str>) -> Self {
        Self {
            id,
            name: name.map(str::to_owned),
            path: None,
            is_pod: false,
            links: Vec::new(),
            addresses: Vec::new(),
            routes: Vec::new(),
            neighbours: Vec::new(),
            ipvs: None,
            sockets: Vec::new(),
            half_open: None,
            sysctls: Sysctls::default(),
            counters: Counters::default(),
            fdb: Vec::new(),
            rules: Vec::new(),
            device_filters: Vec::new(),
            queues: Vec::new(),
            ipvs_connections: Vec::new(),
            udp_entries: None,
            ruleset: None,
            service_rules: None,
            missing: Vec::new(),
        }
    }

    fn fill(&mut self, directory: &Directory) {
        match Conversation::open(libc::NETLINK_ROUTE as isize) {
            Ok(mut route) => self.fill_by_route(&mut route, directory),
            Err(error) => {
                self.missing
                    .push(error.missing("links, addresses, routes and neighbours"));
            }
        }
        self.ipvs = ipvs::read(&mut self.missing);
        self.sockets = socket::read(&mut self.missing);
        self.counters = counter::read(Path::new("/proc/thread-self/net"), &mut self.missing);
        let turned_away = ["TcpExt TCPReqQFullDrop", "TcpExt TCPReqQFullDoCookies"]
            .iter()
            .any(|name| self.counters.get(name).is_some_and(|count| count > 0));
        if turned_away {
            self.half_open = socket::read_half_open(&mut self.missing);
        }
        let names = self.links.iter().map(|link| link.name.as_str());
        self.sysctls = sysctl::read(Path::new("/proc/sys"), names, &mut self.missing);
    }

    fn fill_by_route(&mut self, route: &mut Conversation, directory: &Directory) {
        let missing = &mut self.missing;
        let rows = rows_or_missing("links", link::read(route), missing);
        self.links = with_peer_namespaces(rows, self.id, route, directory);
        self.addresses = rows_or_missing("addresses", address::read(route), missing);
        self.neighbours = neighbour::read(route, missing);
        self.fdb = fdb::read(route, missing);
        self.rules = policy_rule::read(route, missing);
        self.queues = queue::read(route, self.links.len(), missing);
        self.device_filters = device_filter::read(route, &self.links, &self.queues, missing);
        self.queues.retain(|queue| !queue.is_for_filters());
        // Last, as it makes the kernel strict with every later request on this socket.
        self.routes = route::read(route, missing);
    }

    /// Reads the IPVS connections of these clients; the table may be very large, so nothing else is kept.
    pub fn read_connections(&mut self, handle: &NetnsHandle, clients: &BTreeSet<SocketAddr>) {
        let missing = &mut self.missing;
        let read =
            || ipvs_connection::read(|connection| clients.contains(&connection.client), missing);
        // A namespace that is gone has no connections.
        if let Ok(found) = handle.run(read) {
            self.ipvs_connections = found;
        }
    }

    /// Reads the UDP conntrack entries.
    pub fn read_udp_entries(&mut self, handle: &NetnsHandle) {
        let missing = &mut self.missing;
        self.udp_entries = handle.run(|| conntrack::read_udp(missing)).ok().flatten();
    }

    /// Reads the packet filter rules.
    pub fn read_rules(&mut self, handle: &NetnsHandle) {
        let missing = &mut self.missing;
        self.ruleset = handle.run(|| netfilter::read(missing)).ok();
    }

    /// Reads what kube-proxy's packet filter rules do with packets for services.
    pub fn read_service_rules(&mut self, handle: &NetnsHandle) {
        let doubts = self.missing.len();
        let missing = &mut self.missing;
        let read = handle.run(|| service_rules::read(missing)).ok();
        self.service_rules = read.filter(|_| self.missing.len() == doubts);
    }

    /// The most specific local route for an address: what makes the address the node's own. Its
    /// preferred source tells which address the kernel counts it with.
    pub fn local_route(&self, address: IpAddr) -> Option<&Route> {
        self.routes
            .iter()
            .filter(|route| route.table == Route::LOCAL_TABLE && route.kind == RouteKind::Local)
            .filter(|route| route.destination.contains(address))
            .max_by_key(|route| route.destination.length)
    }

    /// Whether packets to an address are for this namespace itself.
    pub fn is_local_address(&self, address: IpAddr) -> bool {
        self.local_route(address).is_some()
    }

    /// What the pod is called whose namespace this is.
    pub fn pod_name(&self) -> Option<&str> {
        let name = self.name.as_deref().filter(|_| self.is_pod)?;
        // Captures of several nodes that were joined name the node behind it.
        Some(name.split_once('@').map_or(name, |(pod, _)| pod))
    }

    /// The addresses that lead to the pod whose namespace this is; none for other namespaces.
    pub fn pod_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let leads = |address: &IpAddr| match address {
            IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
            IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
        };
        self.addresses
            .iter()
            .filter(|_| self.is_pod)
            .map(|entry| entry.address)
            .filter(leads)
    }

    /// The entry of an address that a device carries.
    pub fn address(&self, address: IpAddr) -> Option<&Address> {
        self.addresses.iter().find(|entry| entry.address == address)
    }

    /// The device with an index.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The bridge, bond or VRF that a device is a port of.
    pub fn master_of(&self, link: &Link) -> Option<&Link> {
        self.link(link.master?)
    }

    /// The virtual server that takes packets to an address and port. As in the kernel, one for
    /// all ports of the address counts when the port has none of its own. Firewall marks are not considered.
    pub fn virtual_server(
        &self,
        protocol: u8,
        address: IpAddr,
        port: u16,
    ) -> Option<&VirtualServer> {
        let with_key = |port| {
            let wanted = VirtualServerKey::Endpoint {
                protocol,
                address,
                port,
            };
            self.ipvs
                .iter()
                .flatten()
                .find(|server| server.key == wanted)
        };
        with_key(port).or_else(|| with_key(0))
    }

    /// The virtual servers on a port, whatever their address.
    pub fn virtual_servers_on_port(
        &self,
        protocol: u8,
        port: u16,
    ) -> impl Iterator<Item = &VirtualServer> {
        self.ipvs
            .iter()
            .flatten()
            .filter(move |server| match server.key {
                VirtualServerKey::Endpoint {
                    protocol: own_protocol,
                    port: own_port,
                    ..
                } => (own_protocol, own_port) == (protocol, port),
                VirtualServerKey::Mark { .. } => false,
            })
    }

    /// The sockets that packets to an address and port reach.
    pub fn listeners(
        &self,
        protocol: u8,
        address: IpAddr,
        port: u16,
    ) -> impl Iterator<Item = &ListeningSocket> {
        self.sockets
            .iter()
            .filter(move |socket| socket.takes(protocol, address, port))
    }
}

/// A namespace knows others by numbers of its own, which only asking about each other one reveals.
fn with_peer_namespaces(
    rows: Vec<LinkRow>,
    own: NetnsId,
    route: &mut Conversation,
    directory: &Directory,
) -> Vec<Link> {
    let mut resolved: BTreeMap<i32, Option<NetnsId>> = rows
        .iter()
        .filter_map(|row| match row.peer? {
            PeerPlace::Numbered(number) => Some((number, None)),
            PeerPlace::Same => None,
        })
        .collect();
    let mut unresolved = resolved.len();
    // Ascending order asks first about the node's own namespace, where the peers of pods are.
    for id in directory.ids() {
        if unresolved == 0 {
            break;
        }
        let number = directory
            .open(id)
            .and_then(|handle| number_of(&handle, route).ok());
        if let Some(slot @ None) = number.and_then(|number| resolved.get_mut(&number)) {
            *slot = Some(id);
            unresolved -= 1;
        }
    }
    let place = |peer| match peer {
        PeerPlace::Same => Some(own),
        PeerPlace::Numbered(number) => resolved.get(&number).copied().flatten(),
    };
    rows.into_iter()
        .map(|row| Link {
            peer_netns: row.peer.and_then(place),
            ..row.link
        })
        .collect()
}

fn number_of(handle: &NetnsHandle, route: &mut Conversation) -> Result<i32, ReadError> {
    let mut request = NsidMessage::default();
    let descriptor = handle.as_fd().as_raw_fd();
    request
        .attributes
        .push(NsidAttribute::Fd(descriptor.cast_unsigned()));
    route.ask(RouteNetlinkMessage::GetNsId(request), |payload| {
        attributes(payload, NsidHeader::default().buffer_len())
            .find_map(|attribute| match NsidAttribute::parse(&attribute) {
                Ok(NsidAttribute::Id(number)) => Some(number),
                Ok(_) | Err(_) => None,
            })
            .ok_or_else(|| "namespace answer without a number".into())
    })
}

#[cfg(test)]
mod tests;
