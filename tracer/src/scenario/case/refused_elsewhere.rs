//! A host on another machine refuses: it has no program on the port, or a route that forbids.

use std::net::Ipv4Addr;

use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "refused-elsewhere",
    expects: &["refused-elsewhere"],
    variants: &[
        Variant::fault("closed", "no program listens on the other machine"),
        Variant::fault("prohibited", "the other machine forbids the way to a third"),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let far = topology::far(world, &site)?;
    let options = world.options.clone();
    let port = options.service_port;
    let prohibited = variant.name == "prohibited";
    let address = if prohibited {
        let third = Ipv4Addr::from_bits(options.outside.to_bits() ^ 1);
        far.run("sysctl -qw net.ipv4.ip_forward=1")?;
        far.run(&format!("ip route add prohibit {third}/32"))?;
        site.node
            .run(&format!("ip route add {third}/32 via {}", options.outside))?;
        third
    } else {
        options.outside
    };
    if !variant.fault || prohibited {
        world.serve_tcp(&far, port)?;
    }
    let target = Target::tcp("the other machine", &site.client, at(address, port));
    Ok(Plan::fixed_with(vec![target], move |world| {
        if !prohibited {
            return world.serve_tcp(&far, port);
        }
        far.run(&format!("ip route del prohibit {address}/32"))?;
        far.run(&format!("ip addr add {address}/32 dev lo"))
    }))
}
