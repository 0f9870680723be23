//! Every address, port and name that a scenario may use.
//!
//! A scenario takes all of them from here and holds none of its own, so that a run with drawn names
//! shows that a diagnosis rests on what happened and not on how things are called.

use std::net::Ipv4Addr;

use fastrand::Rng;

/// Addresses, ports and names. The LAN and each node's pods have a /24.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's own address.
    pub node: Ipv4Addr,
    /// A virtual address in the node's prefix.
    pub vip: Ipv4Addr,
    /// A client host in the node's prefix.
    pub client: Ipv4Addr,
    /// A second node in the node's prefix.
    pub peer: Ipv4Addr,
    /// A pod of the node.
    pub pod: Ipv4Addr,
    /// Another pod of the node.
    pub second_pod: Ipv4Addr,
    /// The address of the node's bridge, in the pods' prefix.
    pub bridge_address: Ipv4Addr,
    /// A pod of the second node.
    pub peer_pod: Ipv4Addr,
    /// The address of the second node's bridge, in its pods' prefix.
    pub peer_bridge_address: Ipv4Addr,
    /// A ClusterIP.
    pub service: Ipv4Addr,
    /// An address far away.
    pub outside: Ipv4Addr,
    /// Port that pods listen on.
    pub pod_port: u16,
    /// Port of the service.
    pub service_port: u16,
    /// The NodePort.
    pub node_port: u16,
    /// The node's network interface.
    pub interface: String,
    /// The node's bridge.
    pub bridge: String,
    /// The node's VXLAN device.
    pub overlay: String,
    /// Name of the application: its service, its pods and their label.
    pub app: String,
    /// Names of the hosts, in the order of [`HOSTS`].
    pub hosts: Vec<String>,
    /// A switch of its own carries the LAN; else a wire does where there are two hosts only.
    pub switched: bool,
    /// Pods that do nothing.
    pub bystanders: u8,
    /// Attempts at each target.
    pub requests: u32,
}

/// The hosts that scenarios are made of.
pub const HOSTS: &[&str] = &["client", "node", "pod", "pod2", "node2", "pod3", "lan"];

impl Default for Options {
    /// As in the report that the first case comes from.
    fn default() -> Self {
        Self {
            node: Ipv4Addr::new(192, 168, 3, 182),
            vip: Ipv4Addr::new(192, 168, 3, 187),
            client: Ipv4Addr::new(192, 168, 3, 10),
            peer: Ipv4Addr::new(192, 168, 3, 183),
            pod: Ipv4Addr::new(10, 244, 1, 15),
            second_pod: Ipv4Addr::new(10, 244, 1, 16),
            bridge_address: Ipv4Addr::new(10, 244, 1, 1),
            peer_pod: Ipv4Addr::new(10, 244, 2, 21),
            peer_bridge_address: Ipv4Addr::new(10, 244, 2, 1),
            service: Ipv4Addr::new(10, 96, 0, 2),
            outside: Ipv4Addr::new(203, 0, 113, 9),
            pod_port: 3000,
            service_port: 80,
            node_port: 30000,
            interface: "enp1s0".into(),
            bridge: "cni0".into(),
            overlay: "flannel.1".into(),
            app: "grafana".into(),
            hosts: HOSTS.iter().map(|&name| name.to_owned()).collect(),
            switched: false,
            bystanders: 0,
            requests: 3,
        }
    }
}

impl Options {
    /// Draws everything anew; the same seed draws the same.
    pub fn random(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let (lan, pods, services) = (rng.u8(16..32), rng.u8(0..250), rng.u8(0..250));
        let lan = [172, lan, rng.u8(..)];
        let cluster = rng.u8(1..100);
        let pod_net = [10, cluster, pods];
        let peer_net = [10, cluster, pods + 1];
        let at = |[one, two, three]: [u8; 3], host| Ipv4Addr::new(one, two, three, host);
        let mut drawn: Vec<u8> = (2..254).collect();
        rng.shuffle(&mut drawn);
        // VIPs that differ in the last bit only are used as a pair.
        let vip = drawn[0] & !1 | 1;
        let others: Vec<u8> = drawn
            .into_iter()
            .filter(|host| host >> 1 != vip >> 1)
            .collect();
        let service_net = [10, 100 + cluster, services];
        let mut name = |stem: &[&str]| {
            let stem = stem[rng.usize(..stem.len())];
            let tail: String = (0..rng.usize(1..4)).map(|_| rng.digit(10)).collect();
            format!("{stem}{tail}")
        };
        Self {
            node: at(lan, others[0]),
            vip: at(lan, vip),
            client: at(lan, others[1]),
            peer: at(lan, others[2]),
            pod: at(pod_net, others[3]),
            second_pod: at(pod_net, others[4]),
            bridge_address: at(pod_net, 1),
            peer_pod: at(peer_net, others[5]),
            peer_bridge_address: at(peer_net, 1),
            service: at(service_net, others[6]),
            outside: Ipv4Addr::new(198, 51, 100, others[7]),
            interface: name(&["lan", "ens", "wan", "bond"]),
            bridge: name(&["br-pods", "kbr", "nat", "cbr"]),
            overlay: name(&["vx", "overlay", "tun"]),
            app: name(&["shop", "api", "mail"]),
            hosts: HOSTS
                .iter()
                .map(|host| format!("{}-{}", name(&["red", "oak", "west", "n"]), host.len()))
                .enumerate()
                // Drawn names may meet; the place in the list cannot.
                .map(|(place, name)| format!("{name}{place}"))
                .collect(),
            pod_port: rng.u16(1025..29_000),
            service_port: rng.u16(81..1000),
            node_port: rng.u16(30_001..32_768),
            switched: rng.bool(),
            bystanders: rng.u8(0..3),
            requests: 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_options_never_collide() {
        for seed in 0..2000 {
            let drawn = Options::random(seed);
            let addresses = [
                drawn.node,
                drawn.vip,
                drawn.client,
                drawn.peer,
                drawn.pod,
                drawn.second_pod,
                drawn.bridge_address,
                drawn.peer_pod,
                drawn.peer_bridge_address,
                drawn.service,
                drawn.outside,
            ];
            for (index, address) in addresses.iter().enumerate() {
                assert!(
                    !addresses[..index].contains(address),
                    "seed {seed}: {address}"
                );
            }
            let second_vip = Ipv4Addr::from_bits(drawn.vip.to_bits() ^ 1);
            assert!(!addresses.contains(&second_vip), "seed {seed}");
            for name in [&drawn.interface, &drawn.bridge, &drawn.overlay] {
                assert!(name.len() < 14, "seed {seed}: {name}");
            }
            assert_ne!(drawn.interface, drawn.bridge);
            assert_eq!(drawn.hosts.len(), HOSTS.len());
        }
    }

    #[test]
    fn a_seed_draws_the_same_again() {
        assert_eq!(
            format!("{:?}", Options::random(7)),
            format!("{:?}", Options::random(7))
        );
        assert_ne!(Options::random(7).node, Options::random(8).node);
    }
}
