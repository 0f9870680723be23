//! The pod's port of the bridge is not in state forwarding.

use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "bridge-port-blocked",
    expects: &["bridge-port-blocked"],
    variants: &[
        Variant::fault("disabled", "somebody disabled the pod's port"),
        Variant::fault(
            "listening",
            "the bridge speaks the spanning tree protocol and waits before it forwards",
        ),
        Variant::HEALTHY,
    ],
    needs: &[Need::Command("bridge")],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let pod = at(options.pod, options.pod_port);
    if variant.fault {
        topology::settle_port(&site.node, "vethpod")?;
        site.node.run(&format!(
            "sysctl -qw net.ipv4.neigh.{}.retrans_time_ms=300",
            options.bridge
        ))?;
    }
    let bridge = &options.bridge;
    match variant.name {
        // Without the protocol the kernel itself leaves no other state alone.
        "disabled" => site.node.run("bridge link set dev vethpod state 0")?,
        "listening" => site.node.run_all(&[
            format!("ip link set dev {bridge} type bridge forward_delay 3000 stp_state 1"),
            "ip link set dev vethpod down".into(),
            "ip link set dev vethpod up".into(),
        ])?,
        _ => {}
    }
    let target = Target::tcp("the pod", &site.client, pod);
    Ok(Plan::fixed_as_printed(vec![target], &site.node))
}
