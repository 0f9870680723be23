//! Packet bytes of an event: what is kept of them, and the Ethernet frame that other programs are shown.

use std::net::SocketAddr;

use tracer_ebpf::event as raw;
use tracer_ebpf::event::PACKET_BYTES;
use tracer_ebpf::header::ethertype;

use super::block::ETHERNET_HEADER;
use super::record::{FRAME_BYTES, Headers};
use crate::event::{Event, layout};
use crate::hook::Role;

const IP6_HEADER: usize = 40;

impl Headers {
    /// As the kernel side read them; `None` where it could not.
    pub(super) fn of_raw(raw: &raw::Event) -> Option<Self> {
        if raw.valid & raw::valid::PACKET == 0 {
            return None;
        }
        let mut bytes = [0; FRAME_BYTES];
        bytes[..PACKET_BYTES].copy_from_slice(&raw.packet);
        Some(Self {
            bytes,
            length: usize::from(raw.packet_len).min(PACKET_BYTES),
            network: usize::from(raw.network_offset),
            protocol: raw.protocol,
        })
    }

    /// As a capture holds them: an Ethernet frame.
    pub fn of_frame(frame: &[u8]) -> Self {
        let length = frame.len().min(FRAME_BYTES);
        let mut bytes = [0; FRAME_BYTES];
        bytes[..length].copy_from_slice(&frame[..length]);
        Self {
            protocol: u16::from_ne_bytes([bytes[12], bytes[13]]),
            bytes,
            length,
            network: ETHERNET_HEADER,
        }
    }

    /// The bytes that are there.
    pub fn frame(&self) -> &[u8] {
        &self.bytes[..self.length.min(FRAME_BYTES)]
    }

    /// The bytes that are kept: headers alone, or as many as were asked for.
    pub(super) fn kept(&self, most: Option<usize>) -> &[u8] {
        let there = self.frame();
        let keep = most.or_else(|| self.header_length());
        &there[..keep.unwrap_or(there.len()).min(there.len())]
    }

    /// Length of the link, network and transport headers; `None` for what is not IP.
    fn header_length(&self) -> Option<usize> {
        Some(self.network + layout::header_length(self.ip()?)?)
    }

    /// The IP packet. The skb of a packet that is just being made may not say its protocol yet.
    fn ip(&self) -> Option<&[u8]> {
        let protocol = u16::from_be(self.protocol);
        let may_be = [ethertype::IPV4, ethertype::IPV6, 0].contains(&protocol);
        may_be.then(|| self.frame().get(self.network..))?
    }

    /// Length of the whole packet with its link header. The headers of IP say it: what the skb holds is less
    /// where headers were taken off, and more where a link header was put on.
    pub(super) fn whole_length(&self, event: &Event) -> usize {
        let before = match self.network {
            ETHERNET_HEADER => 0,
            _ => ETHERNET_HEADER,
        };
        if let Some(length) = self.ip_length() {
            return before + self.network + length;
        }
        let length = event.length.map_or(0, |length| length as usize);
        match event.role() {
            Role::Transmit | Role::Veth => before + length,
            _ => ETHERNET_HEADER + length,
        }
    }

    /// Length of the IP packet as its header says it; segments that are joined may say nothing.
    fn ip_length(&self) -> Option<usize> {
        let ip = self.ip()?;
        let field = |at: usize| {
            let bytes = ip.get(at..at + 2)?;
            let length = u16::from_be_bytes([bytes[0], bytes[1]]);
            (length != 0).then_some(usize::from(length))
        };
        match ip.first()? >> 4 {
            4 => field(2),
            6 => field(4).map(|payload| IP6_HEADER + payload),
            _ => None,
        }
    }

    /// A packet that has no link header gets one with no addresses: programs made of libpcap read files
    /// of one link type only.
    pub(super) fn framed<'a>(
        &self,
        event: &Event,
        kept: &'a [u8],
        room: &'a mut [u8; ETHERNET_HEADER + FRAME_BYTES],
    ) -> &'a [u8] {
        if self.network == ETHERNET_HEADER {
            return kept;
        }
        let whole = ETHERNET_HEADER + kept.len();
        // The skb of a packet that is just being made may not say its protocol yet.
        let protocol = match event.packet.as_ref().map(|packet| packet.tuple.source) {
            Some(SocketAddr::V4(_)) => ethertype::IPV4.to_be_bytes(),
            Some(SocketAddr::V6(_)) => ethertype::IPV6.to_be_bytes(),
            None => self.protocol.to_ne_bytes(),
        };
        room[ETHERNET_HEADER - 2..ETHERNET_HEADER].copy_from_slice(&protocol);
        room[ETHERNET_HEADER..whole].copy_from_slice(kept);
        &room[..whole]
    }
}
