//! Tables of expressions: what they mean, and how wrong ones are shown. That tcpdump gives the same
//! answers is tested in `against_tcpdump`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::json;
use tracer_ebpf::header::ethertype;
use tracer_ebpf::hook::HookId;

use super::*;
use crate::event::{Arp, protocol};
use crate::journey::constructed::{event, packet};
use crate::kube::ObjectName;
use crate::kube::constructed::cluster;

/// A cluster and a node that know a few names.
struct Known;

impl Resolver for Known {
    fn host(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        match name {
            "two.example" => Ok(vec![
                IpAddr::from([192, 0, 2, 1]),
                IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
            ]),
            _ => Err("no address is known for this name".into()),
        }
    }

    fn namespace(&self, name: &str) -> Result<u32, String> {
        (name == "blue")
            .then_some(4_026_532_000)
            .ok_or_else(|| "no network namespace of this name".into())
    }

    fn process(&self, pid: u32) -> Result<u32, String> {
        Ok(4_000_000_000 + pid)
    }

    fn pod(&self, name: &ObjectName) -> Result<Vec<IpAddr>, String> {
        Ok(vec![IpAddr::from([10, 0, 0, name.name.len() as u8])])
    }

    fn service(&self, _: &ObjectName) -> Result<Vec<Front>, String> {
        Ok(vec![
            Front {
                address: Some(IpAddr::from([10, 96, 0, 1])),
                protocol: None,
                port: None,
            },
            Front {
                address: None,
                protocol: Some(6),
                port: Some(30000),
            },
        ])
    }

    fn node(&self, _: &str) -> Result<Vec<IpAddr>, String> {
        Err("the cluster has no such node".into())
    }
}

fn compiled(text: &str) -> Result<Filter, Error> {
    Expression::parse(text)?.resolve(&Known)
}

#[test]
fn nothing_means_everything() {
    assert!(compiled("  ").is_ok_and(|filter| filter.is_everything()));
    assert!(compiled("ip").is_ok_and(|filter| !filter.is_everything()));
}

/// Expressions that mean the same.
#[test]
fn short_forms_mean_their_long_ones() {
    for (short, long) in [
        ("port 80 or 443", "port 80 or port 443"),
        ("not port 80 or 443", "(not port 80) or port 443"),
        (
            "tcp src port 80 or 443",
            "tcp src port 80 or tcp src port 443",
        ),
        (
            "host 10.0.0.1 and 10.0.0.2",
            "host 10.0.0.1 and host 10.0.0.2",
        ),
        ("port (80 or 443)", "port 80 or port 443"),
        (
            "host 10.0.0.1 and (10.0.0.2 or 10.0.0.3)",
            "host 10.0.0.1 and (host 10.0.0.2 or host 10.0.0.3)",
        ),
        ("tcp or udp and port 53", "(tcp or udp) and port 53"),
        ("!tcp&&!udp", "not tcp and not udp"),
        ("net 10", "net 10.0.0.0/8"),
        ("net 192.168.3", "net 192.168.3.0 mask 255.255.255.0"),
        ("host 10.1", "net 10.1.0.0/16"),
        ("src 10.0.0.0/8", "src net 10.0.0.0/8"),
        ("src 10.0.0.1", "src host 10.0.0.1"),
        ("src or dst port 53", "port 53"),
        ("src and dst port 53", "src port 53 and dst port 53"),
        ("portrange 443-80", "portrange 80-443"),
        ("portrange ssh-http", "tcp portrange 22-80"),
        ("portrange ssh-domain", "portrange 22-53"),
        ("portrange ssh-80", "portrange 22-80"),
        ("port ssh", "tcp port 22"),
        ("port domain", "port 53"),
        ("proto \\udp", "proto 17"),
        ("host two.example", "host 192.0.2.1 or host 2001:db8::1"),
        ("pod default/web-0", "host 10.0.0.5"),
        ("src pod default/web-0", "src host 10.0.0.5"),
        ("svc default/web", "host 10.96.0.1 or tcp port 30000"),
        ("pid 7", "netns 4000000007"),
        ("netns blue", "netns 4026532000"),
    ] {
        let (one, two) = (compiled(short), compiled(long));
        let (one, two) = (
            one.unwrap_or_else(|error| panic!("{error}")),
            two.unwrap_or_else(|error| panic!("{error}")),
        );
        assert_eq!(one.program(), two.program(), "{short} is not {long}");
    }
}

/// Wrong expressions, as people see them.
#[test]
fn wrong_words_are_pointed_at() {
    let mut shown = String::new();
    for text in [
        "prot 80",
        "tcp prot 80",
        "10.0.0.1",
        "80",
        "10.0.0.0/8",
        "host",
        "host 10.0.0.256",
        "net 10.0.0.1/8",
        "net 10.0.0.0/33",
        "net 10.0.0.0 mask 255.0.0.x",
        "port 65536",
        "port nosuchname",
        "port tcp",
        "portrange 80",
        "udp port ssh",
        "tcp host 10.0.0.1",
        "ip host 2001:db8::1",
        "src proto 6",
        "src or tcp",
        "tcp and",
        "tcp adn udp",
        "(tcp or udp",
        "tcp)",
        "tcp udp",
        "host 10.0.0.1 and prot 80",
        "iface averyveryverylongname",
        "netns red",
        "pod web-0",
        "node nowhere",
    ] {
        match compiled(text) {
            Ok(filter) => panic!("{text} was taken as {:?}", filter.meaning()),
            Err(error) => shown += &format!("{error}\n"),
        }
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn ports_of_another_protocol_are_refused() {
    for text in [
        "udp port ssh",
        "udp portrange ssh-http",
        "sctp portrange http-ssh",
    ] {
        let error = compiled(text).expect_err(text);
        assert_eq!(error.message(), "this port is tcp's", "{text}");
    }
    assert!(compiled("udp portrange ssh-domain").is_ok());
}

#[test]
fn too_many_tests_are_refused() {
    let many: Vec<_> = (0..33).map(|port| port.to_string()).collect();
    let error =
        compiled(&format!("port {}", many.join(" or "))).expect_err("33 tests are more than 32");
    assert!(error.message().contains("33 tests"), "{error}");
    assert!(compiled(&format!("port {}", many[1..].join(" or "))).is_ok());
}

#[test]
fn deep_nesting_is_refused() {
    let deep = format!("{}tcp{}", "(".repeat(50_000), ")".repeat(50_000));
    assert!(Expression::parse(&deep).is_err());
    assert!(Expression::parse(&"not ".repeat(50_000)).is_err());
}

#[test]
fn only_names_of_the_cluster_need_it() {
    for (text, needs) in [("not (tcp or svc a/b)", true), ("host 10.0.0.1", false)] {
        let expression = Expression::parse(text).expect("an expression");
        assert_eq!(expression.names_cluster(), needs, "{text}");
    }
    let pods = Expression::parse("not pod a/b and (svc c/d or src pod e/f)").map(|all| all.pods());
    let named = [ObjectName::new("a", "b"), ObjectName::new("e", "f")];
    assert_eq!(pods.expect("an expression"), named);
    let error = Expression::parse("pod default/web-0")
        .and_then(|expression| expression.resolve(&Here::default()));
    assert!(error.is_err_and(|error| error.message().contains("no facts of the cluster")));
}

#[test]
fn arp_is_asked_for_by_that_word_only() {
    for (text, asked) in [
        ("arp", true),
        ("arp or port 53", true),
        ("arp host 192.0.2.1", true),
        ("host 192.0.2.1", false),
        ("ip", false),
        ("", false),
    ] {
        let filter = Expression::parse(text).expect(text);
        let filter = filter.resolve(&Known).expect(text);
        assert_eq!(filter.asks_for_arp(), asked, "{text}");
    }
}

#[test]
fn arp_that_is_followed_matches_as_it_does_in_the_kernel() {
    let arp = Arp {
        reply: false,
        sender: [192, 0, 2, 1].into(),
        target: [192, 0, 2, 2].into(),
    };
    let mut event = Event {
        packet: None,
        not_ip: true,
        arp: Some(arp),
        ..event(HookId::DeviceReceive, 1, 1, 0)
    };
    let matches = |event: &Event, text: &str| {
        let filter = Expression::parse(text).expect(text);
        let filter = filter.resolve(&Known).expect(text);
        filter.matches_event(event, &|_, _| None)
    };
    assert!(!matches(&event, "arp"));
    event.follow_arp();
    for text in ["arp", "host 192.0.2.2", "src 192.0.2.1 and not ip"] {
        assert!(matches(&event, text), "{text}");
    }
    for text in ["ip", "udp", "host 192.0.2.3", "port 53", "proto 255"] {
        assert!(!matches(&event, text), "{text}");
    }
}

/// An IP packet of UDP as it is on the wire, and its ethertype.
fn udp(source: SocketAddr, destination: SocketAddr) -> (Vec<u8>, u16) {
    let mut ports = Vec::new();
    for port in [source.port(), destination.port(), 8, 0] {
        ports.extend(port.to_be_bytes());
    }
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut bytes = vec![0x45, 0, 0, 28, 0, 7, 0, 0, 64, protocol::UDP, 0, 0];
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            bytes.extend(ports);
            (bytes, ethertype::IPV4)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut bytes = vec![0x60, 0, 0, 0, 0, 8, protocol::UDP, 64];
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            bytes.extend(ports);
            (bytes, ethertype::IPV6)
        }
        _ => panic!("addresses of two families"),
    }
}

#[test]
fn a_nodes_name_means_each_of_its_addresses_and_no_other() {
    let node = |name: &str, addresses: &[(&str, &str)]| {
        let address = |(kind, address): &(&str, &str)| json!({"type": kind, "address": address});
        let addresses: Vec<_> = addresses.iter().map(address).collect();
        json!({"kind": "Node", "metadata": {"name": name}, "status": {"addresses": addresses}})
    };
    let here = Here {
        cluster: Some(Arc::new(cluster(
            "node-a",
            &[
                node("node-a", &[("InternalIP", "192.0.2.1")]),
                node(
                    "node-b.example",
                    &[
                        ("InternalIP", "192.0.2.2"),
                        ("InternalIP", "2001:db8::2"),
                        ("ExternalIP", "203.0.113.2"),
                        ("Hostname", "node-b"),
                    ],
                ),
            ],
        ))),
        ..Here::default()
    };
    for (source, destination, from, to) in [
        ("10.244.0.5:4000", "192.0.2.2:53", false, true),
        ("192.0.2.2:53", "10.244.0.5:4000", true, false),
        ("203.0.113.2:53", "192.0.2.2:53", true, true),
        ("[2001:db8::5]:1", "[2001:db8::2]:2", false, true),
        ("[2001:db8::2]:2", "[2001:db8::1]:1", true, false),
        // Another node, an address beside it, and pods.
        ("192.0.2.1:1", "192.0.2.3:2", false, false),
        ("10.244.1.5:1", "10.244.0.5:2", false, false),
        ("[2001:db8::1]:1", "[2001:db8::3]:2", false, false),
    ] {
        let ends = [source, destination].map(|end| end.parse().expect("an address"));
        let (bytes, ethertype) = udp(ends[0], ends[1]);
        let seen = Event {
            packet: Some(packet(protocol::UDP, (source, destination))),
            ..event(HookId::DeviceReceive, 1, 1, 0)
        };
        for (text, wanted) in [
            ("node node-b.example", from || to),
            ("src node node-b.example", from),
            ("dst node node-b.example", to),
            ("not node node-b.example", !from && !to),
            ("node node-b.example and tcp", false),
        ] {
            let filter = Expression::parse(text).and_then(|parsed| parsed.resolve(&here));
            let filter = filter.expect(text);
            let words = format!("{text}: {source} > {destination}");
            // As the kernel's program sees the packet.
            assert_eq!(filter.matches_packet(&bytes, ethertype), wanted, "{words}");
            // What follows a packet takes its answers for it as well.
            let either = match text.split_once(" node") {
                Some(("src" | "dst", _)) => from || to,
                _ => wanted,
            };
            assert_eq!(filter.matches_event(&seen, &|_, _| None), either, "{words}");
        }
    }
    for unknown in ["node node-b", "node node-c"] {
        let refused = Expression::parse(unknown).and_then(|parsed| parsed.resolve(&here));
        let said = refused.expect_err(unknown).to_string();
        assert!(said.contains("no such node"), "{said}");
    }
}

#[test]
fn a_header_that_is_cut_short_has_no_ports() {
    let filter = compiled("udp port 53").expect("a filter");
    let mut first_piece = vec![0; 20];
    (first_piece[0], first_piece[6], first_piece[9]) = (0x45, 0x20, 17);
    first_piece.extend([0, 53, 0, 53]);
    assert!(filter.matches_packet(&first_piece, ethertype::IPV4));
    assert!(!filter.matches_packet(&first_piece[..23], ethertype::IPV4));
}

#[test]
fn a_piece_of_ipv6_has_the_protocol_of_its_fragment_header() {
    let filter = compiled("udp").expect("a filter");
    let mut piece = vec![0; 40];
    (piece[0], piece[6]) = (0x60, 44);
    assert!(!filter.matches_packet(&piece, ethertype::IPV6));
    piece.push(17);
    assert!(filter.matches_packet(&piece, ethertype::IPV6));
}
