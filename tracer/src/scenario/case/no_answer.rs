//! A host on another machine does not answer: it throws away what it has for the client.

use std::time::Duration;

use crate::scenario::traffic::{Datagrams, datagrams, tcp_attempt};
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
        Variant {
            likely: Some("what happens on the other machine is not seen"),
            ..Variant::fault(
                "dns",
                "the same with questions of a pod to a name server outside of the cluster",
            )
        },
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

/// Time for two repetitions, of a SYN after one and after three seconds.
const WAITS: Duration = Duration::from_millis(3500);
const DNS: u16 = 53;

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let far = topology::far(world, &site)?;
    let options = world.options.clone();
    let by_dns = variant.name == "dns";
    let (asker, own) = if by_dns {
        (&site.pod, options.pod)
    } else {
        (&site.client, options.client)
    };
    let target = if by_dns {
        world.serve_udp(&far, DNS)?;
        let address = at(options.outside, DNS);
        let plan = Datagrams {
            patience: WAITS,
            ..Datagrams::ONE
        };
        Target::custom("the name server", asker, address, move |from| {
            datagrams(from, address, plan)
        })
    } else {
        world.serve_tcp(&far, options.service_port)?;
        let address = at(options.outside, options.service_port);
        Target::custom("the other machine", asker, address, move |from| {
            tcp_attempt(from, address, WAITS)
        })
    };
    if variant.fault {
        far.run(&format!("ip route add blackhole {own}/32"))?;
    }
    Ok(Plan::fixed_by(
        vec![target.once()],
        &far,
        [format!("ip route del blackhole {own}/32")],
    ))
}
