//! Tables of expressions: what they mean, and how wrong ones are shown. That tcpdump gives the same
//! answers is tested in `against_tcpdump`.

use std::net::IpAddr;

use super::*;
use crate::event::Arp;
use crate::journey::constructed::event;
use crate::kube::ObjectName;

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
        ..event(tracer_ebpf::hook::HookId::DeviceReceive, 1, 1, 0)
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
