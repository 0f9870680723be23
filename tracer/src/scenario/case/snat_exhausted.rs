//! Source NAT with two ports, of which both are in use towards the destination.

use std::net::TcpStream;

use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "snat-exhausted",
    expects: &["snat-exhausted"],
    variants: &[
        Variant::fault("range", "the SNAT rule names two ports, and both are taken"),
        Variant::HEALTHY,
    ],
    needs: &[Need::Command("iptables")],
    not_on: &[],
    build,
};

const PORTS: u16 = 2;

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.client, options.pod_port)?;
    let outside = at(options.client, options.pod_port);
    let first = 40_000;
    let rule = |last: u16| {
        format!(
            "iptables -t nat -A POSTROUTING -s {}/24 -o {} -p tcp -j SNAT --to-source {}:{first}-{last}",
            options.pod, options.interface, options.node
        )
    };
    let (narrow, wide) = (rule(first + PORTS - 1), rule(first + 1000));
    site.node.run(if variant.fault { &narrow } else { &wide })?;
    world.hold(&site.pod, || {
        (0..PORTS).map(|_| TcpStream::connect(outside)).collect()
    })?;
    Ok(Plan::fixed_by(
        vec![Target::tcp("a host outside", &site.pod, outside)],
        &site.node,
        ["iptables -t nat -F POSTROUTING".into(), wide],
    ))
}
