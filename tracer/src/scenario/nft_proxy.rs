//! What kube-proxy in nftables mode makes for a NodePort, and for services and NodePorts without an endpoint that
//! it may use.
//!
//! Source: kubernetes pkg/proxy/nftables/proxier.go as of 1.33.

use std::net::{IpAddr, SocketAddr};

use super::namespace::Namespace;

/// For whom kube-proxy has no endpoint.
#[derive(Clone, Copy)]
pub(super) enum Unserved {
    /// Nobody may be reached at the service's own address.
    Service(SocketAddr),
    /// externalTrafficPolicy is Local and no endpoint is here, at a port of the node's first address.
    NodePort(SocketAddr),
}

/// The table as far as packets for a TCP NodePort with one endpoint get to it, on these addresses of the node.
///
/// # Errors
/// When a command fails.
pub(super) fn serve(
    node: &Namespace,
    addresses: &[IpAddr],
    port: u16,
    endpoint: SocketAddr,
) -> anyhow::Result<()> {
    node.run_all(&nft(&[
        "add table ip kube-proxy",
        "add set ip kube-proxy nodeport-ips '{ type ipv4_addr ; }'",
        "add map ip kube-proxy service-nodeports '{ type inet_proto . inet_service : verdict ; }'",
        "add chain ip kube-proxy mark-for-masquerade",
        "add rule ip kube-proxy mark-for-masquerade meta mark set meta mark or 0x4000",
        "add chain ip kube-proxy endpoint-web",
        "add chain ip kube-proxy service-web",
        "add rule ip kube-proxy service-web numgen random mod 1 vmap '{ 0 : goto endpoint-web }'",
        "add chain ip kube-proxy external-web",
        "add rule ip kube-proxy external-web jump mark-for-masquerade",
        "add rule ip kube-proxy external-web goto service-web",
        "add chain ip kube-proxy services",
        "add rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports",
        "add chain ip kube-proxy nat-prerouting '{ type nat hook prerouting priority -100 ; }'",
        "add rule ip kube-proxy nat-prerouting jump services",
        "add chain ip kube-proxy nat-postrouting '{ type nat hook postrouting priority 100 ; }'",
        "add rule ip kube-proxy nat-postrouting meta mark and 0x4000 != 0 masquerade",
    ]))?;
    node.run_all(&[
        format!("nft add rule ip kube-proxy endpoint-web meta l4proto tcp dnat to {endpoint}"),
        format!(
            "nft add element ip kube-proxy service-nodeports '{{ tcp . {port} : goto external-web }}'"
        ),
    ])?;
    addresses
        .iter()
        .try_for_each(|&address| take_node_ports(node, address))
}

/// NodePorts answer on this address too.
///
/// # Errors
/// When the command fails.
pub(super) fn take_node_ports(node: &Namespace, address: IpAddr) -> anyhow::Result<()> {
    node.run(&format!(
        "nft add element ip kube-proxy nodeport-ips '{{ {address} }}'"
    ))
}

fn nft(commands: &[&str]) -> Vec<String> {
    let whole = commands.iter().map(|command| format!("nft {command}"));
    whole.collect()
}

/// The table as far as packets without an endpoint get to it.
///
/// # Errors
/// When a command fails.
pub(super) fn refuse(node: &Namespace, unserved: Unserved) -> anyhow::Result<()> {
    node.run_all(&nft(&[
        "add table ip kube-proxy",
        "add set ip kube-proxy nodeport-ips '{ type ipv4_addr ; }'",
        "add map ip kube-proxy no-endpoint-services '{ type ipv4_addr . inet_proto . inet_service : verdict ; }'",
        "add map ip kube-proxy no-endpoint-nodeports '{ type inet_proto . inet_service : verdict ; }'",
        "add chain ip kube-proxy reject-chain",
        "add rule ip kube-proxy reject-chain reject",
        "add chain ip kube-proxy service-endpoints-check",
        "add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services",
        "add chain ip kube-proxy nodeport-endpoints-check",
        "add rule ip kube-proxy nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap \
         @no-endpoint-nodeports",
        "add chain ip kube-proxy filter-input '{ type filter hook input priority -110 ; }'",
        "add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check",
        "add rule ip kube-proxy filter-input ct state new jump service-endpoints-check",
        "add chain ip kube-proxy filter-forward '{ type filter hook forward priority -110 ; }'",
        "add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check",
    ]))?;
    match unserved {
        Unserved::Service(at) => node.run(&format!(
            "nft add element ip kube-proxy no-endpoint-services '{{ {} . tcp . {} : goto reject-chain }}'",
            at.ip(),
            at.port()
        )),
        Unserved::NodePort(at) => {
            take_node_ports(node, at.ip())?;
            node.run(&format!(
                "nft add element ip kube-proxy no-endpoint-nodeports '{{ tcp . {} : drop }}'",
                at.port()
            ))
        }
    }
}

/// Takes the table away.
///
/// # Errors
/// When the command fails.
pub(super) fn forget(node: &Namespace) -> anyhow::Result<()> {
    node.run("nft delete table ip kube-proxy")
}
