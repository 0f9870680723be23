//! Traffic that takes a packet past every hook: two hosts joined by a veth, with the ways to go and to
//! be lost that one node can have.
//!
//! ```text
//! tour-c 192.0.2.2, 2001:db8::2 ── veth ── 192.0.2.1, 2001:db8::1 tour-h
//!        vxlan 203.0.113.2       ── over ──     203.0.113.1 vxlan
//! ```

use std::fs::File;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::{Answer, check, finish};

const CLIENT: &str = "tour-c";
const HOST: &str = "tour-h";
/// Patience for what is to fail.
const SHORT: Duration = Duration::from_millis(300);
const CLASH_ROUNDS: usize = 300;

/// The two hosts; dropping it removes them.
pub struct Tour;

impl Tour {
    /// Builds both hosts.
    ///
    /// # Errors
    /// When a command fails.
    pub fn build() -> anyhow::Result<Self> {
        let tour = Self;
        for name in [CLIENT, HOST] {
            command(&format!("ip netns add {name}"))?;
        }
        for line in [
            "ip -n tour-c link add eth0 type veth peer name eth0 netns tour-h",
            "ip -n tour-c addr add 192.0.2.2/24 dev eth0",
            "ip -n tour-h addr add 192.0.2.1/24 dev eth0",
            "ip -n tour-c addr add 2001:db8::2/64 dev eth0 nodad",
            "ip -n tour-h addr add 2001:db8::1/64 dev eth0 nodad",
            "ip -n tour-c link set eth0 up",
            "ip -n tour-h link set eth0 up",
            "ip -n tour-c link set lo up",
            "ip -n tour-h link set lo up",
            "ip -n tour-c route add default via 192.0.2.1",
            "ip -n tour-c route add default via 2001:db8::1",
            // An overlay between both.
            "ip -n tour-c link add over type vxlan id 5 dev eth0 remote 192.0.2.1 dstport 8472",
            "ip -n tour-h link add over type vxlan id 5 dev eth0 remote 192.0.2.2 dstport 8472",
            "ip -n tour-c addr add 203.0.113.2/24 dev over",
            "ip -n tour-h addr add 203.0.113.1/24 dev over",
            "ip -n tour-c link set over up",
            "ip -n tour-h link set over up",
            // Ways to be lost.
            "ip -n tour-h route add blackhole 198.51.100.0/25",
            "ip -n tour-h link add narrow mtu 1000 type dummy",
            "ip -n tour-h link set narrow up",
            "ip -n tour-h route add 198.51.100.128/25 dev narrow",
            "ip -n tour-h route add 2001:db8:1::/64 dev over",
            "ip netns exec tour-c sysctl -qw net.ipv4.ip_no_pmtu_disc=1",
            "ip -n tour-h route add 100.64.0.0/24 dev over",
            "ip -n tour-c addr add 100.64.0.9/32 dev lo",
            // The host forwards, follows connections, and checks where sources come from.
            "ip netns exec tour-h sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.eth0.rp_filter=1 net.ipv4.vs.conntrack=1",
            "ip netns exec tour-h iptables -t nat -A POSTROUTING -d 192.0.2.77 -j MASQUERADE",
            // Virtual servers: without a real server, and one per forwarding method.
            "ip netns exec tour-h ipvsadm -A -u 192.0.2.1:5000 -s rr",
            "ip netns exec tour-h ipvsadm -A -u 192.0.2.1:5001 -s rr",
            "ip netns exec tour-h ipvsadm -a -u 192.0.2.1:5001 -r 192.0.2.2:5001 -g",
            "ip netns exec tour-h ipvsadm -A -u 192.0.2.1:5002 -s rr",
            "ip netns exec tour-h ipvsadm -a -u 192.0.2.1:5002 -r 192.0.2.2:5002 -i",
            "ip netns exec tour-h ipvsadm -A -u [2001:db8::1]:5003 -s rr",
            "ip netns exec tour-h ipvsadm -a -u [2001:db8::1]:5003 -r [2001:db8::2]:5004 -m",
            "ip netns exec tour-h ip6tables -A INPUT -m conntrack --ctstate INVALID -j ACCEPT",
            "ip netns exec tour-h ipvsadm -A -u [2001:db8::1]:5005 -s rr",
            "ip netns exec tour-h ipvsadm -a -u [2001:db8::1]:5005 -r [2001:db8::2]:5005 -g",
            "ip netns exec tour-h ipvsadm -A -u [2001:db8::1]:5006 -s rr",
            "ip netns exec tour-h ipvsadm -a -u [2001:db8::1]:5006 -r [2001:db8::2]:5006 -i",
            // The client follows connections too.
            "ip netns exec tour-c iptables -A OUTPUT -m conntrack --ctstate INVALID -j ACCEPT",
        ] {
            command(line)?;
        }
        Ok(tour)
    }

    /// Sends everything once or twice, bounded in count and time.
    ///
    /// # Errors
    /// When what has to work does not.
    pub fn travel(&self) -> anyhow::Result<()> {
        // Whether these arrive does not matter: they are to be seen on the way.
        for line in [
            "ping -c 1 -W 1 192.0.2.1",
            "ping -6 -c 1 -W 1 2001:db8::1",
            "ping -6 -c 1 -W 1 -s 3000 2001:db8::1",
            "ping -c 1 -W 1 203.0.113.1",
            "ping -c 1 -W 1 -s 1300 198.51.100.200",
            "ping -c 1 -W 1 -I 100.64.0.9 192.0.2.1",
            "ping -c 1 -W 4 192.0.2.99",
            "ping -6 -c 1 -W 4 2001:db8::99",
            "ping -6 -c 1 -W 1 2001:db8:1::1",
            "ping -6 -c 1 -W 1 2001:db8:9::1",
        ] {
            finish(
                Command::new("ip")
                    .args(["netns", "exec", CLIENT, "busybox"])
                    .args(line.split(' ')),
            )?;
        }
        let receiver = inside(HOST, || UdpSocket::bind("[::]:5010"))?;
        inside(CLIENT, || -> std::io::Result<()> {
            let four = UdpSocket::bind("0.0.0.0:0")?;
            for destination in [
                "192.0.2.1:5000",
                "192.0.2.1:5001",
                "192.0.2.1:5002",
                "192.0.2.1:5999",
                "198.51.100.1:53",
            ] {
                for _ in 0..3 {
                    // A refusal of the one before may come back here.
                    let _ = four.send_to(b"x", destination);
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            let six = UdpSocket::bind("[::]:0")?;
            for destination in [
                "[2001:db8::1]:5003",
                "[2001:db8::1]:5005",
                "[2001:db8::1]:5006",
                "[2001:db8::1]:5999",
                "[2001:db8::1]:5010",
            ] {
                let _ = six.send_to(b"x", destination);
            }
            let _ = TcpStream::connect_timeout(&([192, 0, 2, 1], 5999).into(), SHORT);
            let closed = "[2001:db8::1]:5999"
                .parse()
                .map_err(std::io::Error::other)?;
            let _ = TcpStream::connect_timeout(&closed, SHORT);
            Ok(())
        })?;
        receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
        receiver
            .recv(&mut [0; 8])
            .context("nothing came over IPv6")?;
        late_close()?;
        inside(CLIENT, clash)?;
        command("ip netns exec tour-c conntrack -F")
    }

    /// Journeys between the hosts that a trace of the tour shows as failed, and that did not fail. Those
    /// of which events were lost do not count.
    pub fn healthy_that_failed(answer: &Answer) -> Vec<String> {
        let healthy = |journey: &Value| {
            let (protocol, destination) = (&journey["protocol"], &journey["destination"]);
            HEALTHY.iter().any(|healthy| protocol == healthy)
                && ADDRESSES6.iter().any(|address| destination == address)
        };
        answer
            .objects("journey")
            .iter()
            .filter(|journey| healthy(journey))
            .filter(|journey| journey["arrived"] == false && journey["gap"] != true)
            .map(Value::to_string)
            .collect()
    }
}

/// Echoes and neighbour discovery, which work between the two hosts.
const HEALTHY: [&str; 4] = ["icmp6 128/0", "icmp6 129/0", "icmp6 135/0", "icmp6 136/0"];
/// The hosts as the tracer writes them for packets without ports.
const ADDRESSES6: [&str; 2] = ["[2001:db8::1]:0", "[2001:db8::2]:0"];

/// A TCP connection whose server closes after its client is gone.
fn late_close() -> anyhow::Result<()> {
    let listener = inside(HOST, || TcpListener::bind("192.0.2.1:5011"))?;
    let client = inside(CLIENT, || TcpStream::connect("192.0.2.1:5011"))?;
    let (server, _) = listener.accept()?;
    drop(client);
    std::thread::sleep(SHORT);
    drop(server);
    Ok(())
}

/// Two packets of one new connection at the same moment from two processors: the one confirmed second
/// finds the first's conntrack entry in its place. A race, so it is run often.
fn clash() -> anyhow::Result<()> {
    for _ in 0..CLASH_ROUNDS {
        let sender = UdpSocket::bind("0.0.0.0:0")?;
        sender.connect("192.0.2.1:5998")?;
        let ready = AtomicUsize::new(0);
        let send = || {
            ready.fetch_add(1, Ordering::SeqCst);
            while ready.load(Ordering::SeqCst) < 2 {
                std::hint::spin_loop();
            }
            sender.send(b"x")
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(send);
            // A refusal of the other one may come back here.
            let _ = send();
            let _ = other.join();
        });
    }
    Ok(())
}

impl Drop for Tour {
    fn drop(&mut self) {
        for name in [CLIENT, HOST] {
            // Nothing more can be done when this fails; the kernel goes with the lab.
            let _ = command(&format!("ip netns del {name}"));
        }
    }
}

pub(crate) fn command(line: &str) -> anyhow::Result<()> {
    let mut words = line.split(' ');
    let answer = finish(Command::new(words.next().unwrap_or_default()).args(words))?;
    check(answer.code == 0, || {
        format!("{line}: {}", answer.stderr.trim())
    })
}

/// Runs something on a thread of a named namespace; sockets made there stay there.
pub(crate) fn inside<T, E>(
    name: &str,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> anyhow::Result<T>
where
    T: Send,
    E: Into<anyhow::Error> + Send,
{
    let namespace = File::open(format!("/run/netns/{name}"))?;
    let done = std::thread::scope(|scope| {
        scope
            .spawn(move || -> anyhow::Result<T> {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                work().map_err(Into::into)
            })
            .join()
    });
    done.map_err(|_| anyhow::anyhow!("the thread in {name} panicked"))?
}
