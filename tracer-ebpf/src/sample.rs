//! Which flows are left out while tracing costs too much: a number of each packet that its whole flow
//! shares, on both ways and through NAT.
//!
//! NAT changes addresses and the service's port. The client's port it keeps unless that is taken, and
//! it is the higher one: Linux gives clients ports from 32,768 on, above services and NodePorts. So the
//! higher port is what a flow is known by, without a table. Where the client gets another port (kube-proxy
//! masquerades with --random-fully) each side of the flow goes by its own port, and may be traced without the other.
//!
//! Packets without ports go by their addresses, echoes by their identifier, fragments by their
//! datagram, ICMP errors and tunnels by what they carry.

/// In place of the number below which flows are left out: tracing has not begun, and nothing is reported. Meanwhile
/// only some of the hooks are attached, and half a way looks like a loss.
pub const NOT_BEGUN: u32 = u32::MAX;

const IPIP: u8 = 4;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const SCTP: u8 = 132;
const FRAGMENT6: u8 = 44;
/// A piece of an IPv4 packet, by a number that is no protocol's.
const FRAGMENT4: u8 = 255;
/// UDP ports of VXLAN, by IANA and by Linux' old default.
const VXLAN: [u16; 2] = [4789, 8472];
/// From VXLAN's UDP header to the inner network header: UDP, VXLAN and Ethernet.
const VXLAN_HEADERS: u32 = 8 + 8 + 14;
/// Destination unreachable, source quench, redirect, time exceeded, parameter problem: a bit for each type.
const ICMP_ERRORS: u16 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 11 | 1 << 12;
/// An ICMP error's own header.
const ICMP_HEADER: u32 = 8;

/// Bytes of a network header that are looked at.
pub const NETWORK_BYTES: usize = 40;

/// What is behind a packet's network header, and where; `None` for what is no IP.
#[inline(always)]
pub const fn transport(bytes: &[u8; NETWORK_BYTES]) -> Option<(u8, u32)> {
    match bytes[0] >> 4 {
        4 if bytes[6] & 0x3f | bytes[7] != 0 => Some((FRAGMENT4, 0)),
        4 => Some((bytes[9], (bytes[0] as u32 & 15) * 4)),
        6 => Some((bytes[6], NETWORK_BYTES as u32)),
        _ => None,
    }
}

/// How many bytes of headers lie before the packet in a tunnel's, by what [`transport`] says; 0 for one that is none.
#[inline(always)]
pub const fn tunnelled(protocol: u8, length: u32, behind: [u8; 8]) -> u32 {
    let port = u16::from_be_bytes([behind[2], behind[3]]);
    match protocol {
        UDP if port == VXLAN[0] || port == VXLAN[1] => length + VXLAN_HEADERS,
        IPIP => length,
        _ => 0,
    }
}

/// The same for the packet that an ICMP error quotes.
#[inline(always)]
pub const fn quoted(protocol: u8, length: u32, behind: [u8; 8]) -> u32 {
    let kind = behind[0];
    match protocol {
        ICMP if kind < 16 && ICMP_ERRORS >> kind & 1 != 0 => length + ICMP_HEADER,
        ICMP6 if kind.wrapping_sub(1) < 127 => length + ICMP_HEADER,
        _ => 0,
    }
}

/// The number of a packet's flow, by its network header and what is behind that, see [`spread`].
#[inline(always)]
pub const fn flow(bytes: &[u8; NETWORK_BYTES], protocol: u8, behind: [u8; 8]) -> u32 {
    let kind = behind[0];
    let number = match protocol {
        TCP | UDP | SCTP => {
            let one = u16::from_be_bytes([behind[0], behind[1]]);
            let two = u16::from_be_bytes([behind[2], behind[3]]);
            if one > two { one as u32 } else { two as u32 }
        }
        FRAGMENT4 => u16::from_be_bytes([bytes[4], bytes[5]]) as u32,
        FRAGMENT6 => u32::from_ne_bytes([behind[4], behind[5], behind[6], behind[7]]),
        ICMP if kind & !8 == 0 => echo(behind),
        ICMP6 if kind & !1 == 128 => echo(behind),
        _ => addresses(bytes),
    };
    spread(number)
}

#[inline(always)]
const fn echo(behind: [u8; 8]) -> u32 {
    u16::from_be_bytes([behind[4], behind[5]]) as u32
}

/// Both addresses' last four bytes, the same for both ways.
#[inline(always)]
const fn addresses(bytes: &[u8; NETWORK_BYTES]) -> u32 {
    if bytes[0] >> 4 == 4 {
        four(bytes, 12) ^ four(bytes, 16)
    } else {
        four(bytes, 20) ^ four(bytes, 36)
    }
}

#[inline(always)]
const fn four(bytes: &[u8; NETWORK_BYTES], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Spreads numbers that lie close together over all 32 bits (Fibonacci hashing), so that a share of
/// the range is a share of the flows.
#[inline(always)]
pub const fn spread(number: u32) -> u32 {
    number.wrapping_add(1).wrapping_mul(0x9e37_79b1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet4(protocol: u8, source: [u8; 4], destination: [u8; 4]) -> [u8; NETWORK_BYTES] {
        let mut bytes = [0; NETWORK_BYTES];
        bytes[0] = 0x45;
        bytes[9] = protocol;
        bytes[12..16].copy_from_slice(&source);
        bytes[16..20].copy_from_slice(&destination);
        bytes
    }

    fn ports(one: u16, two: u16) -> [u8; 8] {
        let mut behind = [0; 8];
        behind[..2].copy_from_slice(&one.to_be_bytes());
        behind[2..4].copy_from_slice(&two.to_be_bytes());
        behind
    }

    fn of(bytes: &[u8; NETWORK_BYTES], behind: [u8; 8]) -> u32 {
        let (protocol, length) = transport(bytes).unwrap();
        assert_eq!(tunnelled(protocol, length, behind), 0);
        assert_eq!(quoted(protocol, length, behind), 0);
        flow(bytes, protocol, behind)
    }

    #[test]
    fn a_flow_keeps_its_number_both_ways_and_through_nat() {
        let (client, vip, pod) = ([192, 0, 2, 1], [192, 0, 2, 9], [10, 244, 1, 7]);
        let before = of(&packet4(TCP, client, vip), ports(40_000, 30_000));
        let after = of(&packet4(TCP, vip, pod), ports(40_000, 3000));
        let back = of(&packet4(TCP, pod, vip), ports(3000, 40_000));
        assert_eq!(before, after);
        assert_eq!(before, back);
        assert_ne!(
            before,
            of(&packet4(TCP, client, vip), ports(40_001, 30_000))
        );
    }

    #[test]
    fn tunnels_and_errors_go_by_what_they_carry() {
        assert_eq!(tunnelled(UDP, 20, ports(50_000, 8472)), 20 + 30);
        let mut error = [0; 8];
        error[0] = 3;
        assert_eq!(quoted(ICMP, 20, error), 28);
        assert_eq!(tunnelled(IPIP, 20, [0; 8]), 20);
    }

    #[test]
    fn a_fragment_goes_by_its_datagram() {
        let mut first = packet4(UDP, [1; 4], [2; 4]);
        first[4..8].copy_from_slice(&[0x12, 0x34, 0x20, 0]);
        let mut later = first;
        later[6..8].copy_from_slice(&[0x00, 0xb9]);
        assert_eq!(of(&first, ports(40_000, 53)), of(&later, [7; 8]));
        // "Do not fragment" is no fragment.
        let mut whole = packet4(UDP, [1; 4], [2; 4]);
        whole[6] = 0x40;
        assert_eq!(of(&whole, ports(40_000, 53)), spread(40_000));
    }

    #[test]
    fn what_is_no_ip_has_no_flow() {
        assert_eq!(transport(&[0; NETWORK_BYTES]), None);
    }

    #[test]
    fn a_share_of_the_range_is_a_share_of_the_flows() {
        let limit = u32::MAX / 4;
        let left_out = (32_768..=60_999_u32)
            .filter(|&port| spread(port) < limit)
            .count();
        let share = left_out as f64 / f64::from(60_999 - 32_768);
        assert!((0.24..0.26).contains(&share), "{share}");
    }
}
