//! Tests of the facts: what is read, what is missing, what is compared.

use super::*;
use crate::node::{Prefix, RouteProtocol, Scope};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn empty() -> NetnsFacts {
    NetnsFacts::unread(NetnsId(1), None)
}

fn local_route(destination: &str, length: u8, source: &str) -> Route {
    Route {
        table: Route::LOCAL_TABLE,
        kind: RouteKind::Local,
        destination: Prefix {
            address: ip(destination),
            length,
        },
        preferred_source: Some(ip(source)),
        gateway: None,
        link: Some(2),
        next_hops: Vec::new(),
        protocol: RouteProtocol::Kernel,
        scope: Scope::Host,
        metric: None,
        dead: false,
    }
}

fn virtual_server(key: VirtualServerKey) -> VirtualServer {
    VirtualServer {
        key,
        scheduler: "rr".into(),
        flags: 2,
        persistence: None,
        destinations: Vec::new(),
    }
}

fn endpoint(protocol: u8, address: &str, port: u16) -> VirtualServer {
    virtual_server(VirtualServerKey::Endpoint {
        protocol,
        address: ip(address),
        port,
    })
}

#[test]
fn local_addresses_are_those_with_a_local_route() {
    let broadcast = Route {
        kind: RouteKind::Broadcast,
        ..local_route("192.168.3.255", 32, "192.168.3.182")
    };
    let elsewhere = Route {
        table: 100,
        ..local_route("203.0.113.0", 24, "192.168.3.182")
    };
    let facts = NetnsFacts {
        routes: vec![
            local_route("127.0.0.0", 8, "127.0.0.1"),
            local_route("127.0.0.2", 32, "127.0.0.2"),
            local_route("192.168.3.187", 32, "192.168.3.182"),
            broadcast,
            elsewhere,
        ],
        ..empty()
    };
    let source = |address| {
        facts
            .local_route(ip(address))
            .and_then(|route| route.preferred_source)
    };
    assert_eq!(source("192.168.3.187"), Some(ip("192.168.3.182")));
    assert_eq!(
        source("127.0.0.2"),
        Some(ip("127.0.0.2")),
        "the most specific route counts"
    );
    assert_eq!(source("127.0.0.3"), Some(ip("127.0.0.1")));
    for foreign in ["192.168.3.255", "203.0.113.1", "192.168.3.1", "::1"] {
        assert!(!facts.is_local_address(ip(foreign)), "{foreign}");
    }
}

#[test]
fn virtual_servers_are_found_as_the_kernel_finds_them() {
    let facts = NetnsFacts {
        ipvs: Some(vec![
            endpoint(6, "192.168.3.188", 0),
            endpoint(6, "192.168.3.182", 30080),
            endpoint(6, "10.0.0.9", 30080),
            endpoint(17, "192.168.3.182", 30080),
            virtual_server(VirtualServerKey::Mark {
                mark: 7,
                ipv6: false,
            }),
        ]),
        ..empty()
    };
    assert!(
        facts
            .virtual_server(6, ip("192.168.3.182"), 30080)
            .is_some()
    );
    assert!(
        facts
            .virtual_server(6, ip("192.168.3.187"), 30080)
            .is_none()
    );
    let all_ports = facts
        .virtual_server(6, ip("192.168.3.188"), 443)
        .map(|server| server.key);
    let expected = VirtualServerKey::Endpoint {
        protocol: 6,
        address: ip("192.168.3.188"),
        port: 0,
    };
    assert_eq!(all_ports, Some(expected));
    assert_eq!(facts.virtual_servers_on_port(6, 30080).count(), 2);
    assert_eq!(empty().virtual_servers_on_port(6, 30080).count(), 0);
}

#[test]
fn reads_the_namespace_that_the_test_runs_in() {
    let handle = NetnsHandle::current().unwrap();
    let facts = NetnsFacts::read(&handle, &Directory::default());
    assert_eq!(facts.id, handle.id());
    assert_eq!(facts.link(1).map(|link| link.name.as_str()), Some("lo"));
    assert!(
        facts.is_local_address(ip("127.0.0.1")),
        "{:?}",
        facts.missing
    );
    assert_eq!(
        facts
            .address(ip("127.0.0.1"))
            .map(|address| address.prefix_length),
        Some(8)
    );
    assert!(facts.sysctls.number("net/ipv4/ip_forward").is_some());
}
