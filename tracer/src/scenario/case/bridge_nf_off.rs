//! A pod calls a service whose endpoint is beside it, and netfilter does not look into the bridge.

use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "bridge-nf-off",
    expects: &["bridge-nf-off"],
    variants: &[
        Variant::fault("off", "net.bridge.bridge-nf-call-iptables is 0"),
        Variant::HEALTHY,
    ],
    needs: &[Need::Module("br_netfilter"), Need::Command("iptables")],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let caller = topology::second_pod(world, &site)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    topology::service(world, &site.node, options.pod)?;
    let setting = "sysctl -qw net.bridge.bridge-nf-call-iptables";
    site.node
        .run(&format!("{setting}={}", u8::from(!variant.fault)))?;
    let service = at(options.service, options.service_port);
    let target = Target::tcp("a service", &caller, service);
    Ok(Plan::fixed_as_printed(vec![target], &site.node))
}
