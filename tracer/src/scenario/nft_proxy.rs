//! What kube-proxy in nftables mode makes for a service and a NodePort, for those without an endpoint that it may
//! use, and for addresses and ports that no service has.
//!
//! Source: kubernetes pkg/proxy/nftables/proxier.go as of 1.33.

use std::net::{IpAddr, SocketAddr};

use super::namespace::Namespace;

/// The table without services.
const TABLE: &[&str] = &[
    "add table ip kube-proxy",
    "add set ip kube-proxy cluster-ips '{ type ipv4_addr ; }'",
    "add set ip kube-proxy nodeport-ips '{ type ipv4_addr ; }'",
    "add map ip kube-proxy service-ips '{ type ipv4_addr . inet_proto . inet_service : verdict ; }'",
    "add map ip kube-proxy service-nodeports '{ type inet_proto . inet_service : verdict ; }'",
    "add map ip kube-proxy no-endpoint-services '{ type ipv4_addr . inet_proto . inet_service : verdict ; }'",
    "add map ip kube-proxy no-endpoint-nodeports '{ type inet_proto . inet_service : verdict ; }'",
    "add chain ip kube-proxy mark-for-masquerade",
    "add rule ip kube-proxy mark-for-masquerade meta mark set meta mark or 0x4000",
    "add chain ip kube-proxy reject-chain",
    "add rule ip kube-proxy reject-chain reject",
    "add chain ip kube-proxy services",
    "add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips",
    "add rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports",
    "add chain ip kube-proxy service-endpoints-check",
    "add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services",
    "add chain ip kube-proxy nodeport-endpoints-check",
    "add rule ip kube-proxy nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap \
     @no-endpoint-nodeports",
    "add chain ip kube-proxy cluster-ips-check",
    "add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject",
    "add chain ip kube-proxy nat-prerouting '{ type nat hook prerouting priority -100 ; }'",
    "add rule ip kube-proxy nat-prerouting jump services",
    "add chain ip kube-proxy nat-postrouting '{ type nat hook postrouting priority 100 ; }'",
    "add rule ip kube-proxy nat-postrouting meta mark and 0x4000 != 0 masquerade",
    "add chain ip kube-proxy filter-input '{ type filter hook input priority -110 ; }'",
    "add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check",
    "add rule ip kube-proxy filter-input ct state new jump service-endpoints-check",
    "add chain ip kube-proxy filter-forward '{ type filter hook forward priority -110 ; }'",
    "add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check",
    "add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check",
];

/// The chains of a service.
const SERVICE: &[&str] = &[
    "add chain ip kube-proxy endpoint-web",
    "add chain ip kube-proxy service-web",
    "add rule ip kube-proxy service-web numgen random mod 1 vmap '{ 0 : goto endpoint-web }'",
    "add chain ip kube-proxy external-web",
    "add rule ip kube-proxy external-web jump mark-for-masquerade",
    "add rule ip kube-proxy external-web goto service-web",
];

/// Makes the table, with NodePorts on this address of the node.
///
/// # Errors
/// When a command fails.
pub(super) fn prepare(node: &Namespace, address: IpAddr) -> anyhow::Result<()> {
    nft(node, TABLE)?;
    take_node_ports(node, address)
}

/// NodePorts answer on this address too.
///
/// # Errors
/// When the command fails.
pub(super) fn take_node_ports(node: &Namespace, address: IpAddr) -> anyhow::Result<()> {
    add_element(node, "nodeport-ips", &address.to_string())
}

/// A TCP NodePort with one endpoint.
///
/// # Errors
/// When a command fails.
pub(super) fn serve(node: &Namespace, port: u16, endpoint: SocketAddr) -> anyhow::Result<()> {
    lead_to(node, endpoint)?;
    let element = format!("tcp . {port} : goto external-web");
    add_element(node, "service-nodeports", &element)
}

/// A TCP service with one endpoint.
///
/// # Errors
/// When a command fails.
pub(super) fn serve_at(
    node: &Namespace,
    service: SocketAddr,
    endpoint: SocketAddr,
) -> anyhow::Result<()> {
    lead_to(node, endpoint)?;
    add_element(node, "cluster-ips", &service.ip().to_string())?;
    add_port(node, service)
}

/// The service has this port too.
///
/// # Errors
/// When the command fails.
pub(super) fn add_port(node: &Namespace, service: SocketAddr) -> anyhow::Result<()> {
    let (address, port) = (service.ip(), service.port());
    let element = format!("{address} . tcp . {port} : goto service-web");
    add_element(node, "service-ips", &element)
}

/// These are the addresses of services, those that no service has as well.
///
/// # Errors
/// When the command fails.
pub(super) fn keep_range(node: &Namespace, range: &str) -> anyhow::Result<()> {
    let rule = format!("add rule ip kube-proxy cluster-ips-check ip daddr {range} drop");
    nft(node, &[&rule])
}

/// The chains of the service, down to its endpoint.
fn lead_to(node: &Namespace, endpoint: SocketAddr) -> anyhow::Result<()> {
    nft(node, SERVICE)?;
    let rule = format!("add rule ip kube-proxy endpoint-web meta l4proto tcp dnat to {endpoint}");
    nft(node, &[&rule])
}

/// A TCP service without endpoints.
///
/// # Errors
/// When the command fails.
pub(super) fn reject(node: &Namespace, service: SocketAddr) -> anyhow::Result<()> {
    let (address, port) = (service.ip(), service.port());
    let element = format!("{address} . tcp . {port} : goto reject-chain");
    add_element(node, "no-endpoint-services", &element)
}

/// A TCP NodePort with externalTrafficPolicy Local and no endpoint here.
///
/// # Errors
/// When the command fails.
pub(super) fn drop_node_port(node: &Namespace, port: u16) -> anyhow::Result<()> {
    add_element(
        node,
        "no-endpoint-nodeports",
        &format!("tcp . {port} : drop"),
    )
}

/// No service lacks an endpoint any more.
///
/// # Errors
/// When the command fails.
pub(super) fn let_pass(node: &Namespace) -> anyhow::Result<()> {
    nft(
        node,
        &[
            "flush map ip kube-proxy no-endpoint-services",
            "flush map ip kube-proxy no-endpoint-nodeports",
        ],
    )
}

fn add_element(node: &Namespace, set: &str, element: &str) -> anyhow::Result<()> {
    let line = format!("add element ip kube-proxy {set} '{{ {element} }}'");
    nft(node, &[&line])
}

fn nft(node: &Namespace, commands: &[&str]) -> anyhow::Result<()> {
    let lines: Vec<_> = commands
        .iter()
        .map(|command| format!("nft {command}"))
        .collect();
    node.run_all(&lines)
}
