//! Decodes events in a row. Most show headers that an event just before showed as well, which are parsed once.

use tracer_ebpf::event as raw;

use super::{Event, Packet};

/// Packets under way at the same time whose headers are remembered.
const PACKETS: usize = 16;
/// Address bits below which two `sk_buff`s do not differ: they are allocated in steps of 256 bytes.
const SKB_BITS: u32 = 8;

/// Decodes events, and remembers the headers that it read.
#[derive(Default)]
pub struct Decoder {
    /// By the skb's address.
    seen: [Seen; PACKETS],
}

/// Headers and what they say.
struct Seen {
    bytes: [u8; raw::PACKET_BYTES],
    length: usize,
    packet: Option<Packet>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            bytes: [0; raw::PACKET_BYTES],
            length: 0,
            packet: None,
        }
    }
}

impl Decoder {
    /// As [`Event::decode`].
    pub fn decode(&mut self, event: &raw::Event) -> Option<Event> {
        let place = (event.skb >> SKB_BITS) as usize % PACKETS;
        let seen = &mut self.seen[place];
        Event::decode_with(event, |bytes| seen.packet(bytes))
    }
}

impl Seen {
    /// Reads headers that begin with IP's; the same as before are not parsed again.
    fn packet(&mut self, bytes: &[u8]) -> Option<Packet> {
        if self.bytes.get(..self.length) != Some(bytes) {
            let room = self.bytes.get_mut(..bytes.len())?;
            room.copy_from_slice(bytes);
            self.length = bytes.len();
            self.packet = Packet::parse(bytes, 0);
        }
        self.packet.clone()
    }
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::event::constructed;

    /// An event at one of two skbs that share a place, with the first bytes of a packet between two ports.
    fn event(skb: u64, port: u16, length: usize, link: usize) -> raw::Event {
        let mut event = constructed(HookId::DeviceReceive, raw::valid::PACKET | raw::valid::SKB);
        event.skb = skb;
        let mut packet = [0; 40];
        packet[0] = 0x45;
        packet[3] = 40;
        packet[9] = 6;
        packet[20..22].copy_from_slice(&port.to_be_bytes());
        packet[32] = 0x50;
        event.packet[link..link + packet.len()].copy_from_slice(&packet);
        event.network_offset = link as u8;
        event.packet_len = (link + length) as u8;
        event
    }

    #[test]
    fn what_is_remembered_changes_nothing() {
        let mut decoder = Decoder::default();
        let (one, two) = (0xffff_8880_0000_0100, 0xffff_8880_0010_0100);
        let events = [
            event(one, 1, 40, 14),
            // The same headers behind none of a link, then more of them, then fewer.
            event(one, 1, 40, 0),
            event(two, 1, 40, 14),
            event(two, 2, 40, 14),
            event(one, 1, 20, 14),
            event(one, 1, 40, 14),
            // Nothing at all, and a header that is cut.
            event(one, 1, 0, 14),
            event(one, 1, 19, 14),
            event(one, 2, 40, 14),
        ];
        let mut parsed = 0;
        for event in &events {
            let expected = Event::decode(event);
            parsed += usize::from(
                expected
                    .as_ref()
                    .is_some_and(|event| event.packet.is_some()),
            );
            assert_eq!(decoder.decode(event), expected);
        }
        assert_eq!(parsed, 7, "there is something to remember");
        let mut cut = event(one, 1, 40, 14);
        cut.network_offset = 60;
        assert_eq!(decoder.decode(&cut), Event::decode(&cut));
    }
}
