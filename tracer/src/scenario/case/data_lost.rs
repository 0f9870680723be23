//! What a pod sends over an open connection does not reach a host on another machine.

use std::time::Duration;

use crate::scenario::traffic::{long_question, tcp_attempt};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

const UNSEEN: Option<&str> = Some("what happens on the other machine is not seen");

pub(super) const SCENARIO: Scenario = Scenario {
    name: "data-lost",
    expects: &["data-lost"],
    variants: &[
        Variant {
            likely: UNSEEN,
            ..Variant::fault(
                "large",
                "the way to the other machine takes no large packets, and tells nobody",
            )
        },
        Variant {
            likely: UNSEEN,
            ..Variant::fault("small", "the other machine throws all data away")
        },
        Variant::HEALTHY,
    ],
    needs: &[Need::Command("iptables")],
    not_on: &[],
    build,
};

/// Time for four repetitions, the last after three seconds.
const WAITS: Duration = Duration::from_secs(6);
/// Fills most of a packet.
const QUESTION_BYTES: usize = 1400;

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let far = topology::far(world, &site)?;
    let options = world.options.clone();
    let server = at(options.outside, options.service_port);
    world.serve_tcp_patiently(&far, server, WAITS)?;
    let is_small = variant.name == "small";
    let target = Target::custom("the other machine", &site.pod, server, move |from| {
        if is_small {
            tcp_attempt(from, server, WAITS)
        } else {
            long_question(from, server, QUESTION_BYTES, WAITS)
        }
    });
    let targets = vec![target.once()];
    let drops = if is_small {
        "INPUT -p tcp --tcp-flags PSH PSH -j DROP"
    } else {
        "INPUT -p tcp -m length --length 1300:65535 -j DROP"
    };
    if variant.fault {
        far.run(&format!("iptables -A {drops}"))?;
    }
    Ok(if is_small {
        Plan::fixed_by(targets, &far, [format!("iptables -D {drops}")])
    } else {
        Plan::fixed_as_printed(targets, &site.node)
    })
}
