//! The kubelet runs without `--network-plugin=cni`, so Docker put the pod on docker0.

use std::net::Ipv4Addr;

use serde_json::json;

use crate::scenario::kube_proxy::StandIn;
use crate::scenario::objects::Objects;
use crate::scenario::world::at;
use crate::scenario::{Need, Options, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "pod-on-docker0",
    expects: &["pod-on-docker0"],
    variants: &[
        Variant::fault("kubelet", "the kubelet has no --network-plugin=cni"),
        Variant::HEALTHY,
    ],
    needs: &[Need::Command("iptables")],
    not_on: &[],
    build,
};

/// What Docker gives its bridge and its first container; they are the same everywhere.
const DOCKER_BRIDGE: (&str, Ipv4Addr) = ("docker0", Ipv4Addr::new(172, 17, 0, 1));
const DOCKER_POD: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    let (bridge, gateway) = DOCKER_BRIDGE;
    let stranded = world.host("pod2")?;
    site.node.run_all(&[
        format!("ip link add {bridge} type bridge"),
        format!("ip addr add {gateway}/16 dev {bridge}"),
        format!("ip link set {bridge} up"),
    ])?;
    // What Docker and the pod network let pass.
    let accept = |what: &str| format!("iptables -A FORWARD {what} -j ACCEPT");
    site.node.run_all(&[
        "iptables -P FORWARD DROP".into(),
        accept(&format!(
            "-o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED"
        )),
        accept(&format!("-i {bridge}")),
        accept(&format!("-s {}/24", options.bridge_address)),
        accept(&format!("-d {}/24", options.bridge_address)),
    ])?;
    let kubelet = |plugin: &[String]| StandIn::start("kubelet", &site.node, None, plugin);
    let cni = ["--network-plugin=cni".to_owned()];
    let pod = at(DOCKER_POD, options.pod_port);
    let good = at(options.second_pod, options.pod_port);
    // The node of kubelet 1.20 has a range for its pods, and the pod its address.
    let cluster = |options: &Options, address| {
        let objects = Objects::new(options).pod_range(options);
        objects.pod(address, json!({})).facts("iptables")
    };
    let own = if variant.fault {
        DOCKER_POD
    } else {
        options.second_pod
    };
    world.cluster = cluster(&options, own)?;
    if variant.fault {
        topology::plug(&site.node, bridge, "vethebd7975", &stranded)?;
        stranded.run_all(&[
            "ip link set eth0 up".into(),
            format!("ip addr add {DOCKER_POD}/16 dev eth0"),
            format!("ip route add default via {gateway}"),
        ])?;
        let process = kubelet(&[])?;
        world.stand_ins.push(process);
    } else {
        let process = kubelet(&cni)?;
        world.stand_ins.push(process);
        topology::plug(&site.node, &options.bridge, "vethebd7975", &stranded)?;
        topology::dress(&stranded, options.second_pod, options.bridge_address)?;
    }
    world.serve_tcp(&stranded, options.pod_port)?;
    let target = |address| Target::tcp("the pod", &site.client, address);
    let (before, after) = if variant.fault {
        (pod, good)
    } else {
        (good, good)
    };
    let (shown_pod, shown_node) = (stranded.clone(), site.node.clone());
    let (node, after) = (site.node, vec![target(after)]);
    let mut plan = Plan::fixed_with(vec![target(before)], move |world| {
        world.stand_ins.clear();
        world
            .stand_ins
            .push(StandIn::start("kubelet", &node, None, &cni)?);
        // The pod is made anew, on the bridge of the pod network.
        stranded.run_all(&["ip addr flush dev eth0".into()])?;
        node.run(&format!(
            "ip link set vethebd7975 master {}",
            options.bridge
        ))?;
        topology::dress(&stranded, options.second_pod, options.bridge_address)?;
        world.cluster = cluster(&options, options.second_pod)?;
        Ok(())
    });
    plan.after = after;
    Ok(plan
        .showing(&shown_pod, "ip addr show eth0")
        .showing(&shown_node, "ip addr show docker0")
        .showing(&shown_node, "ip link show vethebd7975"))
}
