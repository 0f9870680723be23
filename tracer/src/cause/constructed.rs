//! Constructed evidence for the tests of causes: a node's facts and packets' ways through it.

use std::net::{IpAddr, SocketAddr};

use tracer_ebpf::hook::HookId;

use super::evidence::{DropNames, Evidence};
use super::{Diagnosis, diagnose};
use crate::event::{
    Detail, Event, NetfilterHook, Packet, Quoted, Transport, Tuple, protocol, tcp_flag,
};
use crate::flow::Flows;
use crate::journey::{Ending, Journey, SocketReasons, Tracker};
use crate::kernel::reasons::DropReasons;
use crate::kernel::symbols::Symbols;
use crate::kube::ClusterFacts;
use crate::node::{
    Address, ForwardingMethod, Link, ListeningSocket, Neighbour, NeighbourState, NetnsFacts,
    NetnsId, Prefix, RealServer, Route, RouteKind, RouteProtocol, Scope, Snapshot, Sysctls,
    VirtualServer, VirtualServerKey,
};

/// The node's namespace.
pub(super) const NODE: u32 = 100;
/// Devices that every node here has.
pub(super) const ETH0: u32 = 2;
/// A bridge.
pub(super) const CNI0: u32 = 3;

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(super) fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

/// A node and what was seen on it.
pub(super) struct Bench {
    flows: Flows,
    pub(super) facts: Snapshot,
    pub(super) cluster: Option<ClusterFacts>,
    /// Where packets were looked at for longer than the facts are old.
    pub(super) seen_until_ns: Option<u64>,
    reasons: Vec<String>,
    functions: Vec<String>,
    next: u64,
    number: u64,
}

/// A node with eth0 (192.0.2.1/24), a bridge cni0 (10.244.0.1/24) and a default route by
/// 192.0.2.254, that forwards.
pub(super) fn node() -> Bench {
    let mut facts = NetnsFacts::unread(NetnsId(NODE), Some("node"));
    facts.links = vec![link(1, "lo"), link(ETH0, "eth0"), link(CNI0, "cni0")];
    facts.links[2].kind = Some("bridge".into());
    for (index, own, network) in [
        (ETH0, "192.0.2.1", "192.0.2.0"),
        (CNI0, "10.244.0.1", "10.244.0.0"),
    ] {
        facts.addresses.push(Address::global(index, ip(own), 24));
        facts.routes.push(Route {
            table: Route::LOCAL_TABLE,
            kind: RouteKind::Local,
            ..route(own, 32, index)
        });
        facts.routes.push(route(network, 24, index));
    }
    facts.routes.push(Route {
        gateway: Some(ip("192.0.2.254")),
        ..route("0.0.0.0", 0, ETH0)
    });
    let mut bench = Bench {
        flows: Flows::bounded(1 << 20, usize::MAX),
        facts: Snapshot::empty(),
        cluster: None,
        seen_until_ns: None,
        reasons: Vec::new(),
        functions: Vec::new(),
        next: 1,
        number: 1,
    };
    bench.facts.namespaces.push(facts);
    bench.sysctl("net/ipv4/ip_forward", "1");
    for device in ["all", "eth0", "cni0"] {
        bench.sysctl(&format!("net/ipv4/conf/{device}/forwarding"), "1");
        bench.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0");
    }
    bench
}

/// That node with a segment of TCP that is dropped on its way out of eth0.
pub(super) fn sent_in_vain(flags: u8, reason: &str, function: &str) -> Bench {
    let mut bench = node();
    let transport = Transport::tcp(1, flags);
    let (from, to) = ("192.0.2.1:40000", "192.0.2.77:80");
    let way = bench.packet(protocol::TCP, from, to, transport);
    way.transmit(ETH0).dropped(reason, function);
    bench
}

pub(super) fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.into(),
        kind: None,
        mtu: Some(1500),
        up: true,
        carrier: Some(true),
        state: None,
        mac: None,
        master: None,
        peer_index: None,
        peer_netns: None,
        bridge_port: None,
        vxlan: None,
        xdp: None,
        xdp_generic: false,
    }
}

pub(super) fn route(destination: &str, length: u8, index: u32) -> Route {
    Route {
        table: Route::MAIN_TABLE,
        kind: RouteKind::Unicast,
        destination: Prefix {
            address: ip(destination),
            length,
        },
        preferred_source: None,
        gateway: None,
        link: Some(index),
        next_hops: Vec::new(),
        protocol: RouteProtocol::Kernel,
        scope: Scope::Link,
        metric: None,
        dead: false,
    }
}

pub(super) fn socket(protocol: u8, address: &str, port: u16) -> ListeningSocket {
    ListeningSocket {
        protocol,
        address: ip(address),
        port,
        only_ipv6: None,
        link: None,
        receive_queue: 0,
        backlog: Some(128),
        inode: None,
        owner: None,
    }
}

pub(super) fn neighbour(index: u32, address: &str, state: NeighbourState) -> Neighbour {
    Neighbour {
        link: index,
        address: ip(address),
        state,
        mac: None,
    }
}

/// A virtual server; real servers with their weights.
pub(super) fn service(protocol: u8, address: &str, real: &[(&str, u32)]) -> VirtualServer {
    let key = at(address);
    VirtualServer {
        key: VirtualServerKey::Endpoint {
            protocol,
            address: key.ip(),
            port: key.port(),
        },
        scheduler: "rr".into(),
        flags: 2,
        persistence: None,
        destinations: real
            .iter()
            .map(|&(real, weight)| RealServer {
                address: at(real).ip(),
                port: at(real).port(),
                forwarding: ForwardingMethod::Masquerade,
                weight,
                active_connections: None,
                inactive_connections: None,
                persistent_connections: None,
                upper_threshold: None,
                lower_threshold: None,
            })
            .collect(),
    }
}

impl Bench {
    /// The node's facts.
    pub(super) fn site(&mut self) -> &mut NetnsFacts {
        &mut self.facts.namespaces[0]
    }

    /// Sets a kernel setting.
    pub(super) fn sysctl(&mut self, name: &str, value: &str) {
        let site = self.site();
        let set: Vec<_> = site
            .sysctls
            .iter()
            .filter(|(known, _)| *known != name)
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .chain([(name.to_owned(), value.to_owned())])
            .collect();
        site.sysctls = Sysctls::from_iter(set);
    }

    /// Forgets a kernel setting.
    pub(super) fn without_sysctl(&mut self, name: &str) {
        let site = self.site();
        let rest: Vec<_> = site
            .sysctls
            .iter()
            .filter(|(known, _)| *known != name)
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        site.sysctls = Sysctls::from_iter(rest);
    }

    /// A TCP packet that opens a connection.
    pub(super) fn tcp(&mut self, source: &str, destination: &str) -> Way<'_> {
        let transport = Transport::tcp(1000, tcp_flag::SYN);
        self.packet(protocol::TCP, source, destination, transport)
    }

    /// A UDP packet.
    pub(super) fn udp(&mut self, source: &str, destination: &str) -> Way<'_> {
        self.packet(protocol::UDP, source, destination, Transport::Udp)
    }

    /// Any packet.
    pub(super) fn packet(
        &mut self,
        number: u8,
        source: &str,
        destination: &str,
        transport: Transport,
    ) -> Way<'_> {
        let id = self.number;
        self.number += 1;
        Way {
            packet: Packet {
                tuple: Tuple {
                    protocol: number,
                    source: at(source),
                    destination: at(destination),
                },
                named_protocol: number,
                ip_id: Some(id as u32 & 0xffff),
                transport,
                about: None,
            },
            netns: NODE,
            ifindex: None,
            length: 60,
            journey: Journey {
                id,
                ..Journey::default()
            },
            bench: self,
        }
    }

    fn location(&mut self, function: &str) -> u64 {
        let known = self.functions.iter().position(|known| known == function);
        let index = known.unwrap_or_else(|| {
            self.functions.push(function.into());
            self.functions.len() - 1
        });
        0x1000 * (index as u64 + 1) + 8
    }

    fn reason(&mut self, reason: &str) -> u32 {
        let known = self.reasons.iter().position(|known| known == reason);
        known.unwrap_or_else(|| {
            self.reasons.push(reason.into());
            self.reasons.len() - 1
        }) as u32
    }

    /// Asks every cause.
    pub(super) fn diagnose(&self) -> Vec<Diagnosis> {
        self.with_evidence(diagnose)
    }

    /// Codes of what all causes say, in order.
    pub(super) fn codes(&self) -> Vec<&'static str> {
        self.diagnose()
            .iter()
            .map(|diagnosis| diagnosis.code)
            .collect()
    }

    /// The one diagnosis that there is.
    pub(super) fn only(&self) -> Diagnosis {
        let mut found = self.diagnose();
        assert_eq!(found.len(), 1, "{found:#?}");
        found.remove(0)
    }

    pub(super) fn with_evidence<T>(&self, ask: impl FnOnce(&Evidence<'_>) -> T) -> T {
        let reasons: DropReasons = self
            .reasons
            .iter()
            .enumerate()
            .map(|(number, name)| (number as u32, name.clone()))
            .collect();
        let mut symbols = Symbols::default();
        for (index, name) in self.functions.iter().enumerate() {
            symbols.insert(0x1000 * (index as u64 + 1), name);
        }
        let names = DropNames {
            reasons: &reasons,
            symbols: &symbols,
        };
        let evidence = Evidence::new(&self.flows, &self.facts, names);
        let until_ns = self.seen_until_ns.unwrap_or(evidence.until_ns);
        let evidence = evidence.seen_until(until_ns);
        ask(&evidence.with_cluster(self.cluster.as_ref()))
    }
}

/// A packet on its way; what happens is added in order.
pub(super) struct Way<'a> {
    bench: &'a mut Bench,
    packet: Packet,
    netns: u32,
    ifindex: Option<u32>,
    length: u32,
    journey: Journey,
}

impl Way<'_> {
    /// From now on in this namespace.
    pub(super) fn netns(mut self, netns: u32) -> Self {
        self.netns = netns;
        self
    }

    /// Its length from now on.
    pub(super) fn length(mut self, length: u32) -> Self {
        self.length = length;
        self
    }

    /// An ICMP error about a packet of this protocol.
    pub(super) fn about(mut self, number: u8, source: &str, destination: &str) -> Self {
        self.packet.about = Some(Quoted::of(Tuple {
            protocol: number,
            source: at(source),
            destination: at(destination),
        }));
        self
    }

    /// Passes a hook.
    pub(super) fn at(self, hook: HookId) -> Self {
        self.with(hook, Detail::None)
    }

    /// Comes in by a device.
    pub(super) fn receive(mut self, ifindex: u32) -> Self {
        self.ifindex = Some(ifindex);
        self.at(HookId::DeviceReceive)
    }

    /// Is handed to a device.
    pub(super) fn transmit(mut self, ifindex: u32) -> Self {
        self.ifindex = Some(ifindex);
        self.with(HookId::DeviceTransmit, Detail::Device { ifindex })
    }

    /// Enters a netfilter hook.
    pub(super) fn netfilter(self, hook: NetfilterHook) -> Self {
        self.with(HookId::NetfilterHook, Detail::Netfilter(hook))
    }

    /// Is rewritten to another destination.
    pub(super) fn to(mut self, destination: &str) -> Self {
        self.packet.tuple.destination = at(destination);
        self
    }

    /// Is rewritten to come from another source.
    pub(super) fn from(mut self, source: &str) -> Self {
        self.packet.tuple.source = at(source);
        self
    }

    /// Passes a hook that adds something.
    pub(super) fn with(mut self, hook: HookId, detail: Detail) -> Self {
        self.bench.next += 1000;
        self.journey.events.push(Event {
            time_ns: self.bench.next,
            skb: self.journey.id,
            netns: Some(self.netns),
            ifindex: self.ifindex,
            length: Some(self.length),
            mark: None,
            hook,
            detail,
            packet: Some(self.packet.clone()),
            not_ip: false,
            arp: None,
        });
        self
    }

    /// Was first seen at this time.
    pub(super) fn began(mut self, time_ns: u64) -> Self {
        self.journey.events[0].time_ns = time_ns;
        self
    }

    /// Ends as dropped: by a reason ("" for none that says anything), in a function.
    pub(super) fn dropped(mut self, reason: &str, function: &str) {
        let location = self.bench.location(function);
        let reason = (!reason.is_empty()).then(|| self.bench.reason(reason));
        self.journey.ending = Ending::Dropped { location, reason };
        self.with(HookId::Drop, Detail::Drop { location, reason })
            .add();
    }

    /// Ends as the tracker would end it.
    pub(super) fn ends(self) {
        let (mut tracker, mut ended) = (Tracker::new(SocketReasons::default()), Vec::new());
        for event in &self.journey.events {
            tracker.push(event.clone(), &mut ended);
        }
        tracker.finish(&mut ended);
        assert_eq!(ended.len(), 1, "one packet");
        let ending = ended[0].ending;
        Way {
            journey: Journey {
                ending,
                ..self.journey
            },
            ..self
        }
        .add();
    }

    fn add(self) {
        self.bench.flows.add(self.journey);
    }
}
