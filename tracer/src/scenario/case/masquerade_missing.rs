//! The node sends a client on to an endpoint of another node, which answers the client directly.

use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "masquerade-missing",
    expects: &["masquerade-missing"],
    variants: &[
        Variant::fault("missing", "the service's packets are not masqueraded"),
        Variant::fault(
            "itself",
            "a pod reaches itself by the service, and what it sends is not masqueraded",
        ),
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Module("vxlan"),
        Need::Command("bridge"),
        Need::Command("iptables"),
    ],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    if variant.name == "itself" {
        return itself(world);
    }
    let (site, peer) = topology::two_nodes(world)?;
    let options = world.options.clone();
    world.serve_tcp(&peer.pod, options.pod_port)?;
    topology::service(world, &site.node, options.peer_pod)?;
    if !variant.fault {
        site.node.run(&format!(
            "iptables -t nat -A POSTROUTING -d {}/32 -p tcp --dport {} -j MASQUERADE",
            options.peer_pod, options.pod_port
        ))?;
    }
    let service = at(options.service, options.service_port);
    let target = Target::tcp("a service", &site.client, service);
    Ok(Plan::fixed_as_printed(vec![target], &site.node).by_way(1))
}

fn itself(world: &mut World) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    topology::service(world, &site.node, options.pod)?;
    site.node.run("bridge link set dev vethpod hairpin on")?;
    let service = at(options.service, options.service_port);
    let target = Target::tcp("its own service", &site.pod, service);
    Ok(Plan::fixed_as_printed(vec![target], &site.node).by_way(1))
}
