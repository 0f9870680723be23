//! An ARP packet: a host asks for the hardware address of a neighbour, or gives its own.

use std::net::{Ipv4Addr, SocketAddr};

use super::packet::{Packet, Transport, Tuple, protocol};

/// Hardware Ethernet, protocol IPv4, and the lengths of their addresses.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// ARP for IPv4 on Ethernet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arp {
    /// It answers; else it asks.
    pub reply: bool,
    /// Who sends it.
    pub sender: Ipv4Addr,
    /// Who is asked for, or answered.
    pub target: Ipv4Addr,
}

impl Arp {
    /// EtherType, host order.
    pub const ETHERTYPE: u16 = tracer_ebpf::header::ethertype::ARP;

    /// Parses what stands behind the link header.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 28] = bytes.first_chunk()?;
        if !bytes.starts_with(&ETHERNET_IPV4) {
            return None;
        }
        let address =
            |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
        Some(Self {
            reply: match [bytes[6], bytes[7]] {
                [0, 1] => false,
                [0, 2] => true,
                _ => return None,
            },
            sender: address(14),
            target: address(24),
        })
    }

    /// As a packet from its sender to its target.
    pub fn packet(self) -> Packet {
        let end = |address: Ipv4Addr| SocketAddr::new(address.into(), 0);
        Packet {
            tuple: Tuple {
                protocol: protocol::ARP,
                source: end(self.sender),
                destination: end(self.target),
            },
            // Nothing in ARP names a protocol of IP's.
            named_protocol: 0,
            ip_id: None,
            transport: Transport::Arp { reply: self.reply },
            about: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_are_read_and_nothing_else() {
        let mut bytes = [0; 28];
        bytes[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
        bytes[14..18].copy_from_slice(&[192, 0, 2, 1]);
        bytes[24..28].copy_from_slice(&[192, 0, 2, 2]);
        let asks = Arp::parse(&bytes).expect("a question");
        assert!(!asks.reply);
        let packet = asks.packet();
        assert_eq!(packet.tuple.source.to_string(), "192.0.2.1:0");
        assert_eq!(packet.tuple.destination.to_string(), "192.0.2.2:0");
        assert!(!packet.opens() && !packet.answers());
        bytes[7] = 2;
        assert!(Arp::parse(&bytes).is_some_and(|answer| answer.reply));
        assert!(
            !Arp::parse(&bytes)
                .expect("an answer")
                .packet()
                .may_be(&packet)
        );
        for length in 0..28 {
            assert_eq!(Arp::parse(&bytes[..length]), None);
        }
        bytes[7] = 3;
        assert_eq!(Arp::parse(&bytes), None);
    }
}
