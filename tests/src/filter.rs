//! Filters in the kernel: what matches is followed over every leg of a round trip through a NodePort,
//! what does not leaves no event, and both are compared with a trace of everything.
//!
//! ```text
//! filter-c 192.0.2.2 ── veth ── 192.0.2.1 filter-n 10.244.0.1 ── veth ── 10.244.0.9 filter-p
//! ```

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::tour::{command, inside};
use crate::{Answer, Test, Tracer, check};

mod generated;

const CLIENT: &str = "filter-c";
const NODE: &str = "filter-n";
const POD: &str = "filter-p";
/// The same in every run, so that paths can be compared word for word.
const CLIENT_PORT: u16 = 40_000;
const NODE_PORT: &str = "192.0.2.1:30000";
const POD_PORT: u16 = 3000;
const ROUND_TRIPS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(2);
const NAMED: Duration = Duration::from_millis(700);
const SECONDS: &str = "4";

/// What makes the NodePort.
#[derive(Clone, Copy)]
pub(crate) enum Proxy {
    /// IPVS; with or without conntrack entries of its own.
    Ipvs { conntrack: bool },
    /// iptables: DNAT and MASQUERADE.
    Iptables,
}

impl Proxy {
    const ALL: [Self; 3] = [
        Self::Ipvs { conntrack: true },
        Self::Ipvs { conntrack: false },
        Self::Iptables,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Ipvs { conntrack: true } => "IPVS",
            Self::Ipvs { conntrack: false } => "IPVS without conntrack",
            Self::Iptables => "iptables",
        }
    }

    fn lines(self) -> Vec<&'static str> {
        match self {
            Self::Ipvs { conntrack } => vec![
                if conntrack {
                    "sysctl -qw net.ipv4.vs.conntrack=1"
                } else {
                    "sysctl -qw net.ipv4.vs.conntrack=0"
                },
                "ipvsadm -A -u 192.0.2.1:30000 -s rr",
                "ipvsadm -a -u 192.0.2.1:30000 -r 10.244.0.9:3000 -m",
            ],
            Self::Iptables => vec![
                "iptables -t nat -A PREROUTING -d 192.0.2.1 -p udp --dport 30000 -j DNAT --to-destination 10.244.0.9:3000",
                "iptables -t nat -A POSTROUTING -s 192.0.2.0/24 -d 10.244.0.9 -j MASQUERADE",
            ],
        }
    }
}

/// Client, node and pod; dropping it removes them.
pub(crate) struct World;

impl World {
    /// Builds it.
    pub(crate) fn build(proxy: Proxy) -> anyhow::Result<Self> {
        let world = Self;
        for name in [CLIENT, NODE, POD] {
            command(&format!("ip netns add {name}"))?;
        }
        for line in [
            "ip -n filter-c link add eth0 type veth peer name enp1s0 netns filter-n",
            "ip -n filter-p link add eth0 type veth peer name vethpod netns filter-n",
            "ip -n filter-c addr add 192.0.2.2/24 dev eth0",
            "ip -n filter-n addr add 192.0.2.1/24 dev enp1s0",
            "ip -n filter-n addr add 10.244.0.1/24 dev vethpod",
            "ip -n filter-p addr add 10.244.0.9/24 dev eth0",
            "ip -n filter-c link set eth0 up",
            "ip -n filter-n link set enp1s0 up",
            "ip -n filter-n link set vethpod up",
            "ip -n filter-p link set eth0 up",
            "ip -n filter-p route add default via 10.244.0.1",
            "ip netns exec filter-n sysctl -qw net.ipv4.ip_forward=1",
        ] {
            command(line)?;
        }
        for line in proxy.lines() {
            command(&format!("ip netns exec {NODE} {line}"))?;
        }
        Ok(world)
    }

    /// Round trips over one flow, one after the other.
    fn travel() -> anyhow::Result<()> {
        Self::travel_from(CLIENT_PORT..=CLIENT_PORT, ROUND_TRIPS)
    }

    /// One datagram from the client to the pod itself.
    fn one_way() -> anyhow::Result<()> {
        let pod = inside(POD, || UdpSocket::bind(("0.0.0.0", POD_PORT)))?;
        pod.set_read_timeout(Some(PATIENCE))?;
        inside(CLIENT, || {
            UdpSocket::bind("0.0.0.0:0")?.send_to(b"news", ("10.244.0.9", POD_PORT))
        })?;
        pod.recv(&mut [0; 16]).context("nothing reached the pod")?;
        Ok(())
    }

    /// So many round trips from each of the client's ports, one after the other.
    pub(crate) fn travel_from(
        ports: impl Iterator<Item = u16>,
        round_trips: usize,
    ) -> anyhow::Result<()> {
        let pod = inside(POD, || UdpSocket::bind(("0.0.0.0", POD_PORT)))?;
        pod.set_read_timeout(Some(PATIENCE))?;
        let mut bytes = [0; 16];
        for port in ports {
            let client = inside(CLIENT, move || UdpSocket::bind(("0.0.0.0", port)))?;
            client.set_read_timeout(Some(PATIENCE))?;
            client.connect(NODE_PORT)?;
            for _ in 0..round_trips {
                client.send(b"question")?;
                let (length, from) = pod
                    .recv_from(&mut bytes)
                    .context("nothing reached the pod")?;
                pod.send_to(&bytes[..length], from)?;
                client.recv(&mut bytes).context("no answer came back")?;
            }
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in [CLIENT, NODE, POD] {
            // Nothing more can be done when this fails; the kernel goes with the lab.
            let _ = command(&format!("ip netns del {name}"));
        }
    }
}

/// A packet as it is shown: both ends and every stage.
type Path = (String, String, Vec<String>);

/// The UDP journeys of a run, in order.
fn paths(answer: &Answer) -> Vec<Path> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    answer
        .objects("journey")
        .iter()
        .filter(|journey| journey["protocol"] == "udp")
        .map(|journey| {
            let stages = journey["path"].as_array().into_iter().flatten();
            (
                word(&journey["source"]),
                word(&journey["destination"]),
                stages
                    .map(|stage| format!("{} {}", word(&stage["namespace"]), word(&stage["text"])))
                    .collect(),
            )
        })
        .collect()
}

/// Traces the round trips; `words` are the filter's.
fn traced(tracer: &Tracer, words: &[&str]) -> anyhow::Result<Answer> {
    let mut arguments = vec!["--for", SECONDS, "--no-kube", "-v"];
    // With a filter everything that matches is shown anyway.
    arguments.extend(words.is_empty().then_some("--all"));
    arguments.extend(words);
    let tracing = tracer.start(&arguments)?;
    World::travel()?;
    // The names of namespaces are read once they were met, and not twice in a moment.
    std::thread::sleep(NAMED);
    World::travel()?;
    let answer = tracing.finish()?;
    let lost = answer.object("summary")?["lost"].clone();
    check(lost.as_array().is_some_and(Vec::is_empty), || {
        format!("events were lost: {lost}")
    })?;
    let with_events = |journey: &Value| {
        let events = journey["events"].as_array();
        events.is_some_and(|events| !events.is_empty())
    };
    check(answer.objects("journey").iter().all(with_events), || {
        "a journey has no events, though -v asks for them".into()
    })?;
    Ok(answer)
}

/// What came in elsewhere and goes out through a device, without NAT between: one datagram, since what
/// follows a first one would be known by its flow.
fn leaving(tracer: &Tracer) -> anyhow::Result<()> {
    let _world = World::build(Proxy::Ipvs { conntrack: false })?;
    command("ip -n filter-c route add 10.244.0.0/24 via 192.0.2.1")?;
    // Neighbours are known before.
    World::one_way()?;
    for words in [
        &["iface", "vethpod"][..],
        &["--no-follow", "iface", "vethpod"],
    ] {
        let tracing = tracer.start(&[&["--for", SECONDS, "--no-kube"], words].concat())?;
        World::one_way()?;
        let found = paths(&tracing.finish()?);
        let out = |(_, _, stages): &Path| stages.iter().any(|stage| stage.ends_with(" vethpod"));
        check(found.iter().any(out), || {
            format!("{words:?} shows {found:?}")
        })?;
    }
    Ok(())
}

/// The tests.
pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for proxy in Proxy::ALL {
        tests.push(Test::new(
            format!("filter: {} is followed both ways", proxy.name()),
            move |tracer| followed(tracer, proxy),
        ));
    }
    tests.push(Test::new("filter: nothing else is seen", nothing_else));
    tests.push(Test::new("filter: alone without following", alone));
    tests.push(Test::new(
        "filter: a device is seen by what leaves through it",
        leaving,
    ));
    tests.push(Test::new(
        "filter: generated packets, as tcpdump picks them",
        generated::agrees,
    ));
    tests.push(Test::new("filter: arp is shown where it is asked for", arp));
    tests
}

/// The first packet each way asks for its neighbour, and is answered; nothing of that is a failure.
fn arp(tracer: &Tracer) -> anyhow::Result<()> {
    let _world = World::build(Proxy::Iptables)?;
    let answer = traced(tracer, &["arp"])?;
    answer.expect_code(0)?;
    let journeys = answer.objects("journey");
    let said = |word: &str| journeys.iter().any(|journey| journey["protocol"] == word);
    let only = journeys.iter().all(|journey| {
        let protocol = journey["protocol"].as_str();
        protocol.is_some_and(|name| name.starts_with("arp ")) && journey["arrived"] != false
    });
    check(said("arp who-has") && said("arp reply") && only, || {
        format!("{journeys:?}")
    })
}

/// Each address that the flow has anywhere finds all its legs.
fn followed(tracer: &Tracer, proxy: Proxy) -> anyhow::Result<()> {
    let _world = World::build(proxy)?;
    // Neighbours and conntrack's entry are there in every traced run.
    World::travel()?;
    let everything = paths(&traced(tracer, &[])?);
    let expected = last_round_trip(&everything)?;
    for filter in [
        "host 192.0.2.2",
        "udp dst port 30000",
        "host 10.244.0.9",
        "src host 10.244.0.9 and udp src port 3000",
        "port 3000",
        // What one place sees of a flow is followed everywhere.
        "iface enp1s0",
        "iface vethpod",
        "netns filter-c",
    ] {
        let words: Vec<_> = filter.split(' ').collect();
        let found = paths(&traced(tracer, &words)?);
        let last = last_round_trip(&found).with_context(|| format!("{filter}: {found:?}"))?;
        check(last == expected, || {
            format!("{filter} shows {last:#?}, everything shows {expected:#?}")
        })?;
    }
    Ok(())
}

/// The last two journeys of the flow: a request and its reply.
fn last_round_trip(paths: &[Path]) -> anyhow::Result<Vec<Path>> {
    let ends: SocketAddr = format!("192.0.2.2:{CLIENT_PORT}").parse()?;
    let request = paths
        .iter()
        .rev()
        .find(|(source, _, _)| *source == ends.to_string())
        .context("no request was seen")?;
    let reply = paths
        .iter()
        .rev()
        .find(|(source, _, _)| *source == format!("10.244.0.9:{POD_PORT}"))
        .context("no reply was seen")?;
    Ok(vec![request.clone(), reply.clone()])
}

fn nothing_else(tracer: &Tracer) -> anyhow::Result<()> {
    let _world = World::build(Proxy::Iptables)?;
    for filter in [
        "host 203.0.113.9",
        "tcp",
        "ip6 and port 30000",
        "iface nosuch0",
    ] {
        let words: Vec<_> = filter.split(' ').collect();
        let answer = traced(tracer, &words)?;
        let found = paths(&answer);
        check(found.is_empty(), || format!("{filter} shows {found:?}"))?;
    }
    Ok(())
}

/// Without following only the legs that have the address themselves are seen, and not the other
/// direction of what names one.
fn alone(tracer: &Tracer) -> anyhow::Result<()> {
    let _world = World::build(Proxy::Iptables)?;
    World::travel()?;
    for (filter, ends) in [
        ("dst host 10.244.0.9", "192.0.2.2 or the node → the pod"),
        ("src host 10.244.0.9", "the pod → the node"),
        ("iface vethpod", "both, where they pass the device"),
    ] {
        let mut words = vec!["--no-follow"];
        words.extend(filter.split(' '));
        let found = paths(&traced(tracer, &words)?);
        check(!found.is_empty(), || {
            format!("{filter} shows nothing of {ends}")
        })?;
        let namespaces: BTreeSet<_> = found
            .iter()
            .flat_map(|(_, _, stages)| stages)
            .filter_map(|stage| stage.split(' ').next())
            .filter(|namespace| !namespace.is_empty())
            .collect();
        check(!namespaces.contains(CLIENT), || {
            format!("{filter} shows the client's side: {found:?}")
        })?;
    }
    Ok(())
}
