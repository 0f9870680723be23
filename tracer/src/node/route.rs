//! Routes of every table (`ip route show table all`), the local table included.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{DecodeError, Emitable as _, ParseableParametrized as _};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteLwEnCapType, RouteMessage,
    RouteNextHop, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::Missing;
use super::address::Scope;
use super::netlink::{Conversation, ReadError, attributes};
use super::numbered::numbered;
use super::table::rows_or_missing;

/// A node that carries the internet's whole table must not exhaust the tracer's memory.
const LIMIT: usize = 300_000;

/// A route.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Route {
    /// Routing table; see [`Route::LOCAL_TABLE`] and [`Route::MAIN_TABLE`].
    pub table: u32,
    /// What happens to packets that match.
    pub kind: RouteKind,
    /// Which packets match.
    pub destination: Prefix,
    /// Source address that the kernel prefers for packets it sends by this route.
    pub preferred_source: Option<IpAddr>,
    /// Next router; `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the device that packets leave by.
    pub link: Option<u32>,
    /// All next hops where there are several; then `gateway` and `link` are `None`.
    pub next_hops: Vec<NextHop>,
    /// Who made it.
    pub protocol: RouteProtocol,
    /// How far the destination is (IPv4).
    pub scope: Scope,
    /// Priority: among equal prefixes the lowest wins; `None` is the kernel's default.
    pub metric: Option<u32>,
    /// The kernel does not use it, because its device is down (`RTNH_F_DEAD`).
    pub dead: bool,
}

impl Route {
    /// Table of the addresses that are the node's own.
    pub const LOCAL_TABLE: u32 = 255;
    /// Table that `ip route` shows.
    pub const MAIN_TABLE: u32 = 254;

    /// The kernel's route to one of a device's own addresses.
    #[cfg(test)]
    pub(crate) fn local(address: IpAddr, link: u32) -> Self {
        Self {
            table: Self::LOCAL_TABLE,
            kind: RouteKind::Local,
            destination: Prefix {
                address,
                length: if address.is_ipv4() { 32 } else { 128 },
            },
            preferred_source: address.is_ipv4().then_some(address),
            gateway: None,
            link: Some(link),
            next_hops: Vec::new(),
            protocol: RouteProtocol::Kernel,
            scope: Scope::Host,
            metric: None,
            dead: false,
        }
    }
}

/// One of several next hops.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NextHop {
    /// Next router.
    pub gateway: Option<IpAddr>,
    /// Index of the device.
    pub link: u32,
}

/// An address range.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Prefix {
    /// First address.
    pub address: IpAddr,
    /// Leading bits that must match.
    pub length: u8,
}

impl Prefix {
    /// From `address/length`; `None` when it is not a prefix.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, length) = text.trim().split_once('/')?;
        let (address, length): (IpAddr, u8) = (address.parse().ok()?, length.parse().ok()?);
        let width = if address.is_ipv4() { 32 } else { 128 };
        (length <= width).then_some(Self { address, length })
    }

    /// The same with the first address of its range; `None` for a length that its family does not have.
    pub fn masked(&self) -> Option<Self> {
        let length = u32::from(self.length);
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32_u32.checked_sub(length)?);
                IpAddr::V4((u32::from(address) & mask.unwrap_or(0)).into())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128_u32.checked_sub(length)?);
                IpAddr::V6((u128::from(address) & mask.unwrap_or(0)).into())
            }
        };
        Some(Self {
            address,
            length: self.length,
        })
    }

    /// Whether an address lies in the range; never across address families.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same_leading_bits = |difference: u128, width: u32| {
            u32::from(self.length) <= width
                && difference
                    .checked_shr(width - u32::from(self.length))
                    .unwrap_or(0)
                    == 0
        };
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                same_leading_bits(u128::from(u32::from(own) ^ u32::from(other)), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                same_leading_bits(u128::from(own) ^ u128::from(other), 128)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.length)
    }
}

numbered! {
    /// What a route does with packets (`RTN_*`).
    RouteKind: u8 {
        /// Sends them on.
        Unicast = 1, "unicast";
        /// Delivers them to this node.
        Local = 2, "local";
        /// Broadcast address.
        Broadcast = 3, "broadcast";
        /// Anycast address of this node.
        Anycast = 4, "anycast";
        /// Multicast.
        Multicast = 5, "multicast";
        /// Drops silently.
        Blackhole = 6, "blackhole";
        /// Drops and answers host unreachable.
        Unreachable = 7, "unreachable";
        /// Drops and answers administratively prohibited.
        Prohibit = 8, "prohibit";
        /// Ends the lookup in this table.
        Throw = 9, "throw";
    }
}

numbered! {
    /// Who made a route (`RTPROT_*`).
    RouteProtocol: u8 {
        /// Not said.
        Unspecified = 0, "unspec";
        /// ICMP redirect.
        Redirect = 1, "redirect";
        /// The kernel, for an address.
        Kernel = 2, "kernel";
        /// During boot, or by hand without saying so.
        Boot = 3, "boot";
        /// The administrator.
        Static = 4, "static";
        /// Router advertisement.
        RouterAdvertisement = 9, "ra";
        /// Zebra.
        Zebra = 11, "zebra";
        /// BIRD (Calico).
        Bird = 12, "bird";
        /// DHCP client.
        Dhcp = 16, "dhcp";
        /// Keepalived.
        Keepalived = 18, "keepalived";
        /// BGP daemon.
        Bgp = 186, "bgp";
        /// OSPF daemon.
        Ospf = 188, "ospf";
    }
}

pub(super) fn read(route: &mut Conversation, missing: &mut Vec<Missing>) -> Vec<Route> {
    // The local table decides what is the node's own, so it is read whole, whatever the limit
    // does to the rest. A kernel that cannot filter sends all, and `parse` filters.
    let _ = route.filter_in_kernel();
    let mut routes = Vec::new();
    for (family, name) in [
        (AddressFamily::Inet, "IPv4"),
        (AddressFamily::Inet6, "IPv6"),
    ] {
        let local = |table| table == Route::LOCAL_TABLE;
        let result = route.dump(
            request(family, Route::LOCAL_TABLE as u8),
            usize::MAX,
            |payload| parse(payload, local),
        );
        // A namespace where nothing was ever set up has no such table.
        if !matches!(result, Err(ReadError::Refused(Errno::ENOENT))) {
            routes.extend(rows_or_missing(
                &format!("{name} local routes"),
                result,
                missing,
            ));
        }
        let result = route.dump(request(family, 0), LIMIT, |payload| {
            parse(payload, |table| !local(table))
        });
        routes.extend(rows_or_missing(&format!("{name} routes"), result, missing));
    }
    routes
}

fn request(family: AddressFamily, table: u8) -> RouteNetlinkMessage {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.header.table = table;
    RouteNetlinkMessage::GetRoute(request)
}

fn parse(payload: &[u8], wanted: impl Fn(u32) -> bool) -> Result<Option<Route>, DecodeError> {
    let header = RouteHeader::parse(payload)?;
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return Ok(None),
    };
    let mut route = Route {
        table: u32::from(header.table),
        kind: RouteKind::from_kernel(header.kind.into()),
        destination: Prefix {
            address: any,
            length: header.destination_prefix_length,
        },
        preferred_source: None,
        gateway: None,
        link: None,
        next_hops: Vec::new(),
        protocol: RouteProtocol::from_kernel(header.protocol.into()),
        scope: Scope::from_kernel(header.scope.into()),
        metric: None,
        dead: header.flags.contains(RouteFlags::Dead),
    };
    let mut destination = None;
    let context = (header.address_family, header.kind, RouteLwEnCapType::None);
    for attribute in attributes(payload, header.buffer_len()) {
        match RouteAttribute::parse_with_param(&attribute, context) {
            Ok(RouteAttribute::Table(table)) => route.table = table,
            Ok(RouteAttribute::Destination(address)) => destination = plain(&address),
            Ok(RouteAttribute::PrefSource(address)) => route.preferred_source = plain(&address),
            Ok(RouteAttribute::MultiPath(hops)) => {
                route.next_hops = hops.iter().map(next_hop).collect()
            }
            Ok(RouteAttribute::Oif(index)) => route.link = Some(index),
            Ok(RouteAttribute::Priority(metric)) => route.metric = Some(metric),
            Ok(other) => route.gateway = gateway(&other).or(route.gateway),
            Err(_) => {}
        }
    }
    if !wanted(route.table) {
        return Ok(None);
    }
    match destination {
        Some(address) => route.destination.address = address,
        // Without this check a damaged message would look like a route for everything.
        None if header.destination_prefix_length != 0 => {
            return Err("route without a destination".into());
        }
        None => {}
    }
    Ok(Some(route))
}

fn plain(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => plain(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    }
}

fn next_hop(hop: &RouteNextHop) -> NextHop {
    NextHop {
        gateway: hop.attributes.iter().find_map(gateway),
        link: hop.interface_index,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::{
        RouteProtocol as RawProtocol, RouteScope, RouteType as RawKind,
    };

    use super::*;

    fn message(prefix_length: u8, attributes: Vec<RouteAttribute>) -> Vec<u8> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = prefix_length;
        message.header.table = 255;
        message.header.kind = RawKind::Local;
        message.header.protocol = RawProtocol::Kernel;
        message.header.scope = RouteScope::Host;
        message.attributes = attributes;
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn reads_the_local_route_of_a_secondary_address() {
        let bytes = message(
            32,
            vec![
                RouteAttribute::Table(255),
                RouteAttribute::Destination(ip("192.168.3.187").into()),
                RouteAttribute::PrefSource(ip("192.168.3.182").into()),
                RouteAttribute::Oif(2),
            ],
        );
        let route = parse(&bytes, |table| table == 255).unwrap().unwrap();
        assert_eq!(route.destination.to_string(), "192.168.3.187/32");
        assert_eq!(route.preferred_source, Some(ip("192.168.3.182")));
        assert_eq!(
            (route.kind, route.protocol, route.scope),
            (RouteKind::Local, RouteProtocol::Kernel, Scope::Host)
        );
        assert_eq!(
            (route.link, route.gateway, route.metric),
            (Some(2), None, None)
        );
        assert_eq!(parse(&bytes, |table| table != 255).unwrap(), None);
        for length in 0..bytes.len() {
            let _ = parse(&bytes[..length], |_| true);
        }
    }

    #[test]
    fn table_attribute_wins_and_default_route_matches_all() {
        let bytes = message(
            0,
            vec![
                RouteAttribute::Table(1000),
                RouteAttribute::Gateway(ip("10.0.0.1").into()),
            ],
        );
        let route = parse(&bytes, |_| true).unwrap().unwrap();
        assert_eq!((route.table, route.gateway), (1000, Some(ip("10.0.0.1"))));
        assert!(route.destination.contains(ip("203.0.113.9")));
        assert!(!route.destination.contains(ip("::1")));
    }

    #[test]
    fn prefix_without_its_address_is_no_route() {
        assert!(parse(&message(24, vec![]), |_| true).is_err());
    }

    #[test]
    fn reads_several_next_hops() {
        let mut hop = RouteNextHop::default();
        hop.interface_index = 4;
        hop.attributes = vec![RouteAttribute::Gateway(ip("10.0.0.9").into())];
        let bytes = message(0, vec![RouteAttribute::MultiPath(vec![hop])]);
        let route = parse(&bytes, |_| true).unwrap().unwrap();
        assert_eq!(
            route.next_hops,
            [NextHop {
                gateway: Some(ip("10.0.0.9")),
                link: 4
            }]
        );
    }

    #[test]
    fn prefixes_contain_by_leading_bits() {
        for (address, length, inside, outside) in [
            ("10.244.0.0", 16, "10.244.255.255", "10.245.0.0"),
            ("10.0.0.1", 32, "10.0.0.1", "10.0.0.2"),
            ("2001:db8::", 32, "2001:db8:ffff::", "2001:db9::"),
            ("::1", 128, "::1", "::2"),
        ] {
            let prefix = Prefix {
                address: ip(address),
                length,
            };
            assert!(prefix.contains(ip(inside)), "{prefix} {inside}");
            assert!(!prefix.contains(ip(outside)), "{prefix} {outside}");
        }
        assert!(
            Prefix {
                address: ip("::"),
                length: 0
            }
            .contains(ip("ff02::1"))
        );
        assert!(
            !Prefix {
                address: ip("10.0.0.0"),
                length: 33
            }
            .contains(ip("10.0.0.0"))
        );
    }
}
