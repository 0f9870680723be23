//! A server answers a question over UDP when its asker has given up.

use std::time::Duration;

use crate::scenario::traffic::udp_attempt;
use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "late-answer",
    expects: &["late-answer"],
    variants: &[
        Variant::fault(
            "slow",
            "the server thinks longer about an answer than the client waits",
        ),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

/// Longer than a working network needs on a slow machine.
const WAITS: Duration = Duration::from_millis(500);
const THINKS: Duration = Duration::from_millis(1000);

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    let (port, pod) = (options.pod_port, at(options.pod, options.pod_port));
    let thinks = if variant.fault {
        THINKS
    } else {
        Duration::ZERO
    };
    world.serve_udp_slowly(&site.pod, port, thinks)?;
    let host = site.pod;
    let target = Target::custom("the pod", &site.client, pod, move |from| {
        let attempt = udp_attempt(from, pod, WAITS)?;
        if !attempt.answered() {
            // The answer is part of the case.
            std::thread::sleep(THINKS);
        }
        Ok(attempt)
    });
    Ok(Plan::fixed_with(vec![target], move |world| {
        world.stop_servers();
        world.serve_udp(&host, port)
    }))
}
