//! A resolver asks two name servers from one port at the same time (as musl's does), and both lead to
//! one DNS pod: the two conntrack entries expect the same answer, and the one that comes second is refused.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::scenario::namespace::Namespace;
use crate::scenario::traffic::{Attempt, Outcome};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "conntrack-insert-clash",
    expects: &["conntrack-insert-clash"],
    variants: &[
        Variant::fault("two-servers", "two name servers lead to one endpoint"),
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Command("iptables"),
        Need::Command("nft"),
        Need::Processors(2),
    ],
    not_on: &[],
    build,
};

/// Chains below one another, and rules of each: a question passes all of them some thousand times, as it passes
/// the rules of a large cluster, and the other one comes meanwhile.
const CHAINS: usize = 8;
const RULES: usize = 3;
/// Most pairs of questions until one meets: that is up to chance.
const ROUNDS: u32 = 100;
/// Pairs that are all answered; they meet as often.
const PROOF: u32 = 10;
/// What comes later was lost.
const ANSWERED: Duration = Duration::from_millis(500);

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_udp(&site.pod, options.pod_port)?;
    let servers = [options.service, options.outside].map(|server| at(server, options.service_port));
    for server in servers {
        topology::udp_service(world, &site.node, server, options.pod)?;
    }
    site.node
        .run(&format!("nft '{}'", many_rules(options.pod)))?;
    let ask = |label, servers: [SocketAddr; 2], rounds| {
        Target::custom(label, &site.client, servers[1], move |client| {
            both_at_once(client, servers, rounds)
        })
        .once()
    };
    let one = ask("one name server twice at once", [servers[0]; 2], PROOF);
    let plan = if variant.fault {
        let two = ask("two name servers at once", servers, ROUNDS);
        Plan::avoided_by(vec![two], vec![one])
    } else {
        Plan::avoided_by(vec![one], Vec::new())
    };
    Ok(plan.showing(&site.node, "conntrack -S"))
}

/// Rules that let everything pass, and take their time for what goes to the pod: conntrack looks a packet up before
/// them and enters it behind them.
fn many_rules(pod: Ipv4Addr) -> String {
    let mut lines = vec!["add table ip many".to_owned()];
    for chain in (1..=CHAINS).rev() {
        lines.push(format!("add chain ip many c{chain}"));
        let rule = if chain == CHAINS {
            format!("add rule ip many c{chain} meta l4proto 254 accept")
        } else {
            format!("add rule ip many c{chain} jump c{}", chain + 1)
        };
        lines.extend(std::iter::repeat_n(rule, RULES));
    }
    lines.extend([
        "add chain ip many forward { type filter hook forward priority 0 ; }".into(),
        format!("add rule ip many forward ip daddr {pod} jump c1"),
    ]);
    lines.join("; ")
}

/// Asks two servers at the same moment from one port, until an answer stays out.
fn both_at_once(
    client: &Namespace,
    servers: [SocketAddr; 2],
    rounds: u32,
) -> anyhow::Result<Attempt> {
    let begun = Instant::now();
    let outcome = client.enter(|| {
        for _ in 0..rounds {
            if !ask(servers)? {
                return Ok(Outcome::NoAnswer);
            }
        }
        Ok(Outcome::Answered)
    })?;
    Ok(Attempt {
        outcome,
        elapsed: begun.elapsed(),
    })
}

/// True when both answered.
fn ask(servers: [SocketAddr; 2]) -> io::Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(ANSWERED))?;
    let ready = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for server in servers {
            let (socket, ready) = (&socket, &ready);
            scope.spawn(move || {
                // A barrier would wake one after the other.
                ready.fetch_add(1, Ordering::SeqCst);
                while ready.load(Ordering::SeqCst) < servers.len() {
                    std::hint::spin_loop();
                }
                // What is not sent is not answered.
                let _ = socket.send_to(b"who answers?\n", server);
            });
        }
    });
    Ok(servers.iter().all(|_| socket.recv(&mut [0; 64]).is_ok()))
}
