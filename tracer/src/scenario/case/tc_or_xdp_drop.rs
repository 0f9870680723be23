//! A tc filter or an XDP program on a device of the node drops the packet.

use crate::scenario::world::at;
use crate::scenario::xdp::{self, Mode};
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "tc-or-xdp-drop",
    expects: &["tc-or-xdp-drop"],
    variants: &[
        Variant::fault(
            "ingress",
            "a filter drops what comes in by the node's interface",
        ),
        Variant::fault(
            "egress",
            "a filter drops what goes out by the node's bridge",
        ),
        Variant::fault(
            "xdp",
            "an XDP program that the node's interface runs drops what comes in",
        ),
        Variant::fault("xdp-generic", "the same, and the stack runs it"),
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Module("sch_ingress"),
        Need::Module("cls_flower"),
        Need::Module("act_gact"),
        Need::Command("tc"),
    ],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let (device, place) = match variant.name {
        "egress" => (&options.bridge, "egress"),
        _ => (&options.interface, "ingress"),
    };
    let pod = at(options.pod, options.pod_port);
    let target = Target::tcp("the pod", &site.client, pod);
    let plan = Plan::fixed_as_printed(vec![target], &site.node).by_way(1);
    let mode = match variant.name {
        "xdp" => Some(Mode::Native),
        "xdp-generic" => Some(Mode::Generic),
        _ => None,
    };
    if let Some(mode) = mode {
        xdp::drop_tcp_to(&site.node, device, mode, options.pod_port)?;
        return Ok(plan);
    }
    // The healthy filter is about another port.
    let port = options.pod_port + u16::from(!variant.fault);
    site.node.run_all(&[
        format!("tc qdisc add dev {device} clsact"),
        format!(
            "tc filter add dev {device} {place} protocol ip flower ip_proto tcp dst_port {port} action drop"
        ),
    ])?;
    Ok(plan)
}
