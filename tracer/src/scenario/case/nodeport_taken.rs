//! A program of the node listens on a NodePort, so kube-proxy left the NodePort out; or a connection of the node
//! itself has the port, and IPVS takes its answers.

use std::net::{Ipv4Addr, TcpListener};

use serde_json::json;

use crate::scenario::objects::{Endpoint, Objects};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "nodeport-taken",
    expects: &["nodeport-taken"],
    variants: &[
        Variant::fault(
            "program",
            "a program of the node has the port, and does not answer",
        ),
        Variant::fault(
            "ephemeral",
            "a connection of the node itself gets the port, and IPVS takes the answer",
        ),
        Variant::HEALTHY,
    ],
    needs: Need::IPVS,
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let node_port = at(options.node, options.node_port);
    world.cluster = Objects::new(&options)
        .service(&options, "TCP", json!({"type": "NodePort"}))
        .slice(&options, "TCP", &[Endpoint::ready(options.pod)])
        .facts("ipvs")?;
    if variant.name == "ephemeral" {
        let serve = topology::virtual_server(world, &site, node_port)?;
        world.serve_tcp(&site.client, options.pod_port)?;
        // Whatever the node opens gets this port.
        let port = options.node_port;
        site.node.run_all(&[
            serve,
            format!("sysctl -qw net.ipv4.ip_local_port_range={port} {port}"),
        ])?;
        let server = at(options.client, options.pod_port);
        let target = Target::tcp("a server outside", &site.node, server).once();
        let node = site.node.clone();
        return Ok(Plan::fixed_as_printed(vec![target], &site.node)
            .and_then(move |_| node.run("sysctl -qw net.ipv4.ip_local_port_range=30000 60999")));
    }
    if variant.fault {
        let port = options.node_port;
        world.hold(&site.node, || {
            Ok(vec![TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?])
        })?;
    } else {
        let serve = topology::virtual_server(world, &site, node_port)?;
        site.node.run(&serve)?;
    }
    let target = Target::tcp("the NodePort", &site.client, node_port);
    Ok(Plan::fixed_with(vec![target], move |world| {
        world.let_go();
        let serve = topology::virtual_server(world, &site, node_port)?;
        site.node.run(&serve)
    }))
}
