//! One namespace's facts, indexed: a node has thousands of services, and thousands of flows ask.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::node::{
    Address, Link, ListeningSocket, Neighbour, NetnsFacts, Prefix, Route, RouteKind, RuleAction,
    VirtualServer, VirtualServerKey,
};

/// Commands that look at the network namespace that they are run in, or change it.
const NETWORK_TOOLS: &[&str] = &[
    "arping",
    "conntrack",
    "ip",
    "ip6tables",
    "ip6tables-legacy",
    "ip6tables-nft",
    "iptables",
    "iptables-legacy",
    "iptables-nft",
    "nft",
    "nstat",
    "ss",
    "sysctl",
    "tcpdump",
];

/// One namespace's facts and where to find what in them.
pub struct Site<'a> {
    /// The facts.
    pub facts: &'a NetnsFacts,
    links: HashMap<u32, &'a Link>,
    addresses: HashMap<IpAddr, Vec<&'a Address>>,
    local: Table<'a>,
    main: Table<'a>,
    servers: HashMap<VirtualServerKey, &'a VirtualServer>,
    servers_by_port: HashMap<(u8, u16), Vec<&'a VirtualServer>>,
    sockets: HashMap<(u8, u16), Vec<&'a ListeningSocket>>,
    neighbours: HashMap<(u32, IpAddr), &'a Neighbour>,
    /// Routes that throw packets away.
    refusing: Vec<&'a Route>,
}

/// Routes by prefix, the longest prefixes first.
struct Table<'a>(Vec<(u8, HashMap<IpAddr, &'a Route>)>);

impl<'a> Table<'a> {
    fn new(routes: impl Iterator<Item = &'a Route>) -> Self {
        let mut by_length: HashMap<u8, HashMap<IpAddr, &'a Route>> = HashMap::new();
        for route in routes {
            let Prefix { address, length } = route.destination;
            let slot = by_length.entry(length).or_default().entry(address);
            let metric = |route: &Route| route.metric.unwrap_or(0);
            slot.and_modify(|best| {
                if metric(route) < metric(best) {
                    *best = route;
                }
            })
            .or_insert(route);
        }
        let mut table: Vec<_> = by_length.into_iter().collect();
        table.sort_unstable_by_key(|(length, _)| std::cmp::Reverse(*length));
        Self(table)
    }

    fn find(&self, address: IpAddr) -> Option<&'a Route> {
        self.0.iter().find_map(|(length, routes)| {
            let length = *length;
            let range = Prefix { address, length }.masked()?;
            routes.get(&range.address).copied()
        })
    }
}

impl<'a> Site<'a> {
    /// Indexes the facts.
    pub fn new(facts: &'a NetnsFacts) -> Self {
        let mut servers = HashMap::new();
        let mut servers_by_port: HashMap<_, Vec<_>> = HashMap::new();
        for server in facts.ipvs.iter().flatten() {
            servers.entry(server.key).or_insert(server);
            if let VirtualServerKey::Endpoint { protocol, port, .. } = server.key {
                servers_by_port
                    .entry((protocol, port))
                    .or_default()
                    .push(server);
            }
        }
        let mut sockets: HashMap<_, Vec<_>> = HashMap::new();
        for socket in &facts.sockets {
            sockets
                .entry((socket.protocol, socket.port))
                .or_default()
                .push(socket);
        }
        let mut addresses: HashMap<_, Vec<_>> = HashMap::new();
        for address in &facts.addresses {
            addresses.entry(address.address).or_default().push(address);
        }
        let of_table = |number| {
            facts
                .routes
                .iter()
                .filter(move |route| route.table == number)
        };
        Self {
            facts,
            links: facts.links.iter().map(|link| (link.index, link)).collect(),
            addresses,
            local: Table::new(
                of_table(Route::LOCAL_TABLE).filter(|route| route.kind == RouteKind::Local),
            ),
            main: Table::new(of_table(Route::MAIN_TABLE).filter(|route| !route.dead)),
            servers,
            servers_by_port,
            sockets,
            neighbours: facts
                .neighbours
                .iter()
                .map(|entry| ((entry.link, entry.address), entry))
                .collect(),
            refusing: facts
                .routes
                .iter()
                .filter(|route| {
                    matches!(
                        route.kind,
                        RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit
                    )
                })
                .collect(),
        }
    }

    /// Name for people.
    pub fn name(&self) -> String {
        self.facts
            .name
            .clone()
            .unwrap_or_else(|| format!("netns {}", self.facts.id))
    }

    /// A command as it is typed on the node to be run in this namespace.
    pub fn inside(&self, command: &str) -> String {
        match &self.facts.path {
            Some(path) => format!("nsenter --net={path} {command}"),
            None => format!("ip netns exec {} {command}", self.name()),
        }
    }

    /// A line of commands as it is typed on the node to be about this namespace: for a pod's each command that looks
    /// at the network or changes it is to be run inside.
    pub fn typed(&self, line: &str) -> String {
        if !self.facts.is_pod {
            return line.to_owned();
        }
        // The node's files do not reach into pods.
        if line.starts_with("echo 'net.") {
            return "securityContext.sysctls in the pod's spec   # lasting".into();
        }
        let commands = line.split_inclusive("; ");
        commands
            .map(|command| {
                let program = command.split(' ').next().unwrap_or("");
                if NETWORK_TOOLS.contains(&program) {
                    self.inside(command)
                } else {
                    command.to_owned()
                }
            })
            .collect()
    }

    /// The device with an index.
    pub fn link(&self, index: u32) -> Option<&'a Link> {
        self.links.get(&index).copied()
    }

    /// The device's name, or its number.
    pub fn device(&self, index: u32) -> String {
        self.link(index)
            .map_or_else(|| format!("if{index}"), |link| link.name.clone())
    }

    /// The entries of an address; several devices may carry it.
    pub fn addresses(&self, address: IpAddr) -> impl Iterator<Item = &'a Address> {
        self.addresses.get(&address).into_iter().flatten().copied()
    }

    /// The most specific local route for an address: what makes the address the node's own.
    pub fn local_route(&self, address: IpAddr) -> Option<&'a Route> {
        self.local.find(address)
    }

    /// Whether packets to an address are for this namespace itself.
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.local_route(address).is_some()
    }

    /// The route of the main table for an address; policy rules are not considered.
    pub fn main_route(&self, address: IpAddr) -> Option<&'a Route> {
        self.main.find(address)
    }

    /// The virtual server that takes packets to an address and port. As in the kernel, one for all
    /// ports of the address counts when the port has none of its own.
    pub fn virtual_server(
        &self,
        protocol: u8,
        address: IpAddr,
        port: u16,
    ) -> Option<&'a VirtualServer> {
        let with = |port| {
            self.servers.get(&VirtualServerKey::Endpoint {
                protocol,
                address,
                port,
            })
        };
        with(port).or_else(|| with(0)).copied()
    }

    /// The virtual servers on a port, whatever their address.
    pub fn virtual_servers_on_port(
        &self,
        protocol: u8,
        port: u16,
    ) -> impl Iterator<Item = &'a VirtualServer> {
        self.servers_by_port
            .get(&(protocol, port))
            .into_iter()
            .flatten()
            .copied()
    }

    /// Sockets that wait on a port, whatever their address.
    pub fn sockets_on_port(
        &self,
        protocol: u8,
        port: u16,
    ) -> impl Iterator<Item = &'a ListeningSocket> {
        self.sockets
            .get(&(protocol, port))
            .into_iter()
            .flatten()
            .copied()
    }

    /// The sockets that packets to an address and port reach.
    pub fn listeners(
        &self,
        protocol: u8,
        address: IpAddr,
        port: u16,
    ) -> impl Iterator<Item = &'a ListeningSocket> {
        self.sockets_on_port(protocol, port)
            .filter(move |socket| socket.takes(protocol, address, port))
    }

    /// The most special route that throws packets to an address away, in any table.
    pub fn refusing_route(&self, kind: RouteKind, address: IpAddr) -> Option<&'a Route> {
        let matching = self
            .refusing
            .iter()
            .filter(|route| route.kind == kind && route.destination.contains(address));
        matching
            .max_by_key(|route| route.destination.length)
            .copied()
    }

    /// Whether a policy rule throws packets away.
    pub fn throws_away(&self) -> bool {
        self.facts.rules.iter().any(|rule| {
            matches!(
                rule.action,
                RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit
            )
        })
    }

    /// A route as `ip route` prints it.
    pub fn route_words(&self, route: &Route) -> String {
        let mut text = match route.kind {
            RouteKind::Unicast => String::new(),
            kind => format!("{kind} "),
        };
        if route.destination.length == 0 {
            text += "default";
        } else {
            text += &route.destination.to_string();
        }
        if let Some(gateway) = route.gateway {
            text += &format!(" via {gateway}");
        }
        if let Some(index) = route.link {
            text += &format!(" dev {}", self.device(index));
        }
        if route.table != Route::MAIN_TABLE {
            text += &format!(" table {}", route.table);
        }
        text
    }

    /// What the node knows about a neighbour.
    pub fn neighbour(&self, link: u32, address: IpAddr) -> Option<&'a Neighbour> {
        self.neighbours.get(&(link, address)).copied()
    }

    /// A setting as a number.
    pub fn sysctl(&self, name: &str) -> Option<i64> {
        self.facts.sysctls.number(name)
    }

    /// Whether a fact whose name holds `what` could not be read here.
    pub fn misses(&self, what: &str) -> bool {
        self.facts
            .missing
            .iter()
            .any(|missing| missing.what.contains(what) || missing.what.starts_with("everything"))
    }
}
