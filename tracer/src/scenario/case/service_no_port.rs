//! A client that uses the port of the pods at the service's address.

use std::net::SocketAddr;

use serde_json::json;

use crate::scenario::nft_proxy;
use crate::scenario::objects::{Endpoint, Objects};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "service-no-port",
    expects: &["service-no-port"],
    variants: &[
        Variant::fault("ipvs", "no socket of the node takes the packets"),
        Variant::fault("ipvs-filter", "kube-proxy's rule rejects them before"),
        Variant::fault("iptables", "they follow the default route out of the node"),
        Variant::fault("nftables", "kube-proxy's rule rejects them"),
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Module("ip_vs"),
        Need::Module("ip_vs_rr"),
        Need::Command("ipvsadm"),
        Need::Command("iptables"),
        Need::Command("ipset"),
        Need::Command("nft"),
    ],
    not_on: &[],
    build,
};

/// kube-proxy's rule in ipvs mode for addresses of services, behind those that let the ports of services pass.
const IPVS_FILTER: &[&str] = &[
    "ipset create KUBE-CLUSTER-IP hash:ip,port",
    "ipset create KUBE-IPVS-IPS hash:ip",
    "iptables -N KUBE-IPVS-FILTER",
    "iptables -A INPUT -j KUBE-IPVS-FILTER",
    "iptables -A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN",
    "iptables -A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT",
];

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let mode = match variant.name {
        "iptables" => "iptables",
        "nftables" => "nftables",
        _ => "ipvs",
    };
    let facts = {
        let options = options.clone();
        move |whole: bool| {
            let port = |name: &str, port: u16| {
                json!({"name": name, "protocol": "TCP", "port": port,
                    "targetPort": options.pod_port})
            };
            let mut ports = vec![port("main", options.service_port)];
            if whole {
                ports.push(port("second", options.pod_port));
            }
            Objects::new(&options)
                .service(&options, "TCP", json!({"ports": ports}))
                .slice(&options, "TCP", &[Endpoint::ready(options.pod)])
                .facts(mode)
        }
    };
    let served = at(options.service, options.service_port);
    let asked = at(options.service, options.pod_port);
    let endpoint = at(options.pod, options.pod_port);
    let mut beyond = None;
    let fix: Vec<String> = match mode {
        "iptables" => {
            beyond = Some(topology::far(world, &site)?);
            site.node
                .run(&format!("ip route add default via {}", options.outside))?;
            topology::service(world, &site.node, options.pod)?;
            vec![format!(
                "iptables -t nat -A PREROUTING -d {}/32 -p tcp --dport {} -j DNAT --to-destination {endpoint}",
                asked.ip(),
                asked.port()
            )]
        }
        "nftables" => {
            site.node
                .run(&format!("ip route add default via {}", options.client))?;
            nft_proxy::prepare(&site.node, options.node.into())?;
            nft_proxy::serve_at(&site.node, served, endpoint)?;
            Vec::new()
        }
        _ => {
            let serve = topology::virtual_server(world, &site, served)?;
            site.node.run(&serve)?;
            if variant.name == "ipvs-filter" {
                IPVS_FILTER
                    .iter()
                    .try_for_each(|line| site.node.run(line))?;
                site.node.run_all(&[
                    format!("ipset add KUBE-IPVS-IPS {}", asked.ip()),
                    in_set(served),
                ])?;
            }
            let mut fix = vec![
                format!("ipvsadm -A -t {asked} -s rr"),
                format!("ipvsadm -a -t {asked} -r {endpoint} -m -w 1"),
            ];
            if variant.name == "ipvs-filter" {
                fix.push(in_set(asked));
            }
            fix
        }
    };
    world.cluster = facts(false)?;
    let target = if variant.fault {
        Target::tcp("the port of the pods", &site.client, asked)
    } else {
        Target::tcp("the service", &site.client, served)
    };
    let node = site.node;
    Ok(Plan::fixed_with(vec![target], move |world| {
        if mode == "nftables" {
            nft_proxy::add_port(&node, asked)?;
        }
        node.run_all(&fix)?;
        world.cluster = facts(true)?;
        // Until now the default route led there.
        drop(beyond);
        Ok(())
    }))
}

/// The set of what kube-proxy serves has this.
fn in_set(served: SocketAddr) -> String {
    format!(
        "ipset add KUBE-CLUSTER-IP {},tcp:{}",
        served.ip(),
        served.port()
    )
}
