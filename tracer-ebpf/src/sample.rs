//! Which flows are left out while tracing costs too much: a number of each packet that its whole flow
//! shares, on both ways and through NAT.
//!
//! NAT changes addresses and the service's port. The client's port it keeps unless that is taken, and
//! it is the higher one: Linux gives clients ports from 32,768 on, above services and NodePorts. So the
//! higher port is what a flow is known by, without a table.
//!
//! Packets without ports go by their addresses, echoes by their identifier, fragments by their
//! datagram, ICMP errors and tunnels by what they carry.

/// In place of the number below which flows are left out: tracing has not begun, and nothing is reported. Meanwhile
/// only some of the hooks are attached, and half a way looks like a loss.
pub const NOT_BEGUN: u32 = u32::MAX;

/// How many packets may lie in one another (VXLAN, IPIP, an ICMP error's quote).
pub const MOST_LAYERS: usize = 3;

const IPIP: u8 = 4;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const SCTP: u8 = 132;
const FRAGMENT6: u8 = 44;
/// UDP ports of VXLAN, by IANA and by Linux' old default.
const VXLAN: [u16; 2] = [4789, 8472];
/// From VXLAN's UDP header to the inner network header: UDP, VXLAN and Ethernet.
const VXLAN_HEADERS: u32 = 8 + 8 + 14;
/// An ICMP error's own header.
const ICMP_HEADER: u32 = 8;

/// What one layer of a packet says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layer {
    /// The flow's number, see [`spread`].
    Flow(u32),
    /// Look at the packet that begins so many bytes further.
    Inside(u32),
}

/// Bytes of a network header that are looked at.
pub const NETWORK_BYTES: usize = 40;

/// Where the transport header of a packet is and what it is; `None` for what is no IP.
#[inline(always)]
pub const fn transport(bytes: &[u8; NETWORK_BYTES]) -> Option<(u8, u32)> {
    match bytes[0] >> 4 {
        4 => Some((bytes[9], (bytes[0] as u32 & 15) * 4)),
        6 => Some((bytes[6], NETWORK_BYTES as u32)),
        _ => None,
    }
}

/// Reads a packet's network header and the first four bytes behind it.
#[inline(always)]
pub const fn layer(
    bytes: &[u8; NETWORK_BYTES],
    protocol: u8,
    length: u32,
    behind: [u8; 8],
) -> Layer {
    let is4 = bytes[0] >> 4 == 4;
    if is4 && (bytes[6] & 0x3f != 0 || bytes[7] != 0) {
        return Layer::Flow(spread(u16::from_be_bytes([bytes[4], bytes[5]]) as u32));
    }
    match protocol {
        TCP | UDP | SCTP => {
            let one = u16::from_be_bytes([behind[0], behind[1]]);
            let two = u16::from_be_bytes([behind[2], behind[3]]);
            if protocol == UDP && (two == VXLAN[0] || two == VXLAN[1]) {
                return Layer::Inside(length + VXLAN_HEADERS);
            }
            Layer::Flow(spread(if one > two { one } else { two } as u32))
        }
        IPIP => Layer::Inside(length),
        FRAGMENT6 => Layer::Flow(spread(u32::from_ne_bytes([
            behind[4], behind[5], behind[6], behind[7],
        ]))),
        ICMP => match behind[0] {
            0 | 8 => Layer::Flow(echo(behind)),
            3 | 4 | 5 | 11 | 12 => Layer::Inside(length + ICMP_HEADER),
            _ => Layer::Flow(addresses(bytes, is4)),
        },
        ICMP6 => match behind[0] {
            128 | 129 => Layer::Flow(echo(behind)),
            1..128 => Layer::Inside(length + ICMP_HEADER),
            _ => Layer::Flow(addresses(bytes, is4)),
        },
        _ => Layer::Flow(addresses(bytes, is4)),
    }
}

#[inline(always)]
const fn echo(behind: [u8; 8]) -> u32 {
    spread(u16::from_be_bytes([behind[4], behind[5]]) as u32)
}

/// Both addresses' last four bytes, the same for both ways.
#[inline(always)]
const fn addresses(bytes: &[u8; NETWORK_BYTES], is4: bool) -> u32 {
    let (one, two) = if is4 {
        (four(bytes, 12), four(bytes, 16))
    } else {
        (four(bytes, 20), four(bytes, 36))
    };
    spread(one ^ two)
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

    fn of(bytes: &[u8; NETWORK_BYTES], behind: [u8; 8]) -> Layer {
        let (protocol, length) = transport(bytes).unwrap();
        layer(bytes, protocol, length, behind)
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
        let outer = packet4(UDP, [192, 0, 2, 1], [192, 0, 2, 2]);
        assert_eq!(of(&outer, ports(50_000, 8472)), Layer::Inside(20 + 30));
        let mut error = [0; 8];
        error[0] = 3;
        assert_eq!(of(&packet4(ICMP, [1; 4], [2; 4]), error), Layer::Inside(28));
        assert_eq!(
            of(&packet4(IPIP, [1; 4], [2; 4]), [0; 8]),
            Layer::Inside(20)
        );
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
        assert_eq!(of(&whole, ports(40_000, 53)), Layer::Flow(spread(40_000)));
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
