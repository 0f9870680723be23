//! A virtual server without a real server that takes connections.

use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "ipvs-no-destination",
    expects: &["ipvs-no-destination"],
    variants: &[
        Variant::fault("none", "the virtual server has no real server"),
        Variant::fault("weight-0", "its only real server has weight 0"),
        Variant::HEALTHY,
    ],
    needs: Need::IPVS,
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let server = at(options.node, options.node_port);
    let real = format!("-t {server} -r {}:{} -m", options.pod, options.pod_port);
    site.node.run_all(&[
        "sysctl -qw net.ipv4.vs.conntrack=1".into(),
        format!("ipvsadm -A -t {server} -s rr"),
    ])?;
    let fix = match variant.name {
        "weight-0" => {
            site.node.run(&format!("ipvsadm -a {real} -w 0"))?;
            String::new()
        }
        _ => format!("ipvsadm -a {real} -w 1"),
    };
    if !variant.fault {
        site.node.run(&fix)?;
    }
    let targets = vec![Target::tcp("the virtual server", &site.client, server)];
    Ok(if variant.name == "weight-0" {
        Plan::fixed_as_printed(targets, &site.node)
    } else {
        // The diagnosis cannot know the real server that is missing.
        Plan::fixed_by(targets, &site.node, [fix])
    })
}
