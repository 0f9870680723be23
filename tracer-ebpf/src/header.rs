//! From header bytes to a [`Key`], the same on both sides: the programs give it what they read of an
//! skb, userspace what a capture holds.
//!
//! A transport header is looked for where tcpdump looks for it: right behind IPv4's header in a packet
//! that is not a later fragment, and right behind IPv6's fixed header. So a later fragment has no ports.

use crate::program::{Key, network};

/// Bytes of a network header that are looked at: all of IPv6's.
pub const NETWORK_BYTES: usize = 40;
/// Bytes of a transport header that are looked at.
pub const TRANSPORT_BYTES: usize = 8;

/// EtherTypes in host order.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const SCTP: u8 = 132;
/// IPv6 fragment header.
const FRAGMENT6: u8 = 44;

/// What a network header says.
#[derive(Clone, Copy, Default, Debug)]
pub struct Network {
    /// Addresses, network and protocol; no ports yet.
    pub key: Key,
    /// Where the transport header begins, or IPv6's fragment header, from the network header; 0 where this packet
    /// has none.
    pub transport: u16,
    /// What NAT leaves alone and tells packets of one flow apart: IPv4's identification, IPv6's flow label.
    pub identity: u32,
    /// Identification of the datagram that a fragment is of.
    pub datagram: u32,
    /// More fragments follow, or this is a later one.
    pub fragment: bool,
    /// An ICMP error, which quotes the packet that it is about behind its own eight bytes.
    pub quotes: bool,
}

impl Network {
    /// Reads a network header into an empty value. Bytes behind the packet's end may hold anything.
    ///
    /// In place: a kernel program has no stack for a second one.
    #[inline(always)]
    pub fn read(&mut self, bytes: &[u8; NETWORK_BYTES], ethertype: u16) {
        match ethertype {
            ethertype::IPV4 => self.ipv4(bytes),
            ethertype::IPV6 => self.ipv6(bytes),
            ethertype::ARP => self.arp(bytes),
            _ => {}
        }
    }

    #[inline(always)]
    fn ipv4(&mut self, bytes: &[u8; NETWORK_BYTES]) {
        if bytes[0] >> 4 != 4 {
            return;
        }
        self.key.network = network::IPV4;
        self.key.protocol = bytes[9];
        self.key.source = [u64::from(four(bytes, 12)), 0];
        self.key.destination = [u64::from(four(bytes, 16)), 0];
        self.identity = u32::from(two(bytes, 4));
        self.datagram = self.identity;
        let flags = u16::from_be(two(bytes, 6));
        self.fragment = flags & 0x3fff != 0;
        if flags & 0x1fff == 0 {
            self.transport = u16::from(bytes[0] & 15) * 4;
        }
    }

    #[inline(always)]
    fn ipv6(&mut self, bytes: &[u8; NETWORK_BYTES]) {
        if bytes[0] >> 4 != 6 {
            return;
        }
        self.key.network = network::IPV6;
        self.key.source = [eight(bytes, 8), eight(bytes, 16)];
        self.key.destination = [eight(bytes, 24), eight(bytes, 32)];
        self.identity = four(bytes, 0) & 0x000f_ffff_u32.to_be();
        self.key.protocol = bytes[6];
        self.fragment = bytes[6] == FRAGMENT6;
        self.transport = NETWORK_BYTES as u16;
    }

    #[inline(always)]
    fn arp(&mut self, bytes: &[u8; NETWORK_BYTES]) {
        self.key.network = network::ARP;
        self.key.source = [u64::from(four(bytes, 14)), 0];
        self.key.destination = [u64::from(four(bytes, 24)), 0];
    }

    /// Takes ports from the transport header, and what else tells packets apart; from IPv6's fragment header the
    /// protocol and the datagram's identification.
    #[inline(always)]
    pub fn read_transport(&mut self, bytes: &[u8; TRANSPORT_BYTES]) {
        match self.key.protocol {
            TCP | UDP | SCTP => {
                self.key.source_port = u16::from_be_bytes([bytes[0], bytes[1]]);
                self.key.destination_port = u16::from_be_bytes([bytes[2], bytes[3]]);
                self.key.has_ports = 1;
                if self.key.protocol == TCP {
                    let sequence = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
                    self.identity ^= sequence.rotate_left(16);
                }
            }
            ICMP | ICMP6 => {
                let kind = bytes[0];
                self.quotes = quotes(self.key.protocol, kind);
                if is_echo(self.key.protocol, kind) {
                    let identifier = u16::from_be_bytes([bytes[4], bytes[5]]);
                    self.key.source_port = identifier;
                    self.key.destination_port = identifier;
                }
            }
            FRAGMENT6 if self.key.network == network::IPV6 => {
                self.key.protocol = bytes[0];
                self.datagram = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
                self.identity = self.datagram;
            }
            _ => {}
        }
    }
}

#[inline(always)]
const fn is_echo(protocol: u8, kind: u8) -> bool {
    match protocol {
        ICMP => matches!(kind, 0 | 8),
        _ => matches!(kind, 128 | 129),
    }
}

/// True for an ICMP error: the packet that it is about follows its header.
#[inline(always)]
pub const fn quotes(protocol: u8, kind: u8) -> bool {
    match protocol {
        // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
        ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
        ICMP6 => kind != 0 && kind < 128,
        _ => false,
    }
}

#[inline(always)]
fn two(bytes: &[u8; NETWORK_BYTES], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

#[inline(always)]
fn four(bytes: &[u8; NETWORK_BYTES], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline(always)]
fn eight(bytes: &[u8; NETWORK_BYTES], at: usize) -> u64 {
    u64::from_ne_bytes([
        bytes[at],
        bytes[at + 1],
        bytes[at + 2],
        bytes[at + 3],
        bytes[at + 4],
        bytes[at + 5],
        bytes[at + 6],
        bytes[at + 7],
    ])
}
