//! A host on another machine does not answer: it throws away what it has for the client.

use std::time::Duration;

use crate::scenario::traffic::tcp_attempt;
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

/// Time for two repetitions, after one and after three seconds.
const WAITS: Duration = Duration::from_millis(3500);

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let far = topology::far(world, &site)?;
    let options = world.options.clone();
    world.serve_tcp(&far, options.service_port)?;
    if variant.fault {
        far.run(&format!("ip route add blackhole {}/32", options.client))?;
    }
    let address = at(options.outside, options.service_port);
    let target = Target::custom("the other machine", &site.client, address, move |from| {
        tcp_attempt(from, address, WAITS)
    });
    Ok(Plan::fixed_by(
        vec![target.once()],
        &far,
        [format!("ip route del blackhole {}/32", options.client)],
    ))
}
