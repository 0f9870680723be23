//! What kube-proxy in ipvs mode makes for a NodePort, and a process that stands in for it.
//!
//! Source: kubernetes pkg/proxy/ipvs/proxier.go and netlink_linux.go as of 1.22.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};

use anyhow::Context as _;

use super::namespace::Namespace;
use crate::event::protocol;
use crate::node::{Directory, NetnsFacts, Route, RouteKind, RouteProtocol, VirtualServerKey};

/// Set for a process that stands in for another: what it holds.
const STAND_IN: &str = "TRACER_STAND_IN";

/// The device that kube-proxy in ipvs mode keeps service addresses on.
const SERVICE_DEVICE: &str = "kube-ipvs0";

/// A NodePort service with one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// IP protocol.
    pub protocol: u8,
    /// ClusterIP and port.
    pub cluster: SocketAddrV4,
    /// Port on the node's addresses.
    pub node_port: u16,
    /// The pod.
    pub endpoint: SocketAddr,
}

/// Addresses that kube-proxy up to 1.22 takes for the node's: the sources of the kernel's local
/// routes, or with nodePortAddresses the addresses of the interfaces that they name.
fn node_addresses(node: &Namespace, only: Option<&[IpAddr]>) -> BTreeSet<IpAddr> {
    let facts = facts(node);
    let wanted = |address: &IpAddr| address.is_ipv4() && !address.is_loopback();
    match only {
        Some(only) => facts
            .addresses
            .iter()
            .map(|found| found.address)
            .filter(|address| only.contains(address))
            .collect(),
        None => facts
            .routes
            .iter()
            .filter(|route| route.table == Route::LOCAL_TABLE && route.kind == RouteKind::Local)
            .filter(|route| route.protocol == RouteProtocol::Kernel)
            .filter(|route| {
                let link = route.link.and_then(|index| facts.link(index));
                link.is_none_or(|link| link.name != SERVICE_DEVICE)
            })
            .filter_map(|route| route.preferred_source)
            .filter(wanted)
            .collect(),
    }
}

fn facts(node: &Namespace) -> NetnsFacts {
    NetnsFacts::read(node.handle(), &Directory::default())
}

/// What kube-proxy makes once: forwarding, conntrack for IPVS, masquerading of NodePort traffic, and the service at its
/// ClusterIP.
///
/// # Errors
/// When a command fails.
pub fn prepare(node: &Namespace, service: &Service) -> anyhow::Result<()> {
    let name = protocol::name(service.protocol);
    hold_address(node, *service.cluster.ip())?;
    node.run_all(&[
        "sysctl -qw net.ipv4.ip_forward=1".into(),
        "sysctl -qw net.ipv4.vs.conntrack=1".into(),
        "iptables -t nat -N KUBE-NODE-PORT".into(),
        "iptables -t nat -A KUBE-NODE-PORT -j MARK --set-xmark 0x4000/0x4000".into(),
        format!(
            "iptables -t nat -A PREROUTING -p {name} --dport {} -j KUBE-NODE-PORT",
            service.node_port
        ),
        "iptables -t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE".into(),
    ])?;
    serve(node, service, service.cluster.into())
}

/// A service's address on the device that kube-proxy in ipvs mode makes for them.
///
/// # Errors
/// When a command fails.
pub fn hold_address(node: &Namespace, service: Ipv4Addr) -> anyhow::Result<()> {
    node.run_all(&[
        format!("ip link add {SERVICE_DEVICE} type dummy"),
        format!("ip addr add {service}/32 dev {SERVICE_DEVICE}"),
    ])
}

/// One sync: virtual servers on the node addresses, and none elsewhere.
///
/// # Errors
/// When a command fails.
pub fn sync(node: &Namespace, service: &Service, only: Option<&[IpAddr]>) -> anyhow::Result<()> {
    let wanted = node_addresses(node, only);
    let there: BTreeSet<IpAddr> = facts(node)
        .virtual_servers_on_port(service.protocol, service.node_port)
        .filter_map(|server| match server.key {
            VirtualServerKey::Endpoint { address, .. } => Some(address),
            VirtualServerKey::Mark { .. } => None,
        })
        .collect();
    for address in there.difference(&wanted) {
        node.run(&format!(
            "ipvsadm -D {} {}",
            service.flag(),
            SocketAddr::new(*address, service.node_port)
        ))?;
    }
    for address in wanted.difference(&there) {
        serve(node, service, SocketAddr::new(*address, service.node_port))?;
    }
    Ok(())
}

/// A virtual server of the service.
fn serve(node: &Namespace, service: &Service, server: SocketAddr) -> anyhow::Result<()> {
    let flag = service.flag();
    node.run_all(&[
        format!("ipvsadm -A {flag} {server} -s rr"),
        format!("ipvsadm -a {flag} {server} -r {} -m -w 1", service.endpoint),
    ])
}

impl Service {
    /// The protocol as ipvsadm takes it.
    const fn flag(&self) -> &'static str {
        if self.protocol == protocol::UDP {
            "-u"
        } else {
            "-t"
        }
    }
}

/// A process with the name and the command line of another, in a namespace: it holds a port, or only has a command line. It ends
/// when the pipe to it closes, so it cannot outlive us.
pub struct StandIn {
    child: Child,
    _alive: Option<ChildStdin>,
}

impl StandIn {
    /// Starts it; `held` is the protocol and port whose socket it holds and never serves.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        name: &str,
        node: &Namespace,
        held: Option<(u8, u16)>,
        arguments: &[String],
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program's own file is not known")?;
        let held = held.map_or_else(
            || "none 0".into(),
            |(number, port)| format!("{} {port}", protocol::name(number)),
        );
        let mut child = node.enter(|| {
            Command::new(program)
                .arg0(name)
                .args(arguments)
                .env(STAND_IN, held)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
        })?;
        let alive = child.stdin.take();
        // It says one byte once it holds what it is to hold.
        let mut ready = [0];
        if let Some(mut stdout) = child.stdout.take() {
            stdout
                .read_exact(&mut ready)
                .context("the process that stands in for another did not start")?;
        }
        Ok(Self {
            child,
            _alive: alive,
        })
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Plays the stand-in when this process is one; `None` for an ordinary start.
pub fn stand_in() -> Option<ExitCode> {
    let held = std::env::var(STAND_IN).ok()?;
    // The name is only for people and for `ps`.
    if let Some(name) = std::env::args_os()
        .next()
        .and_then(|name| CString::new(name.into_encoded_bytes()).ok())
    {
        let _ = nix::sys::prctl::set_name(&name);
    }
    let (kind, port) = held.split_once(' ')?;
    let port = port.parse().unwrap_or(0);
    let bound = match kind {
        "tcp" => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            .map(|listener| Some(std::os::fd::OwnedFd::from(listener))),
        "udp" => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
            .map(|socket| Some(std::os::fd::OwnedFd::from(socket))),
        _ => Ok(None),
    };
    let Ok(_held) = bound else {
        return Some(ExitCode::FAILURE);
    };
    println!();
    let mut rest = Vec::new();
    // Ends when the one who started us does.
    let _ = std::io::stdin().read_to_end(&mut rest);
    Some(ExitCode::SUCCESS)
}
