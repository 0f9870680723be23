//! A service's endpoint is a pod that is stuck Terminating and whose network is gone.

use serde_json::json;

use crate::scenario::objects::{Endpoint, Objects};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "terminating-endpoint",
    expects: &["terminating-endpoint"],
    variants: &[
        Variant::fault(
            "finalizer",
            "a finalizer holds the pod's object; its network is gone",
        ),
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
    let facts = move |going| {
        let (address, metadata) = if going {
            (
                options.second_pod,
                json!({"deletionTimestamp": "2024-05-01T10:00:00Z",
                "deletionGracePeriodSeconds": 30, "finalizers": ["example.com/volume"]}),
            )
        } else {
            (options.pod, json!({}))
        };
        let endpoint = Endpoint {
            ready: !going,
            terminating: going,
            ..Endpoint::ready(address)
        };
        Objects::new(&options)
            .service(&options, "TCP", json!({}))
            .slice(&options, "TCP", &[endpoint])
            .pod(address, metadata)
            .facts("iptables")
    };
    world.cluster = facts(variant.fault)?;
    let options = world.options.clone();
    site.node.run(&format!(
        "sysctl -qw net.ipv4.neigh.{}.retrans_time_ms=300",
        options.bridge
    ))?;
    let endpoint = if variant.fault {
        options.second_pod
    } else {
        options.pod
    };
    topology::service(world, &site.node, endpoint)?;
    let service = at(options.service, options.service_port);
    let target = Target::tcp("the service", &site.client, service);
    let node = site.node;
    Ok(Plan::fixed_with(vec![target], move |world| {
        node.run("iptables -t nat -F PREROUTING")?;
        topology::service(world, &node, options.pod)?;
        world.cluster = facts(false)?;
        Ok(())
    }))
}
