//! The pod is there and nothing in it waits on the port.

use std::net::Ipv4Addr;

use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "no-listener",
    expects: &["no-listener"],
    variants: &[
        Variant::fault("tcp", "no program listens on the TCP port"),
        Variant::fault("udp", "no program waits on the UDP port"),
        Variant::fault("loopback", "the program listens on 127.0.0.1 only"),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    let (port, address) = (options.pod_port, at(options.pod, options.pod_port));
    let udp = variant.name == "udp";
    match variant.name {
        "loopback" => world.serve_tcp_on(&site.pod, Ipv4Addr::LOCALHOST.into(), port)?,
        "healthy" => world.serve_tcp(&site.pod, port)?,
        _ => {}
    }
    let target = if udp {
        Target::udp("the pod", &site.client, address)
    } else {
        Target::tcp("the pod", &site.client, address)
    };
    let pod = site.pod;
    Ok(Plan::fixed_with(vec![target], move |world| {
        world.stop_servers();
        if udp {
            world.serve_udp(&pod, port)
        } else {
            world.serve_tcp(&pod, port)
        }
    }))
}
