//! The bridge port of a pod takes less than the hosts send: small packets pass, large ones do not.

use crate::scenario::traffic::{Datagrams, datagrams};
use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "mtu-exceeded",
    expects: &["mtu-exceeded"],
    variants: &[
        Variant::fault(
            "port",
            "the pod's bridge port has a smaller MTU than the bridge",
        ),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_udp(&site.pod, options.pod_port)?;
    if variant.fault {
        site.node.run_all(&[
            "ip link set vethpod mtu 1280".into(),
            // A bridge follows its ports until it is told.
            format!("ip link set {} mtu 1500", options.bridge),
        ])?;
    }
    let pod = at(options.pod, options.pod_port);
    Ok(Plan::fixed_by(
        vec![
            Target::udp("the pod, a small packet", &site.client, pod).once(),
            Target::custom("the pod, large packets", &site.client, pod, move |from| {
                datagrams(
                    from,
                    pod,
                    Datagrams {
                        bytes: 1400,
                        ..Datagrams::ONE
                    },
                )
            }),
        ],
        &site.node,
        ["ip link set vethpod mtu 1500".into()],
    ))
}
