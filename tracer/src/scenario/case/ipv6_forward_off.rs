//! The node forwards IPv4 and not IPv6.

use std::net::Ipv6Addr;

use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "ipv6-forward-off",
    expects: &["ipv6-forward-off"],
    variants: &[
        Variant::fault("off", "net.ipv6.conf.all.forwarding is 0"),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    topology::dual_stack(world, &site)?;
    let options = world.options.clone();
    world.serve_tcp_on(&site.pod, Ipv6Addr::UNSPECIFIED.into(), options.pod_port)?;
    let setting = "sysctl -qw net.ipv6.conf.all.forwarding";
    site.node
        .run(&format!("{setting}={}", u8::from(!variant.fault)))?;
    let pod = at(topology::ipv6(options.pod), options.pod_port);
    let target = Target::tcp("the pod", &site.client, pod);
    Ok(Plan::fixed_as_printed(vec![target], &site.node))
}
