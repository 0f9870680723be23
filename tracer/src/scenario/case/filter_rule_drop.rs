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
        Variant::fault("bridge", "a rule for the node's bridge drops"),
        Variant::fault("answer", "the same, as the pod's answers come in"),
        Variant::fault("device", "a rule for the node's interface drops"),
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Command("iptables-nft"),
        Need::Command("iptables-legacy"),
        Need::Command("nft"),
    ],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    // The healthy rule is about another port.
    let port = options.pod_port + u16::from(!variant.fault);
    let forward = |tool: &str, verdict: &str| {
        vec![format!(
            "{tool} -A FORWARD -p tcp --dport {port} -j {verdict}"
        )]
    };
    let in_front = |family: &str, place: &str, what: &str| {
        vec![
            format!("nft add table {family} guard"),
            format!(
                "nft 'add chain {family} guard way {{ type filter hook {place} priority 0 ; }}'"
            ),
            format!("nft add rule {family} guard way tcp {what} {port} counter drop"),
        ]
    };
    site.node.run_all(&match variant.name {
        "legacy" => forward("iptables-legacy", "DROP"),
        "reject" => forward("iptables-nft", "REJECT --reject-with tcp-reset"),
        "bridge" => in_front("bridge", "output", "dport"),
        "answer" => in_front("bridge", "prerouting", "sport"),
        "device" => {
            let place = format!("ingress device \"{}\"", options.interface);
            in_front("netdev", &place, "dport")
        }
        _ => forward("iptables-nft", "DROP"),
    })?;
    let pod = at(options.pod, options.pod_port);
    let target = Target::tcp("the pod", &site.client, pod);
    // Some accept this connection before the rule, the others delete the rule.
    let way = usize::from(matches!(variant.name, "legacy" | "answer" | "device"));
    Ok(Plan::fixed_as_printed(vec![target], &site.node).by_way(way))
}
