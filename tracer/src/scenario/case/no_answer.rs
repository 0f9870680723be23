//! A host on another machine does not answer: it throws away what it has for the client.

use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "no-answer",
    expects: &["no-answer"],
    variants: &[
        Variant {
            likely: Some("what happens on the other machine is not seen"),
            ..Variant::fault(
                "silent",
                "the other machine takes the packets and sends nothing back",
            )
        },
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
    world.serve_tcp(&far, options.service_port)?;
    if variant.fault {
        far.run(&format!("ip route add blackhole {}/32", options.client))?;
    }
    Ok(Plan::fixed_by(
        vec![Target::tcp(
            "the other machine",
            &site.client,
            at(options.outside, options.service_port),
        )],
        &far,
        [format!("ip route del blackhole {}/32", options.client)],
    ))
}
