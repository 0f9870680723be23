//! A UDP client keeps its source port, and its real server was taken away meanwhile.

use crate::scenario::traffic::{Datagrams, datagrams};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "ipvs-stale-connection",
    expects: &["ipvs-stale-connection"],
    variants: &[
        Variant::fault(
            "udp",
            "expire_nodest_conn is 0 and the client keeps its port",
        ),
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
    let server = at(options.node, options.node_port);
    let expire = u8::from(!variant.fault);
    site.node.run_all(&[
        "sysctl -qw net.ipv4.vs.conntrack=1".into(),
        format!("sysctl -qw net.ipv4.vs.expire_nodest_conn={expire}"),
        format!("ipvsadm -A -u {server} -s rr"),
        format!("ipvsadm -a -u {server} -r {}:{port} -m", options.pod),
    ])?;
    let plan = Datagrams {
        from_port: options.service_port,
        ..Datagrams::ONE
    };
    // The client's connection to the first real server, which then goes.
    datagrams(&site.client, server, plan)?;
    site.node.run_all(&[
        format!("ipvsadm -d -u {server} -r {}:{port}", options.pod),
        format!("ipvsadm -a -u {server} -r {}:{port} -m", options.second_pod),
    ])?;
    let client = site.client.clone();
    let settle = move || datagrams(&client, server, plan).map(drop);
    if !variant.fault {
        // The packet that finds the connection expired is lost on some kernels.
        settle()?;
    }
    let target = Target::custom("the virtual server", &site.client, server, move |from| {
        datagrams(from, server, plan)
    });
    Ok(Plan::fixed_as_printed(vec![target], &site.node).and_then(move |_| settle()))
}
