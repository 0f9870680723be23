//! What was typed about the addresses, ports and names of a case.

use std::net::Ipv4Addr;

use clap::Args;

use crate::scenario::Options;

/// Seed when none is given.
const SEED: &str = "1";

/// Addresses, ports and names; what is left out is the case's own.
#[derive(Args, Debug)]
pub(super) struct Names {
    /// Draw addresses, ports, names and layout; the same seed draws the same.
    #[arg(long, value_name = "SEED", num_args = 0..=1, default_missing_value = SEED)]
    pub(super) random: Option<u64>,
    /// The node's own address.
    #[arg(long, value_name = "IPV4")]
    node: Option<Ipv4Addr>,
    /// The virtual address.
    #[arg(long, value_name = "IPV4")]
    vip: Option<Ipv4Addr>,
    /// The client's address.
    #[arg(long, value_name = "IPV4")]
    client: Option<Ipv4Addr>,
    /// The second node's address.
    #[arg(long, value_name = "IPV4")]
    peer: Option<Ipv4Addr>,
    /// The pod's address.
    #[arg(long, value_name = "IPV4")]
    pod: Option<Ipv4Addr>,
    /// The other pod's address.
    #[arg(long, value_name = "IPV4")]
    second_pod: Option<Ipv4Addr>,
    /// The bridge's address, in the pods' prefix.
    #[arg(long, value_name = "IPV4")]
    bridge_address: Option<Ipv4Addr>,
    /// The ClusterIP.
    #[arg(long, value_name = "IPV4")]
    service: Option<Ipv4Addr>,
    /// Port that the pod listens on.
    #[arg(long, value_name = "PORT")]
    pod_port: Option<u16>,
    /// Port of the service.
    #[arg(long, value_name = "PORT")]
    service_port: Option<u16>,
    /// The NodePort.
    #[arg(long, value_name = "PORT")]
    node_port: Option<u16>,
    /// Name of the node's interface.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Name of the node's bridge.
    #[arg(long, value_name = "NAME")]
    bridge: Option<String>,
    /// Name of the node's VXLAN device.
    #[arg(long, value_name = "NAME")]
    overlay: Option<String>,
    /// Attempts at each target.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
    requests: Option<u32>,
}

impl Names {
    /// The options with what was typed.
    pub(super) fn options(&self) -> Options {
        fn set<T: Clone>(to: &mut T, from: Option<&T>) {
            if let Some(from) = from {
                to.clone_from(from);
            }
        }
        let mut options = self.random.map_or_else(Options::default, Options::random);
        set(&mut options.node, self.node.as_ref());
        set(&mut options.vip, self.vip.as_ref());
        set(&mut options.client, self.client.as_ref());
        set(&mut options.peer, self.peer.as_ref());
        set(&mut options.pod, self.pod.as_ref());
        set(&mut options.second_pod, self.second_pod.as_ref());
        set(&mut options.bridge_address, self.bridge_address.as_ref());
        set(&mut options.service, self.service.as_ref());
        set(&mut options.pod_port, self.pod_port.as_ref());
        set(&mut options.service_port, self.service_port.as_ref());
        set(&mut options.node_port, self.node_port.as_ref());
        set(&mut options.interface, self.interface.as_ref());
        set(&mut options.bridge, self.bridge.as_ref());
        set(&mut options.overlay, self.overlay.as_ref());
        set(&mut options.requests, self.requests.as_ref());
        options
    }
}
