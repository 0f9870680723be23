//! The node's connection tracking table is full of connections that go on.

use anyhow::ensure;

use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "conntrack-full",
    expects: &["conntrack-full"],
    variants: &[
        Variant::fault(
            "assured",
            "every entry is taken, and none may be thrown out",
        ),
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Module("nf_conntrack_netlink"),
        Need::Command("iptables"),
        Need::Command("conntrack"),
    ],
    not_on: &[],
    build,
};

/// The limit is the machine's, and only the machine's own namespace may change it: above this, filling a
/// table would take too much of its memory (320 bytes an entry).
const MOST_ENTRIES: u32 = 300_000;
const LIMIT: &str = "cat /proc/sys/net/netfilter/nf_conntrack_max";
const COUNT: &str = "cat /proc/sys/net/netfilter/nf_conntrack_count";

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    topology::service(world, &site.node, options.pod)?;
    if variant.fault {
        let limit: u32 = site.node.output(LIMIT)?.trim().parse()?;
        ensure!(
            limit <= MOST_ENTRIES,
            "nf_conntrack_max is {limit} here: more entries than a reproduction should make"
        );
        // 60,000 connections from each address, each from a port of its own.
        let line = format!(
            r#"{{ printf "-I -p udp -s 198.18.0.%d -d {} --sport %d --dport 53 -t 600 -u SEEN_REPLY,ASSURED\n", $1 / 60000 + 1, $1 % 60000 + 1024 }}"#,
            options.outside
        );
        // Where an entry was there before, the last one fails for the full table.
        let fill =
            format!("seq {limit} | awk '{line}' | conntrack -R -; test $({COUNT}) -ge {limit}");
        site.node
            .run(&format!("sh -c {}", shlex::try_quote(&fill)?))?;
    }
    let server = at(options.service, options.service_port);
    let plan = Plan::fixed_by(
        vec![Target::tcp("the service", &site.client, server)],
        &site.node,
        ["conntrack -F".into()],
    );
    Ok(plan.showing(&site.node, COUNT))
}
