//! How long judging takes: 100,000 flows on a node of 5,000 services. Run it with
//! `cargo test --release -p tracer --lib judging -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use tracer_ebpf::hook::HookId;

use super::constructed::{Bench, CNI0, ETH0, ip, neighbour, node, route, service, socket};
use crate::event::Detail;
use crate::node::{Address, NeighbourState, Route, RouteKind};

const SERVICES: usize = 5_000;

fn service_address(number: usize) -> String {
    format!("10.96.{}.{}", number >> 8, number & 255)
}

fn cluster_node() -> Bench {
    let mut bench = node();
    let site = bench.site();
    let mut servers = Vec::new();
    for number in 0..SERVICES {
        let address = service_address(number);
        let pods: Vec<String> = (0..4)
            .map(|pod| {
                format!(
                    "10.244.{}.{}:80",
                    number >> 6 & 255,
                    (number & 63) * 4 + pod
                )
            })
            .collect();
        let real: Vec<(&str, u32)> = pods.iter().map(|pod| (pod.as_str(), 1)).collect();
        servers.push(service(6, &format!("{address}:80"), &real));
        servers.push(service(6, &format!("192.0.2.1:{}", 20_000 + number), &real));
        site.addresses.push(Address::global(50, ip(&address), 32));
        site.routes.push(Route {
            table: Route::LOCAL_TABLE,
            kind: RouteKind::Local,
            ..route(&address, 32, 50)
        });
        let pod = pods[0].split(':').next().unwrap_or("");
        site.neighbours
            .push(neighbour(CNI0, pod, NeighbourState::Stale));
        site.sockets
            .push(socket(6, "192.0.2.1", 20_000 + number as u16));
    }
    site.ipvs = Some(servers);
    bench
}

/// A tenth each of refused, unanswered, unroutable, dropped; the rest arrives.
fn flow(bench: &mut Bench, number: usize) {
    let client = format!(
        "172.{}.{}.9:{}",
        16 + (number >> 16),
        number >> 8 & 255,
        10_000 + number % 256
    );
    let pod = format!("10.244.{}.{}:80", number >> 8 & 255, number & 255);
    let way = bench.tcp(
        &client,
        &format!("{}:80", service_address(number % SERVICES)),
    );
    let way = way
        .receive(ETH0)
        .at(HookId::Ip4Receive)
        .at(HookId::LocalDeliver);
    match number % 10 {
        0 => way
            .at(HookId::TcpReceive)
            .at(HookId::TcpReset)
            .dropped("NO_SOCKET", "tcp_v4_rcv"),
        1 => {
            let detail = Detail::Neighbour {
                address: ip(pod.split(':').next().unwrap_or("")),
                ifindex: CNI0,
            };
            way.to(&pod)
                .with(HookId::NeighbourQueue, detail.clone())
                .with(HookId::NeighbourFailed, detail)
                .dropped("NEIGH_FAILED", "arp_error_report");
        }
        2 => way
            .with(
                HookId::RouteError,
                Detail::Route {
                    kind: 7,
                    error: 101,
                    ifindex: None,
                },
            )
            .dropped("NOT_SPECIFIED", "ip_error"),
        3 => way
            .at(HookId::IpvsSchedule)
            .at(HookId::IpvsLeave)
            .dropped("NETFILTER_DROP", "nf_hook_slow"),
        _ => way
            .to(&pod)
            .at(HookId::IpvsNatTransmit)
            .transmit(CNI0)
            .ends(),
    }
}

fn judge(flows: usize) -> (Duration, usize) {
    let mut bench = cluster_node();
    for number in 0..flows {
        flow(&mut bench, number);
    }
    let begun = Instant::now();
    let found = bench.diagnose();
    (begun.elapsed(), found.len())
}

#[test]
#[ignore = "takes a while, and its limit is meant for a release build"]
fn judging_a_hundred_thousand_flows_is_quick_and_linear() {
    let (tenth, _) = judge(10_000);
    let (whole, found) = judge(100_000);
    println!("10,000 flows: {tenth:?}; 100,000 flows: {whole:?}, {found} diagnoses");
    assert!(found > 0);
    assert!(whole < Duration::from_secs(2), "{whole:?}");
    assert!(whole < tenth * 30, "{tenth:?} grew to {whole:?}");
}
