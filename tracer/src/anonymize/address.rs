//! Addresses: a keyed mapping that keeps prefixes, in the manner of Crypto-PAn (Xu, Fan, Ammar and Moon,
//! "Prefix-preserving IP address anonymization", 2002): whether a bit is flipped depends on the key
//! and on the bits before it. Two addresses share as many leading bits after it as before.
//!
//! Reserved ranges stay in their place: a bit is never flipped where one of them lies below the bits before
//! it, so that no other address can become loopback or multicast, nor a private one public.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Anonymizer, Domain};
use crate::node::Mac;

/// A range that keeps its place.
struct Range {
    prefix: u128,
    length: u32,
    /// Addresses in it stay as they are; else only the range stays.
    fixed: bool,
}

const fn ip4(address: [u8; 4], length: u32, fixed: bool) -> Range {
    Range {
        prefix: (u32::from_be_bytes(address) as u128) << 96,
        length,
        fixed,
    }
}

const fn ip6(first: u16, length: u32, fixed: bool) -> Range {
    Range {
        prefix: (first as u128) << 112,
        length,
        fixed,
    }
}

/// RFC 6890, and the private ranges.
const IP4: [Range; 8] = [
    ip4([0, 0, 0, 0], 8, true),
    ip4([10, 0, 0, 0], 8, false),
    ip4([100, 64, 0, 0], 10, false),
    ip4([127, 0, 0, 0], 8, true),
    ip4([169, 254, 0, 0], 16, true),
    ip4([172, 16, 0, 0], 12, false),
    ip4([192, 168, 0, 0], 16, false),
    // Multicast, reserved, broadcast.
    ip4([224, 0, 0, 0], 3, true),
];
const IP6: [Range; 4] = [
    // Unspecified and loopback.
    ip6(0, 127, true),
    ip6(0xfc00, 7, false),
    ip6(0xfe80, 64, false),
    ip6(0xff00, 8, true),
];
/// The last bit before the host part, which is always flipped: no address stays as it is.
const IP4_TURN: u32 = 23;
const IP6_TURN: u32 = 95;
/// Addresses that NAT64 makes of IPv4 ones (RFC 6052).
const NAT64: u128 = 0x0064_ff9b << 96;
/// Solicited-node multicast (RFC 4291) ends in the last three bytes of an address.
const SOLICITED_NODE: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;

/// The first bits of an address that is in the upper bits of a number.
const fn first(bits: u128, length: u32) -> u128 {
    if length == 0 {
        0
    } else {
        bits & (u128::MAX << (128 - length))
    }
}

/// A number with its first bits alone: the network of an address.
pub(super) fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let bits = first(
                u128::from(u32::from(address)) << 96,
                u32::from(length).min(32),
            );
            Ipv4Addr::from((bits >> 96) as u32).into()
        }
        IpAddr::V6(address) => {
            Ipv6Addr::from(first(address.into(), u32::from(length).min(128))).into()
        }
    }
}

/// Only zeros or only ones so far: a host part that may be the network's or the broadcast address.
const fn is_plain(host: u128, length: u32) -> bool {
    host == 0 || host == first(u128::MAX, length)
}

impl Anonymizer {
    /// What an address becomes.
    pub fn address(&self, address: IpAddr) -> IpAddr {
        if let Some(&known) = self.addresses.borrow().get(&address) {
            return known;
        }
        let mapped = self.map(address);
        self.addresses.borrow_mut().insert(address, mapped);
        mapped
    }

    fn map(&self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(address) => self.map_ip4(address).into(),
            IpAddr::V6(address) => {
                if let Some(inside) = address.to_ipv4_mapped() {
                    return self.map_ip4(inside).to_ipv6_mapped().into();
                }
                let bits = u128::from(address);
                if first(bits, 96) == NAT64 {
                    let inside = self.map_ip4(Ipv4Addr::from(bits as u32));
                    return Ipv6Addr::from(NAT64 | u128::from(u32::from(inside))).into();
                }
                if first(bits, 104) == SOLICITED_NODE {
                    let random = self.bytes(Domain::Ip6, &[b"solicited", &address.octets()]);
                    let host = u128::from(u32::from_be_bytes([0, random[0], random[1], random[2]]));
                    return Ipv6Addr::from(SOLICITED_NODE | host).into();
                }
                Ipv6Addr::from(self.walk(Domain::Ip6, bits, 128, &IP6, IP6_TURN)).into()
            }
        }
    }

    fn map_ip4(&self, address: Ipv4Addr) -> Ipv4Addr {
        let bits = u128::from(u32::from(address)) << 96;
        let mapped = self.walk(Domain::Ip4, bits, 32, &IP4, IP4_TURN);
        Ipv4Addr::from((mapped >> 96) as u32)
    }

    /// Maps the upper `width` bits.
    fn walk(&self, domain: Domain, bits: u128, width: u32, ranges: &[Range], turn: u32) -> u128 {
        let within = |range: &Range| first(bits, range.length) == range.prefix;
        if ranges.iter().any(|range| range.fixed && within(range)) {
            return bits;
        }
        let mut flips = 0;
        for at in 0..width {
            let before = first(bits, at);
            let below = |range: &Range| range.length > at && first(range.prefix, at) == before;
            let stays = at > turn && is_plain(before << (turn + 1), at - turn - 1);
            if stays || ranges.iter().any(below) {
                continue;
            }
            let flipped = at == turn || {
                let random = self.bytes(domain, &[&[at as u8], &before.to_be_bytes()]);
                random[0] & 1 == 1
            };
            if flipped {
                flips |= 1 << (127 - at);
            }
        }
        bits ^ flips
    }

    /// What a MAC address becomes. Groups stay, and so do zero and the bits that say group and
    /// locally administered.
    pub fn mac(&self, mac: Mac) -> Mac {
        let kept = mac.0[0] & 3;
        let solicited = mac.0.starts_with(&[0x33, 0x33, 0xff]);
        if (kept & 1 == 1 && !solicited) || mac.0 == [0; 6] {
            return mac;
        }
        let random = self.bytes(Domain::Mac, &[&mac.0]);
        let mut mapped = mac.0;
        let from = if solicited { 3 } else { 0 };
        mapped[from..].copy_from_slice(&random[from..6]);
        if !solicited {
            mapped[0] = random[0] & !3 | kept;
        }
        Mac(mapped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping() -> Anonymizer {
        Anonymizer::new(&[7; super::super::KEY_BYTES])
    }

    fn map(text: &str) -> IpAddr {
        mapping().address(text.parse().expect("an address"))
    }

    fn shared(one: IpAddr, two: IpAddr) -> u32 {
        let bits = |address| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
            IpAddr::V6(address) => u128::from(address),
        };
        (bits(one) ^ bits(two)).leading_zeros()
    }

    #[test]
    fn as_many_leading_bits_are_shared_after_as_before() {
        let addresses = [
            "10.244.0.1",
            "10.244.1.7",
            "10.244.1.15",
            "10.96.0.10",
            "192.168.3.187",
            "192.168.3.10",
            "172.20.1.9",
            "198.51.100.3",
            "8.8.8.8",
            "2001:db8::1",
            "2001:db8::2",
            "fd00:1::9",
            "fe80::1",
            "::ffff:10.244.1.7",
        ];
        for one in addresses {
            for two in addresses {
                let (one, two): (IpAddr, IpAddr) =
                    (one.parse().expect("one"), two.parse().expect("two"));
                if one.is_ipv4() == two.is_ipv4() {
                    let mapping = mapping();
                    let mapped = shared(mapping.address(one), mapping.address(two));
                    assert_eq!(mapped, shared(one, two), "{one} {two}");
                }
            }
        }
    }

    #[test]
    fn reserved_ranges_keep_their_place_and_nothing_enters_them() {
        for same in [
            "0.0.0.0",
            "127.0.0.1",
            "169.254.20.10",
            "224.0.0.251",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
        ] {
            assert_eq!(map(same).to_string(), same);
        }
        let mapping = mapping();
        for seed in 0..20_000u32 {
            let address = std::net::Ipv4Addr::from(seed.wrapping_mul(0x9e37_79b9));
            let IpAddr::V4(mapped) = mapping.address(address.into()) else {
                panic!("{address} became IPv6");
            };
            let class = |address: Ipv4Addr| {
                (
                    address.is_loopback(),
                    address.is_multicast(),
                    address.is_private(),
                    address.is_link_local(),
                    address.octets()[3] == 255,
                    address.octets()[3] == 0,
                )
            };
            assert_eq!(class(address), class(mapped), "{address} {mapped}");
        }
    }

    #[test]
    fn every_other_address_changes_and_another_key_changes_it_otherwise() {
        let other = Anonymizer::new(&[8; super::super::KEY_BYTES]);
        let mut differ = 0;
        for text in [
            "10.0.0.1",
            "192.168.3.187",
            "203.0.113.9",
            "2001:db8::1",
            "fe80::aa:1",
        ] {
            let address: IpAddr = text.parse().expect("an address");
            assert_ne!(map(text), address);
            differ += usize::from(other.address(address) != map(text));
        }
        assert!(differ >= 3, "the key matters");
        let mac = Mac([0x02, 0, 0, 0, 0, 7]);
        assert_ne!(mapping().mac(mac), mac);
        assert_eq!(mapping().mac(mac).0[0] & 3, 2);
        assert_eq!(mapping().mac(Mac([0xff; 6])), Mac([0xff; 6]));
    }

    #[test]
    fn an_address_inside_another_is_mapped_as_itself() {
        let inside = map("10.244.1.7");
        assert_eq!(
            map("::ffff:10.244.1.7").to_string(),
            format!("::ffff:{inside}")
        );
        let IpAddr::V4(inside) = inside else {
            panic!("{inside} is no IPv4");
        };
        let [a, b, c, d] = inside.octets();
        let expected = format!("64:ff9b::{a:02x}{b:02x}:{c:02x}{d:02x}");
        assert_eq!(
            map("64:ff9b::10.244.1.7"),
            expected.parse::<IpAddr>().expect("one")
        );
        assert_ne!(map("ff02::1:ff00:7").to_string(), "ff02::1:ff00:7");
    }

    #[test]
    fn a_masked_address_is_its_network() {
        let network =
            |text: &str, length| masked(text.parse().expect("an address"), length).to_string();
        assert_eq!(network("10.244.77.3", 16), "10.244.0.0");
        assert_eq!(network("10.1.2.3", 0), "0.0.0.0");
        assert_eq!(network("2001:db8:1:2::3", 48), "2001:db8:1::");
        assert_eq!(network("10.1.2.3", 32), "10.1.2.3");
    }
}
