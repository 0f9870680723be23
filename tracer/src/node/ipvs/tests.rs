//! Tests of IPVS facts on recorded netlink answers.

use super::*;

const AF_INET: u16 = libc::AF_INET as u16;
const AF_INET6: u16 = libc::AF_INET6 as u16;

fn nla(kind: u16, value: impl AsRef<[u8]>) -> DefaultNla {
    DefaultNla::new(kind, value.as_ref().to_vec())
}

/// The kernel's union of both families.
fn union(address: &str) -> Vec<u8> {
    let mut bytes = match address.parse().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    bytes.resize(16, 0);
    bytes
}

fn answer(kind: u16, attributes: &[DefaultNla]) -> Vec<u8> {
    let outer = nla(kind | NLA_F_NESTED, emitted(attributes));
    [vec![1, 1, 0, 0], emitted(&[outer])].concat()
}

fn flags(bits: u32) -> Vec<u8> {
    [bits.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat()
}

fn service(address: &str, family: u16, netmask: [u8; 4]) -> Vec<DefaultNla> {
    vec![
        nla(SVC_ATTR_AF, family.to_ne_bytes()),
        nla(SVC_ATTR_PROTOCOL, 17_u16.to_ne_bytes()),
        nla(SVC_ATTR_ADDR, union(address)),
        nla(SVC_ATTR_PORT, 53_u16.to_be_bytes()),
        nla(SVC_ATTR_SCHED_NAME, b"rr\0"),
        nla(SVC_ATTR_FLAGS, flags(3)),
        nla(SVC_ATTR_TIMEOUT, 10800_u32.to_ne_bytes()),
        nla(SVC_ATTR_NETMASK, netmask),
        nla(10, [0; 40]),
    ]
}

fn destination(address: &str, forwarding: u32) -> Vec<DefaultNla> {
    let number = |kind, value: u32| nla(kind, value.to_ne_bytes());
    vec![
        nla(DEST_ATTR_ADDR, union(address)),
        nla(DEST_ATTR_PORT, 8080_u16.to_be_bytes()),
        number(DEST_ATTR_FWD_METHOD, forwarding),
        number(DEST_ATTR_WEIGHT, 5),
        number(DEST_ATTR_U_THRESH, 100),
        number(DEST_ATTR_L_THRESH, 0),
        number(DEST_ATTR_ACTIVE_CONNS, 2),
        number(DEST_ATTR_INACT_CONNS, 3),
        number(DEST_ATTR_PERSIST_CONNS, 0),
    ]
}

#[test]
fn reads_a_persistent_virtual_server() {
    let attributes = service("10.96.0.10", AF_INET, [255, 255, 255, 0]);
    let bytes = answer(CMD_ATTR_SERVICE, &attributes);
    let row = parse_service(&bytes).unwrap().unwrap();
    let key = VirtualServerKey::Endpoint {
        protocol: 17,
        address: [10, 96, 0, 10].into(),
        port: 53,
    };
    let persistence = Persistence {
        timeout: Duration::from_secs(10800),
        prefix_length: 24,
    };
    let expected = VirtualServer {
        key,
        scheduler: "rr".into(),
        flags: 3,
        persistence: Some(persistence),
        destinations: Vec::new(),
    };
    assert_eq!(row.server, expected);
    // What the kernel needs to find it again: family, protocol, address, port.
    assert_eq!(row.identity, attributes[..4]);
    for length in 0..bytes.len() {
        let _ = parse_service(&bytes[..length]);
    }
}

#[test]
fn ipv6_netmask_is_a_length() {
    let attributes = service("2001:db8::1", AF_INET6, 64_u32.to_ne_bytes());
    let row = parse_service(&answer(CMD_ATTR_SERVICE, &attributes))
        .unwrap()
        .unwrap();
    assert_eq!(row.server.persistence.unwrap().prefix_length, 64);
    assert!(row.ipv6);
}

#[test]
fn reads_a_firewall_mark_server() {
    let attributes = [
        nla(SVC_ATTR_AF, AF_INET.to_ne_bytes()),
        nla(SVC_ATTR_FWMARK, 7_u32.to_ne_bytes()),
        nla(SVC_ATTR_SCHED_NAME, b"wlc\0"),
        nla(SVC_ATTR_FLAGS, flags(2)),
    ];
    let row = parse_service(&answer(CMD_ATTR_SERVICE, &attributes))
        .unwrap()
        .unwrap();
    assert_eq!(
        row.server.key,
        VirtualServerKey::Mark {
            mark: 7,
            ipv6: false
        }
    );
    assert_eq!(
        (row.server.scheduler.as_str(), row.server.persistence),
        ("wlc", None)
    );
}

#[test]
fn servers_without_an_essential_attribute_are_refused() {
    let complete = service("10.96.0.10", AF_INET, [255; 4]);
    for essential in 0..complete.len() - 1 {
        let mut attributes = complete.clone();
        attributes.remove(essential);
        assert!(
            parse_service(&answer(CMD_ATTR_SERVICE, &attributes)).is_err(),
            "{essential}"
        );
    }
    let foreign = service("10.96.0.10", 1, [255; 4]);
    assert!(parse_service(&answer(CMD_ATTR_SERVICE, &foreign)).is_err());
    assert!(parse_service(&answer(CMD_ATTR_DEST, &complete)).is_err());
}

#[test]
fn reads_a_real_server() {
    // Above the method's bits are other connection flags.
    let bytes = answer(CMD_ATTR_DEST, &destination("10.0.0.2", 0x100));
    let expected = RealServer {
        address: [10, 0, 0, 2].into(),
        port: 8080,
        forwarding: ForwardingMethod::Masquerade,
        weight: 5,
        active_connections: Some(2),
        inactive_connections: Some(3),
        persistent_connections: Some(0),
        upper_threshold: Some(100),
        lower_threshold: None,
    };
    assert_eq!(parse_destination(&bytes, false).unwrap(), Some(expected));
    for length in 0..bytes.len() {
        let _ = parse_destination(&bytes[..length], false);
    }
}

#[test]
fn a_tunnel_may_lead_to_the_other_family() {
    let mut attributes = destination("2001:db8::2", 2);
    attributes.push(nla(DEST_ATTR_ADDR_FAMILY, AF_INET6.to_ne_bytes()));
    let real = parse_destination(&answer(CMD_ATTR_DEST, &attributes), false)
        .unwrap()
        .unwrap();
    assert_eq!(real.address, "2001:db8::2".parse::<IpAddr>().unwrap());
    assert_eq!(real.forwarding.to_string(), "tunnel");
}

#[test]
fn finds_its_family_among_the_others() {
    let family = |name: &[u8]| {
        let attributes = [nla(1, 30_u16.to_ne_bytes()), nla(2, name)];
        [vec![1, 2, 0, 0], emitted(&attributes)].concat()
    };
    assert_eq!(parse_family(&family(b"IPVS\0")), Some(30));
    assert_eq!(parse_family(&family(b"nlctrl\0")), None);
    assert_eq!(parse_family(&[]), None);
}
