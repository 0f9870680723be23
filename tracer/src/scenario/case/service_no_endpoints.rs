//! A service whose selector matches no pod: a virtual server without real servers, or a rule that
//! refuses.

use serde_json::json;

use crate::scenario::nft_proxy;
use crate::scenario::objects::{Endpoint, NAMESPACE, Objects};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "service-no-endpoints",
    expects: &["service-no-endpoints"],
    variants: &[
        Variant::fault("ipvs", "the virtual server has no real servers"),
        Variant::fault("iptables", "kube-proxy's rule rejects"),
        Variant::fault(
            "nftables",
            "kube-proxy's map leads to the chain that rejects",
        ),
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Module("ip_vs"),
        Need::Module("ip_vs_rr"),
        Need::Command("ipvsadm"),
        Need::Command("iptables"),
        Need::Command("nft"),
    ],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let service = at(options.service, options.service_port);
    let target = Target::tcp("the service", &site.client, service);
    let facts = move |endpoints: &[Endpoint], mode| {
        Objects::new(&options)
            .service(&options, "TCP", json!({}))
            .slice(&options, "TCP", endpoints)
            .facts(mode)
    };
    let ready = Endpoint::ready(world.options.pod);
    if variant.name == "iptables" {
        let rule = format!(
            "-d {}/32 -p tcp -m comment --comment \"{NAMESPACE}/{}:main has no endpoints\" -m tcp --dport {} -j REJECT",
            world.options.service, world.options.app, world.options.service_port
        );
        site.node.run_all(&[
            // Rules come after routing, which has to lead somewhere.
            format!("ip route add default via {}", world.options.client),
            format!("iptables -A FORWARD {rule}"),
        ])?;
        world.cluster = facts(&[], "iptables")?;
        let (node, pod) = (site.node, world.options.pod);
        return Ok(Plan::fixed_with(vec![target], move |world| {
            node.run(&format!("iptables -D FORWARD {rule}"))?;
            topology::service(world, &node, pod)?;
            world.cluster = facts(&[ready], "iptables")?;
            Ok(())
        }));
    }
    if variant.name == "nftables" {
        site.node.run(&format!(
            "ip route add default via {}",
            world.options.client
        ))?;
        nft_proxy::prepare(&site.node, world.options.node.into())?;
        nft_proxy::reject(&site.node, service)?;
        world.cluster = facts(&[], "nftables")?;
        let (node, pod) = (site.node, world.options.pod);
        return Ok(Plan::fixed_with(vec![target], move |world| {
            nft_proxy::let_pass(&node)?;
            topology::service(world, &node, pod)?;
            world.cluster = facts(&[ready], "nftables")?;
            Ok(())
        }));
    }
    let fix = topology::virtual_server(world, &site, service)?;
    if variant.fault {
        world.cluster = facts(&[], "ipvs")?;
    } else {
        site.node.run(&fix)?;
        world.cluster = facts(&[ready], "ipvs")?;
    }
    let node = site.node;
    Ok(Plan::fixed_with(vec![target], move |world| {
        world.cluster = facts(&[ready], "ipvs")?;
        node.run(&fix)
    }))
}
