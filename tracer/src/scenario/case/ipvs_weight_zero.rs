//! A UDP client keeps its source port; its real server has weight 0, and the pod is gone.

use crate::scenario::traffic::{Datagrams, datagrams};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "ipvs-weight-zero",
    expects: &["ipvs-weight-zero"],
    variants: &[
        Variant::fault("gone", "the pod went away before its connections did"),
        Variant::HEALTHY,
    ],
    needs: Need::IPVS,
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let second = topology::second_pod(world, &site)?;
    let options = world.options.clone();
    let port = options.pod_port;
    for pod in [&site.pod, &second] {
        world.serve_udp(pod, port)?;
    }
    let (server, pod) = (at(options.node, options.node_port), options.pod);
    site.node.run_all(&[
        "sysctl -qw net.ipv4.vs.conntrack=1".into(),
        "sysctl -qw net.ipv4.vs.expire_nodest_conn=1".into(),
        format!(
            "sysctl -qw net.ipv4.neigh.{}.retrans_time_ms=300",
            options.bridge
        ),
        format!("ipvsadm -A -u {server} -s rr"),
        format!("ipvsadm -a -u {server} -r {pod}:{port} -m"),
    ])?;
    let plan = Datagrams {
        from_port: options.service_port,
        ..Datagrams::ONE
    };
    // The client's connection, which goes on while the real server drains.
    datagrams(&site.client, server, plan)?;
    site.node.run_all(&[
        format!("ipvsadm -e -u {server} -r {pod}:{port} -m -w 0"),
        format!("ipvsadm -a -u {server} -r {}:{port} -m", options.second_pod),
    ])?;
    if variant.fault {
        site.pod.run("ip link set eth0 down")?;
        site.node
            .run(&format!("ip neigh flush dev {} to {pod}", options.bridge))?;
    }
    let client = site.client.clone();
    let target = Target::custom("the virtual server", &site.client, server, move |from| {
        datagrams(from, server, plan)
    });
    let plan_of_fix = Plan::fixed_as_printed(vec![target], &site.node);
    // The packet that finds the connection expired is lost on some kernels.
    Ok(plan_of_fix.and_then(move |_| datagrams(&client, server, plan).map(drop)))
}
