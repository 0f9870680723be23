//! The case `vip-nodeport-unbound`: a client host, a node with a virtual address, a pod behind the
//! node's bridge, and what kube-proxy makes of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::kube_proxy::{self, Service, StandIn};
use super::traffic::{Attempt, Outcome, Server, tcp_attempt, udp_attempt};
use super::world::{Announce, Namespace};
use crate::event::protocol;
use crate::node::NetnsHandle;

/// Patience of the client: long enough for a slow machine, short enough for a hanging connection.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Addresses, ports and names.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's own address, in a /24 with the client.
    pub node: Ipv4Addr,
    /// The virtual address.
    pub vip: Ipv4Addr,
    /// The client's address.
    pub client: Ipv4Addr,
    /// The pod's address, in a /24 with the bridge.
    pub pod: Ipv4Addr,
    /// The bridge's address.
    pub bridge_address: Ipv4Addr,
    /// Port that the pod listens on.
    pub pod_port: u16,
    /// The NodePort.
    pub node_port: u16,
    /// Name of the node's interface.
    pub interface: String,
    /// Name of the node's bridge.
    pub bridge: String,
    /// Connections to each address.
    pub requests: u32,
}

impl Default for Options {
    /// As in the report that the case comes from.
    fn default() -> Self {
        Self {
            node: Ipv4Addr::new(192, 168, 3, 182),
            vip: Ipv4Addr::new(192, 168, 3, 187),
            client: Ipv4Addr::new(192, 168, 3, 10),
            pod: Ipv4Addr::new(10, 244, 1, 15),
            bridge_address: Ipv4Addr::new(10, 244, 1, 1),
            pod_port: 3000,
            node_port: 30000,
            interface: "enp1s0".into(),
            bridge: "cni0".into(),
            requests: 3,
        }
    }
}

/// Variants of the case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    /// The VIP is a secondary address; kube-proxy up to 1.22 makes no virtual server for it.
    Unbound,
    /// The same, and kube-proxy holds the port with a listening socket.
    HeldPort,
    /// The same over UDP.
    Udp,
    /// nodePortAddresses leaves the VIP out.
    NodePortAddresses,
    /// Two VIPs, of which one has its own prefix.
    TwoVips,
    /// The VIP is a /32: healthy.
    Vip32,
    /// The VIP has another prefix than the node's address: healthy.
    OtherMask,
}

impl Variant {
    /// Every variant.
    pub const ALL: &[Self] = &[
        Self::Unbound,
        Self::HeldPort,
        Self::Udp,
        Self::NodePortAddresses,
        Self::TwoVips,
        Self::Vip32,
        Self::OtherMask,
    ];

    /// Stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unbound => "unbound",
            Self::HeldPort => "held-port",
            Self::Udp => "udp",
            Self::NodePortAddresses => "nodeport-addresses",
            Self::TwoVips => "two-vips",
            Self::Vip32 => "vip-32",
            Self::OtherMask => "other-mask",
        }
    }

    /// True when everything answers.
    pub const fn healthy(self) -> bool {
        matches!(self, Self::Vip32 | Self::OtherMask)
    }

    const fn vip_prefix(self) -> u8 {
        match self {
            Self::Vip32 | Self::NodePortAddresses => 32,
            Self::OtherMask => 25,
            _ => 24,
        }
    }

    const fn protocol(self) -> u8 {
        match self {
            Self::Udp => protocol::UDP,
            _ => protocol::TCP,
        }
    }
}

/// An address that the client tries.
#[derive(Clone, Debug)]
pub struct Target {
    /// What it is.
    pub label: &'static str,
    /// Where it is.
    pub address: SocketAddr,
}

/// The case, built.
pub struct Case {
    options: Options,
    variant: Variant,
    client: Namespace,
    node: Namespace,
    pod: Namespace,
    service: Service,
    proxy: Option<StandIn>,
    _server: Server,
}

/// What this machine lacks for the case; with `load_modules` modules are loaded first.
pub fn missing(load_modules: bool) -> Vec<String> {
    if load_modules {
        // What cannot be loaded is seen to be missing below.
        let _ = Command::new("modprobe")
            .args(["-a", "ip_vs", "ip_vs_rr", "veth", "bridge"])
            .output();
    }
    let mut missing = Vec::new();
    if !Path::new("/sys/module/ip_vs").exists() {
        missing.push("ip_vs".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for tool in ["ip", "ipvsadm", "iptables", "sysctl"] {
        if !std::env::split_paths(&path).any(|directory| directory.join(tool).is_file()) {
            missing.push(format!("the command {tool}"));
        }
    }
    missing
}

/// Builds the case.
///
/// # Errors
/// When a namespace cannot be made or a command fails.
pub fn build(options: Options, variant: Variant, announce: Announce) -> anyhow::Result<Case> {
    let announce = Arc::new(Mutex::new(announce));
    let client = Namespace::new("client", &announce)?;
    let node = Namespace::new("node", &announce)?;
    let pod = Namespace::new("pod", &announce)?;
    wire(&options, variant, &client, &node, &pod)?;
    let service = Service {
        protocol: variant.protocol(),
        node_port: options.node_port,
        endpoint: SocketAddr::new(options.pod.into(), options.pod_port),
    };
    let server = match variant.protocol() {
        protocol::UDP => Server::udp(&pod, options.pod_port)?,
        _ => Server::tcp(&pod, options.pod_port)?,
    };
    kube_proxy::prepare(&node, &service)?;
    let mut case = Case {
        options,
        variant,
        client,
        node,
        pod,
        service,
        proxy: None,
        _server: server,
    };
    let only = case.configured(&[case.options.node]);
    case.sync(only)?;
    Ok(case)
}

fn wire(
    options: &Options,
    variant: Variant,
    client: &Namespace,
    node: &Namespace,
    pod: &Namespace,
) -> anyhow::Result<()> {
    let Options {
        interface, bridge, ..
    } = options;
    // `ip` moves a device to another namespace by a process in it; this one's thread is not, so the
    // pair is made here and moved by the descriptor of the other end.
    node.run(&format!(
        "ip link add {interface} type veth peer name eth0 netns {}",
        path(client)
    ))?;
    node.run_all(&[
        format!("ip link add {bridge} type bridge"),
        format!(
            "ip link add vethpod type veth peer name eth0 netns {}",
            path(pod)
        ),
        format!("ip link set vethpod master {bridge}"),
        "ip link set lo up".into(),
        format!("ip link set {interface} up"),
        format!("ip link set {bridge} up"),
        "ip link set vethpod up".into(),
        format!("ip addr add {}/24 dev {interface}", options.node),
        format!(
            "ip addr add {}/{} dev {interface}",
            options.vip,
            variant.vip_prefix()
        ),
        format!("ip addr add {}/24 dev {bridge}", options.bridge_address),
    ])?;
    if variant == Variant::TwoVips {
        node.run(&format!(
            "ip addr add {}/32 dev {interface}",
            second_vip(options.vip)
        ))?;
    }
    client.run_all(&[
        "ip link set lo up".into(),
        "ip link set eth0 up".into(),
        format!("ip addr add {}/24 dev eth0", options.client),
    ])?;
    pod.run_all(&[
        "ip link set lo up".into(),
        "ip link set eth0 up".into(),
        format!("ip addr add {}/24 dev eth0", options.pod),
        format!("ip route add default via {}", options.bridge_address),
    ])
}

/// A path to the namespace that a command can open while we live.
fn path(namespace: &Namespace) -> String {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        namespace.handle().as_fd().as_raw_fd()
    )
}

fn second_vip(vip: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(vip.to_bits() ^ 1)
}

impl Case {
    /// The namespaces, held open.
    pub fn namespaces(&self) -> Vec<NetnsHandle> {
        [&self.client, &self.node, &self.pod]
            .map(|namespace| namespace.handle().clone())
            .to_vec()
    }

    /// What the client tries, in order.
    pub fn targets(&self) -> Vec<Target> {
        let target = |label, address: Ipv4Addr| Target {
            label,
            address: SocketAddr::new(address.into(), self.options.node_port),
        };
        let mut targets = vec![
            target("the node's address", self.options.node),
            target("the VIP", self.options.vip),
        ];
        if self.variant == Variant::TwoVips {
            targets.push(target("the second VIP", second_vip(self.options.vip)));
        }
        targets
    }

    /// Tries an address as often as the options say.
    ///
    /// # Errors
    /// When the client's namespace cannot be entered.
    pub fn send(&self, target: &Target) -> anyhow::Result<Vec<Attempt>> {
        (0..self.options.requests)
            .map(|_| match self.service.protocol {
                protocol::UDP => udp_attempt(&self.client, target.address, PATIENCE),
                _ => tcp_attempt(&self.client, target.address, PATIENCE),
            })
            .collect()
    }

    /// True when an attempt came to what a working address gives.
    pub fn is_good(attempt: &Attempt) -> bool {
        attempt.outcome == Outcome::Answered
    }

    /// Applies the fix: the VIP with its own prefix, or a wider nodePortAddresses; and kube-proxy's
    /// next sync.
    ///
    /// # Errors
    /// When a command fails.
    pub fn apply_fix(&mut self) -> anyhow::Result<()> {
        let Options { interface, vip, .. } = &self.options;
        if self.variant == Variant::NodePortAddresses {
            let only = self.configured(&[self.options.node, self.options.vip]);
            return self.sync(only);
        }
        self.node.run_all(&[
            format!(
                "ip addr del {vip}/{} dev {interface}",
                self.variant.vip_prefix()
            ),
            format!("ip addr add {vip}/32 dev {interface}"),
        ])?;
        self.sync(None)
    }

    /// nodePortAddresses, where the variant has one.
    fn configured(&self, addresses: &[Ipv4Addr]) -> Option<Vec<IpAddr>> {
        (self.variant == Variant::NodePortAddresses).then(|| {
            addresses
                .iter()
                .map(|&address| IpAddr::V4(address))
                .collect()
        })
    }

    /// kube-proxy, restarted with its configuration, and its sync.
    fn sync(&mut self, only: Option<Vec<IpAddr>>) -> anyhow::Result<()> {
        let mut arguments = vec!["--proxy-mode=ipvs".to_owned()];
        if let Some(only) = &only {
            let list: Vec<_> = only.iter().map(|address| format!("{address}/32")).collect();
            arguments.push(format!("--nodeport-addresses={}", list.join(",")));
        }
        let held = (self.variant == Variant::HeldPort)
            .then_some((self.service.protocol, self.service.node_port));
        // The old one lets go of the port first.
        self.proxy = None;
        self.proxy = Some(StandIn::start(&self.node, held, &arguments)?);
        kube_proxy::sync(&self.node, &self.service, only.as_deref())
    }
}
