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

/// Packets in each other that are looked at: a tunnel's, an ICMP error in it, and what that quotes.
pub const LAYERS: u32 = 3;

/// Words of a network header that are looked at, as they lie in memory.
pub const NETWORK_WORDS: usize = 10;
const NETWORK_BYTES: u32 = 4 * NETWORK_WORDS as u32;

/// What is behind a packet's network header, and where; `None` for what is no IP.
#[inline(always)]
pub const fn transport(header: &[u32; NETWORK_WORDS]) -> Option<(u8, u32)> {
    let first = u32::from_be(header[0]);
    match first >> 28 {
        4 if u32::from_be(header[1]) & 0x3fff != 0 => Some((FRAGMENT4, 0)),
        4 => Some((
            (u32::from_be(header[2]) >> 16) as u8,
            (first >> 24 & 15) * 4,
        )),
        6 => Some(((u32::from_be(header[1]) >> 8) as u8, NETWORK_BYTES)),
        _ => None,
    }
}

/// How many bytes of headers lie before the packet that this one carries, in a tunnel or quoted by an ICMP error, by
/// what [`transport`] says and the words behind; 0 where it carries none.
#[inline(always)]
pub const fn carried(protocol: u8, length: u32, behind: [u32; 2]) -> u32 {
    let first = u32::from_be(behind[0]);
    let (kind, port) = (first >> 24, first as u16);
    match protocol {
        UDP if port == VXLAN[0] || port == VXLAN[1] => length + VXLAN_HEADERS,
        IPIP => length,
        ICMP if kind < 16 && ICMP_ERRORS >> kind & 1 != 0 => length + ICMP_HEADER,
        ICMP6 if kind.wrapping_sub(1) < 127 => length + ICMP_HEADER,
        _ => 0,
    }
}

/// The number of a packet's flow, by its network header and the words behind it, see [`spread`]; the highest for
/// what is no IP.
#[inline(always)]
pub const fn flow(header: &[u32; NETWORK_WORDS], behind: [u32; 2]) -> u32 {
    let Some((protocol, _)) = transport(header) else {
        return u32::MAX;
    };
    let (first, second) = (u32::from_be(behind[0]), u32::from_be(behind[1]));
    let kind = first >> 24;
    let number = match protocol {
        TCP | UDP | SCTP => {
            let (one, two) = (first >> 16, first & 0xffff);
            if one > two { one } else { two }
        }
        FRAGMENT4 => u32::from_be(header[1]) >> 16,
        FRAGMENT6 => second,
        ICMP if kind & !8 == 0 => second >> 16,
        ICMP6 if kind & !1 == 128 => second >> 16,
        // Both addresses' last four bytes, the same for both ways.
        _ if u32::from_be(header[0]) >> 28 == 4 => header[3] ^ header[4],
        _ => header[5] ^ header[9],
    };
    spread(number)
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

    fn packet4(protocol: u8, source: [u8; 4], destination: [u8; 4]) -> [u32; NETWORK_WORDS] {
        let mut header = [0; NETWORK_WORDS];
        header[0] = u32::from_ne_bytes([0x45, 0, 0, 0]);
        header[2] = u32::from_ne_bytes([64, protocol, 0, 0]);
        header[3] = u32::from_ne_bytes(source);
        header[4] = u32::from_ne_bytes(destination);
        header
    }

    fn ports(one: u16, two: u16) -> [u32; 2] {
        let (one, two) = (one.to_be_bytes(), two.to_be_bytes());
        [u32::from_ne_bytes([one[0], one[1], two[0], two[1]]), 0]
    }

    fn of(header: &[u32; NETWORK_WORDS], behind: [u32; 2]) -> u32 {
        let (protocol, length) = transport(header).unwrap();
        assert_eq!(carried(protocol, length, behind), 0);
        flow(header, behind)
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
        assert_eq!(carried(UDP, 20, ports(50_000, 8472)), 20 + 30);
        let unreachable = [u32::from_ne_bytes([3, 1, 0, 0]), 0];
        assert_eq!(carried(ICMP, 20, unreachable), 28);
        assert_eq!(carried(ICMP6, 40, unreachable), 48);
        assert_eq!(carried(IPIP, 20, [0; 2]), 20);
    }

    #[test]
    fn an_echo_goes_by_its_identifier() {
        let (one, two) = ([192, 0, 2, 1], [192, 0, 2, 9]);
        let asked = [
            u32::from_ne_bytes([8, 0, 0, 0]),
            u32::from_ne_bytes([0x12, 0x34, 0, 1]),
        ];
        let answered = [0, u32::from_ne_bytes([0x12, 0x34, 0, 1])];
        assert_eq!(of(&packet4(ICMP, one, two), asked), spread(0x1234));
        assert_eq!(of(&packet4(ICMP, two, one), answered), spread(0x1234));
        let mut six = [0; NETWORK_WORDS];
        six[0] = u32::from_ne_bytes([0x60, 0, 0, 0]);
        six[1] = u32::from_ne_bytes([0, 8, ICMP6, 64]);
        let asked = [u32::from_ne_bytes([128, 0, 0, 0]), asked[1]];
        assert_eq!(of(&six, asked), spread(0x1234));
    }

    #[test]
    fn what_has_no_ports_goes_by_its_addresses() {
        const ESP: u8 = 50;
        let (one, two) = ([192, 0, 2, 1], [192, 0, 2, 9]);
        let there = of(&packet4(ESP, one, two), [7; 2]);
        assert_eq!(there, of(&packet4(ESP, two, one), [9; 2]));
        assert_ne!(there, of(&packet4(ESP, one, [192, 0, 2, 8]), [7; 2]));
        let mut six = [0; NETWORK_WORDS];
        six[0] = u32::from_ne_bytes([0x60, 0, 0, 0]);
        six[1] = u32::from_ne_bytes([0, 8, ESP, 64]);
        (six[5], six[9]) = (5, 9);
        assert_eq!(of(&six, [7; 2]), spread(5 ^ 9));
    }

    #[test]
    fn a_fragment_goes_by_its_datagram() {
        let mut first = packet4(UDP, [1; 4], [2; 4]);
        first[1] = u32::from_ne_bytes([0x12, 0x34, 0x20, 0]);
        let mut later = first;
        later[1] = u32::from_ne_bytes([0x12, 0x34, 0x00, 0xb9]);
        assert_eq!(of(&first, ports(40_000, 53)), of(&later, [7; 2]));
        // "Do not fragment" is no fragment.
        let mut whole = packet4(UDP, [1; 4], [2; 4]);
        whole[1] = u32::from_ne_bytes([0, 0, 0x40, 0]);
        assert_eq!(of(&whole, ports(40_000, 53)), spread(40_000));
    }

    #[test]
    fn what_is_no_ip_has_no_flow() {
        assert_eq!(transport(&[0; NETWORK_WORDS]), None);
        assert_eq!(flow(&[0; NETWORK_WORDS], [0; 2]), u32::MAX);
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
