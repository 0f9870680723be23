//! Sets of `ipset`, in which rules of iptables look packets up: kube-proxy's in its ipvs mode, and those of
//! most container networks.
//!
//! Attributes are those of the kernel's `linux/netfilter/ipset/ip_set.h`. What a part of a key is compared with
//! is in `net/netfilter/ipset`: `ip_set_getport.c` for ports, `ip_set_hash_*.c` and `ip_set_bitmap_*.c` for the rest.

use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use netlink_packet_core::{
    DecodeError, DefaultNla, NLA_F_NET_BYTEORDER, parse_string, parse_u8, parse_u16_be,
    parse_u32_be,
};

use super::legacy::ip;
use super::nft::{HEADER_BYTES, Request, zero_ended};
use super::{MOST_ELEMENTS, Missing, RuleTable, Subject};
use crate::event::protocol;
use crate::node::netlink::{Conversation, attributes};
use crate::node::table::rows_or_missing;

/// `NFNL_SUBSYS_IPSET << 8`.
const SUBSYSTEM: u16 = 6 << 8;
const LIST: u16 = SUBSYSTEM | 7;
const GET_BY_INDEX: u16 = SUBSYSTEM | 15;
const PROTOCOL: u16 = 1;
/// `IPSET_PROTOCOL`; kernels before 4.19 have an older one, and cannot tell a set's name in this way.
const PROTOCOL_VERSION: u8 = 7;
const SET_NAME: u16 = 2;
const SET_TYPE: u16 = 3;
const SET_DATA: u16 = 7;
const SET_ELEMENTS: u16 = 8;
const SET_INDEX: u16 = 11;
const CREATED_BITMASK: u16 = 12;
const CREATED_NETMASK: u16 = 20;
const ADDRESS: u16 = 1;
const LENGTH: u16 = 3;
const PORT: u16 = 4;
const TIMEOUT: u16 = 6;
const TRANSPORT: u16 = 7;
const FLAGS: u16 = 8;
const MEMBER_NAME: u16 = 18;
const SECOND_ADDRESS: u16 = 20;
const SECOND_LENGTH: u16 = 21;
const DEVICE: u16 = 23;
/// Counters, a comment, and what a packet that matches is given (`IPSET_ATTR_BYTES` to `IPSET_ATTR_SKBQUEUE`).
const REMARKS: std::ops::RangeInclusive<u16> = 24..=29;
/// The element stands for what is no member.
const NO_MATCH: u32 = 1 << 2;
const WHAT: &str = "ipset";

/// A set.
#[derive(Clone, Default, PartialEq, Debug)]
struct Set {
    /// What the parts of its keys are, in the words of its type: `ip`, `port`, `net`.
    parts: Vec<String>,
    /// It holds sets.
    is_list: bool,
    /// Bits of an address that count.
    netmask: Option<u8>,
    elements: Vec<Element>,
}

/// An element.
#[derive(Clone, Default, PartialEq, Debug)]
struct Element {
    /// Addresses and the lengths of their prefixes, in the key's order.
    addresses: [(Option<IpAddr>, Option<u8>); 2],
    port: Option<u16>,
    protocol: Option<u8>,
    device: Option<String>,
    /// The set that it is, in a set of sets.
    set: Option<String>,
    flags: u32,
    /// It has more that counts.
    more: bool,
}

/// What a message says: of the set, or one of its elements.
enum Row {
    Set(Set),
    Element(Element),
}

/// Fills in what the sets hold that rules look packets up in.
pub(super) fn resolve(tables: &mut [RuleTable], missing: &mut Vec<Missing>) {
    let mut lookups = tables
        .iter_mut()
        .flat_map(|table| &mut table.chains)
        .flat_map(|chain| &mut chain.rules)
        .flat_map(|rule| &mut rule.tests)
        .filter_map(|test| match &mut test.on {
            Subject::IpSet(lookup) => Some(lookup),
            _ => None,
        })
        .peekable();
    if lookups.peek().is_none() {
        return;
    }
    let conversation = match Conversation::open(libc::NETLINK_NETFILTER as isize) {
        Ok(conversation) => conversation,
        Err(error) => return missing.push(error.missing(WHAT)),
    };
    let mut reader = Reader {
        conversation,
        missing,
        names: HashMap::new(),
        sets: HashMap::new(),
    };
    let mut room = MOST_ELEMENTS;
    for lookup in lookups {
        lookup.name = reader.name(lookup.number);
        let Some(name) = &lookup.name else {
            continue;
        };
        lookup.members = reader.conditions(name, &lookup.of_source, room);
        room = room.saturating_sub(lookup.members.as_ref().map_or(0, Vec::len));
    }
}

struct Reader<'a> {
    conversation: Conversation,
    missing: &'a mut Vec<Missing>,
    /// By the number of the set; `None` for one that is not told.
    names: HashMap<u16, Option<String>>,
    /// By name; `None` for one that could not be read whole.
    sets: HashMap<String, Option<Rc<Set>>>,
}

impl Reader<'_> {
    fn name(&mut self, number: u16) -> Option<String> {
        if let Some(known) = self.names.get(&number) {
            return known.clone();
        }
        let index = DefaultNla::new(
            SET_INDEX | NLA_F_NET_BYTEORDER,
            number.to_be_bytes().to_vec(),
        );
        let name = match self
            .conversation
            .ask(request(GET_BY_INDEX, index), parse_name)
        {
            Ok(name) => Some(name),
            Err(error) => {
                self.missing
                    .push(error.missing(&format!("name of {WHAT} number {number}")));
                None
            }
        };
        self.names.insert(number, name.clone());
        name
    }

    /// At most so many conditions of which one holds for what is in the set; `None` where they cannot be told.
    fn conditions(&mut self, name: &str, of_source: &[bool], most: usize) -> Option<Vec<Subject>> {
        let set = self.set(name, most)?;
        let sets: Vec<_> = if set.is_list {
            // Of the kinds that there are a list is in no list.
            let inner = |element: &Element| {
                self.set(element.set.as_ref()?, most)
                    .filter(|inner| !inner.is_list)
            };
            set.elements.iter().map(inner).collect::<Option<_>>()?
        } else {
            vec![set]
        };
        let all: usize = sets.iter().map(|set| set.elements.len()).sum();
        (all <= most).then_some(())?;
        let conditions: Option<Vec<_>> = sets.iter().map(|set| set.conditions(of_source)).collect();
        Some(conditions?.concat())
    }

    fn set(&mut self, name: &str, most: usize) -> Option<Rc<Set>> {
        if let Some(known) = self.sets.get(name) {
            return known.clone();
        }
        let asked = request(LIST, DefaultNla::new(SET_NAME, zero_ended(name)));
        let doubts = self.missing.len();
        // The set itself is a row as well.
        let rows = self.conversation.dump_lists(asked, most + 1, parse_rows);
        let rows = rows_or_missing(&format!("{WHAT} {name}"), rows, self.missing);
        let set = collect(rows)
            .filter(|_| self.missing.len() == doubts)
            .map(Rc::new);
        self.sets.insert(name.to_owned(), set.clone());
        set
    }
}

fn request(message: u16, attribute: DefaultNla) -> Request {
    Request {
        message,
        family: libc::AF_INET as u8,
        attributes: vec![DefaultNla::new(PROTOCOL, vec![PROTOCOL_VERSION]), attribute],
    }
}

fn parse_name(payload: &[u8]) -> Result<String, DecodeError> {
    let name = attributes(payload, HEADER_BYTES)
        .find(|attribute| attribute.kind() == SET_NAME)
        .ok_or("set without a name")?;
    parse_string(name.value())
}

fn parse_rows(payload: &[u8]) -> Result<Vec<Row>, DecodeError> {
    let (mut set, mut rows) = (None, Vec::new());
    for attribute in attributes(payload, HEADER_BYTES) {
        let value = attribute.value();
        match attribute.kind() {
            SET_TYPE => {
                let kind = parse_string(value)?;
                let (method, parts) = kind.split_once(':').ok_or("set of an unknown type")?;
                let set = set.get_or_insert_with(Set::default);
                set.is_list = method == "list";
                set.parts = parts.split(',').map(str::to_owned).collect();
            }
            SET_DATA => {
                let set = set.get_or_insert_with(Set::default);
                for created in attributes(value, 0) {
                    match created.kind() {
                        CREATED_NETMASK => set.netmask = Some(parse_u8(created.value())?),
                        CREATED_BITMASK => return Err("set with a mask that is no prefix".into()),
                        _ => {}
                    }
                }
            }
            SET_ELEMENTS => {
                for element in attributes(value, 0) {
                    rows.push(Row::Element(parse_element(element.value())?));
                }
            }
            _ => {}
        }
    }
    rows.extend(set.map(Row::Set));
    Ok(rows)
}

fn parse_element(bytes: &[u8]) -> Result<Element, DecodeError> {
    let mut element = Element::default();
    for attribute in attributes(bytes, 0) {
        let value = attribute.value();
        let [first, second] = &mut element.addresses;
        match attribute.kind() {
            ADDRESS => first.0 = address(value),
            LENGTH => first.1 = Some(parse_u8(value)?),
            SECOND_ADDRESS => second.0 = address(value),
            SECOND_LENGTH => second.1 = Some(parse_u8(value)?),
            PORT => element.port = Some(parse_u16_be(value)?),
            TRANSPORT => element.protocol = Some(parse_u8(value)?),
            DEVICE => element.device = Some(parse_string(value)?),
            MEMBER_NAME => element.set = Some(parse_string(value)?),
            FLAGS => element.flags = parse_u32_be(value)?,
            TIMEOUT => {}
            remark if REMARKS.contains(&remark) => {}
            _ => element.more = true,
        }
    }
    Ok(element)
}

/// The address in an attribute that holds one of either family.
fn address(value: &[u8]) -> Option<IpAddr> {
    ip(attributes(value, 0).next()?.value())
}

/// The set that the rows of all messages make; `None` where none of them says what it is.
fn collect(rows: Vec<Row>) -> Option<Set> {
    let (mut set, mut elements) = (None, Vec::new());
    for row in rows {
        match row {
            Row::Set(found) => set = Some(found),
            Row::Element(element) => elements.push(element),
        }
    }
    Some(Set { elements, ..set? })
}

impl Set {
    /// `None` where not everything of an element is understood, or one stands for what is no member.
    fn conditions(&self, of_source: &[bool]) -> Option<Vec<Subject>> {
        // Nothing is in a set whose keys have more parts than the rule looks at.
        if of_source.len() < self.parts.len() {
            return Some(Vec::new());
        }
        if let [part] = &self.parts[..]
            && part == "port"
        {
            return self.ports(*of_source.first()?);
        }
        self.elements
            .iter()
            .map(|element| self.condition(element, of_source))
            .collect()
    }

    /// What a set of ports holds: TCP's and UDP's.
    fn ports(&self, of_source: bool) -> Option<Vec<Subject>> {
        let mut ports: Vec<u16> = self
            .elements
            .iter()
            .map(|element| element.port.filter(|_| !element.more))
            .collect::<Option<_>>()?;
        ports.sort_unstable();
        let ranges = ports
            .chunk_by(|one, next| next - one <= 1)
            .filter_map(|chunk| Some(*chunk.first()?..=*chunk.last()?))
            .collect::<Vec<_>>();
        if ranges.is_empty() {
            return Some(Vec::new());
        }
        let on = if of_source {
            Subject::SourcePort(ranges)
        } else {
            Subject::DestinationPort(ranges)
        };
        let with = |number| Subject::All(vec![Subject::Protocol(number), on.clone()]);
        Some(vec![with(protocol::TCP), with(protocol::UDP)])
    }

    fn condition(&self, element: &Element, of_source: &[bool]) -> Option<Subject> {
        if element.more || element.flags & NO_MATCH != 0 {
            return None;
        }
        let mut addresses = element.addresses.iter();
        let mut all = Vec::new();
        for (part, &source) in self.parts.iter().zip(of_source) {
            match part.as_str() {
                "ip" | "net" => {
                    let (address, length) = *addresses.next()?;
                    let address = address?;
                    let whole = if address.is_ipv6() { 128 } else { 32 };
                    let length = length.or(self.netmask).unwrap_or(whole);
                    all.push(if source {
                        Subject::Source(address, length)
                    } else {
                        Subject::Destination(address, length)
                    });
                }
                "port" => all.extend(port(element.protocol?, element.port?, source)?),
                // The flag is for devices behind a bridge (`physdev:`).
                "iface" if element.flags == 0 => {
                    let name = element.device.clone()?;
                    all.push(if source {
                        Subject::In(name, false)
                    } else {
                        Subject::Out(name, false)
                    });
                }
                _ => return None,
            }
        }
        match all.len() {
            1 => all.pop(),
            _ => Some(Subject::All(all)),
        }
    }
}

/// A protocol with what is its port: ICMP's is its type and code.
fn port(number: u8, port: u16, of_source: bool) -> Option<Vec<Subject>> {
    const PORTLESS: u16 = 0;
    let on = match number {
        protocol::TCP | protocol::UDP | protocol::SCTP if of_source => {
            Subject::SourcePort(vec![port..=port])
        }
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            Subject::DestinationPort(vec![port..=port])
        }
        _ if protocol::is_icmp(number) => {
            let [kind, code] = port.to_be_bytes();
            Subject::Icmp {
                kind,
                code: Some(code),
            }
        }
        _ => return (port == PORTLESS).then(|| vec![Subject::Protocol(number)]),
    };
    Some(vec![Subject::Protocol(number), on])
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable as _;

    use super::*;

    fn nla(kind: u16, value: impl AsRef<[u8]>) -> DefaultNla {
        DefaultNla::new(kind, value.as_ref().to_vec())
    }

    fn nest(kind: u16, inner: Vec<DefaultNla>) -> DefaultNla {
        let mut bytes = vec![0; inner.as_slice().buffer_len()];
        inner.as_slice().emit(&mut bytes);
        nla(kind, bytes)
    }

    fn message(parts: Vec<DefaultNla>) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES + parts.as_slice().buffer_len()];
        parts.as_slice().emit(&mut bytes[HEADER_BYTES..]);
        bytes
    }

    fn four(kind: u16, address: [u8; 4]) -> DefaultNla {
        nest(kind, vec![nla(1 | NLA_F_NET_BYTEORDER, address)])
    }

    fn port_and_protocol(port: u16, number: u8) -> [DefaultNla; 2] {
        [
            nla(PORT | NLA_F_NET_BYTEORDER, port.to_be_bytes()),
            nla(TRANSPORT, [number]),
        ]
    }

    /// A set of a type with elements, in two messages as the kernel gives them.
    fn set(kind: &str, elements: Vec<Vec<DefaultNla>>) -> Set {
        let elements = elements.into_iter().map(|element| nest(SET_DATA, element));
        let messages = [
            message(vec![
                nla(PROTOCOL, [PROTOCOL_VERSION]),
                nla(SET_NAME, zero_ended("A")),
                nla(SET_TYPE, zero_ended(kind)),
                nest(SET_DATA, vec![nla(18, [0; 4])]),
            ]),
            message(vec![
                nla(SET_NAME, zero_ended("A")),
                nest(SET_ELEMENTS, elements.collect()),
            ]),
        ];
        let rows = messages
            .iter()
            .flat_map(|message| parse_rows(message).expect("rows"));
        collect(rows.collect()).expect("a set")
    }

    fn to(text: &str, length: u8) -> Subject {
        Subject::Destination(text.parse().expect("an address"), length)
    }

    #[test]
    fn keys_of_several_parts() {
        let [port, protocol] = port_and_protocol(80, protocol::TCP);
        let set = set(
            "hash:ip,port,net",
            vec![vec![
                four(ADDRESS, [10, 96, 0, 10]),
                port,
                protocol,
                four(SECOND_ADDRESS, [198, 51, 100, 0]),
                nla(SECOND_LENGTH, [24]),
                nla(TIMEOUT, [0; 4]),
            ]],
        );
        assert_eq!(
            set.conditions(&[false, false, true]),
            Some(vec![Subject::All(vec![
                to("10.96.0.10", 32),
                Subject::Protocol(6),
                Subject::DestinationPort(vec![80..=80]),
                Subject::Source("198.51.100.0".parse().expect("an address"), 24),
            ])])
        );
        assert_eq!(set.conditions(&[false, false]), Some(Vec::new()));
    }

    #[test]
    fn ports_are_those_of_both_protocols() {
        let ports = [30081_u16, 30080, 9];
        let ports = ports.map(|port| vec![nla(PORT | NLA_F_NET_BYTEORDER, port.to_be_bytes())]);
        let on = Subject::DestinationPort(vec![9..=9, 30080..=30081]);
        let with = |number| Subject::All(vec![Subject::Protocol(number), on.clone()]);
        assert_eq!(
            set("bitmap:port", ports.into()).conditions(&[false]),
            Some(vec![with(6), with(17)])
        );
        assert_eq!(
            set("bitmap:port", Vec::new()).conditions(&[true]),
            Some(Vec::new())
        );
    }

    #[test]
    fn single_addresses_masks_and_icmp() {
        let mut one = set("hash:ip", vec![vec![four(ADDRESS, [10, 0, 4, 0])]]);
        assert_eq!(one.conditions(&[false]), Some(vec![to("10.0.4.0", 32)]));
        one.netmask = Some(22);
        assert_eq!(one.conditions(&[false]), Some(vec![to("10.0.4.0", 22)]));
        let [port, protocol] = port_and_protocol(0x0300, protocol::ICMP);
        let echo = set(
            "hash:ip,port",
            vec![vec![four(ADDRESS, [10, 0, 0, 1]), port, protocol]],
        );
        let kind = Subject::Icmp {
            kind: 3,
            code: Some(0),
        };
        assert_eq!(
            echo.conditions(&[false, true]),
            Some(vec![Subject::All(vec![
                to("10.0.0.1", 32),
                Subject::Protocol(1),
                kind
            ])])
        );
    }

    #[test]
    fn what_is_not_understood_is_not_decided() {
        let but = set(
            "hash:net",
            vec![
                vec![four(ADDRESS, [10, 0, 0, 0]), nla(LENGTH, [8])],
                vec![
                    four(ADDRESS, [10, 1, 0, 0]),
                    nla(LENGTH, [16]),
                    nla(FLAGS | NLA_F_NET_BYTEORDER, NO_MATCH.to_be_bytes()),
                ],
            ],
        );
        assert_eq!(but.conditions(&[true]), None);
        let hardware = set(
            "hash:ip,mac",
            vec![vec![four(ADDRESS, [10, 0, 0, 1]), nla(17, [2; 6])]],
        );
        assert_eq!(hardware.conditions(&[true, true]), None);
        let behind_a_bridge = set(
            "hash:net,iface",
            vec![vec![
                four(ADDRESS, [10, 0, 0, 0]),
                nla(LENGTH, [8]),
                nla(DEVICE, zero_ended("eth0")),
                nla(FLAGS | NLA_F_NET_BYTEORDER, 2_u32.to_be_bytes()),
            ]],
        );
        assert_eq!(behind_a_bridge.conditions(&[true, true]), None);
    }

    #[test]
    fn damage_is_survived() {
        let [port, protocol] = port_and_protocol(80, protocol::TCP);
        let whole = message(vec![
            nla(SET_TYPE, zero_ended("hash:ip,port")),
            nest(SET_DATA, vec![nla(CREATED_NETMASK, [24])]),
            nest(
                SET_ELEMENTS,
                vec![nest(
                    SET_DATA,
                    vec![four(ADDRESS, [10, 0, 0, 1]), port, protocol],
                )],
            ),
        ]);
        for place in 0..whole.len() {
            let _ = parse_rows(&whole[..place]);
            let mut changed = whole.clone();
            changed[place] ^= 0xff;
            let set = parse_rows(&changed).ok().and_then(collect);
            let _ = set.map(|set| set.conditions(&[true, false]));
        }
    }
}
