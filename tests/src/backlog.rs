//! The queue of received packets of a processor, whose length all namespaces of a kernel share, so that it can be
//! shortened only on a lab's machine.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use crate::neighbours::{Hosts, Limits};
use crate::tour::inside;
use crate::{Test, Tracer, check, finish};

/// Fewer than the receiver's buffer takes.
const DATAGRAMS: usize = 100;
/// Of them some come while another waits.
const SENDERS: usize = 2;
/// Until the kernel says that it dropped one.
const MOST_ROUNDS: usize = 50;
const SETTLED: Duration = Duration::from_secs(1);

/// The tests of this file.
pub fn tests() -> Vec<Test> {
    vec![Test::new("backlog: a queue that is full", full)]
}

/// Packets that the kernel dropped so far for want of room.
fn dropped() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/net/softnet_stat")?;
    let lines = text.lines().map(|line| {
        let column = line.split(' ').nth(1).context("a line has one column")?;
        Ok(u64::from_str_radix(column, 16)?)
    });
    lines.sum()
}

/// Sends from all at once.
fn crowd() -> anyhow::Result<()> {
    let send = || -> std::io::Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        (0..DATAGRAMS).try_for_each(|_| socket.send_to(b"x", "192.0.2.2:5000").map(drop))
    };
    std::thread::scope(|scope| {
        let senders = (0..SENDERS).map(|_| scope.spawn(move || inside("crowd-a", send)));
        let senders: Vec<_> = senders.collect();
        senders.into_iter().try_for_each(|sender| {
            sender
                .join()
                .map_err(|_| anyhow::anyhow!("a sender panicked"))?
        })
    })
}

fn full(tracer: &Tracer) -> anyhow::Result<()> {
    let _hosts = Hosts::build()?;
    // Without it the sender's processor goes on with each packet before the next.
    let spread = "for queue in /sys/class/net/eth0/queues/rx-*; do echo 2 > $queue/rps_cpus; done";
    let spread = finish(Command::new("ip").args(["netns", "exec", "crowd-b", "sh", "-c", spread]))?;
    check(spread.code == 0, || spread.stderr.clone())?;
    let receiver = inside("crowd-b", || UdpSocket::bind("192.0.2.2:5000"))?;
    let tracing = tracer.start(&["--no-kube", "udp"])?;
    let limits = Limits::lower(&["core/netdev_max_backlog"], "0")?;
    let before = dropped()?;
    let mut rounds = 0;
    while dropped()? == before && rounds < MOST_ROUNDS {
        crowd()?;
        rounds += 1;
    }
    let was_full = dropped()? > before;
    drop(limits);
    std::thread::sleep(SETTLED);
    tracing.interrupt()?;
    let answer = tracing.finish()?;
    drop(receiver);
    check(was_full, || "the queue was never full".into())?;
    let diagnoses = answer.objects("diagnosis");
    let found = diagnoses
        .iter()
        .find(|found| found["cause"] == "backlog-full")
        .with_context(|| format!("the queue is not named: {diagnoses:#?}"))?;
    let counted = found["evidence"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|proof| proof[0] == "counter");
    check(counted && found["subject"] == "the node", || {
        format!("{found:#}")
    })
}
