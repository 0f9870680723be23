//! Client, node and pod in namespaces of their own, with a NodePort that IPVS serves and masquerades
//! as kube-proxy sets it up; and a pod that answers over UDP and TCP.
//!
//! Invariant: what is made is gone when the world is dropped, and nothing is sent outside it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, setns};

/// The client's address, beside the node's.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 3, 10);
/// The node's own address.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 3, 182);
const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 15);
const POD_PORT: u16 = 3000;
/// The NodePort.
pub(crate) const NODE_PORT: u16 = 30000;
/// A port that nothing answers on.
pub(crate) const DEAD_PORT: u16 = 30999;
/// How often servers look whether they are to stop.
const POLL: Duration = Duration::from_millis(50);
const MODULES: &[&str] = &[
    "ip_vs",
    "ip_vs_rr",
    "veth",
    "bridge",
    "nf_conntrack",
    "nf_nat",
];

/// The three namespaces and the pod's servers.
pub(crate) struct World {
    names: [String; 3],
    stop: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
}

/// Where something runs: an index into [`World::names`].
#[derive(Clone, Copy)]
pub(crate) enum Place {
    Client = 0,
    Pod = 2,
}

/// Runs a command, its words separated by single spaces.
pub(crate) fn run(line: &str) -> anyhow::Result<()> {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap_or_default())
        .args(words)
        .output()
        .with_context(|| format!("{line}: cannot be started"))?;
    if !output.status.success() {
        bail!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

impl World {
    /// Builds it.
    pub(crate) fn build() -> anyhow::Result<Self> {
        run(&format!("modprobe -a {}", MODULES.join(" ")))?;
        let number = std::process::id();
        let names = ["client", "node", "pod"].map(|part| format!("bench-{part}-{number}"));
        let mut world = Self {
            names,
            stop: Arc::default(),
            servers: Vec::new(),
        };
        world.wire()?;
        world.serve()?;
        Ok(world)
    }

    fn wire(&self) -> anyhow::Result<()> {
        let [client, node, pod] = &self.names;
        for name in &self.names {
            run(&format!("ip netns add {name}"))?;
            run(&format!("ip -n {name} link set lo up"))?;
        }
        let server = format!("{NODE}:{NODE_PORT}");
        let mut lines = vec![
            format!("ip -n {node} link add eth0 type veth peer name eth0 netns {client}"),
            format!("ip -n {node} link add cni0 type bridge"),
            format!("ip -n {node} link add vethpod type veth peer name eth0 netns {pod}"),
            format!("ip -n {node} link set vethpod master cni0"),
            format!("ip -n {node} addr add {NODE}/24 dev eth0"),
            format!("ip -n {node} addr add {BRIDGE}/24 dev cni0"),
            format!("ip -n {client} addr add {CLIENT}/24 dev eth0"),
            format!("ip -n {pod} addr add {POD}/24 dev eth0"),
        ];
        for (name, device) in [
            (node, "eth0"),
            (node, "cni0"),
            (node, "vethpod"),
            (client, "eth0"),
            (pod, "eth0"),
        ] {
            lines.push(format!("ip -n {name} link set {device} up"));
        }
        lines.push(format!("ip -n {pod} route add default via {BRIDGE}"));
        let mut inside = vec![
            "sysctl -qw net.ipv4.ip_forward=1".to_owned(),
            "sysctl -qw net.ipv4.vs.conntrack=1".into(),
            "iptables -t nat -N KUBE-NODE-PORT".into(),
            "iptables -t nat -A KUBE-NODE-PORT -j MARK --set-xmark 0x4000/0x4000".into(),
            "iptables -t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE".into(),
        ];
        for (protocol, flag) in [("udp", "-u"), ("tcp", "-t")] {
            inside.push(format!(
                "iptables -t nat -A PREROUTING -p {protocol} --dport {NODE_PORT} -j KUBE-NODE-PORT"
            ));
            inside.push(format!("ipvsadm -A {flag} {server} -s rr"));
            inside.push(format!("ipvsadm -a {flag} {server} -r {POD}:{POD_PORT} -m"));
        }
        lines.extend(
            inside
                .iter()
                .map(|line| format!("ip netns exec {node} {line}")),
        );
        lines.iter().try_for_each(|line| run(line))
    }

    /// Runs a closure on a thread of its own in a namespace.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        place: Place,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> JoinHandle<io::Result<T>> {
        let path = format!("/run/netns/{}", self.names[place as usize]);
        std::thread::spawn(move || {
            setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// The same, and waits for it.
    pub(crate) fn enter<T: Send + 'static>(
        &self,
        place: Place,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let done = self.spawn(place, work).join();
        Ok(done.map_err(|_| anyhow::anyhow!("a thread failed"))??)
    }

    fn serve(&mut self) -> anyhow::Result<()> {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, POD_PORT));
        let udp = self.enter(Place::Pod, move || UdpSocket::bind(address))?;
        let tcp = self.enter(Place::Pod, move || TcpListener::bind(address))?;
        udp.set_read_timeout(Some(POLL))?;
        let stop = Arc::clone(&self.stop);
        self.servers.push(std::thread::spawn(move || {
            let mut bytes = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, from)) = udp.recv_from(&mut bytes) {
                    // The client says what did not come back.
                    let _ = udp.send_to(&bytes[..length], from);
                }
            }
        }));
        let stop = Arc::clone(&self.stop);
        self.servers.push(std::thread::spawn(move || {
            let mut bytes = [0; 64];
            for stream in tcp.incoming() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                if let Ok(mut stream) = stream {
                    // As above.
                    let _ = stream
                        .read(&mut bytes)
                        .and_then(|length| stream.write_all(&bytes[..length]));
                }
            }
        }));
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the server that waits for a connection.
        let _ = self.enter(Place::Pod, || {
            std::net::TcpStream::connect((POD, POD_PORT)).map(drop)
        });
        for server in self.servers.drain(..) {
            let _ = server.join();
        }
        for name in &self.names {
            // What was never made cannot be deleted.
            let _ = run(&format!("ip netns del {name}"));
        }
    }
}
