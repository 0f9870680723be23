//! From the expressions of an nftables rule to tests and an action.
//!
//! A rule is a small program over registers: one expression loads a field, the next masks or compares it.
//! Attributes are those of the kernel's `linux/netfilter/nf_tables.h` and `nf_tables_compat.h`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{parse_string, parse_u32_be};

use super::field::{Field, WORD, native};
use super::legacy::{ip, prefix_length};
use super::lookup::Lookup;
use super::text::set_name;
use super::xt::{self, Match};
use super::{Action, Family, Rule, Subject, Test};
use crate::node::netlink::attributes;

const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const VERDICT_REGISTER: u32 = 0;

#[derive(Clone, Debug)]
struct Loaded {
    field: Field,
    mask: Option<Vec<u8>>,
}

/// How `cmp` and `range` compare.
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const LESS: u32 = 2;
const AT_MOST: u32 = 3;
const MORE: u32 = 4;
const AT_LEAST: u32 = 5;

/// Objects that a rule passes whatever they say (`NFT_OBJECT_*`): counters, connection tracking's helpers,
/// timeouts and expectations, tunnels and security marks. Quotas, limits and maps of objects may stop it.
const HARMLESS_OBJECTS: [u32; 6] = [1, 3, 6, 7, 8, 9];
/// Expressions that run with the element which `dynset` adds: a limit, for one, stops the rule.
const DYNSET_EXPRESSIONS: [u16; 2] = [7, 10];
const DYNSET_FLAGS: u16 = 9;
/// The rule goes on only where the element was there before.
const DYNSET_INVERTED: u32 = 1;

struct Reader {
    family: Family,
    /// The network header that the rule looks at, once it is known.
    ipv6: Option<bool>,
    /// What is loaded, by the [`word`] where it begins.
    registers: BTreeMap<u32, Loaded>,
    rule: Rule,
    lookups: Vec<Lookup>,
}

/// Attribute values of one expression by their number.
pub(super) struct Data<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Data<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(
            attributes(bytes, 0)
                .map(|attribute| (attribute.kind(), attribute.into_inner()))
                .filter_map(|(kind, whole)| Some((kind, value_of(whole)?)))
                .collect(),
        )
    }

    /// Every value, in the kernel's order.
    pub(super) fn values(&self) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().map(|&(_, value)| value)
    }

    pub(super) fn bytes(&self, kind: u16) -> Option<&'a [u8]> {
        self.0
            .iter()
            .find(|(found, _)| *found == kind)
            .map(|&(_, value)| value)
    }

    pub(super) fn number(&self, kind: u16) -> Option<u32> {
        parse_u32_be(self.bytes(kind)?).ok()
    }

    pub(super) fn text(&self, kind: u16) -> Option<String> {
        parse_string(self.bytes(kind)?).ok()
    }

    /// The value inside a data attribute.
    pub(super) fn value(&self, kind: u16) -> Option<&'a [u8]> {
        Data::new(self.bytes(kind)?).bytes(DATA_VALUE)
    }
}

/// The value of an attribute's bytes.
fn value_of(attribute: &[u8]) -> Option<&[u8]> {
    let length = usize::from(u16::from_ne_bytes(*attribute.first_chunk()?));
    attribute.get(4..length)
}

/// Reads the list of a rule's expressions; number, handle and comment from elsewhere are not set, and what its
/// sets hold is not known yet.
pub(super) fn read(list: &[u8], family: Family) -> (Rule, Vec<Lookup>) {
    let mut reader = Reader {
        family,
        ipv6: match family {
            Family::Ip => Some(false),
            Family::Ip6 => Some(true),
            _ => None,
        },
        registers: BTreeMap::new(),
        rule: Rule {
            number: 0,
            handle: None,
            tests: Vec::new(),
            notes: Vec::new(),
            action: Action::Continue,
            comment: None,
            packets: None,
        },
        lookups: Vec::new(),
    };
    for element in Data::new(list).0 {
        let (LIST_ELEMENT, bytes) = element else {
            continue;
        };
        let expression = Data::new(bytes);
        if let Some(name) = expression.text(EXPRESSION_NAME) {
            let data = Data::new(expression.bytes(EXPRESSION_DATA).unwrap_or_default());
            if reader.expression(&name, &data).is_none() {
                // It may have loaded a register, in any way; what was there before is not compared.
                reader.registers.clear();
                reader.test(false, Subject::Other(format!("({name} …)")));
            }
        }
    }
    (reader.rule, reader.lookups)
}

impl Reader {
    fn test(&mut self, negated: bool, on: Subject) {
        if let (Subject::Ipv6(ipv6), false) = (&on, negated) {
            self.ipv6 = Some(*ipv6);
        }
        self.rule.tests.push(Test { negated, on });
    }

    fn note(&mut self, text: impl Into<String>) -> Option<()> {
        self.rule.notes.push(text.into());
        Some(())
    }

    fn load(&mut self, register: Option<u32>, field: Field) -> Option<()> {
        self.put(register?, Loaded { field, mask: None })
    }

    /// What lies behind is of an earlier key: `nft` loads the fields of one in their order.
    fn put(&mut self, register: u32, loaded: Loaded) -> Option<()> {
        let word = word(register)?;
        self.registers.split_off(&word);
        self.registers.insert(word, loaded);
        Some(())
    }

    fn loaded(&self, register: Option<u32>) -> Option<&Loaded> {
        self.registers.get(&word(register?)?)
    }

    /// `None`: not understood, so it may not match.
    fn expression(&mut self, name: &str, data: &Data<'_>) -> Option<()> {
        match name {
            "payload" => self.payload(data),
            "meta" => self.meta(data),
            "ct" => self.conntrack(data),
            "fib" => self.fib(data),
            "bitwise" => self.bitwise(data),
            "cmp" => {
                let loaded = self.loaded(data.number(1))?.clone();
                self.compare(&loaded, data.number(2)?, data.value(3)?)
            }
            "range" => {
                let loaded = self.loaded(data.number(1))?.clone();
                let (low, high) = (port(data.value(3)?)?, port(data.value(4)?)?);
                let on = loaded.field.ports(vec![low..=high])?;
                self.test(data.number(2)? == NOT_EQUAL, on);
                Some(())
            }
            "lookup" => self.lookup(data),
            "immediate" => self.immediate(data),
            "counter" => {
                self.rule.packets = packets(data);
                Some(())
            }
            "match" => {
                let revision = data.number(2).unwrap_or(0) as u8;
                match xt::read_match(&data.text(1)?, revision, data.bytes(3)?) {
                    Match::Tests(tests) => {
                        for Test { negated, on } in tests {
                            self.test(negated, on);
                        }
                    }
                    Match::Comment(text) => self.rule.comment = Some(text),
                }
                Some(())
            }
            "target" => {
                let name = data.text(1)?;
                let ipv6 = self.family == Family::Ip6;
                self.rule.action = xt::read_target(&name, data.bytes(3).unwrap_or_default(), ipv6);
                if self.rule.action == Action::Continue {
                    self.note(name)?;
                }
                Some(())
            }
            "reject" => {
                self.rule.action = Action::Reject(reject(data));
                Some(())
            }
            "masq" | "redir" | "nat" => {
                let word = match (name, data.number(1)) {
                    ("masq", _) => "masquerade",
                    ("redir", _) => "redirect",
                    (_, Some(0)) => "snat",
                    _ => "dnat",
                };
                self.rule.action = match self.nat_target(data) {
                    Some(to) if word == "dnat" => Action::Dnat(to),
                    _ => Action::Translate(word.into()),
                };
                Some(())
            }
            "log" => self.note("log"),
            "notrack" => self.note("notrack"),
            "queue" | "tproxy" | "synproxy" => {
                self.rule.action = Action::Other(name.into());
                Some(())
            }
            // The same field, and another number.
            "byteorder" => {
                let words = self.loaded(data.number(1))?.field.words();
                self.load(data.number(2), Field::Other(words))
            }
            "objref" => {
                let harmless = data
                    .number(1)
                    .is_some_and(|kind| HARMLESS_OBJECTS.contains(&kind));
                harmless.then(|| self.note("(objref …)"))?
            }
            "dynset" => {
                let stops = DYNSET_EXPRESSIONS
                    .iter()
                    .any(|&kind| data.bytes(kind).is_some())
                    || data.number(DYNSET_FLAGS).unwrap_or(0) & DYNSET_INVERTED != 0;
                (!stops).then(|| self.note("(dynset …)"))?
            }
            "dup" | "flow_offload" | "last" => self.note(format!("({name} …)")),
            _ => None,
        }
    }

    fn payload(&mut self, data: &Data<'_>) -> Option<()> {
        const LINK: u32 = 0;
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;
        const SOURCE_REGISTER: u16 = 5;
        if data.bytes(SOURCE_REGISTER).is_some() {
            return self.note("(payload set …)");
        }
        let (base, offset, length) = (
            data.number(2)?,
            data.number(3)? as usize,
            data.number(4)? as usize,
        );
        let field = match (base, self.ipv6, offset, length) {
            (LINK, _, 12, 2) => Field::EtherType,
            (NETWORK, Some(false), 9, 1) | (NETWORK, Some(true), 6, 1) => Field::Protocol,
            (NETWORK, Some(false), 12..16, _) if offset + length <= 16 => Field::Source {
                offset: offset - 12,
                length,
            },
            (NETWORK, Some(false), 16..20, _) if offset + length <= 20 => Field::Destination {
                offset: offset - 16,
                length,
            },
            (NETWORK, Some(true), 8..24, _) if offset + length <= 24 => Field::Source {
                offset: offset - 8,
                length,
            },
            (NETWORK, Some(true), 24..40, _) if offset + length <= 40 => Field::Destination {
                offset: offset - 24,
                length,
            },
            (TRANSPORT, _, 0, 2) => Field::SourcePort,
            (TRANSPORT, _, 2, 2) => Field::DestinationPort,
            (TRANSPORT, _, 13, 1) => Field::TcpFlags,
            (TRANSPORT, _, 0, 1) => Field::IcmpType,
            _ => Field::Other(format!("@{base},{},{}", offset * 8, length * 8)),
        };
        self.load(data.number(1), field)
    }

    fn meta(&mut self, data: &Data<'_>) -> Option<()> {
        const SOURCE_REGISTER: u16 = 3;
        let key = data.number(2)?;
        if data.bytes(SOURCE_REGISTER).is_some() {
            return self.note(if key == 3 {
                "meta mark set (…)"
            } else {
                "(meta set …)"
            });
        }
        let field = match key {
            1 => Field::EtherType,
            3 => Field::Mark,
            4 => Field::InIndex,
            5 => Field::OutIndex,
            6 => Field::In,
            7 => Field::Out,
            15 => Field::Ipv6,
            16 => Field::Protocol,
            other => Field::Other(format!("meta {other}")),
        };
        self.load(data.number(1), field)
    }

    fn conntrack(&mut self, data: &Data<'_>) -> Option<()> {
        const SOURCE_REGISTER: u16 = 4;
        if data.bytes(SOURCE_REGISTER).is_some() {
            return self.note("(ct set …)");
        }
        let field = match data.number(2)? {
            0 => Field::State,
            1 => Field::Other("ct direction".into()),
            2 => Field::Other("ct status".into()),
            3 => Field::Other("ct mark".into()),
            other => Field::Other(format!("ct {other}")),
        };
        self.load(data.number(1), field)
    }

    fn fib(&mut self, data: &Data<'_>) -> Option<()> {
        const TYPE: u32 = 3;
        const SOURCE: u32 = 1;
        const DESTINATION: u32 = 2;
        let field = match (data.number(2)?, data.number(3)?) {
            (TYPE, SOURCE) => Field::LocalSource,
            (TYPE, DESTINATION) => Field::LocalDestination,
            _ => Field::Other("fib (…)".into()),
        };
        self.load(data.number(1), field)
    }

    fn bitwise(&mut self, data: &Data<'_>) -> Option<()> {
        let loaded = self.loaded(data.number(1))?.clone();
        let (mask, xor) = (data.value(4), data.value(5));
        let plain =
            loaded.mask.is_none() && xor.is_none_or(|xor| xor.iter().all(|&byte| byte == 0));
        let masked = match mask {
            Some(mask) if plain => Loaded {
                mask: Some(mask.to_vec()),
                ..loaded
            },
            _ => Loaded {
                field: Field::Other("(bitwise …)".into()),
                mask: None,
            },
        };
        self.put(data.number(2)?, masked)
    }

    /// What is loaded from a register on, one behind the other without a gap.
    fn behind(&self, register: u32) -> Vec<&Loaded> {
        let Some(mut next) = word(register) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        while let Some(loaded) = self.registers.get(&next) {
            found.push(loaded);
            match loaded.field.width() {
                Some(width) => next += width.div_ceil(WORD) as u32,
                None => break,
            }
        }
        found
    }

    fn lookup(&mut self, data: &Data<'_>) -> Option<()> {
        const FLAGS: u16 = 5;
        let (set, source) = (data.text(1)?, data.number(2)?);
        let loaded = self.behind(source);
        let words: Vec<_> = loaded.iter().map(|loaded| loaded.field.words()).collect();
        let what = if words.is_empty() {
            "(…)".into()
        } else {
            words.join(" . ")
        };
        let address = if self.ipv6 == Some(true) { 16 } else { 4 };
        let whole = |loaded: &&&Loaded| {
            let cut = match loaded.field {
                Field::Source { length, .. } | Field::Destination { length, .. } => {
                    length != address
                }
                _ => false,
            };
            loaded.mask.is_none() && !cut
        };
        let known = loaded.iter().take_while(whole);
        let mut lookup = Lookup {
            key: known.map(|loaded| loaded.field.clone()).collect(),
            set: set.clone(),
            test: None,
        };
        let register = data.number(3);
        if register == Some(VERDICT_REGISTER) {
            let words = format!("{what} vmap {}", set_name(&set));
            self.lookups.push(lookup);
            self.rule.action = Action::Map {
                words,
                set,
                choices: None,
            };
            return Some(());
        }
        // A map ends the rule as well when it does not have the key.
        lookup.test = Some(self.rule.tests.len());
        self.lookups.push(lookup);
        let negated = data.number(FLAGS).unwrap_or(0) & 1 != 0;
        let found = Field::Other(format!("{what} map {}", set_name(&set)));
        let members = None;
        self.test(negated, Subject::Set { what, set, members });
        register.map_or(Some(()), |register| self.load(Some(register), found))
    }

    fn immediate(&mut self, data: &Data<'_>) -> Option<()> {
        let register = data.number(1)?;
        if register != VERDICT_REGISTER {
            let value = data.value(2).unwrap_or_default().to_vec();
            return self.load(Some(register), Field::Value(value));
        }
        self.rule.action = verdict(data.bytes(2)?)?;
        Some(())
    }

    /// The one address and port that a `nat` expression gives.
    fn nat_target(&self, data: &Data<'_>) -> Option<SocketAddr> {
        const ADDRESS: u16 = 3;
        const PORT: u16 = 5;
        let value = |kind| match &self.loaded(data.number(kind))?.field {
            Field::Value(value) => Some(value.as_slice()),
            _ => None,
        };
        Some(SocketAddr::new(ip(value(ADDRESS)?)?, port(value(PORT)?)?))
    }

    fn compare(&mut self, loaded: &Loaded, how: u32, value: &[u8]) -> Option<()> {
        let negated = how == NOT_EQUAL;
        let exact = matches!(how, EQUAL | NOT_EQUAL);
        let mask = loaded.mask.as_deref();
        let other = || {
            let sign = ["", "!= ", "< ", "<= ", "> ", ">= "]
                .get(how as usize)
                .copied()
                .unwrap_or_default();
            Subject::Other(format!("{} {sign}(…)", loaded.field.words()))
        };
        let (negated, on) = match (&loaded.field, mask) {
            (Field::Source { offset: 0, length }, _) if exact => {
                let (address, length) = self.prefix(*length, mask, value)?;
                (negated, Subject::Source(address, length))
            }
            (Field::Destination { offset: 0, length }, _) if exact => {
                let (address, length) = self.prefix(*length, mask, value)?;
                (negated, Subject::Destination(address, length))
            }
            // `ct state established,related` is "not none of these".
            (Field::State, Some(mask)) if exact && native(value) == Some(0) => {
                (how == EQUAL, Subject::State(xt::states(native(mask)?, 6)))
            }
            (Field::SourcePort | Field::DestinationPort, None) => {
                let number = port(value)?;
                let range = match how {
                    EQUAL | NOT_EQUAL => number..=number,
                    LESS => 0..=number.checked_sub(1)?,
                    AT_MOST => 0..=number,
                    MORE => number.checked_add(1)?..=u16::MAX,
                    AT_LEAST => number..=u16::MAX,
                    _ => return None,
                };
                (negated, loaded.field.ports(vec![range])?)
            }
            (field, mask) => match field.is(mask, value).filter(|_| exact) {
                Some(on) => (negated, on),
                None => (false, other()),
            },
        };
        self.test(negated, on);
        Some(())
    }

    /// A prefix from the leading bytes of an address, or from a whole one under a mask.
    fn prefix(&self, length: usize, mask: Option<&[u8]>, value: &[u8]) -> Option<(IpAddr, u8)> {
        let size = if self.ipv6? { 16 } else { 4 };
        let mut bytes = value.get(..length)?.to_vec();
        bytes.resize(size, 0);
        let bits = match mask {
            Some(mask) => prefix_length(mask)?,
            None => (length * 8) as u8,
        };
        Some((ip(&bytes)?, bits))
    }
}

/// The place of a register among all of them, which share their space: four of sixteen bytes, or sixteen of four
/// (`NFT_REG_1`, `NFT_REG32_00`). `None` for the verdict's, and for numbers that are none.
fn word(register: u32) -> Option<u32> {
    match register {
        1..=4 => Some((register - 1) * 4),
        8..=23 => Some(register - 8),
        _ => None,
    }
}

/// From a data attribute with a verdict in it.
pub(super) fn verdict(data: &[u8]) -> Option<Action> {
    let verdict = Data::new(Data::new(data).bytes(DATA_VERDICT)?);
    let chain = || verdict.text(VERDICT_CHAIN).unwrap_or_default();
    // The kernel's NFT_* codes are negative, NF_* are not.
    Some(match verdict.number(VERDICT_CODE)?.cast_signed() {
        0 => Action::Drop,
        1 => Action::Accept,
        -1 => Action::Continue,
        -3 => Action::Jump(chain()),
        -4 => Action::Goto(chain()),
        -5 => Action::Return,
        other => Action::Other(format!("verdict {other}")),
    })
}

const COUNTER_PACKETS: u16 = 2;

fn packets(data: &Data<'_>) -> Option<u64> {
    let bytes = data.bytes(COUNTER_PACKETS)?.first_chunk()?;
    Some(u64::from_be_bytes(*bytes))
}

fn port(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.try_into().ok()?))
}

fn reject(data: &Data<'_>) -> String {
    let code = data
        .bytes(2)
        .and_then(|bytes| bytes.first().copied())
        .unwrap_or(u8::MAX);
    match (data.number(1), code) {
        (Some(1), _) => "tcp reset".into(),
        (Some(2), 0) => "icmpx no-route".into(),
        (Some(2), 1) => "icmpx port-unreachable".into(),
        (Some(2), 2) => "icmpx host-unreachable".into(),
        (Some(2), 3) => "icmpx admin-prohibited".into(),
        (Some(0), 3) => "icmp port-unreachable".into(),
        (Some(0), 13) => "icmp admin-prohibited".into(),
        (_, code) => format!("icmp {code}"),
    }
}
