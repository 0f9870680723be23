//! The conntrack entry of a connection goes in its middle, and a rule drops what conntrack does not know.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::scenario::traffic::{Attempt, Outcome, PATIENCE};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "conntrack-invalid",
    expects: &["conntrack-invalid"],
    variants: &[
        Variant::fault("forgotten", "connections are not picked up in their middle"),
        Variant::fault(HIDDEN, "IPVS hides its connections from conntrack"),
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Module("ip_vs"),
        Need::Module("ip_vs_rr"),
        Need::Command("ipvsadm"),
        Need::Module("nf_conntrack_netlink"),
        Need::Command("iptables-nft"),
        Need::Command("conntrack"),
    ],
    not_on: &[],
    build,
};

/// The pod waits so long for the question, less than [`PATIENCE`]: a pod that gives up ends a connection that
/// conntrack does not pick up by that.
const FLUSHED: Duration = Duration::from_millis(1200);

/// The pod repeats its last words so long after a lost connection.
const REPEATED: Duration = Duration::from_millis(1200);
const HIDDEN: &str = "hidden";
const DROP_INVALID: &str = "iptables-nft -A FORWARD -m conntrack --ctstate INVALID -j DROP";

/// A virtual server on the node's address, whose connections conntrack does not see.
fn build_hidden(world: &mut World) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let (node, port) = (world.options.node, world.options.node_port);
    let server = at(node, port);
    let add = topology::virtual_server(world, &site, server)?;
    world.serve_tcp(&site.pod, world.options.pod_port)?;
    site.node.run_all(&[
        add,
        DROP_INVALID.into(),
        "sysctl -qw net.ipv4.vs.conntrack=0".into(),
    ])?;
    let target = Target::tcp("the virtual server", &site.client, server);
    Ok(Plan::fixed_as_printed(vec![target], &site.node))
}

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    if variant.name == HIDDEN {
        return build_hidden(world);
    }
    let site = topology::site(world)?;
    let options = world.options.clone();
    let pod = at(options.pod, options.pod_port);
    world.serve_tcp_patiently(&site.pod, pod, FLUSHED)?;
    // It gives up soon: what it repeats of a lost connection after the fix is lost as well, since no flow begins
    // with FIN.
    site.pod.run("sysctl -qw net.ipv4.tcp_orphan_retries=1")?;
    let pick_up = u8::from(!variant.fault);
    site.node.run_all(&[
        DROP_INVALID.into(),
        format!("sysctl -qw net.netfilter.nf_conntrack_tcp_loose={pick_up}"),
    ])?;
    let node = site.node.clone();
    let target = Target::custom(
        "a connection in its middle",
        &site.client,
        pod,
        move |from| {
            let begun = Instant::now();
            let mut stream = from.enter(|| TcpStream::connect_timeout(&pod, PATIENCE))?;
            node.run("conntrack -F")?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"who answers?\n")?;
            let answered = matches!(stream.read(&mut [0; 64]), Ok(1..));
            // The client ends it with this attempt.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            let attempt = Attempt {
                outcome: if answered {
                    Outcome::Answered
                } else {
                    Outcome::NoAnswer
                },
                elapsed: begun.elapsed(),
            };
            drop(stream);
            if !answered {
                thread::sleep(REPEATED);
            }
            Ok(attempt)
        },
    );
    Ok(Plan::fixed_as_printed(vec![target], &site.node))
}
