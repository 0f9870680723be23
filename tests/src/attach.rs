//! Attaching and losing: modules that come and go while tracing, and counts that are exact.
//!
//! All traffic leaves a private namespace through a dummy device, which takes every packet and sends
//! none: each packet causes the same events, and nothing answers.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::tour::{command, inside};
use crate::{Answer, Running, Test, Tracer, check, finish};

/// The namespace.
const PLACE: &str = "attach-p";
/// What a packet of a known connection shows.
const KNOWN: &str = "ipvs: known connection → 192.0.2.9:5301 (masq";
/// Nobody is there.
const BEYOND: &str = "192.0.2.9:5301";
/// The tracer looks for modules once a second.
const NOTICED: Duration = Duration::from_secs(4);
/// Packets of an unhurried run.
const CALM: u64 = 50;
/// Packets of a burst: more events than the smallest buffer holds.
const BURST: u64 = 6000;

/// The tests of this file.
pub fn tests() -> Vec<Test> {
    vec![
        Test::new("attach: a module loaded later", loaded_later),
        Test::new("attach: filters use the same probes", same_probes),
        Test::new("loss: counted exactly", loss_is_exact),
    ]
}

/// The namespace with its device; dropping it removes both.
struct Place;

impl Place {
    fn build() -> anyhow::Result<Self> {
        command(&format!("ip netns add {PLACE}"))?;
        let place = Self;
        for line in [
            // The device would greet IPv6 routers at its own times.
            "ip netns exec attach-p sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
            "ip -n attach-p link set lo up",
            "ip -n attach-p link add out type dummy",
            "ip -n attach-p addr add 192.0.2.1/24 dev out",
            "ip -n attach-p link set out up",
        ] {
            command(line)?;
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Nothing more can be done when this fails; the kernel goes with the lab.
        let _ = command(&format!("ip netns del {PLACE}"));
    }
}

fn send(to: &'static str, count: u64) -> anyhow::Result<()> {
    inside(PLACE, move || -> std::io::Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..count {
            socket.send_to(b"x", to)?;
        }
        Ok(())
    })
}

fn stop(tracing: Running) -> anyhow::Result<Answer> {
    std::thread::sleep(Duration::from_secs(1));
    signal(&tracing, Signal::SIGINT)?;
    tracing.finish()
}

fn signal(tracing: &Running, signal: Signal) -> anyhow::Result<()> {
    Ok(kill(Pid::from_raw(tracing.id().cast_signed()), signal)?)
}

/// IPVS is loaded while the tracer runs, used, unloaded, loaded again, and used again.
fn loaded_later(tracer: &Tracer) -> anyhow::Result<()> {
    const SERVICE: &str = "192.0.2.1:5300";
    /// The first begins a connection, the second goes on by it.
    const PACKETS: u64 = 2;
    unload_ipvs()?;
    let tracing = tracer.start(&["--all"])?;
    for round in 0..2 {
        if round > 0 {
            unload_ipvs()?;
        }
        command("modprobe -a ip_vs ip_vs_rr")?;
        std::thread::sleep(NOTICED);
        let _place = Place::build()?;
        for line in [
            "ip netns exec attach-p ipvsadm -A -u 192.0.2.1:5300 -s rr",
            "ip netns exec attach-p ipvsadm -a -u 192.0.2.1:5300 -r 192.0.2.9:5301 -m",
        ] {
            command(line)?;
        }
        send(SERVICE, PACKETS)?;
        std::thread::sleep(Duration::from_secs(1));
    }
    let answer = stop(tracing)?;
    let blind = answer.object("ready")?["not_seen"].to_string();
    check(blind.contains("ip_vs is not loaded"), || {
        format!("ip_vs was there before: {blind}")
    })?;
    let seen: Vec<_> = answer
        .objects("attached")
        .into_iter()
        .filter(|change| change["module"] == "ip_vs")
        .collect();
    let loads = seen.iter().filter(|change| change["loaded"] == true);
    let complete = |change: &&serde_json::Value| {
        change["not_seen"].as_array().is_some_and(Vec::is_empty)
            && change["hooks"]
                .as_array()
                .is_some_and(|hooks| !hooks.is_empty())
    };
    check(loads.filter(complete).count() == 2, || {
        format!("two loads of ip_vs are expected: {seen:?}")
    })?;
    let scheduled = answer.hooks()?.get("ipvs_schedule").copied().unwrap_or(0);
    check(scheduled == 2, || {
        format!("{scheduled} packets were scheduled instead of one after each load")
    })?;
    let shown = answer.stdout.matches("ipvs: rr → 192.0.2.9:5301").count();
    check(shown == 2, || format!("{shown} paths show the choice"))?;
    // The places of the module's fields are learned late as well, where the kernel describes modules (not 5.10).
    let described = std::path::Path::new("/sys/kernel/btf/ip_vs").exists();
    let known = answer.stdout.matches(KNOWN).count();
    check(!described || known == 2, || {
        format!("{known} paths show the known connection's real server")
    })
}

/// The verifier takes the programs of every kind of filter for the probes that it takes without one, the function's
/// entry where the kernel has it: a refused program would leave a kprobe, which costs more, and nobody would see it.
fn same_probes(tracer: &Tracer) -> anyhow::Result<()> {
    let probes = |arguments: &[&str]| {
        let answer = tracer
            .start(&[&["--for", "1"], arguments].concat())?
            .finish()?;
        Ok::<_, anyhow::Error>(answer.object("ready")?["probes"].clone())
    };
    let plain = probes(&[])?;
    for arguments in [
        &["host 192.0.2.9 or ip6"][..],
        &["--no-follow", "udp port 53"],
        &["src net 192.0.2.0/24 and not dst port 53"],
        &["iface lo and netns 1 and tcp"],
        &["--program-log", "host 192.0.2.9"],
    ] {
        let filtered = probes(arguments)?;
        check(filtered == plain, || {
            format!("{arguments:?} attaches {filtered} instead of {plain}")
        })?;
    }
    Ok(())
}

/// Removes IPVS and its schedulers; what cannot be removed is in use and fails the test later.
fn unload_ipvs() -> anyhow::Result<()> {
    let modules = std::fs::read_to_string("/proc/modules")?;
    let schedulers = modules
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| name.starts_with("ip_vs_"));
    for module in schedulers.chain(["ip_vs"]) {
        // A namespace that was just deleted holds the module for a moment.
        let mut answer = finish(Command::new("rmmod").arg(module))?;
        for _ in 0..20 {
            if answer.code == 0 || !modules.contains(module) {
                break;
            }
            std::thread::sleep(Duration::from_millis(500));
            answer = finish(Command::new("rmmod").arg(module))?;
        }
        check(answer.code == 0 || !modules.contains(module), || {
            format!("{module} cannot be unloaded: {}", answer.stderr.trim())
        })?;
    }
    Ok(())
}

/// With the collector stopped a burst is more than the buffer holds: what arrived and what was counted
/// as lost are together exactly what a packet causes times the packets.
fn loss_is_exact(tracer: &Tracer) -> anyhow::Result<()> {
    let _place = Place::build()?;
    let calm = tracer.start(&[])?;
    send(BEYOND, CALM)?;
    let (events, lost) = balance(&stop(calm)?)?;
    check(lost == 0 && events > 0 && events % CALM == 0, || {
        format!("{events} events and {lost} lost of {CALM} unhurried packets")
    })?;
    let each = events / CALM;

    let burst = tracer.start(&["--buffer", "1M"])?;
    // While the tracer stands still nothing empties the buffer.
    signal(&burst, Signal::SIGSTOP)?;
    send(BEYOND, BURST)?;
    signal(&burst, Signal::SIGCONT)?;
    let answer = stop(burst)?;
    let (events, lost) = balance(&answer)?;
    check(lost > 0 && events + lost == each * BURST, || {
        format!(
            "{events} events and {lost} lost are not {each} of each of {BURST} packets: {}",
            answer.object("summary").unwrap_or_default()
        )
    })
}

/// Events taken, and lost for any cause.
fn balance(answer: &Answer) -> anyhow::Result<(u64, u64)> {
    let summary = answer.object("summary")?;
    let lost = summary["lost"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|row| row[1].as_u64())
        .sum();
    let events = summary["events"].as_u64().context("no count of events")?;
    Ok((events, lost))
}
