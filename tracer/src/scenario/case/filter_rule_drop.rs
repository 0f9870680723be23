//! A rule of the node drops or rejects the packet.

use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "filter-rule-drop",
    expects: &["filter-rule-drop"],
    variants: &[
        Variant::fault("nft", "a rule that iptables-nft made drops"),
        Variant::fault("legacy", "a rule that iptables-legacy made drops"),
        Variant::fault("reject", "a rule rejects with an RST"),
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
    let verdict = match variant.name {
        "reject" => "REJECT --reject-with tcp-reset",
        _ => "DROP",
    };
    // The healthy rule is about another port.
    let port = options.pod_port + u16::from(!variant.fault);
    let rule = format!("FORWARD -p tcp --dport {port} -j {verdict}");
    site.node.run(&format!("{tool} -A {rule}"))?;
    let pod = at(options.pod, options.pod_port);
    let target = Target::tcp("the pod", &site.client, pod);
    // The one accepts this connection before the rule, the other deletes the rule.
    let way = usize::from(variant.name == "legacy");
    Ok(Plan::fixed_as_printed(vec![target], &site.node).by_way(way))
}
