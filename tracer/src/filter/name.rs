//! Names that expressions may use for numbers: services of `/etc/services` and protocols.

use std::fs;

use crate::event::protocol;

/// A named port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NamedPort {
    pub(super) port: u16,
    /// The only protocol that has the name for this port; `None` where several have.
    pub(super) protocol: Option<u8>,
}

/// A service's port by its name, as tcpdump takes it: TCP's before UDP's, and any protocol where both
/// have the same.
pub(super) fn port(name: &str) -> Option<NamedPort> {
    lookup(&fs::read_to_string("/etc/services").ok()?, name)
}

fn lookup(services: &str, name: &str) -> Option<NamedPort> {
    let of = |wanted: &str| {
        services.lines().find_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let (official, number) = (words.next()?, words.next()?);
            let (number, found) = number.split_once('/')?;
            let named = official == name || words.any(|alias| alias == name);
            (named && found == wanted)
                .then(|| number.parse().ok())
                .flatten()
        })
    };
    match (of("tcp"), of("udp")) {
        (Some(one), Some(two)) if one == two => Some(NamedPort {
            port: one,
            protocol: None,
        }),
        (Some(port), _) => Some(NamedPort {
            port,
            protocol: Some(protocol::TCP),
        }),
        (None, Some(port)) => Some(NamedPort {
            port,
            protocol: Some(protocol::UDP),
        }),
        (None, None) => of("sctp").map(|port| NamedPort {
            port,
            protocol: Some(protocol::SCTP),
        }),
    }
}

/// IP protocols by the names that are in use (IANA's, in lower case).
const PROTOCOLS: &[(&str, u8)] = &[
    ("icmp", protocol::ICMP),
    ("igmp", 2),
    ("ipip", 4),
    ("tcp", protocol::TCP),
    ("udp", protocol::UDP),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmp6", protocol::ICMP6),
    ("ipv6-icmp", protocol::ICMP6),
    ("ospf", 89),
    ("vrrp", 112),
    ("sctp", protocol::SCTP),
];

/// A protocol's number by its name.
pub(super) fn protocol_number(name: &str) -> Option<u8> {
    PROTOCOLS
        .iter()
        .find_map(|&(known, number)| (known == name).then_some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_both_protocols_means_any() {
        let services = "domain 53/tcp\ndomain 53/udp # name server\nhttp\t80/tcp www\n\
                        tftp 69/udp\nodd 1/tcp\nodd 2/udp\n";
        let named = |port, protocol| Some(NamedPort { port, protocol });
        assert_eq!(lookup(services, "domain"), named(53, None));
        assert_eq!(lookup(services, "www"), named(80, Some(6)));
        assert_eq!(lookup(services, "tftp"), named(69, Some(17)));
        assert_eq!(lookup(services, "odd"), named(1, Some(6)));
        assert_eq!(lookup(services, "80/tcp"), None);
    }
}
