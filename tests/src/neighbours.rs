//! Neighbours that no reproduction has: a table that has no room left, whose limit all namespaces of a kernel share, so
//! that it can be lowered only on a lab's machine; and frames that come to a host that they are not for.
//!
//! ```text
//! crowd-a 192.0.2.1 ── veth ── 192.0.2.2 crowd-b
//! ```

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::tour::{command, inside};
use crate::{Test, Tracer, check};

/// Hosts that nobody is, more than the table takes.
const HOSTS: std::ops::RangeInclusive<u8> = 101..=120;
/// The lower ones first: collecting begins there.
const LIMITS: [&str; 3] = [
    "ipv4/neigh/default/gc_thresh1",
    "ipv4/neigh/default/gc_thresh2",
    "ipv4/neigh/default/gc_thresh3",
];
/// Below what the hosts need.
const MOST: &str = "8";
const SETTLED: Duration = Duration::from_secs(1);
/// How what was for another host ends.
const ANOTHERS: &str = "for another host";

/// The tests of this file.
pub fn tests() -> Vec<Test> {
    vec![
        Test::new("neighbours: a table that is full", full),
        Test::new("neighbours: a frame for another host", elsewhere),
    ]
}

/// Two hosts; dropping it removes them.
pub(crate) struct Hosts;

impl Hosts {
    pub(crate) fn build() -> anyhow::Result<Self> {
        let hosts = Self;
        for line in [
            "ip netns add crowd-a",
            "ip netns add crowd-b",
            "ip -n crowd-a link add eth0 type veth peer name eth0 netns crowd-b",
            "ip -n crowd-a addr add 192.0.2.1/24 dev eth0",
            "ip -n crowd-b addr add 192.0.2.2/24 dev eth0",
            "ip -n crowd-a link set eth0 up",
            "ip -n crowd-b link set eth0 up",
        ] {
            command(line)?;
        }
        Ok(hosts)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in ["crowd-a", "crowd-b"] {
            // Nothing more can be done when this fails; the kernel goes with the lab.
            let _ = command(&format!("ip netns del {name}"));
        }
    }
}

/// The kernel's limits, lowered; dropping it puts the former ones back.
pub(crate) struct Limits(Vec<(String, String)>);

impl Limits {
    /// Lowers settings, by their paths below /proc/sys/net.
    pub(crate) fn lower(names: &[&str], to: &str) -> anyhow::Result<Self> {
        let mut before = Self(Vec::new());
        for name in names {
            let file = format!("/proc/sys/net/{name}");
            let value = fs::read_to_string(&file).with_context(|| file.clone())?;
            before.0.push((file.clone(), value));
            fs::write(&file, to).with_context(|| file)?;
        }
        Ok(before)
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        for (file, value) in &self.0 {
            // The kernel goes with the lab.
            let _ = fs::write(file, value);
        }
    }
}

fn full(tracer: &Tracer) -> anyhow::Result<()> {
    let _hosts = Hosts::build()?;
    let tracing = tracer.start(&["--no-kube", "udp"])?;
    let limits = Limits::lower(&LIMITS, MOST)?;
    inside("crowd-a", || -> std::io::Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for host in HOSTS {
            // Without an entry sending is an error too.
            let _ = socket.send_to(b"x", (Ipv4Addr::new(192, 0, 2, host), 53));
        }
        Ok(())
    })?;
    std::thread::sleep(SETTLED);
    tracing.interrupt()?;
    let answer = tracing.finish()?;
    drop(limits);
    let diagnoses = answer.objects("diagnosis");
    let found = diagnoses
        .iter()
        .find(|found| found["subject"] == "IPv4 neighbour table of the node")
        .with_context(|| format!("the table is not named: {diagnoses:#?}"))?;
    check(
        found["cause"] == "neighbour-failed" && found["certainty"] == "certain",
        || format!("{found:#}"),
    )?;
    let summary = found["summary"].as_str().unwrap_or_default();
    check(summary.contains("gc_thresh3 is 8"), || summary.to_owned())?;
    let failed = found["failed_connections"].as_u64().unwrap_or_default();
    check(failed >= 8, || format!("only {failed} were counted"))
}

/// The host that takes every frame is not to blame for one that is not for it; who sent it there is.
fn elsewhere(tracer: &Tracer) -> anyhow::Result<()> {
    let _hosts = Hosts::build()?;
    command(
        "ip -n crowd-a neigh replace 192.0.2.2 lladdr 02:00:00:00:00:99 nud permanent dev eth0",
    )?;
    for (filter, ending) in [
        (&["--no-follow", "netns crowd-b and udp"][..], ANOTHERS),
        (&["udp"], "dropped: "),
    ] {
        let tracing = tracer.start(&[&["--no-kube", "--all"], filter].concat())?;
        inside("crowd-a", || -> std::io::Result<()> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(b"x", (Ipv4Addr::new(192, 0, 2, 2), 53))?;
            Ok(())
        })?;
        std::thread::sleep(SETTLED);
        tracing.interrupt()?;
        let journeys = tracing.finish()?.objects("journey");
        let right = |journey: &Value| {
            let said = journey["ending"].as_str().unwrap_or_default();
            said.starts_with(ending) && (journey["arrived"] == false) == (ending != ANOTHERS)
        };
        check(journeys.len() == 1 && right(&journeys[0]), || {
            format!("{filter:?}: {journeys:#?}")
        })?;
    }
    Ok(())
}
