//! The namespaces of the table, and the servers in them.

use super::{
    Arc, AtomicBool, Command, Duration, JoinHandle, Ordering, POLL, TcpListener, UdpSocket,
    command, finish, inside,
};

const NAMES: &[&str] = &["pt-c", "pt-a", "pt-b", "pt-p1", "pt-p2", "pt-p3"];

/// Built in order; each line is a command without a shell.
const LINES: &[&str] = &[
    "ip -n pt-c link add eth0 type veth peer name eth0 netns pt-a",
    "ip -n pt-a link add eth1 type veth peer name eth0 netns pt-b",
    "ip -n pt-a link add cni0 type bridge",
    "ip -n pt-b link add cni0 type bridge",
    "ip -n pt-a link add veth1 type veth peer name eth0 netns pt-p1",
    "ip -n pt-a link add veth2 type veth peer name eth0 netns pt-p2",
    "ip -n pt-b link add veth3 type veth peer name eth0 netns pt-p3",
    "ip -n pt-a link set veth1 master cni0",
    "ip -n pt-a link set veth2 master cni0",
    "ip -n pt-b link set veth3 master cni0",
    "ip -n pt-a link add kube-ipvs0 type dummy",
    "ip -n pt-a link add flannel.1 address 02:00:00:00:01:01 type vxlan id 1 dev eth1 local 198.51.100.1 dstport 8472 nolearning",
    "ip -n pt-b link add flannel.1 address 02:00:00:00:02:02 type vxlan id 1 dev eth0 local 198.51.100.2 dstport 8472 nolearning",
    "ip -n pt-c addr add 192.0.2.10/24 dev eth0",
    "ip -n pt-a addr add 192.0.2.1/24 dev eth0",
    "ip -n pt-c addr add 2001:db8::10/64 dev eth0 nodad",
    "ip -n pt-a addr add 2001:db8::1/64 dev eth0 nodad",
    "ip -n pt-a addr add 198.51.100.1/24 dev eth1",
    "ip -n pt-b addr add 198.51.100.2/24 dev eth0",
    "ip -n pt-a addr add 10.244.1.1/24 dev cni0",
    "ip -n pt-a addr add fd00:1::1/64 dev cni0 nodad",
    "ip -n pt-b addr add 10.244.2.1/24 dev cni0",
    "ip -n pt-a addr add 10.244.1.0/32 dev flannel.1",
    "ip -n pt-b addr add 10.244.2.0/32 dev flannel.1",
    "ip -n pt-a addr add 10.96.0.10/32 dev kube-ipvs0",
    "ip -n pt-p1 addr add 10.244.1.2/24 dev eth0",
    "ip -n pt-p1 addr add fd00:1::2/64 dev eth0 nodad",
    "ip -n pt-p2 addr add 10.244.1.3/24 dev eth0",
    "ip -n pt-p3 addr add 10.244.2.2/24 dev eth0",
    "ip -n pt-c link set eth0 up",
    "ip -n pt-a link set eth0 up",
    "ip -n pt-a link set eth1 up",
    "ip -n pt-b link set eth0 up",
    "ip -n pt-a link set cni0 up",
    "ip -n pt-b link set cni0 up",
    "ip -n pt-a link set veth1 up",
    "ip -n pt-a link set veth2 up",
    "ip -n pt-b link set veth3 up",
    "ip -n pt-a link set flannel.1 up",
    "ip -n pt-b link set flannel.1 up",
    "ip -n pt-p1 link set eth0 up",
    "ip -n pt-p2 link set eth0 up",
    "ip -n pt-p3 link set eth0 up",
    "ip -n pt-a link set lo up",
    "ip -n pt-b link set lo up",
    "ip -n pt-c route add 10.244.0.0/16 via 192.0.2.1",
    "ip -n pt-p1 route add default via 10.244.1.1",
    "ip -n pt-p1 route add default via fd00:1::1",
    "ip -n pt-p2 route add default via 10.244.1.1",
    "ip -n pt-p3 route add default via 10.244.2.1",
    // What flanneld writes for the other node.
    "ip -n pt-a route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
    "ip -n pt-b route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink",
    "ip -n pt-a neigh add 10.244.2.0 lladdr 02:00:00:00:02:02 dev flannel.1 nud permanent",
    "ip -n pt-b neigh add 10.244.1.0 lladdr 02:00:00:00:01:01 dev flannel.1 nud permanent",
    "bridge -n pt-a fdb append 02:00:00:00:02:02 dev flannel.1 dst 198.51.100.2",
    "bridge -n pt-b fdb append 02:00:00:00:01:01 dev flannel.1 dst 198.51.100.1",
    "ip netns exec pt-a sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.vs.conntrack=1",
    // Sent at a limited rate, so that they would be on one row and not on the next.
    "ip netns exec pt-a sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.cni0.send_redirects=0",
    "ip netns exec pt-b sysctl -qw net.ipv4.ip_forward=1",
    // Frames between ports stay the bridge's own business, whether or not br_netfilter is loaded.
    "ip netns exec pt-a sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
    "ip netns exec pt-b sysctl -qw net.bridge.bridge-nf-call-iptables=0",
    // What kube-proxy in ipvs mode makes: marked traffic is masqueraded.
    "ip netns exec pt-a iptables -t nat -A PREROUTING -p udp -m multiport --dports 53,80,30000,30003 -j MARK --set-mark 0x4000",
    "ip netns exec pt-a iptables -t nat -A PREROUTING -p tcp --dport 30000 -j MARK --set-mark 0x4000",
    "ip netns exec pt-a iptables -t nat -A POSTROUTING -m mark --mark 0x4000 -j MASQUERADE",
    "ip netns exec pt-a ip6tables -t nat -A PREROUTING -p udp --dport 30000 -j MARK --set-mark 0x4000",
    "ip netns exec pt-a ip6tables -t nat -A POSTROUTING -m mark --mark 0x4000 -j MASQUERADE",
    "ip netns exec pt-a ipvsadm -A -u 192.0.2.1:30000 -s rr",
    "ip netns exec pt-a ipvsadm -a -u 192.0.2.1:30000 -r 10.244.1.2:3000 -m",
    "ip netns exec pt-a ipvsadm -A -t 192.0.2.1:30000 -s rr",
    "ip netns exec pt-a ipvsadm -a -t 192.0.2.1:30000 -r 10.244.1.2:3000 -m",
    "ip netns exec pt-a ipvsadm -A -u 192.0.2.1:30003 -s rr",
    "ip netns exec pt-a ipvsadm -a -u 192.0.2.1:30003 -r 10.244.2.2:3000 -m",
    "ip netns exec pt-a ipvsadm -A -u [2001:db8::1]:30000 -s rr",
    "ip netns exec pt-a ipvsadm -a -u [2001:db8::1]:30000 -r [fd00:1::2]:3000 -m",
    "ip netns exec pt-a ipvsadm -A -u 10.96.0.10:80 -s rr",
    "ip netns exec pt-a ipvsadm -a -u 10.96.0.10:80 -r 10.244.1.3:3000 -m",
    "ip netns exec pt-a ipvsadm -A -u 10.96.0.10:53 -s rr",
    "ip netns exec pt-a ipvsadm -a -u 10.96.0.10:53 -r 10.244.1.3:53 -m",
    // iptables mode, and nftables mode.
    "ip netns exec pt-a iptables -t nat -A PREROUTING -p udp --dport 30001 -j DNAT --to-destination 10.244.1.2:3000",
    "ip netns exec pt-a nft add table ip kube",
    "ip netns exec pt-a nft add chain ip kube services { type nat hook prerouting priority -99 ; }",
    "ip netns exec pt-a nft add rule ip kube services udp dport 30002 dnat to 10.244.1.2:3000",
];

/// Ports that UDP servers answer on, IPv4 and IPv6.
const UDP: &[(&str, u16)] = &[
    ("pt-p1", 3000),
    ("pt-p2", 3000),
    ("pt-p2", 53),
    ("pt-p3", 3000),
];
const TCP: &[(&str, u16)] = &[("pt-p1", 3000)];

/// The namespaces and servers; dropping it removes them.
pub(crate) struct World {
    stop: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
}

impl World {
    pub(crate) fn build() -> anyhow::Result<Self> {
        let mut world = Self {
            stop: Arc::default(),
            servers: Vec::new(),
        };
        for name in NAMES {
            command(&format!("ip netns add {name}"))?;
        }
        for line in LINES {
            command(line)?;
        }
        for &(name, port) in UDP {
            let socket = inside(name, || UdpSocket::bind(("::", port)))?;
            socket.set_read_timeout(Some(POLL))?;
            world.serve(move || {
                let mut bytes = [0; 4096];
                if let Ok((length, from)) = socket.recv_from(&mut bytes) {
                    // A question of DNS becomes "there is no such name".
                    if port == 53 && length > 3 {
                        bytes[2] |= 0x80;
                        bytes[3] = 3;
                    }
                    // A client that went away is no concern of the server.
                    let _ = socket.send_to(&bytes[..length.min(512)], from);
                }
            });
        }
        for &(name, port) in TCP {
            let listener = inside(name, || TcpListener::bind(("::", port)))?;
            listener.set_nonblocking(true)?;
            world.serve(move || {
                if listener.accept().is_err() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
        // Neighbours are resolved before the trace: that a packet waits for one is no row's concern.
        for (name, address) in [
            ("pt-c", "192.0.2.1"),
            ("pt-c", "10.244.1.2"),
            ("pt-p1", "10.244.1.3"),
            ("pt-a", "198.51.100.2"),
            ("pt-a", "10.244.1.3"),
            ("pt-b", "10.244.2.2"),
            ("pt-c", "2001:db8::1"),
            ("pt-a", "fd00:1::2"),
        ] {
            finish(Command::new("ip").args([
                "netns", "exec", name, "busybox", "ping", "-c", "1", "-W", "2", address,
            ]))?;
        }
        for name in NAMES {
            age_neighbours(name)?;
        }
        Ok(world)
    }

    fn serve(&mut self, mut once: impl FnMut() + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.servers.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                once();
            }
        }));
    }
}

/// Makes resolved neighbours stale, which most are on a quiet node: a packet to one does not wait.
fn age_neighbours(namespace: &str) -> anyhow::Result<()> {
    let shown =
        finish(Command::new("ip").args(["-n", namespace, "neigh", "show", "nud", "reachable"]))?;
    for line in shown.stdout.lines() {
        if let [address, "dev", device, ..] = line.split_whitespace().collect::<Vec<_>>()[..] {
            command(&format!(
                "ip -n {namespace} neigh change {address} dev {device} nud stale"
            ))?;
        }
    }
    Ok(())
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for server in self.servers.drain(..) {
            // A server that failed has nothing to clean up.
            let _ = server.join();
        }
        for name in NAMES {
            // Nothing more can be done when this fails; the kernel goes with the lab.
            let _ = command(&format!("ip netns del {name}"));
        }
    }
}
