//! Addresses of devices (`ip address`).

use std::net::IpAddr;

use netlink_packet_core::{DecodeError, Emitable as _, Parseable as _};
use netlink_packet_route::address::{AddressAttribute, AddressHeader, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::netlink::{Conversation, ReadError, attributes};
use super::numbered::numbered;
use super::table::Table;

/// An address that a device carries.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Address {
    /// Index of the device.
    pub link: u32,
    /// The address itself, not its peer's.
    pub address: IpAddr,
    /// Bits of the on-link prefix.
    pub prefix_length: u8,
    /// IPv4 only: another address of the same prefix was there first (`IFA_F_SECONDARY`), so the
    /// kernel's local route names that one as source. In IPv6 the bit means "temporary".
    pub secondary: bool,
    /// All flags as the kernel gives them (`IFA_F_*`).
    pub flags: u32,
    /// Label (IPv4): the device's name, or name:alias.
    pub label: Option<String>,
    /// How far the address is valid.
    pub scope: Scope,
    /// When it was added, by CLOCK_MONOTONIC in nanoseconds.
    #[serde(default)]
    pub created_ns: Option<u64>,
}

impl Address {
    /// An address that is valid everywhere, and of which no more is known.
    pub const fn global(link: u32, address: IpAddr, prefix_length: u8) -> Self {
        Self {
            link,
            address,
            prefix_length,
            secondary: false,
            flags: 0,
            label: None,
            scope: Scope::Global,
            created_ns: None,
        }
    }
}

numbered! {
    /// How far an address or route reaches (`RT_SCOPE_*`).
    Scope: u8 {
        /// Everywhere.
        Global = 0, "global";
        /// Within the site.
        Site = 200, "site";
        /// On this link.
        Link = 253, "link";
        /// On this host.
        Host = 254, "host";
        /// Nowhere: the destination does not exist.
        Nowhere = 255, "nowhere";
    }
}

pub(super) fn read(route: &mut Conversation) -> Result<Table<Address>, ReadError> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    route.dump(request, usize::MAX, parse)
}

fn parse(payload: &[u8]) -> Result<Option<Address>, DecodeError> {
    let header = AddressHeader::parse(payload)?;
    if !matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return Ok(None);
    }
    let (mut own, mut peer_or_own, mut label, mut created_ns) = (None, None, None, None);
    let mut flags = u32::from(header.flags.bits());
    for attribute in attributes(payload, header.buffer_len()) {
        match AddressAttribute::parse(&attribute) {
            Ok(AddressAttribute::Local(address)) => own = Some(address),
            Ok(AddressAttribute::Address(address)) => peer_or_own = Some(address),
            Ok(AddressAttribute::Label(text)) => label = Some(text),
            // In hundredths of a second since the machine started.
            Ok(AddressAttribute::CacheInfo(times)) => {
                created_ns = Some(u64::from(times.cstamp) * 10_000_000);
            }
            Ok(AddressAttribute::Flags(all)) => flags = all.bits(),
            Ok(_) | Err(_) => {}
        }
    }
    // On point-to-point devices `IFA_ADDRESS` is the peer's; then `IFA_LOCAL` is there too.
    let address = own
        .or(peer_or_own)
        .ok_or("address message without an address")?;
    Ok(Some(Address {
        link: header.index,
        address,
        prefix_length: header.prefix_len,
        secondary: address.is_ipv4() && flags & libc::IFA_F_SECONDARY != 0,
        flags,
        label,
        scope: Scope::from_kernel(header.scope.into()),
        created_ns,
    }))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable as _;
    use netlink_packet_route::address::{AddressFlags, AddressScope, CacheInfo};

    use super::*;

    fn message(family: AddressFamily, attributes: Vec<AddressAttribute>) -> Vec<u8> {
        let mut message = AddressMessage::default();
        message.header.family = family;
        message.header.index = 2;
        message.header.prefix_len = 24;
        message.header.scope = AddressScope::Link;
        message.attributes = attributes;
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    #[test]
    fn reads_a_secondary_address() {
        let mut times = CacheInfo::default();
        times.cstamp = 1234;
        let vip: IpAddr = "192.168.3.187".parse().unwrap();
        let bytes = message(
            AddressFamily::Inet,
            vec![
                AddressAttribute::Address(vip),
                AddressAttribute::Local(vip),
                AddressAttribute::Label("eth0".into()),
                AddressAttribute::Flags(AddressFlags::from_bits_retain(0x81)),
                AddressAttribute::CacheInfo(times),
            ],
        );
        let expected = Address {
            link: 2,
            address: vip,
            prefix_length: 24,
            secondary: true,
            flags: 0x81,
            label: Some("eth0".into()),
            scope: Scope::Link,
            created_ns: Some(12_340_000_000),
        };
        assert_eq!(parse(&bytes).unwrap(), Some(expected));
        for length in 0..bytes.len() {
            let _ = parse(&bytes[..length]);
        }
    }

    #[test]
    fn own_address_wins_over_the_peers() {
        let own: IpAddr = "10.0.0.1".parse().unwrap();
        let peer: IpAddr = "10.0.0.2".parse().unwrap();
        let bytes = message(
            AddressFamily::Inet,
            vec![
                AddressAttribute::Address(peer),
                AddressAttribute::Local(own),
            ],
        );
        assert_eq!(parse(&bytes).unwrap().unwrap().address, own);
    }

    #[test]
    fn temporary_ipv6_addresses_are_not_secondary() {
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        let flags = AddressFlags::from_bits_retain(libc::IFA_F_TEMPORARY);
        let bytes = message(
            AddressFamily::Inet6,
            vec![
                AddressAttribute::Address(address),
                AddressAttribute::Flags(flags),
            ],
        );
        assert!(!parse(&bytes).unwrap().unwrap().secondary);
    }
}
