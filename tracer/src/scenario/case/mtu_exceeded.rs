//! The bridge port of a pod takes less than the hosts send: small packets pass, large ones do not.

use crate::scenario::topology::{self, Site};
use crate::scenario::traffic::{Datagrams, PATIENCE, datagrams, long_question};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "mtu-exceeded",
    expects: &["mtu-exceeded"],
    variants: &[
        Variant::fault(
            "port",
            "the pod's bridge port has a smaller MTU than the bridge",
        ),
        Variant {
            expects: &["filter-rule-drop", "mtu-exceeded"],
            ..Variant::fault(
                "icmp-lost",
                "the node tells the client of its smaller MTU, and a rule of the client drops that",
            )
        },
        Variant::HEALTHY,
    ],
    needs: &[Need::Command("iptables")],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    if variant.name == "icmp-lost" {
        return untold(world, &site);
    }
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

/// TCP that may not be cut, to a node whose bridge takes less than the client sends.
fn untold(world: &mut World, site: &Site) -> anyhow::Result<Plan> {
    const RULE: &str = "INPUT -p icmp --icmp-type fragmentation-needed -j DROP";
    let options = world.options.clone();
    let pod = at(options.pod, options.pod_port);
    world.serve_tcp_patiently(&site.pod, pod, PATIENCE)?;
    site.node
        .run(&format!("ip link set {} mtu 1280", options.bridge))?;
    site.client.run(&format!("iptables -A {RULE}"))?;
    let client = site.client.clone();
    Ok(Plan::fixed_with(
        vec![Target::custom(
            "the pod, a large packet",
            &client,
            pod,
            move |from| long_question(from, pod, 1400, PATIENCE),
        )],
        move |_| client.run(&format!("iptables -D {RULE}")),
    ))
}
