//! A client that keeps the address of a service that was deleted.

use std::net::Ipv4Addr;

use serde_json::json;

use crate::scenario::nft_proxy;
use crate::scenario::objects::{Endpoint, Objects};
use crate::scenario::topology::network;
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "service-unknown",
    expects: &["service-unknown"],
    variants: &[
        Variant::fault("nftables", "kube-proxy knows the range and drops"),
        Variant {
            likely: Some("the range is told by the addresses on both sides only"),
            ..Variant::fault(
                "iptables",
                "the packets follow the default route out of the node",
            )
        },
        Variant::HEALTHY,
    ],
    needs: &[Need::Command("nft"), Need::Command("iptables")],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let mode = match variant.name {
        "iptables" => "iptables",
        _ => "nftables",
    };
    let range = network(options.service);
    let facts = {
        let options = options.clone();
        move |there: bool| {
            let beside = |last| Ipv4Addr::from_bits(range.to_bits() | last);
            let objects = Objects::new(&options)
                .other_service("first", beside(0))
                .other_service("last", beside(255));
            let objects = if there {
                objects.service(&options, "TCP", json!({})).slice(
                    &options,
                    "TCP",
                    &[Endpoint::ready(options.pod)],
                )
            } else {
                objects
            };
            objects.facts(mode)
        }
    };
    let service = at(options.service, options.service_port);
    let endpoint = at(options.pod, options.pod_port);
    let mut beyond = None;
    if mode == "nftables" {
        site.node
            .run(&format!("ip route add default via {}", options.client))?;
        nft_proxy::prepare(&site.node, options.node.into())?;
        nft_proxy::keep_range(&site.node, &format!("{range}/24"))?;
    } else {
        beyond = Some(topology::far(world, &site)?);
        site.node
            .run(&format!("ip route add default via {}", options.outside))?;
    }
    if !variant.fault {
        nft_proxy::serve_at(&site.node, service, endpoint)?;
    }
    world.cluster = facts(!variant.fault)?;
    let target = Target::tcp("the old address", &site.client, service);
    let node = site.node;
    Ok(Plan::fixed_with(vec![target], move |world| {
        if mode == "nftables" {
            nft_proxy::serve_at(&node, service, endpoint)?;
        } else {
            topology::service(world, &node, world.options.pod)?;
        }
        world.cluster = facts(true)?;
        // Until now the default route led there.
        drop(beyond);
        Ok(())
    }))
}
