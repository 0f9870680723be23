//! The pod's end of its veth pair is down.

use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "veth-peer-down",
    expects: &["veth-peer-down"],
    variants: &[
        Variant::fault("down", "the pod's eth0 is down"),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let pod = at(options.pod, options.pod_port);
    if variant.fault {
        site.node.run(&format!(
            "sysctl -qw net.ipv4.neigh.{}.retrans_time_ms=300",
            options.bridge
        ))?;
        site.pod.run("ip link set eth0 down")?;
    }
    let target = Target::tcp("the pod", &site.client, pod);
    Ok(Plan::fixed_as_printed(vec![target], &site.node))
}
