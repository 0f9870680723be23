//! A program listens and does not accept; others wait in its queue already.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use nix::sys::socket::{Backlog, listen};

use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "accept-queue-full",
    expects: &["accept-queue-full"],
    variants: &[
        Variant::fault("hangs", "the program with a backlog of 1 accepts nothing"),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

/// A queue takes one more than its backlog.
const BACKLOG: i32 = 1;
const WAITING: usize = 2;

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    let (port, pod) = (options.pod_port, at(options.pod, options.pod_port));
    if variant.fault {
        world.hold(&site.pod, || {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
            listen(&listener, Backlog::new(BACKLOG)?)?;
            Ok(vec![listener])
        })?;
    } else {
        world.serve_tcp(&site.pod, port)?;
    }
    world.hold(&site.client, || {
        (0..WAITING).map(|_| TcpStream::connect(pod)).collect()
    })?;
    let host = site.pod;
    let target = Target::tcp("the pod", &site.client, pod);
    Ok(Plan::fixed_with(vec![target], move |world| {
        world.let_go();
        world.serve_tcp(&host, port)
    }))
}
