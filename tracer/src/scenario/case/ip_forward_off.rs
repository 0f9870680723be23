//! The node does not forward: it is reached itself, and its pods are not.

use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "ip-forward-off",
    expects: &["ip-forward-off"],
    variants: &[
        Variant::fault("off", "net.ipv4.ip_forward is 0"),
        Variant::fault("device", "forwarding is off for the network interface only"),
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
    let setting = match variant.name {
        "device" => format!("net.ipv4.conf.{}.forwarding", options.interface),
        _ => "net.ipv4.ip_forward".into(),
    };
    if variant.fault {
        site.node.run(&format!("sysctl -qw {setting}=0"))?;
    }
    let pod = at(options.pod, options.pod_port);
    let target = Target::tcp("the pod", &site.client, pod);
    Ok(Plan::fixed_as_printed(vec![target], &site.node))
}
