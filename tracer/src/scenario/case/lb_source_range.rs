//! A client outside of a service's loadBalancerSourceRanges.

use serde_json::json;

use crate::scenario::objects::{Endpoint, NAMESPACE, Objects};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "lb-source-range",
    expects: &["lb-source-range"],
    variants: &[
        Variant::fault("iptables", "the client's address is in none of the ranges"),
        Variant::HEALTHY,
    ],
    needs: &[Need::Command("iptables")],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    topology::service(world, &site.node, options.pod)?;
    let range = if variant.fault {
        options.outside
    } else {
        options.client
    };
    let rule = |action: &str, more: &str| {
        format!(
            "iptables -A KUBE-PROXY-FIREWALL {more}-p tcp -m comment --comment \"{NAMESPACE}/{}:main {action}\" \
             -m conntrack --ctorigdst {} --ctorigdstport {}",
            options.app, options.service, options.service_port
        )
    };
    let allow = |range| rule("source range", &format!("-s {range}/32 ")) + " -j RETURN";
    site.node.run_all(&[
        "iptables -N KUBE-PROXY-FIREWALL".into(),
        "iptables -A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL".into(),
        allow(range),
        rule("traffic not accepted by KUBE-FW-A", "") + " -j DROP",
    ])?;
    world.cluster = Objects::new(&options)
        .service(
            &options,
            "TCP",
            json!({"type": "LoadBalancer",
            "loadBalancerSourceRanges": [format!("{range}/32")]}),
        )
        .slice(&options, "TCP", &[Endpoint::ready(options.pod)])
        .facts("iptables")?;
    let service = at(options.service, options.service_port);
    Ok(Plan::fixed_by(
        vec![Target::tcp("the service", &site.client, service)],
        &site.node,
        [allow(options.client).replacen("-A KUBE-PROXY-FIREWALL", "-I KUBE-PROXY-FIREWALL 1", 1)],
    ))
}
