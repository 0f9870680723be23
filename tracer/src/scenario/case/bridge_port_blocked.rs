//! The pod's port of the bridge is not in state forwarding.

use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "bridge-port-blocked",
    expects: &["bridge-port-blocked"],
    variants: &[
        Variant::fault("blocking", "the pod's port is in state blocking"),
        Variant::HEALTHY,
    ],
    needs: &[Need::Command("bridge")],
    not_on: &[],
    likely: None,
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let pod = at(options.pod, options.pod_port);
    if variant.fault {
        topology::settle_port(&site.node, "vethpod")?;
        site.node.run_all(&[
            format!(
                "sysctl -qw net.ipv4.neigh.{}.retrans_time_ms=300",
                options.bridge
            ),
            "bridge link set dev vethpod state 4".into(),
        ])?;
    }
    Ok(Plan::fixed_by(
        vec![Target::tcp("the pod", &site.client, pod)],
        &site.node,
        ["bridge link set dev vethpod state 3".into()],
    ))
}
