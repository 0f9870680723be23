//! A program of the node uses 127.0.0.1 with a NodePort, in ipvs mode or in iptables mode without route_localnet.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::json;

use crate::event::protocol;
use crate::scenario::kube_proxy::{self, Service};
use crate::scenario::objects::{Endpoint, Objects};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "nodeport-localhost",
    expects: &["nodeport-localhost"],
    variants: &[
        Variant::fault("ipvs", "127.0.0.1 with a NodePort in ipvs mode"),
        Variant::fault(
            "iptables",
            "127.0.0.1 with a NodePort in iptables mode without route_localnet",
        ),
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Module("ip_vs"),
        Need::Module("ip_vs_rr"),
        Need::Command("ipvsadm"),
        Need::Command("iptables"),
    ],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let service = Service {
        protocol: protocol::TCP,
        cluster: SocketAddrV4::new(options.service, options.service_port),
        node_port: options.node_port,
        endpoint: at(options.pod, options.pod_port),
    };
    if variant.name == "iptables" {
        site.node.run_all(&[
            "sysctl -qw net.ipv4.conf.all.route_localnet=0".into(),
            format!(
                "iptables -t nat -A OUTPUT -m addrtype --dst-type LOCAL -p tcp --dport {} -j DNAT --to-destination {}",
                service.node_port, service.endpoint
            ),
        ])?;
        world.cluster = Objects::new(&options)
            .service(&options, "TCP", json!({}))
            .slice(&options, "TCP", &[Endpoint::ready(options.pod)])
            .facts("iptables")?;
    } else {
        kube_proxy::prepare(&site.node, &service)?;
        kube_proxy::sync(&site.node, &service, None)?;
    }
    let target =
        |label, address: Ipv4Addr| Target::tcp(label, &site.node, at(address, options.node_port));
    let own = vec![target("the node's address", options.node)];
    if variant.fault {
        let local = vec![target("localhost", Ipv4Addr::LOCALHOST)];
        return Ok(Plan::avoided_by(local, own));
    }
    Ok(Plan::avoided_by(own, Vec::new()))
}
