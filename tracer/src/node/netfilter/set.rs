//! Sets and maps of an nftables table, with their elements as the kernel keeps them: all of a table, or one
//! by one where a rule asks for them.
//!
//! Attributes are those of the kernel's `linux/netfilter/nf_tables.h`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use netlink_packet_core::{DecodeError, DefaultNla, parse_string, parse_u32_be, parse_u64_be};

use super::expression::{Data, verdict};
use super::nft::{HEADER_BYTES, Request, SUBSYSTEM, zero_ended};
use super::{Action, LIMIT, Missing};
use crate::node::Prefix;
use crate::node::netlink::{Conversation, attributes};
use crate::node::table::rows_or_missing;

const GET_SET: u16 = SUBSYSTEM | 10;
const GET_ELEMENTS: u16 = SUBSYSTEM | 13;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_TIMEOUT: u16 = 11;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_EXPRESSION: u16 = 7;
const ELEMENT_KEY_END: u16 = 10;
const ELEMENT_EXPRESSIONS: u16 = 11;
const INTERVALS: u32 = 4;
/// With times of their own, or added by rules.
const COME_AND_GO: u32 = 0x10 | 0x20;
const INTERVAL_END: u32 = 1;
const EVERY_OTHER_KEY: u32 = 2;
const EXPRESSION_NAME: u16 = 1;
const DATA_VALUE: u16 = 1;
const WHAT: &str = "nftables sets";

/// A set or map.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(in crate::node) struct Set {
    /// Its name in the table.
    pub name: String,
    /// How long an element stays; `None` for as long as the set.
    pub timeout: Option<Duration>,
    /// Its elements come and go by themselves.
    pub changes: bool,
    /// Its elements are where intervals begin and end, else single keys.
    pub intervals: bool,
    /// Its elements; none are read of a set whose elements come and go.
    pub elements: Vec<Element>,
}

/// An element.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::node) struct Element {
    /// The key: its fields one behind the other, each filled up to four bytes, in network byte order. Empty
    /// for the element that stands for every other key.
    pub key: Vec<u8>,
    /// It counts for some packets only (a limit), or in another way than single keys and intervals do.
    pub conditional: bool,
    /// The key is the first one behind an interval.
    pub ends_interval: bool,
    /// What the map says, where it is a verdict.
    pub verdict: Option<Action>,
}

/// Keys that an element stands for.
pub(super) struct Interval<'a> {
    /// The first one, as a number.
    pub first: u128,
    /// The last one.
    pub last: u128,
    /// The element.
    pub element: &'a Element,
}

impl Interval<'_> {
    fn prefixes(&self) -> Vec<Prefix> {
        prefixes(self.first..=self.last, self.element.key.len())
    }
}

/// The prefixes that keys of so many bytes consist of; none for keys that are no address.
pub(super) fn prefixes(keys: RangeInclusive<u128>, width: usize) -> Vec<Prefix> {
    let mut prefixes = Vec::new();
    if matches!(width, 4 | 16) {
        split(*keys.start(), *keys.end(), width * 8, &mut prefixes);
    }
    prefixes
}

impl Set {
    /// The keys that it holds, in their order; without those that are longer than sixteen bytes.
    pub(super) fn intervals(&self) -> Vec<Interval<'_>> {
        let mut edges: Vec<(u128, bool, &Element)> = self
            .elements
            .iter()
            .filter_map(|element| Some((number(&element.key)?, !element.ends_interval, element)))
            .collect();
        edges.sort_by_key(|&(key, begins, _)| (key, begins));
        if !self.intervals {
            let single = |(key, _, element)| Interval {
                first: key,
                last: key,
                element,
            };
            return edges.into_iter().map(single).collect();
        }
        let mut intervals = Vec::new();
        let mut begun = None;
        let mut add = |first, last, element| {
            if first <= last {
                intervals.push(Interval {
                    first,
                    last,
                    element,
                });
            }
        };
        for (key, begins, element) in edges {
            if let Some((first, of)) = begun.take()
                && let Some(last) = key.checked_sub(1)
            {
                add(first, last, of);
            }
            begun = begins.then_some((key, element));
        }
        // Without an end an interval reaches up to the last key.
        if let Some((first, element)) = begun {
            let unused = 128 - 8 * element.key.len().min(16) as u32;
            add(first, u128::MAX >> unused, element);
        }
        intervals
    }

    /// The prefixes that a set of addresses holds, in their order.
    pub(in crate::node) fn prefixes(&self) -> Vec<Prefix> {
        self.intervals()
            .iter()
            .flat_map(Interval::prefixes)
            .collect()
    }

    /// The addresses that a set of single addresses holds.
    pub(in crate::node) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.elements
            .iter()
            .filter_map(|element| super::legacy::ip(&element.key))
    }
}

/// A key as a number; `None` for none and for one that is too long.
pub(super) fn number(key: &[u8]) -> Option<u128> {
    (1..=16).contains(&key.len()).then(|| {
        key.iter()
            .fold(0, |number, &byte| number << 8 | u128::from(byte))
    })
}

/// Splits a range of addresses into prefixes.
fn split(mut first: u128, last: u128, bits: usize, prefixes: &mut Vec<Prefix>) {
    while first <= last {
        let mut free = (first.trailing_zeros() as usize).min(bits);
        let block = |free: usize| {
            1_u128
                .checked_shl(free as u32)
                .map_or(u128::MAX, |size| size - 1)
        };
        while first.checked_add(block(free)).is_none_or(|end| end > last) {
            free -= 1;
        }
        let address = if bits == 32 {
            IpAddr::from((first as u32).to_be_bytes())
        } else {
            IpAddr::from(first.to_be_bytes())
        };
        prefixes.push(Prefix {
            address,
            length: (bits - free) as u8,
        });
        match first
            .checked_add(block(free))
            .and_then(|end| end.checked_add(1))
        {
            Some(next) => first = next,
            None => break,
        }
    }
}

/// Reads every set of a table; ends early when one is not whole.
pub(super) fn read(
    conversation: &mut Conversation,
    family: u8,
    table: &str,
    missing: &mut Vec<Missing>,
) -> Vec<Set> {
    let doubts = missing.len();
    let mut sets = list(conversation, family, table, missing);
    for set in sets.iter_mut().filter(|set| set.timeout.is_none()) {
        set.elements = elements(conversation, family, table, &set.name, LIMIT, missing);
        if missing.len() > doubts {
            break;
        }
    }
    sets
}

/// The sets of a table, each read when it is asked for.
pub(super) struct OnDemand<'a> {
    conversation: &'a mut Conversation,
    family: u8,
    table: &'a str,
    missing: &'a mut Vec<Missing>,
    /// Every set of the table, once one was asked for; `None` in it for one that could not be read whole.
    listed: Option<HashMap<String, Option<Set>>>,
}

impl<'a> OnDemand<'a> {
    pub(super) fn new(
        conversation: &'a mut Conversation,
        family: u8,
        table: &'a str,
        missing: &'a mut Vec<Missing>,
    ) -> Self {
        Self {
            conversation,
            family,
            table,
            missing,
            listed: None,
        }
    }

    /// A set that is whole, stays as it is and has no more than `most` elements.
    pub(super) fn get(&mut self, name: &str, most: usize) -> Option<Set> {
        let listed = self.listed.get_or_insert_with(|| {
            list(self.conversation, self.family, self.table, self.missing)
                .into_iter()
                .map(|set| (set.name.clone(), (!set.changes).then_some(set)))
                .collect()
        });
        let known = listed.get_mut(name)?;
        let set = known.as_mut()?;
        if set.elements.is_empty() {
            let doubts = self.missing.len();
            set.elements = elements(
                self.conversation,
                self.family,
                self.table,
                name,
                most,
                self.missing,
            );
            if self.missing.len() > doubts {
                *known = None;
            }
        }
        known.clone().filter(|set| set.elements.len() <= most)
    }
}

/// Every set of a table, without its elements.
fn list(
    conversation: &mut Conversation,
    family: u8,
    table: &str,
    missing: &mut Vec<Missing>,
) -> Vec<Set> {
    let request = Request {
        message: GET_SET,
        family,
        attributes: vec![DefaultNla::new(SET_TABLE, zero_ended(table))],
    };
    rows_or_missing(WHAT, conversation.dump(request, LIMIT, parse_set), missing)
}

fn elements(
    conversation: &mut Conversation,
    family: u8,
    table: &str,
    set: &str,
    most: usize,
    missing: &mut Vec<Missing>,
) -> Vec<Element> {
    let request = Request {
        message: GET_ELEMENTS,
        family,
        attributes: vec![
            DefaultNla::new(LIST_TABLE, zero_ended(table)),
            DefaultNla::new(LIST_SET, zero_ended(set)),
        ],
    };
    let elements = conversation.dump_lists(request, most, parse_elements);
    rows_or_missing(&format!("{WHAT}: {set} of {table}"), elements, missing)
}

fn parse_set(payload: &[u8]) -> Result<Option<Set>, DecodeError> {
    let (mut name, mut timeout, mut flags) = (None, None, 0);
    for attribute in attributes(payload, HEADER_BYTES) {
        match attribute.kind() {
            SET_NAME => name = Some(parse_string(attribute.value())?),
            SET_FLAGS => flags = parse_u32_be(attribute.value())?,
            SET_TIMEOUT => timeout = Some(parse_u64_be(attribute.value())?),
            _ => {}
        }
    }
    Ok(Some(Set {
        name: name.ok_or("nftables set without a name")?,
        timeout: timeout.map(Duration::from_millis),
        changes: timeout.is_some() || flags & COME_AND_GO != 0,
        intervals: flags & INTERVALS != 0,
        elements: Vec::new(),
    }))
}

fn parse_elements(payload: &[u8]) -> Result<Vec<Element>, DecodeError> {
    let message = Data::new(payload.get(HEADER_BYTES..).unwrap_or_default());
    let list = Data::new(message.bytes(LIST_ELEMENTS).unwrap_or_default());
    list.values().map(parse_element).collect()
}

fn parse_element(bytes: &[u8]) -> Result<Element, DecodeError> {
    let (mut key, mut flags, mut decided, mut conditional) = (None, 0, None, false);
    for attribute in attributes(bytes, 0) {
        let value = attribute.value();
        match attribute.kind() {
            ELEMENT_KEY => key = Data::new(value).bytes(DATA_VALUE).map(<[u8]>::to_vec),
            ELEMENT_DATA => decided = verdict(value),
            ELEMENT_FLAGS => flags = parse_u32_be(value)?,
            // Counting lets every packet pass.
            ELEMENT_EXPRESSION => {
                let name = Data::new(value).text(EXPRESSION_NAME);
                conditional |= name.as_deref() != Some("counter");
            }
            ELEMENT_EXPRESSIONS | ELEMENT_KEY_END => conditional = true,
            _ => {}
        }
    }
    if flags & EVERY_OTHER_KEY != 0 {
        key = Some(Vec::new());
    }
    Ok(Element {
        key: key.ok_or("nftables set element without a key")?,
        conditional,
        ends_interval: flags & INTERVAL_END != 0,
        verdict: decided,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::netfilter::nft::tests::attribute;

    fn edge(address: &str, ends_interval: bool) -> Element {
        let key = match address.parse().expect("an address") {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        Element {
            key,
            conditional: false,
            ends_interval,
            verdict: None,
        }
    }

    fn prefixes(edges: &[(&str, bool)]) -> Vec<String> {
        let set = Set {
            name: "__set0".into(),
            intervals: true,
            elements: edges
                .iter()
                .map(|(address, end)| edge(address, *end))
                .collect(),
            ..Set::default()
        };
        set.prefixes().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn intervals_are_prefixes() {
        // The kernel gives the end of an interval first, and one for everything before the first.
        assert_eq!(
            prefixes(&[
                ("203.0.113.128", true),
                ("203.0.113.0", false),
                ("10.0.0.0", true),
                ("9.0.0.0", false),
                ("0.0.0.0", true),
            ]),
            ["9.0.0.0/8", "203.0.113.0/25"]
        );
        // Neighbours share an edge.
        assert_eq!(
            prefixes(&[
                ("10.0.0.0", false),
                ("10.0.1.0", true),
                ("10.0.1.0", false),
                ("10.0.1.3", true)
            ]),
            ["10.0.0.0/24", "10.0.1.0/31", "10.0.1.2/32"]
        );
        assert_eq!(prefixes(&[("128.0.0.0", false)]), ["128.0.0.0/1"]);
        assert_eq!(prefixes(&[("0.0.0.0", false)]), ["0.0.0.0/0"]);
        assert_eq!(prefixes(&[("::", false)]), ["::/0"]);
        assert_eq!(
            prefixes(&[("2001:db8::", false), ("2001:db9::", true)]),
            ["2001:db8::/32"]
        );
    }

    #[test]
    fn single_keys_are_no_intervals() {
        let set = Set {
            elements: vec![edge("10.0.0.9", false), edge("10.0.0.1", false)],
            ..Set::default()
        };
        let prefixes: Vec<_> = set.prefixes().iter().map(ToString::to_string).collect();
        assert_eq!(prefixes, ["10.0.0.1/32", "10.0.0.9/32"]);
    }

    #[test]
    fn elements_say_what_is_special_about_them() {
        let key = || attribute(ELEMENT_KEY, &attribute(DATA_VALUE, &[0, 80]));
        let runs = |name: &[u8]| attribute(ELEMENT_EXPRESSION, &attribute(EXPRESSION_NAME, name));
        let flags = |flags: u32| attribute(ELEMENT_FLAGS, &flags.to_be_bytes());
        for (parts, key, conditional, ends_interval) in [
            (vec![key()], &[0, 80][..], false, false),
            (vec![key(), flags(1)], &[0, 80], false, true),
            (vec![key(), runs(b"counter\0")], &[0, 80], false, false),
            (vec![key(), runs(b"limit\0")], &[0, 80], true, false),
            (vec![key(), attribute(11, &[])], &[0, 80], true, false),
            (vec![key(), attribute(10, &[])], &[0, 80], true, false),
            (vec![flags(2)], &[], false, false),
        ] {
            let expected = Element {
                key: key.to_vec(),
                conditional,
                ends_interval,
                verdict: None,
            };
            assert_eq!(
                parse_element(&parts.concat()).expect("an element"),
                expected
            );
        }
        assert!(parse_element(&flags(0)).is_err());
    }

    #[test]
    fn sets_say_what_their_elements_are() {
        let set = |flags: u32| {
            let parts = [
                attribute(SET_NAME, b"ports\0"),
                attribute(SET_FLAGS, &flags.to_be_bytes()),
            ];
            let payload = [vec![1, 0, 0, 0], parts.concat()].concat();
            let set = parse_set(&payload).expect("a set").expect("wanted");
            (set.intervals, set.changes)
        };
        assert_eq!(set(3), (false, false));
        assert_eq!(set(4), (true, false));
        assert_eq!(set(0x10), (false, true));
        assert_eq!(set(0x20), (false, true));
    }

    #[test]
    fn damage_is_survived() {
        for byte in 0..=u8::MAX {
            for length in 0..40 {
                let _ = parse_elements(&vec![byte; length]);
                let _ = parse_set(&vec![byte; length]);
            }
        }
    }
}
