//! A listener's queue of half-open connections is full, and SYN cookies are off.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use nix::sys::socket::{Backlog, listen, setsockopt};
use nix::{setsockopt_impl, sockopt_impl};

use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "syn-flood",
    expects: &["syn-flood"],
    variants: &[
        Variant::fault(
            "full",
            "as many connections are half open as the backlog allows",
        ),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

sockopt_impl!(
    /// Seconds that a connection stays half open until its first data comes.
    DeferAccept,
    SetOnly,
    nix::libc::IPPROTO_TCP,
    nix::libc::TCP_DEFER_ACCEPT,
    i32
);

const BACKLOG: i32 = 2;
/// Half-open connections stay for this long, seconds, without a packet.
const STAY: i32 = 120;
/// Fewer than these fill the queue on every kernel.
const WAITING: usize = 4;

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    let (port, pod) = (options.pod_port, at(options.pod, options.pod_port));
    site.pod.run("sysctl -qw net.ipv4.tcp_syncookies=0")?;
    if variant.fault {
        world.hold(&site.pod, || {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
            listen(&listener, Backlog::new(BACKLOG)?)?;
            setsockopt(&listener, DeferAccept, &STAY)?;
            Ok(vec![listener])
        })?;
        world.hold(&site.client, || {
            let patience = std::time::Duration::from_millis(200);
            // Those beyond the backlog find the queue full.
            Ok((0..WAITING)
                .filter_map(|_| TcpStream::connect_timeout(&pod, patience).ok())
                .collect())
        })?;
    } else {
        world.serve_tcp(&site.pod, port)?;
    }
    let host = site.pod;
    let target = Target::tcp("the pod", &site.client, pod);
    Ok(Plan::fixed_with(vec![target], move |world| {
        world.let_go();
        world.serve_tcp(&host, port)
    }))
}
