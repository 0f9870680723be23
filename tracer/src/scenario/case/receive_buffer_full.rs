//! A program with a small receive buffer does not read its UDP socket.

use std::net::{Ipv4Addr, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};

use crate::scenario::traffic::{Datagrams, datagrams};
use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "receive-buffer-full",
    expects: &["receive-buffer-full"],
    variants: &[
        Variant::fault("hangs", "the program never reads"),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

/// More than the smallest buffer holds, and less than the usual one.
const BURST: Datagrams = Datagrams {
    burst: 20,
    tries: 2,
    ..Datagrams::ONE
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    let (port, pod) = (options.pod_port, at(options.pod, options.pod_port));
    if variant.fault {
        world.hold(&site.pod, || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            setsockopt(&socket, sockopt::RcvBuf, &1)?;
            Ok(vec![socket])
        })?;
    } else {
        world.serve_udp(&site.pod, port)?;
    }
    let host = site.pod;
    let target = Target::custom("the pod, a burst", &site.client, pod, move |from| {
        datagrams(from, pod, BURST)
    });
    Ok(Plan::fixed_with(vec![target], move |world| {
        world.let_go();
        world.serve_udp(&host, port)
    }))
}
