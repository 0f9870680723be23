//! A NetworkPolicy that lets nobody in, as Calico makes it.

use serde_json::json;

use crate::scenario::objects::Objects;
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "network-policy-drop",
    expects: &["network-policy-drop"],
    variants: &[
        Variant::fault("calico", "a chain of Calico drops what no policy let pass"),
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
    let allow = format!(
        "iptables -I cali-tw-vethpod 1 -s {}/32 -p tcp --dport {} -j RETURN",
        options.client, options.pod_port
    );
    site.node.run_all(&[
        "iptables -N cali-FORWARD".into(),
        "iptables -N cali-tw-vethpod".into(),
        "iptables -A FORWARD -j cali-FORWARD".into(),
        format!("iptables -A cali-FORWARD -d {}/32 -g cali-tw-vethpod", options.pod),
        "iptables -A cali-tw-vethpod -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".into(),
        "iptables -A cali-tw-vethpod -m comment --comment \"Drop if no policies passed packet\" -j DROP".into(),
    ])?;
    if !variant.fault {
        site.node.run(&allow)?;
    }
    world.cluster = Objects::new(&options)
        .pod(options.pod, json!({}))
        .deny_all()
        .facts("iptables")?;
    let pod = at(options.pod, options.pod_port);
    Ok(Plan::fixed_by(
        vec![Target::tcp("the pod", &site.client, pod)],
        &site.node,
        [allow],
    ))
}
