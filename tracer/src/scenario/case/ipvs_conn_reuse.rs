//! A client uses its port again while IPVS still knows the old connection, whose pod is gone.

use crate::scenario::traffic::tcp_attempt_from;
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "ipvs-conn-reuse",
    expects: &["ipvs-conn-reuse"],
    variants: &[
        Variant::fault("old-server", "conn_reuse_mode is 0 and the old pod is gone"),
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
    let (port, from_port) = (options.pod_port, options.service_port);
    for pod in [&site.pod, &second] {
        world.serve_tcp(pod, port)?;
    }
    let (server, pod) = (at(options.node, options.node_port), options.pod);
    site.node.run_all(&[
        // With conntrack IPVS drops the first packet before it chooses anew.
        "sysctl -qw net.ipv4.vs.conntrack=0".into(),
        format!(
            "sysctl -qw net.ipv4.vs.conn_reuse_mode={}",
            u8::from(!variant.fault)
        ),
        format!("ipvsadm -A -t {server} -s rr"),
        format!("ipvsadm -a -t {server} -r {pod}:{port} -m -w 1"),
    ])?;
    // The old connection, which IPVS remembers for two minutes.
    tcp_attempt_from(&site.client, from_port, server)?;
    site.node.run_all(&[
        format!("ipvsadm -e -t {server} -r {pod}:{port} -m -w 0"),
        format!(
            "ipvsadm -a -t {server} -r {}:{port} -m -w 1",
            options.second_pod
        ),
    ])?;
    world.stop_servers();
    world.serve_tcp(&second, port)?;
    let target = Target::custom("the virtual server", &site.client, server, move |client| {
        tcp_attempt_from(client, from_port, server)
    });
    Ok(Plan::fixed_as_printed(vec![target], &site.node))
}
