//! Real packet filter rules in a node's namespace, each with the packet that it ends: iptables-legacy,
//! iptables-nft and nft. The table, chain and rule that the tracer names are checked against the rule
//! that was made.
//!
//! ```text
//! 0-client 192.0.2.2 ── veth ── 192.0.2.1 0-node 10.244.0.1 ── veth ── 10.244.0.9 0-pod
//!      2001:db8::2               2001:db8::1    2001:db8:1::1            2001:db8:1::9
//! ```
//!
//! Every case has hosts of its own. Those of one program (the first word of their names) are traced by
//! one tracer, so that attaching is paid once; each is a row of the report.

mod table;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;

use crate::paths::Seen;
use crate::tour::{command, inside};
use crate::{Answer, Shared, Test, Tracer, check, finish};
use table::{CASES, Case, Traffic};

const PATIENCE: Duration = Duration::from_millis(500);
/// What the commands of a rule are to be found by, and its handle put in for.
const HANDLE: &str = "HANDLE";

/// Every test of rules.
pub fn tests() -> Vec<Test> {
    let program = |case: &Case| case.name.split(':').next().unwrap_or_default();
    let programs: BTreeSet<_> = CASES.iter().map(program).collect();
    let mut tests = Vec::new();
    for one in programs {
        let cases: Rc<[&Case]> = CASES.iter().filter(|case| program(case) == one).collect();
        let traced = Shared::default();
        for (index, case) in cases.iter().copied().enumerate() {
            let (cases, traced) = (Rc::clone(&cases), traced.clone());
            tests.push(Test::new(format!("rules: {}", case.name), move |tracer| {
                judge(traced.get(|| trace(tracer, &cases))?, case, index)
            }));
        }
    }
    tests.push(Test::new("rules: healthy traffic", healthy));
    tests
}

/// Three hosts; dropping it removes them.
struct Hosts {
    /// What their names begin with.
    number: usize,
}

impl Hosts {
    fn build(number: usize) -> anyhow::Result<Self> {
        let hosts = Self { number };
        for host in ["client", "node", "pod"] {
            command(&format!("ip netns add {}", hosts.name(host)))?;
        }
        for line in [
            "-n client link add eth0 type veth peer name eth0 netns node",
            "-n pod link add eth0 type veth peer name pod0 netns node",
            "-n client addr add 192.0.2.2/24 dev eth0",
            "-n node addr add 192.0.2.1/24 dev eth0",
            "-n node addr add 10.244.0.1/24 dev pod0",
            "-n pod addr add 10.244.0.9/24 dev eth0",
            "-n client addr add 2001:db8::2/64 dev eth0 nodad",
            "-n node addr add 2001:db8::1/64 dev eth0 nodad",
            "-n node addr add 2001:db8:1::1/64 dev pod0 nodad",
            "-n pod addr add 2001:db8:1::9/64 dev eth0 nodad",
            "-n client link set eth0 up",
            "-n node link set eth0 up",
            "-n node link set pod0 up",
            "-n node link set lo up",
            "-n pod link set eth0 up",
            "-n client route add default via 192.0.2.1",
            "-n node route add default via 10.244.0.9",
            "-n pod route add default via 10.244.0.1",
            "-n client route add 2001:db8:1::/64 via 2001:db8::1",
            "netns exec node sysctl -qw net.ipv4.ip_forward=1",
            "netns exec node sysctl -qw net.ipv6.conf.all.forwarding=1",
        ] {
            let words: Vec<_> = line
                .split(' ')
                .map(|word| match word {
                    "client" | "node" | "pod" => hosts.name(word),
                    _ => word.to_owned(),
                })
                .collect();
            command(&format!("ip {}", words.join(" ")))?;
        }
        // No packet of a case waits for its neighbour.
        for gateway in ["-4 192.0.2.1", "-6 2001:db8::1"] {
            command(&format!(
                "ip netns exec {} busybox ping -c 1 -W 2 {gateway}",
                hosts.name("client")
            ))?;
        }
        Ok(hosts)
    }

    /// The namespace of a host.
    fn name(&self, host: &str) -> String {
        format!("{}-{host}", self.number)
    }

    fn rules(&self, lines: &[&str]) -> anyhow::Result<()> {
        for line in lines {
            let words: Vec<_> = line
                .split(' ')
                // Spaces inside a comment.
                .map(|word| match line.contains("--comment") {
                    true => word.replace('_', " "),
                    false => word.to_owned(),
                })
                .collect();
            let answer = finish(
                Command::new("ip")
                    .args(["netns", "exec", &self.name("node")])
                    .args(&words),
            )?;
            check(answer.code == 0, || {
                format!("{line}: {}", answer.stderr.trim())
            })?;
        }
        Ok(())
    }

    /// The handle of the rule with the comment [`HANDLE`].
    fn handle(&self) -> anyhow::Result<Option<String>> {
        let node = self.name("node");
        let listing = finish(
            Command::new("ip").args(["netns", "exec", &node, "nft", "-a", "list", "ruleset"]),
        )?;
        let line = listing.stdout.lines().find(|line| line.contains(HANDLE));
        Ok(line
            .and_then(|line| line.rsplit("# handle ").next())
            .map(|handle| handle.trim().to_owned()))
    }

    fn send(&self, traffic: Traffic) -> anyhow::Result<()> {
        let udp = |host, address: &'static str| {
            inside(&self.name(host), move || -> std::io::Result<()> {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                for _ in 0..2 {
                    // A rule at OUTPUT, or an answer to the one before, is an error here.
                    let _ = socket.send_to(b"x", address);
                    std::thread::sleep(PATIENCE / 5);
                }
                Ok(())
            })
        };
        match traffic {
            Traffic::Tcp(address) => {
                let address: SocketAddr = address.parse().context("an address")?;
                inside(&self.name("client"), move || -> std::io::Result<()> {
                    // It is to fail.
                    let _ = TcpStream::connect_timeout(&address, PATIENCE);
                    Ok(())
                })
            }
            Traffic::Udp(address) => udp("client", address),
            Traffic::NodeUdp(address) => udp("node", address),
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in ["client", "node", "pod"] {
            // Nothing more can be done when this fails; the kernel goes with the lab.
            let _ = command(&format!("ip netns del {}", self.name(host)));
        }
    }
}

/// What was said about the cases of a program.
struct Traced {
    answer: Answer,
    /// The handle of each case's rule, where it is found by one.
    handles: Vec<Option<String>>,
}

/// Traces while something is sent.
fn traced(tracer: &Tracer, send: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Answer> {
    let tracing = tracer.start(&[])?;
    send()?;
    std::thread::sleep(PATIENCE);
    tracing.interrupt()?;
    tracing.finish()
}

fn trace(tracer: &Tracer, cases: &[&Case]) -> anyhow::Result<Traced> {
    let mut hosts = Vec::new();
    let mut handles = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let built = Hosts::build(number)?;
        built.rules(case.rules)?;
        handles.push(built.handle()?);
        hosts.push(built);
    }
    let answer = traced(tracer, || {
        hosts
            .iter()
            .zip(cases)
            .try_for_each(|(hosts, case)| hosts.send(case.traffic))
    })?;
    let named = answer.objects("diagnosis");
    check(named.len() == cases.len(), || {
        format!("not one diagnosis for each case: {named:#?}")
    })?;
    Ok(Traced { answer, handles })
}

fn judge(traced: &Traced, case: &Case, index: usize) -> anyhow::Result<()> {
    let filled = |text: &str| match &traced.handles[index] {
        // The comment keeps its word.
        Some(handle) => text.replace("handle HANDLE", &format!("handle {handle}")),
        None => text.to_owned(),
    };
    let diagnoses = traced.answer.objects("diagnosis");
    let subject = filled(case.subject);
    let found = diagnoses
        .iter()
        .find(|found| found["cause"] == case.cause && found["subject"] == *subject)
        .with_context(|| format!("no {} of {subject} in {diagnoses:#?}", case.cause))?;
    check(found["certainty"] == case.certainty, || {
        format!("it is not {}: {found:#}", case.certainty)
    })?;
    let fixes = found["fixes"].to_string().replace("\\\"", "\"");
    check(fixes.contains(&filled(case.fix)), || fixes.clone())?;
    let path = case.before.iter().chain(case.stages);
    let path: Vec<_> = path.map(|stage| filled(stage)).collect();
    let hosts = format!("[{index}-");
    let journeys: Vec<_> = traced
        .answer
        .objects("journey")
        .iter()
        .map(Seen::new)
        .filter(|seen| {
            seen.stages
                .first()
                .is_some_and(|stage| stage.starts_with(&hosts))
                && seen.ends.ends_with(case.traffic.to())
        })
        .collect();
    check(!journeys.is_empty(), || "no journey of the packet".into())?;
    for seen in journeys {
        let stages: Vec<_> = seen
            .stages
            .iter()
            .map(|stage| stage.replace(&hosts, "["))
            .collect();
        check(
            stages == path && seen.ending.starts_with(case.ending),
            || format!("{stages:#?}, {}; not {path:#?}", seen.ending),
        )?;
    }
    Ok(())
}

/// The same kinds of rules, and traffic that all of them let pass.
fn healthy(tracer: &Tracer) -> anyhow::Result<()> {
    let hosts = Hosts::build(0)?;
    hosts.rules(&[
        "iptables-nft -A FORWARD -p tcp --dport 80 -j ACCEPT",
        "iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "iptables-nft -P FORWARD DROP",
        "iptables-legacy -A FORWARD -p tcp --dport 81 -j DROP",
        "nft add table inet fw",
        "nft add chain inet fw transit { type filter hook forward priority 10 ; policy drop ; }",
        "nft add rule inet fw transit meta l4proto tcp accept",
    ])?;
    let listener = inside(&hosts.name("pod"), || TcpListener::bind("10.244.0.9:80"))?;
    let answer = traced(tracer, || {
        let address = listener.local_addr()?;
        let stream = inside(&hosts.name("client"), move || {
            TcpStream::connect_timeout(&address, PATIENCE * 4)
        })?;
        drop(stream);
        Ok(())
    })?;
    let diagnoses = answer.objects("diagnosis");
    check(diagnoses.is_empty(), || format!("{diagnoses:#?}"))?;
    answer.expect_code(0)
}
