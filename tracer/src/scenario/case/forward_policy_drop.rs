//! The policy of the node's FORWARD chain is DROP, and no rule accepts the packet.

use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "forward-policy-drop",
    expects: &["forward-policy-drop"],
    variants: &[
        Variant::fault(
            "nft",
            "set by iptables-nft, as Docker does on current systems",
        ),
        Variant::fault("legacy", "set by iptables-legacy"),
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Command("iptables-nft"),
        Need::Command("iptables-legacy"),
    ],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let tool = match variant.name {
        "legacy" => "iptables-legacy",
        _ => "iptables-nft",
    };
    site.node.run(&format!("{tool} -P FORWARD DROP"))?;
    if !variant.fault {
        let accept = |way: &str| format!("{tool} -A FORWARD {way} {}/24 -j ACCEPT", options.pod);
        site.node.run_all(&[accept("-s"), accept("-d")])?;
    }
    let pod = at(options.pod, options.pod_port);
    let target = Target::tcp("the pod", &site.client, pod);
    Ok(Plan::fixed_as_printed(vec![target], &site.node))
}
