//! Packets past those rules: for each destination whether it answers, or which cause is named, and no cause more.
//!
//! ```text
//! proxy-c 100.64.2.2 ──┐             ┌── proxy-p 10.244.0.5, the endpoint here
//! proxy-d 198.51.100.10┴── proxy-n ──┼── proxy-a 10.244.0.7, a pod that asks
//!        in a range of web's         └── proxy-b 10.244.1.5 to 7, the endpoints of the other node
//! ```

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::Context as _;

use super::{NODE, Node, Setup, cluster};
use crate::tour::{command, inside};
use crate::{Tracer, check};

/// Patience for what does not answer; a SYN is repeated after a second.
const PATIENCE: Duration = Duration::from_millis(1500);
const CLIENT: &str = "proxy-c";
const IN_RANGE: &str = "proxy-d";
const POD: &str = "proxy-a";

/// A host of the node's: its name, the node's device to it with its address, and the host's own address.
const HOSTS: &[[&str; 4]] = &[
    [CLIENT, "c0", "100.64.2.1/24", "100.64.2.2/24"],
    [IN_RANGE, "d0", "198.51.100.1/24", "198.51.100.10/24"],
    ["proxy-b", "b0", "100.64.1.1/24", "100.64.1.2/24"],
    ["proxy-p", "p0", "10.244.0.4/31", "10.244.0.5/31"],
    [POD, "a0", "10.244.0.6/31", "10.244.0.7/31"],
];

/// A connection, and the cause that is named for it; `None` where it is answered.
type Try = (&'static str, &'static str, Option<&'static str>);

const TRIES: &[Try] = &[
    (POD, "10.96.0.10:80", None),
    (CLIENT, "192.0.2.1:30080", None),
    (IN_RANGE, "203.0.113.1:80", None),
    (POD, "10.96.0.11:80", None),
    (POD, "10.96.0.13:80", None),
    (CLIENT, "203.0.113.1:80", Some("lb-source-range")),
    (CLIENT, "192.0.2.1:30081", Some("etp-local-no-endpoint")),
    (CLIENT, "203.0.113.9:80", Some("etp-local-no-endpoint")),
    (POD, "10.96.0.10:8080", Some("service-no-port")),
];
/// kube-proxy's iptables mode takes NodePorts on every address.
const OF_IPTABLES: &[Try] = &[(CLIENT, "192.0.2.50:30080", None)];
const OF_NFTABLES: &[Try] = &[
    (CLIENT, "192.0.2.50:30080", Some("vip-nodeport-unbound")),
    (POD, "10.96.7.7:80", Some("service-unknown")),
];
/// A UDP service without endpoints.
const NAMES: &str = "10.96.0.12:53";

/// Every packet's fate under the rules of a setup.
pub(super) fn fates(tracer: &Tracer, setup: &Setup) -> anyhow::Result<()> {
    let server = cluster(setup)?;
    let node = Node::build()?;
    let net = Net::build()?;
    node.load(setup)?;
    let _listeners = net.listen()?;
    let kubeconfig = server.kubeconfig();
    let place = kubeconfig.to_string_lossy();
    let tracing = tracer.start(&["--kubeconfig", &place, "--node", NODE])?;
    let more = match setup.mode {
        "nftables" => OF_NFTABLES,
        _ => OF_IPTABLES,
    };
    let tries: Vec<&Try> = TRIES.iter().chain(more).collect();
    for (from, to, expected) in &tries {
        let answered = connects(from, to)?;
        check(answered == expected.is_none(), || {
            format!("{to} answers {from}: {answered}")
        })?;
    }
    ask_names()?;
    std::thread::sleep(PATIENCE);
    tracing.interrupt()?;
    let answer = tracing.finish()?;
    let wanted = tries
        .iter()
        .filter_map(|(_, to, expected)| Some(((*expected)?, *to)))
        .chain([("service-no-endpoints", NAMES)]);
    let all: Vec<_> = wanted.collect();
    let mut wanted = all.clone();
    for found in answer.objects("diagnosis") {
        let subject = found["subject"].as_str().unwrap_or_default();
        let place = wanted
            .iter()
            .position(|(cause, to)| found["cause"] == *cause && subject.contains(to));
        // One that is said again, surer or of more connections, was found before.
        let known = all
            .iter()
            .any(|(cause, to)| found["cause"] == *cause && subject.contains(to));
        match place {
            Some(place) => drop(wanted.remove(place)),
            None => check(known, || format!("a cause of nothing: {found:#}"))?,
        }
    }
    check(wanted.is_empty(), || {
        let named = answer.objects("diagnosis");
        format!("not named: {wanted:?}, but {named:#?}")
    })
}

fn connects(from: &str, to: &str) -> anyhow::Result<bool> {
    let to: SocketAddr = to.parse().context("an address")?;
    inside(from, move || -> std::io::Result<bool> {
        Ok(TcpStream::connect_timeout(&to, PATIENCE).is_ok())
    })
}

fn ask_names() -> anyhow::Result<()> {
    inside(POD, || -> std::io::Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(NAMES)?;
        socket.send(b"x")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // It is refused.
        let _ = socket.recv(&mut [0; 8]);
        Ok(())
    })
}

/// The hosts around the node; dropping it removes them.
struct Net;

impl Net {
    fn build() -> anyhow::Result<Self> {
        tear_down();
        let net = Self;
        for [host, device, near, own] in HOSTS {
            let gateway = near.split('/').next().unwrap_or(near);
            for line in [
                format!("netns add {host}"),
                format!("-n {host} link set lo up"),
                format!("-n {host} link add eth0 type veth peer name {device} netns proxy-n"),
                format!("-n {host} addr add {own} dev eth0"),
                format!("-n {host} link set eth0 up"),
                format!("-n proxy-n addr add {near} dev {device}"),
                format!("-n proxy-n link set {device} up"),
                format!("-n {host} route add default via {gateway}"),
            ] {
                command(&format!("ip {line}"))?;
            }
        }
        for line in [
            "ip -n proxy-n route add 10.244.1.0/24 via 100.64.1.2",
            // What nobody takes goes out there, and is never heard of again.
            "ip -n proxy-n route add default dev up0",
            "ip netns exec proxy-n sysctl -qw net.ipv4.ip_forward=1",
            "ip -n proxy-b addr add 10.244.1.5/32 dev lo",
            "ip -n proxy-b addr add 10.244.1.6/32 dev lo",
            "ip -n proxy-b addr add 10.244.1.7/32 dev lo",
        ] {
            command(line)?;
        }
        Ok(net)
    }

    /// The endpoints, which take connections.
    fn listen(&self) -> anyhow::Result<[TcpListener; 2]> {
        let at = |host| inside(host, || TcpListener::bind("0.0.0.0:8080"));
        Ok([at("proxy-p")?, at("proxy-b")?])
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        tear_down();
    }
}

fn tear_down() {
    // What is not there need not go.
    for [host, ..] in HOSTS {
        let _ = command(&format!("ip netns del {host}"));
    }
}
