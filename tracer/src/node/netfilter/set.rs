//! Sets and maps of an nftables table, with their elements as the kernel keeps them.
//!
//! Attributes are those of the kernel's `linux/netfilter/nf_tables.h`.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{DecodeError, DefaultNla, parse_string, parse_u32_be, parse_u64_be};

use super::expression::{Data, verdict};
use super::nft::{HEADER_BYTES, Request, zero_ended};
use super::{Action, LIMIT, Missing};
use crate::node::Prefix;
use crate::node::netlink::{Conversation, attributes};
use crate::node::table::rows_or_missing;

const GET_SET: u16 = 10;
const GET_ELEMENTS: u16 = 13;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_TIMEOUT: u16 = 11;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_FLAGS: u16 = 3;
const INTERVAL_END: u32 = 1;
const DATA_VALUE: u16 = 1;
const WHAT: &str = "nftables sets";

/// A set or map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::node) struct Set {
    /// Its name in the table.
    pub name: String,
    /// How long an element stays; `None` for as long as the set.
    pub timeout: Option<Duration>,
    /// Its elements; none are read of a set whose elements come and go.
    pub elements: Vec<Element>,
}

/// An element.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::node) struct Element {
    /// The key: its fields one behind the other, each filled up to four bytes, in network byte order.
    pub key: Vec<u8>,
    /// The key is the first one behind an interval.
    pub ends_interval: bool,
    /// What the map says, where it is a verdict.
    pub verdict: Option<Action>,
}

impl Set {
    /// The prefixes that an interval set of addresses holds, in their order.
    pub(in crate::node) fn prefixes(&self) -> Vec<Prefix> {
        let mut edges: Vec<(u128, bool, usize)> = self
            .elements
            .iter()
            .filter_map(|element| {
                let bits = element.key.len() * 8;
                Some((number(&element.key)?, !element.ends_interval, bits))
            })
            .collect();
        edges.sort_unstable();
        let mut prefixes = Vec::new();
        let mut begun = None;
        for (key, begins, bits) in edges {
            if let Some(first) = begun.take()
                && let Some(last) = key.checked_sub(1)
            {
                split(first, last, bits, &mut prefixes);
            }
            begun = begins.then_some(key);
        }
        // Without an end an interval reaches up to the last address.
        if let (Some(first), Some(element)) = (begun, self.elements.first()) {
            let bits = element.key.len() * 8;
            split(
                first,
                u128::MAX >> (128 - bits.min(128)),
                bits,
                &mut prefixes,
            );
        }
        prefixes
    }

    /// The addresses that a set of single addresses holds.
    pub(in crate::node) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.elements
            .iter()
            .filter_map(|element| super::legacy::ip(&element.key))
    }
}

fn number(key: &[u8]) -> Option<u128> {
    matches!(key.len(), 4 | 16).then(|| {
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
    let request = Request {
        message: GET_SET,
        family,
        attributes: vec![DefaultNla::new(SET_TABLE, zero_ended(table))],
    };
    let sets = conversation.dump(request, LIMIT, parse_set);
    let doubts = missing.len();
    let mut sets = rows_or_missing(WHAT, sets, missing);
    for set in sets.iter_mut().filter(|set| set.timeout.is_none()) {
        let request = Request {
            message: GET_ELEMENTS,
            family,
            attributes: vec![
                DefaultNla::new(LIST_TABLE, zero_ended(table)),
                DefaultNla::new(LIST_SET, zero_ended(&set.name)),
            ],
        };
        let messages = conversation.dump(request, LIMIT, parse_elements);
        let messages = rows_or_missing(WHAT, messages, missing);
        set.elements = messages.into_iter().flatten().collect();
        if missing.len() > doubts {
            break;
        }
    }
    sets
}

fn parse_set(payload: &[u8]) -> Result<Option<Set>, DecodeError> {
    let (mut name, mut timeout) = (None, None);
    for attribute in attributes(payload, HEADER_BYTES) {
        match attribute.kind() {
            SET_NAME => name = Some(parse_string(attribute.value())?),
            SET_TIMEOUT => timeout = Some(parse_u64_be(attribute.value())?),
            _ => {}
        }
    }
    Ok(Some(Set {
        name: name.ok_or("nftables set without a name")?,
        timeout: timeout.map(Duration::from_millis),
        elements: Vec::new(),
    }))
}

fn parse_elements(payload: &[u8]) -> Result<Option<Vec<Element>>, DecodeError> {
    let message = Data::new(payload.get(HEADER_BYTES..).unwrap_or_default());
    let list = Data::new(message.bytes(LIST_ELEMENTS).unwrap_or_default());
    let elements = list.values().map(parse_element);
    elements.collect::<Result<_, _>>().map(Some)
}

fn parse_element(bytes: &[u8]) -> Result<Element, DecodeError> {
    let (mut key, mut flags, mut decided) = (None, 0, None);
    for attribute in attributes(bytes, 0) {
        let value = attribute.value();
        match attribute.kind() {
            ELEMENT_KEY => key = Data::new(value).bytes(DATA_VALUE).map(<[u8]>::to_vec),
            ELEMENT_DATA => decided = verdict(value),
            ELEMENT_FLAGS => flags = parse_u32_be(value)?,
            _ => {}
        }
    }
    Ok(Element {
        key: key.ok_or("nftables set element without a key")?,
        ends_interval: flags & INTERVAL_END != 0,
        verdict: decided,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(address: &str, ends_interval: bool) -> Element {
        let key = match address.parse().expect("an address") {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        Element {
            key,
            ends_interval,
            verdict: None,
        }
    }

    fn prefixes(edges: &[(&str, bool)]) -> Vec<String> {
        let set = Set {
            name: "__set0".into(),
            timeout: None,
            elements: edges
                .iter()
                .map(|(address, end)| edge(address, *end))
                .collect(),
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
    fn damage_is_survived() {
        for byte in 0..=u8::MAX {
            for length in 0..40 {
                let _ = parse_elements(&vec![byte; length]);
                let _ = parse_set(&vec![byte; length]);
            }
        }
    }
}
