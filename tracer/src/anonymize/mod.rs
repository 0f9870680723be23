//! Replaces what tells whose network this is, so that a capture can be shared.
//!
//! Map: `address` maps addresses so that prefixes stay prefixes, `name` maps words of every text and knows
//! `vocabulary`, the words that stay; `value` walks any record by its serde shape, `frame` rewrites
//! the headers of a packet, `record` puts that together for each record of a capture.
//!
//! Invariants:
//! - One key gives one mapping: the same address or word becomes the same everywhere, in every file that
//!   is made with the key. Without the key it cannot be undone, and it is kept nowhere.
//! - It fails closed: a word that is not known to be harmless is replaced, whatever field it is in.
//! - What causes read keeps its meaning: relations of addresses and prefixes, equality of names, reserved
//!   ranges, and the words of the kernel, kube-proxy and container networks.
//!
//! What stays as it is: ports, numbers, times, flags; loopback, multicast, broadcast, unspecified and IPv4
//! link-local addresses; the class of an address (private, or public with its leading bits);
//! an IPv4 address's last octet where it is 0, 1 or 255; the vendor-neutral bits of a MAC address; kernel
//! functions and its release; names of devices that software gives everywhere (lo, eth0, cni0, docker0,
//! kube-ipvs0 …) and beginnings of those that it makes up (veth, cali, KUBE-SVC-).

mod address;
mod frame;
mod name;
mod record;
mod value;
mod vocabulary;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use ring::hmac;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::event::{Detail, Event, Packet, Quoted, Tuple};

pub use frame::frame;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// A keyed mapping of addresses and names.
pub struct Anonymizer {
    key: hmac::Key,
    addresses: RefCell<HashMap<IpAddr, IpAddr>>,
    words: RefCell<HashMap<String, String>>,
}

/// What is mapped: the same bytes become something else in each.
#[derive(Clone, Copy)]
enum Domain {
    Ip4 = 1,
    Ip6 = 2,
    Mac = 3,
    Word = 4,
}

impl Anonymizer {
    /// The mapping of a key.
    pub fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
            addresses: RefCell::default(),
            words: RefCell::default(),
        }
    }

    /// A mapping that nobody can repeat.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn random() -> anyhow::Result<Self> {
        use ring::rand::SecureRandom as _;
        let mut key = [0; KEY_BYTES];
        ring::rand::SystemRandom::new()
            .fill(&mut key)
            .map_err(|_| anyhow::anyhow!("the system gives no random numbers for a key"))?;
        Ok(Self::new(&key))
    }

    /// Pseudorandom bytes for some bytes.
    fn bytes(&self, domain: Domain, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&[domain as u8]);
        for part in parts {
            context.update(part);
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.sign().as_ref());
        bytes
    }

    /// Any value that serde can take apart and put together: every text, address and MAC in it is mapped.
    ///
    /// # Errors
    /// When the value has no such shape.
    pub fn value<T: Serialize + DeserializeOwned>(&self, value: &T) -> anyhow::Result<T> {
        let mut mapped = value::to_value(value, self)?;
        value::mask_prefixes(&mut mapped);
        Ok(serde_json::from_value(mapped)?)
    }

    /// An address with its port.
    pub fn socket(&self, socket: SocketAddr) -> SocketAddr {
        SocketAddr::new(self.address(socket.ip()), socket.port())
    }

    fn tuple(&self, tuple: Tuple) -> Tuple {
        Tuple {
            protocol: tuple.protocol,
            source: self.socket(tuple.source),
            destination: self.socket(tuple.destination),
        }
    }

    fn packet(&self, packet: Packet) -> Packet {
        Packet {
            tuple: self.tuple(packet.tuple),
            about: packet.about.map(|about| Quoted {
                destination: self.address(about.destination),
                ..about
            }),
            ..packet
        }
    }

    /// Everything in an event that is an address.
    #[must_use]
    pub fn event(&self, event: Event) -> Event {
        Event {
            packet: event.packet.map(|packet| self.packet(packet)),
            detail: self.detail(event.detail),
            ..event
        }
    }

    fn detail(&self, detail: Detail) -> Detail {
        match detail {
            Detail::Service { address, protocol } => Detail::Service {
                address: self.socket(address),
                protocol,
            },
            Detail::Connection { real, forwarding } => Detail::Connection {
                real: self.socket(real),
                forwarding,
            },
            Detail::Sent {
                real,
                forwarding,
                protocol,
                state,
            } => Detail::Sent {
                real: self.socket(real),
                forwarding,
                protocol,
                state,
            },
            Detail::Conntrack {
                original,
                reply,
                destination_nat,
                relation,
                status,
                zone,
            } => Detail::Conntrack {
                original: self.tuple(original),
                reply: self.tuple(reply),
                destination_nat,
                relation,
                status,
                zone,
            },
            Detail::Neighbour { address, ifindex } => Detail::Neighbour {
                address: self.address(address),
                ifindex,
            },
            // Listed, so that whoever adds a detail decides what is to be hidden of it.
            Detail::None
            | Detail::Netfilter(_)
            | Detail::Route { .. }
            | Detail::Socket { .. }
            | Detail::Queue { .. }
            | Detail::Icmp { .. }
            | Detail::Drop { .. }
            | Detail::Device { .. } => detail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::netfilter::{Action, Choice, IpSetLookup, Rule, Subject, Test};

    #[test]
    fn what_sets_and_maps_of_rules_hold_is_hidden() {
        let members = vec![
            Subject::Source("203.0.113.0".parse().expect("an address"), 24),
            Subject::In("zebra0".into(), false),
        ];
        let test = |on| Test { negated: false, on };
        let rule = Rule {
            number: 1,
            handle: None,
            tests: vec![
                test(Subject::Set {
                    what: "saddr".into(),
                    set: "zebra".into(),
                    members: Some(members.clone()),
                }),
                test(Subject::IpSet(IpSetLookup {
                    number: 7,
                    name: Some("zebra".into()),
                    of_source: vec![true],
                    members: Some(members.clone()),
                })),
            ],
            notes: Vec::new(),
            action: Action::Map {
                words: "saddr vmap @zebra".into(),
                set: "zebra".into(),
                choices: Some(vec![Choice {
                    members,
                    action: Action::Jump("zebra".into()),
                }]),
            },
            comment: None,
            packets: None,
        };
        let mapped = Anonymizer::new(&[7; KEY_BYTES]).value(&rule);
        let mapped = mapped.expect("it keeps its shape");
        let shown = format!("{mapped:?}");
        assert!(
            !shown.contains("zebra") && !shown.contains("203.0.113"),
            "{shown}"
        );
        let Action::Map {
            choices: Some(choices),
            ..
        } = &mapped.action
        else {
            panic!("{shown}");
        };
        // A prefix stays one, and a member of both the same.
        assert!(
            matches!(&choices[0].members[0], Subject::Source(IpAddr::V4(network), 24)
                if network.octets()[3] == 0)
        );
        assert!(
            matches!(&mapped.tests[0].on, Subject::Set { members: Some(members), .. }
                if *members == choices[0].members)
        );
    }

    #[test]
    fn what_an_icmp_error_quotes_is_the_packet_that_is_shown() {
        let ip = |protocol, from, to| {
            let mut header = vec![0x45, 0, 0, 56, 0, 1, 0, 0, 64, protocol, 0, 0];
            header.extend([[10, 0, 0, from], [10, 0, 0, to]].concat());
            header
        };
        let udp = [ip(17, 1, 2), vec![3, 0xe8, 0, 53, 0, 8, 0, 0]].concat();
        let error = [ip(1, 9, 1), vec![3, 3, 0, 0, 0, 0, 0, 0], udp.clone()].concat();
        let mapping = Anonymizer::new(&[7; KEY_BYTES]);
        let shown = |bytes: &[u8]| mapping.packet(Packet::parse(bytes, 0).expect("a packet"));
        let (udp, error) = (shown(&udp), shown(&error));
        assert_eq!(error.as_answer(), udp.tuple.reversed());
        assert_ne!(udp.tuple.source.ip().to_string(), "10.0.0.1");
    }

    #[test]
    fn the_real_server_of_a_connection_is_hidden() {
        let real: SocketAddr = "10.244.1.15:3000".parse().expect("an address");
        for detail in [
            Detail::Connection {
                real,
                forwarding: 0,
            },
            Detail::Sent {
                real,
                forwarding: 0,
                protocol: 6,
                state: 1,
            },
        ] {
            let shown = format!("{:?}", Anonymizer::new(&[7; KEY_BYTES]).detail(detail));
            assert!(!shown.contains("10.244.1.15"), "{shown}");
        }
    }
}
