//! The queue in front of a device of the node drops what is for the pod.

use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "qdisc-drop",
    expects: &["qdisc-drop"],
    variants: &[
        Variant::fault(
            "burst",
            "a limit of the rate lets nothing through that is larger than its burst",
        ),
        Variant::HEALTHY,
    ],
    needs: &[Need::Module("sch_tbf"), Need::Command("tc")],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    // A question of ARP fits, a SYN does not.
    let burst = if variant.fault { "60" } else { "15k" };
    site.node.run_all(&[format!(
        "tc qdisc add dev {} root tbf rate 10mbit burst {burst} limit 30k",
        options.bridge
    )])?;
    let pod = at(options.pod, options.pod_port);
    let target = Target::tcp("the pod", &site.client, pod);
    Ok(Plan::fixed_as_printed(vec![target], &site.node).by_way(1))
}
