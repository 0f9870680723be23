//! A NodePort with externalTrafficPolicy Local on a node without an endpoint.

use serde_json::json;

use crate::scenario::nft_proxy;
use crate::scenario::objects::{Endpoint, Objects};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "etp-local-no-endpoint",
    expects: &["etp-local-no-endpoint"],
    variants: &[
        Variant::fault("ipvs", "the only endpoint is on another node"),
        Variant::fault("nftables", "the same, and kube-proxy's map drops"),
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Module("ip_vs"),
        Need::Module("ip_vs_rr"),
        Need::Command("ipvsadm"),
        Need::Command("nft"),
    ],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let node_port = at(options.node, options.node_port);
    let mode = match variant.name {
        "nftables" => "nftables",
        _ => "ipvs",
    };
    let endpoint = at(options.pod, options.pod_port);
    let facts = move |here| {
        let address = if here { options.pod } else { options.peer_pod };
        Objects::new(&options)
            .service(&options, "TCP", json!({"externalTrafficPolicy": "Local"}))
            .slice(
                &options,
                "TCP",
                &[Endpoint {
                    here,
                    ..Endpoint::ready(address)
                }],
            )
            .facts(mode)
    };
    world.cluster = facts(!variant.fault)?;
    let target = Target::tcp("the NodePort", &site.client, node_port);
    if mode == "nftables" {
        let node = site.node;
        nft_proxy::prepare(&node, node_port.ip())?;
        nft_proxy::drop_node_port(&node, node_port.port())?;
        return Ok(Plan::fixed_with(vec![target], move |world| {
            world.cluster = facts(true)?;
            nft_proxy::let_pass(&node)?;
            nft_proxy::serve(&node, node_port.port(), endpoint)
        }));
    }
    let fix = topology::virtual_server(world, &site, node_port)?;
    if !variant.fault {
        site.node.run(&fix)?;
    }
    let node = site.node;
    Ok(Plan::fixed_with(vec![target], move |world| {
        world.cluster = facts(true)?;
        node.run(&fix)
    }))
}
