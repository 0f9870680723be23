//! `nodeport-taken`: something on the node owns a NodePort's port.
//!
//! IPVS looks at what comes in before sockets do.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::audit::Finding;
use super::evidence::Evidence;
use super::service::is_this_nodes;
use super::vip_nodeport_audit::served_node_ports;
use super::{Cause, Diagnosis, Site};
use crate::event::{Detail, protocol};
use crate::flow::{Direction, Flow};
use crate::hook::Role;
use crate::journey::Journey;
use crate::node::{ListeningSocket, NetnsId};

pub(super) const CAUSE: Cause = Cause {
    code: "nodeport-taken",
    title: "a program of the node, or its ephemeral ports, own a NodePort's port",
    explanation: "\
A NodePort wants its port on every node for itself. Two things get in the way:
  * a program on the node listens on it. kube-proxy up to 1.23 cannot open the port then and leaves the
    NodePort out, so clients reach that program and not the service; later versions win, and the program is
    no longer reachable from outside;
  * the range of ephemeral ports (net.ipv4.ip_local_port_range) holds the port, and a connection of the node
    itself happens to have it: IPVS takes the answers for the service.

Proof: a packet for a known service's NodePort was taken by a socket of the node that is not kube-proxy's; or
an answer to a connection of the node was given to a real server.

Fix: move the program or the NodePort; keep the range out of 30000-32767, or reserve the ports.",
    references: &[
        "Kubernetes pkg/proxy/ipvs/proxier.go: up to 1.23 kube-proxy opens each NodePort itself and leaves the \
         port out when that fails",
        "Linux net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_conn_schedule: asks only for the SYN bit, which a \
         SYN-ACK has, so an answer to the node's own connection from such a port is taken for a new connection",
    ],
    explains: &["no-listener", "kube-proxy-stale"],
    examine,
    audit,
};

const RANGE: &str = "net/ipv4/ip_local_port_range";
const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";

/// Who has the port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    /// A listening socket.
    Socket,
    /// A connection of the node.
    Connection,
}

type Subject = (NetnsId, u8, SocketAddr, Owner);

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut found: BTreeMap<Subject, Vec<(&Flow, &Journey)>> = BTreeMap::new();
    for flow in evidence.flows.iter() {
        let seen = flow
            .kept()
            .find_map(|(direction, journey)| Some((taken(evidence, direction, journey)?, journey)));
        if let Some((subject, journey)) = seen {
            found.entry(subject).or_default().push((flow, journey));
        }
    }
    found
        .into_iter()
        .filter_map(|(subject, seen)| judge(evidence, subject, &seen))
        .collect()
}

/// A NodePort's packet that a socket of the node took, or the node's own that IPVS took.
fn taken(evidence: &Evidence<'_>, direction: Direction, journey: &Journey) -> Option<Subject> {
    let first = journey.first_tuple()?;
    match direction {
        Direction::Request => {
            let index = journey
                .events
                .iter()
                .rposition(|event| event.role() == Role::Deliver)?;
            let tuple = journey.events[..=index]
                .iter()
                .rev()
                .find_map(|event| event.packet.as_ref())?
                .tuple;
            let service = evidence
                .cluster?
                .node_port(tuple.protocol, tuple.destination.port())?;
            let netns = NetnsId(journey.namespace_at(index)?);
            let site = evidence.site(netns)?;
            // Only the node's own namespace answers for NodePorts, and only on addresses that are not the service's.
            let own = site.is_local(tuple.destination.ip())
                && !service.cluster_ips.contains(&tuple.destination.ip())
                && tuple.destination == first.destination;
            (own && is_this_nodes(evidence, site)
                && host_socket(site, tuple.protocol, tuple.destination).is_some())
            .then_some((netns, tuple.protocol, tuple.destination, Owner::Socket))
        }
        Direction::Reply => {
            // Which of two datagrams is the answer cannot be told for sure; of TCP's the flags tell.
            if journey.first_packet()?.opens() {
                return None;
            }
            let index = journey
                .events
                .iter()
                .position(|event| matches!(event.detail, Detail::Connection { .. }))?;
            let tuple = journey.events[..=index]
                .iter()
                .rev()
                .find_map(|event| event.packet.as_ref())?
                .tuple;
            let netns = NetnsId(journey.namespace_at(index)?);
            let site = evidence.site(netns)?;
            let asked = site.is_local(tuple.destination.ip())
                && site
                    .virtual_server(
                        tuple.protocol,
                        tuple.destination.ip(),
                        tuple.destination.port(),
                    )
                    .is_some();
            asked.then_some((netns, tuple.protocol, tuple.destination, Owner::Connection))
        }
    }
}

/// A socket there that is not kube-proxy's own.
fn host_socket<'a>(
    site: &Site<'a>,
    number: u8,
    address: SocketAddr,
) -> Option<&'a ListeningSocket> {
    site.listeners(number, address.ip(), address.port())
        .find(|socket| !is_kube_proxy(socket))
}

pub(super) fn is_kube_proxy(socket: &ListeningSocket) -> bool {
    socket
        .owner
        .as_ref()
        .is_some_and(|owner| owner.command == "kube-proxy")
}

fn judge(
    evidence: &Evidence<'_>,
    (netns, number, address, owner): Subject,
    seen: &[(&Flow, &Journey)],
) -> Option<Diagnosis> {
    let site = evidence.site(netns)?;
    let name = protocol::name(number);
    let (flow, journey) = seen.first()?;
    let flows = seen.iter().map(|(flow, _)| flow.id);
    let place = site.name();
    Some(match owner {
        Owner::Socket => {
            let socket = host_socket(site, number, address)?;
            let service = evidence.cluster?.node_port(number, address.port())?;
            by_socket(site, number, address, socket, &service.name.to_string())
                .stopped_flows(evidence, flows)
                .prove(
                    "packet",
                    format!(
                        "#{} from {} was taken by that socket",
                        journey.id, flow.client.source
                    ),
                )
                .lacking_if(socket.owner.is_none(), "which program holds the socket")
        }
        Owner::Connection => {
            let range = site.facts.sysctls.get(RANGE).unwrap_or("not known");
            reserve(
                Diagnosis::new(
                    &CAUSE,
                    format!("{name} {address}"),
                    format!(
                        "A connection of {place} itself to {} has port {}, which is a NodePort: IPVS took the answer for the \
                         service and gave it to a real server.",
                        flow.client.destination,
                        address.port()
                    ),
                )
                .stopped_flows(evidence, flows)
                .prove(
                    "packet",
                    format!(
                        "#{} answers {} → {} and was given to a real server of the NodePort",
                        journey.id, address, flow.client.destination
                    ),
                )
                .prove("sysctl", format!("net.ipv4.ip_local_port_range = {}", range.replace('\t', " "))),
                address.port(),
            )
        }
    })
}

fn by_socket(
    site: &Site<'_>,
    number: u8,
    address: SocketAddr,
    socket: &ListeningSocket,
    service: &str,
) -> Diagnosis {
    let name = protocol::name(number);
    let who = socket.owner.as_ref().map_or_else(
        || "a program".to_owned(),
        |owner| format!("{} (process {})", owner.command, owner.pid),
    );
    let port = address.port();
    Diagnosis::new(
        &CAUSE,
        format!("{name} port {port}"),
        format!(
            "{who} of {} listens on {name} port {port}, which is the NodePort of s/{service}: one of the two does not get \
             its packets.",
            site.name()
        ),
    )
    .prove(
        "socket",
        format!("{who} holds {name} {}", SocketAddr::new(socket.address, socket.port)),
    )
    .fix(
        [format!("make {who} listen on another port, then: systemctl restart kube-proxy")],
        "its own clients have to follow",
    )
    .fix(
        [match service.split_once('/') {
            Some((namespace, name)) => {
                format!("kubectl edit service {name} -n {namespace}   # another nodePort")
            }
            None => "kubectl get services -A | grep NodePort   # which one, then another nodePort".to_owned(),
        }],
        "clients of the old NodePort have to follow",
    )
    .check(format!("ss -lnp 'sport = :{port}'"))
}

fn reserve(diagnosis: Diagnosis, port: u16) -> Diagnosis {
    diagnosis
        .fix(
            ["sysctl -w net.ipv4.ip_local_reserved_ports=30000-32767"],
            "the node has fewer ports for its own connections",
        )
        .check(format!(
            "ss -anp 'sport = :{port}'   # no connection of the node"
        ))
}

/// Programs on NodePorts, and ephemeral ports that may get one.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for site in evidence.sites() {
        let ports = node_ports(evidence, site);
        for (&(number, port), service) in &ports {
            let taken = site.sockets_on_port(number, port).find(|socket| {
                // Without its owner it may be kube-proxy's own.
                socket.owner.is_some() && !is_kube_proxy(socket) && !socket.address.is_loopback()
            });
            if let Some(socket) = taken {
                let address = SocketAddr::new(socket.address, port);
                found.push(Finding::warning(by_socket(
                    site, number, address, socket, service,
                )));
            }
        }
        found.extend(ephemeral(site, ports.keys().map(|&(_, port)| port)).map(Finding::warning));
    }
    found
}

/// NodePorts and their services: by the cluster, else by virtual servers on the node's first addresses.
fn node_ports(evidence: &Evidence<'_>, site: &Site<'_>) -> BTreeMap<(u8, u16), String> {
    let mut ports = BTreeMap::new();
    if let Some(cluster) = evidence.cluster
        && is_this_nodes(evidence, site)
    {
        for service in cluster.services() {
            for port in &service.ports {
                if let Some(number) = port.node_port {
                    ports.insert((port.protocol, number), service.name.to_string());
                }
            }
        }
    }
    for key in served_node_ports(evidence, site).into_keys() {
        ports.entry(key).or_insert_with(|| "NAME".into());
    }
    ports
}

/// NodePorts among the ports that the node's own connections get.
fn ephemeral(site: &Site<'_>, ports: impl Iterator<Item = u16>) -> Option<Diagnosis> {
    let mut words = site
        .facts
        .sysctls
        .get(RANGE)?
        .split_whitespace()
        .map(str::parse::<u16>);
    let (first, last) = (words.next()?.ok()?, words.next()?.ok()?);
    let reserved = site.facts.sysctls.get(RESERVED).unwrap_or("");
    let mut free: Vec<u16> = ports
        .filter(|port| (first..=last).contains(port) && !holds(reserved, *port))
        .collect();
    free.sort_unstable();
    free.dedup();
    let &port = free.first()?;
    let place = site.name();
    Some(reserve(
        Diagnosis::new(
            &CAUSE,
            format!("ephemeral ports of {place}"),
            format!(
                "{} NodePorts are among the ports that {place} gives its own connections ({first}-{last}): a connection that \
                 gets one of them loses its answers to the service.",
                free.len()
            ),
        )
        .prove("sysctl", format!("net.ipv4.ip_local_port_range = {first} {last}, reserved: {reserved:?}"))
        .prove("service", format!("NodePort {port} is one of them")),
        port,
    ))
}

/// Whether a list such as `30000-32767,8080` holds a port.
fn holds(list: &str, port: u16) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = first.trim().parse().ok().zip(last.trim().parse().ok());
        range.is_some_and(|(first, last): (u16, u16)| (first..=last).contains(&port))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::audit::audit as audit_all;
    use crate::cause::constructed::{Bench, CNI0, ETH0, at, node, service, socket};
    use crate::event::{Transport, tcp_flag};
    use crate::kube::constructed::cluster;
    use crate::node::Process;

    fn with(owner: &str) -> Bench {
        let mut bench = node();
        bench.cluster = Some(cluster(
            "node-a",
            &[
                json!({"kind": "Node", "metadata": {"name": "node-a"},
                    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
                json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"},
                    "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.5"], "ports": [{"port": 80, "nodePort": 30080}]}}),
            ],
        ));
        let mut holder = socket(6, "0.0.0.0", 30080);
        holder.owner = Some(Process {
            pid: 7,
            command: owner.into(),
        });
        bench.site().sockets = vec![holder];
        bench
            .tcp("192.0.2.77:40000", "192.0.2.1:30080")
            .receive(ETH0)
            .at(HookId::LocalDeliver)
            .at(HookId::TcpReceive)
            .with(
                HookId::TcpDeliver,
                Detail::Socket {
                    state: 10,
                    port: 30080,
                },
            )
            .ends();
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        with("nginx")
    }

    #[test]
    fn a_program_that_gets_the_service_s_packets_is_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.summary.contains("nginx (process 7)"), "{found:#?}");
        assert_eq!(
            found.fixes[1].lines[0],
            "kubectl edit service web -n default   # another nodePort"
        );
    }

    #[test]
    fn kube_proxy_s_own_socket_is_healthy() {
        let bench = with("kube-proxy");
        assert_eq!(bench.codes(), [] as [&str; 0]);
        assert_eq!(bench.with_evidence(audit_all), []);
    }

    #[test]
    fn a_balanced_api_server_is_no_node_port() {
        let mut bench = crate::cause::vip_nodeport_audit::tests::with_vip("192.0.2.9");
        bench.site().ipvs = Some(vec![service(6, "192.0.2.9:6443", &[("192.0.2.1:6443", 1)])]);
        let mut holder = socket(6, "0.0.0.0", 6443);
        holder.owner = Some(Process {
            pid: 7,
            command: "kube-apiserver".into(),
        });
        bench.site().sockets = vec![holder];
        assert_eq!(bench.with_evidence(audit), []);
    }

    #[test]
    fn an_answer_that_ipvs_takes() {
        let mut bench = node();
        bench.site().ipvs = Some(vec![service(6, "192.0.2.1:30080", &[("10.244.0.9:80", 1)])]);
        bench
            .tcp("192.0.2.1:30080", "192.0.2.77:443")
            .transmit(ETH0)
            .ends();
        let flags = tcp_flag::SYN | tcp_flag::ACK;
        bench
            .packet(
                6,
                "192.0.2.77:443",
                "192.0.2.1:30080",
                Transport::tcp(1, flags),
            )
            .receive(ETH0)
            .at(HookId::LocalDeliver)
            .with(
                HookId::IpvsConnectionNew,
                Detail::Connection {
                    real: at("10.244.0.9:80"),
                    forwarding: 0,
                },
            )
            .to("10.244.0.9:80")
            .transmit(CNI0)
            .ends();
        let found = bench.diagnose();
        assert_eq!(
            found.first().map(|found| found.code),
            Some(CAUSE.code),
            "{found:#?}"
        );
    }

    #[test]
    fn ephemeral_ports_that_may_get_one() {
        let mut bench = node();
        bench.site().ipvs = Some(vec![service(6, "192.0.2.1:30080", &[("10.244.0.9:80", 1)])]);
        for (range, reserved, findings) in [
            ("32768\t60999", "", 0),
            ("20000\t60999", "", 1),
            ("20000\t60999", "30000-32767", 0),
        ] {
            bench.sysctl(RANGE, range);
            bench.sysctl(RESERVED, reserved);
            let found = bench.with_evidence(audit_all);
            let own = found
                .iter()
                .filter(|found| found.diagnosis.code == CAUSE.code);
            assert_eq!(own.count(), findings, "{range} {reserved}");
        }
    }
}
