//! What rules look up in sets and verdict maps, as conditions on the field that is looked up.

use std::collections::HashMap;
use std::mem;
use std::ops::RangeInclusive;

use super::field::{Field, WORD};
use super::nft::RuleRow;
use super::set::{Element, Interval, Set, number, prefixes};
use super::{Action, Chain, Choice, Rule, Subject, Test};

/// A lookup of a rule in a set whose elements are not known yet.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Lookup {
    /// Name of the set.
    pub set: String,
    /// The fields from the key's beginning on, as far as they are known; the elements tell how many it has.
    pub key: Vec<Field>,
    /// Place of its condition among the rule's; `None` for the rule's action.
    pub test: Option<usize>,
}

/// Fills in what sets hold, for the rules that packets can reach from chains which do not only translate.
/// `read` gives a set of at most so many elements, and `room` is how many there may be in all.
pub(super) fn resolve(
    chains: &[Chain],
    rules: &mut [RuleRow],
    room: &mut usize,
    mut read: impl FnMut(&str, usize) -> Option<Set>,
) {
    let mut of_chains: HashMap<String, Vec<&mut RuleRow>> = HashMap::new();
    for row in rules {
        of_chains.entry(row.chain.clone()).or_default().push(row);
    }
    let begins = |chain: &&Chain| chain.base.as_ref().is_some_and(|base| base.kind != "nat");
    let begins = chains.iter().filter(begins);
    let mut reached: Vec<String> = begins.map(|chain| chain.name.clone()).collect();
    while let Some(chain) = reached.pop() {
        for row in of_chains.remove(&chain).unwrap_or_default() {
            for lookup in mem::take(&mut row.lookups) {
                if let Some(set) = read(&lookup.set, *room) {
                    *room = room.saturating_sub(set.elements.len());
                    fill(&mut row.rule, &lookup, &set);
                }
            }
            reached.extend(targets(&row.rule.action).map(str::to_owned));
        }
    }
}

/// Chains that an action leads to.
fn targets(action: &Action) -> impl Iterator<Item = &str> {
    let choices = match action {
        Action::Map {
            choices: Some(choices),
            ..
        } => &choices[..],
        _ => &[],
    };
    let actions = choices.iter().map(|choice| &choice.action);
    actions.chain([action]).filter_map(|action| match action {
        Action::Jump(chain) | Action::Goto(chain) => Some(chain.as_str()),
        _ => None,
    })
}

fn fill(rule: &mut Rule, lookup: &Lookup, set: &Set) {
    match (lookup.test, &mut rule.action) {
        (Some(place), _) => {
            if let Some(Test {
                on: Subject::Set { members, .. },
                ..
            }) = rule.tests.get_mut(place)
            {
                let mut all = Members::default();
                for (element, keys) in elements(set) {
                    all.add(&lookup.key, element, keys.as_ref());
                }
                *members = Some(all.conditions(&lookup.key));
            }
        }
        (None, Action::Map { choices, .. }) => *choices = self::choices(&lookup.key, set),
        (None, _) => {}
    }
}

/// Every element, with the keys that it stands for; `None` for those that are no numbers.
fn elements(set: &Set) -> impl Iterator<Item = (&Element, Option<Interval<'_>>)> {
    let odd = set.elements.iter();
    let odd = odd.filter(|element| number(&element.key).is_none());
    let intervals = set.intervals().into_iter();
    odd.map(|element| (element, None))
        .chain(intervals.map(|keys| (keys.element, Some(keys))))
}

/// What a map says, each action with all of its keys; `None` when it holds something else than verdicts.
fn choices(key: &[Field], set: &Set) -> Option<Vec<Choice>> {
    let mut places = HashMap::new();
    let mut found: Vec<(&Action, Members)> = Vec::new();
    for (element, keys) in elements(set) {
        let action = element.verdict.as_ref()?;
        let place = *places.entry(action).or_insert(found.len());
        if place == found.len() {
            found.push((action, Members::default()));
        }
        found[place].1.add(key, element, keys.as_ref());
    }
    let choice = |(action, members): (&Action, Members)| Choice {
        members: members.conditions(key),
        action: action.clone(),
    };
    Some(found.into_iter().map(choice).collect())
}

/// Keys as conditions.
#[derive(Default)]
struct Members {
    ports: Vec<RangeInclusive<u16>>,
    states: u8,
    others: Vec<Subject>,
    /// For some it cannot be told whether a packet has them.
    undecided: bool,
}

impl Members {
    fn add(&mut self, key: &[Field], element: &Element, keys: Option<&Interval<'_>>) {
        let added = if element.conditional {
            None
        } else if let Some(parts) = parts(key, &element.key) {
            self.add_parts(&parts)
        } else {
            key.first().zip(keys).and_then(|(field, keys)| {
                self.add_keys(field, keys.first..=keys.last, element.key.len())
            })
        };
        self.undecided |= added.is_none();
    }

    /// A key of several fields.
    fn add_parts(&mut self, parts: &[(&Field, &[u8])]) -> Option<()> {
        let one = |&(field, value): &(&Field, &[u8])| {
            let mut alone = Self::default();
            let number = number(value)?;
            alone.add_keys(field, number..=number, value.len())?;
            alone.conditions(std::slice::from_ref(field)).pop()
        };
        let conditions: Option<_> = parts.iter().map(one).collect();
        self.others.push(Subject::All(conditions?));
        Some(())
    }

    /// Keys of so many bytes; `None` for those that cannot be compared with the field.
    fn add_keys(&mut self, field: &Field, keys: RangeInclusive<u128>, width: usize) -> Option<()> {
        (field.width() == Some(width)).then_some(())?;
        let (first, last) = keys.clone().into_inner();
        match field {
            Field::Source { .. } => self.others.extend(
                prefixes(keys, width)
                    .iter()
                    .map(|prefix| Subject::Source(prefix.address, prefix.length)),
            ),
            Field::Destination { .. } => self.others.extend(
                prefixes(keys, width)
                    .iter()
                    .map(|prefix| Subject::Destination(prefix.address, prefix.length)),
            ),
            Field::SourcePort | Field::DestinationPort => {
                let port = |number| u16::try_from(number).ok();
                self.ports.push(port(first)?..=port(last)?);
            }
            _ if first == last => match field.is(None, &bytes(first, width))? {
                Subject::State(states) => self.states |= states,
                other => self.others.push(other),
            },
            Field::In | Field::Out => {
                let beginning = beginning(first, last)?;
                self.others.push(field.is(None, &beginning)?);
            }
            _ if width == 1 => {
                for key in keys {
                    self.others.push(field.is(None, &bytes(key, width))?);
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn conditions(self, key: &[Field]) -> Vec<Subject> {
        let mut conditions = self.others;
        if !self.ports.is_empty() {
            conditions.extend(key.first().and_then(|field| field.ports(self.ports)));
        }
        if self.states != 0 {
            conditions.push(Subject::State(self.states));
        }
        if self.undecided {
            conditions.push(Subject::Other("(…)".into()));
        }
        conditions
    }
}

/// The bytes of each field of a key; `None` for a key of one field, and where not all of its fields are known.
fn parts<'k>(key: &'k [Field], mut bytes: &'k [u8]) -> Option<Vec<(&'k Field, &'k [u8])>> {
    let mut parts = Vec::new();
    for field in key {
        if bytes.is_empty() {
            break;
        }
        let width = field.width()?;
        let (part, rest) = bytes.split_at_checked(width.next_multiple_of(WORD))?;
        parts.push((field, &part[..width]));
        bytes = rest;
    }
    (bytes.is_empty() && parts.len() > 1).then_some(parts)
}

/// A key of so many bytes, sixteen at most.
fn bytes(key: u128, width: usize) -> Vec<u8> {
    key.to_be_bytes()[16 - width..].to_vec()
}

/// The bytes with which every key of an interval of names begins, where the interval is all such names.
fn beginning(first: u128, last: u128) -> Option<Vec<u8>> {
    let bytes = first.to_be_bytes();
    let length = bytes.iter().position(|&byte| byte == 0)?;
    let behind = u128::MAX >> (8 * length);
    (first & behind == 0 && last == first | behind).then(|| bytes[..length].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::NetfilterHook;
    use crate::node::netfilter::{Base, state};

    fn element(key: &[u8], verdict: Option<Action>) -> Element {
        Element {
            key: key.to_vec(),
            conditional: false,
            ends_interval: false,
            verdict,
        }
    }

    fn end(key: &[u8]) -> Element {
        Element {
            ends_interval: true,
            ..element(key, None)
        }
    }

    fn set(intervals: bool, elements: Vec<Element>) -> Set {
        Set {
            name: "__set0".into(),
            intervals,
            elements,
            ..Set::default()
        }
    }

    fn members(field: &Field, set: &Set) -> Vec<Subject> {
        of_key(std::slice::from_ref(field), set)
    }

    fn of_key(key: &[Field], set: &Set) -> Vec<Subject> {
        let mut all = Members::default();
        for (element, keys) in elements(set) {
            all.add(key, element, keys.as_ref());
        }
        all.conditions(key)
    }

    fn undecided() -> Subject {
        Subject::Other("(…)".into())
    }

    const SOURCE: Field = Field::Source {
        offset: 0,
        length: 4,
    };

    #[test]
    fn elements_are_conditions_on_the_field() {
        let port = |port: u16| element(&port.to_be_bytes(), None);
        assert_eq!(
            members(
                &Field::DestinationPort,
                &set(false, vec![port(443), port(80)])
            ),
            [Subject::DestinationPort(vec![80..=80, 443..=443])]
        );
        let ranges = vec![port(8000), end(&9000_u16.to_be_bytes()), port(65000)];
        assert_eq!(
            members(&Field::SourcePort, &set(true, ranges)),
            [Subject::SourcePort(vec![8000..=8999, 65000..=65535])]
        );
        let addresses = vec![element(&[10, 0, 0, 0], None), end(&[11, 0, 0, 0])];
        let ten = "10.0.0.0".parse().expect("an address");
        assert_eq!(
            members(&SOURCE, &set(true, addresses)),
            [Subject::Source(ten, 8)]
        );
        let states = [2_u32, 4].map(|state| element(&state.to_ne_bytes(), None));
        assert_eq!(
            members(&Field::State, &set(false, states.to_vec())),
            [Subject::State(state::ESTABLISHED | state::RELATED)]
        );
        let name = |text: &[u8; 16]| element(text, None);
        let names = vec![
            name(b"eth\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            end(b"eti\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            name(b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            end(b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\x01"),
        ];
        assert_eq!(
            members(&Field::In, &set(true, names)),
            [
                Subject::In("eth".into(), true),
                Subject::In("lo".into(), false)
            ]
        );
        assert_eq!(
            members(
                &Field::Protocol,
                &set(true, vec![element(&[16], None), end(&[18])])
            ),
            [Subject::Protocol(16), Subject::Protocol(17)]
        );
    }

    #[test]
    fn a_key_of_several_fields_is_all_of_their_conditions() {
        let key = [
            Field::Destination {
                offset: 0,
                length: 4,
            },
            Field::Protocol,
            Field::DestinationPort,
        ];
        let port = Subject::DestinationPort(vec![80..=80]);
        let bytes = [10, 96, 0, 5, 6, 0, 0, 0, 0, 80, 0, 0];
        let one = set(false, vec![element(&bytes, None)]);
        let service = "10.96.0.5".parse().expect("an address");
        let whole = Subject::All(vec![
            Subject::Destination(service, 32),
            Subject::Protocol(6),
            port.clone(),
        ]);
        assert_eq!(of_key(&key, &one), [whole]);
        let node_port = set(false, vec![element(&bytes[4..], None)]);
        let both = Subject::All(vec![Subject::Protocol(6), port]);
        assert_eq!(of_key(&key[1..], &node_port), [both]);
        // A field that is not known, a key that is longer than its fields, an IPv6 address for an IPv4 one.
        let odd = [
            Field::Other("numgen".into()),
            Field::Protocol,
            Field::DestinationPort,
        ];
        assert_eq!(of_key(&odd, &one), [undecided()]);
        assert_eq!(of_key(&key[..2], &one), [undecided()]);
        let long = set(false, vec![element(&[0; 24], None)]);
        assert_eq!(of_key(&key, &long), [undecided()]);
    }

    #[test]
    fn what_cannot_be_compared_is_undecided() {
        let address = || element(&[10, 0, 0, 1], None);
        // A limit, an address with a port, one with more, every other key.
        let limited = Element {
            conditional: true,
            ..address()
        };
        for odd in [
            limited,
            element(&[10, 0, 0, 1, 0, 80, 0, 0], None),
            element(&[0; 20], None),
            element(&[], None),
        ] {
            let one = "10.0.0.1".parse().expect("an address");
            assert_eq!(
                members(&SOURCE, &set(false, vec![odd, address()])),
                [Subject::Source(one, 32), undecided()]
            );
        }
        assert_eq!(
            members(&Field::Other("meta 9".into()), &set(false, vec![address()])),
            [undecided()]
        );
        assert_eq!(beginning(5, 9), None);
    }

    #[test]
    fn a_map_says_its_actions_with_their_keys() {
        let accept = || Some(Action::Accept);
        let key = |state: u32| state.to_ne_bytes();
        let map = set(
            false,
            vec![
                element(&key(2), accept()),
                element(&key(1), Some(Action::Drop)),
                element(&key(4), accept()),
            ],
        );
        let mut found = choices(&[Field::State], &map).expect("verdicts");
        found.sort_by_key(|choice| choice.action == Action::Drop);
        let choice = |bits, action| Choice {
            members: vec![Subject::State(bits)],
            action,
        };
        assert_eq!(
            found,
            [
                choice(state::ESTABLISHED | state::RELATED, Action::Accept),
                choice(state::INVALID, Action::Drop)
            ]
        );
        let found = choices(&[], &map).expect("verdicts");
        assert!(found.iter().all(|choice| choice.members == [undecided()]));
        assert_eq!(
            choices(&[SOURCE], &set(false, vec![element(&[0; 4], None)])),
            None
        );
    }

    #[test]
    fn captures_made_before_sets_were_read_say_nothing_of_them() {
        let old = r#"{"Set": {"what": "saddr", "set": "blocked"}}"#;
        let read: Subject = serde_json::from_str(old).expect("an old capture's condition");
        assert!(matches!(read, Subject::Set { members: None, .. }));
        let old = r#"{"Map": {"words": "saddr vmap @hosts", "set": "hosts"}}"#;
        let read: Action = serde_json::from_str(old).expect("an old capture's action");
        assert!(matches!(read, Action::Map { choices: None, .. }));
    }

    fn row(chain: &str, map: &str) -> RuleRow {
        let action = Action::Map {
            words: String::new(),
            set: map.into(),
            choices: None,
        };
        let (mut rule, _) = super::super::expression::read(&[], super::super::Family::Inet);
        rule.action = action;
        RuleRow {
            chain: chain.into(),
            rule,
            lookups: vec![Lookup {
                set: map.into(),
                key: vec![Field::Protocol],
                test: None,
            }],
        }
    }

    #[test]
    fn sets_are_read_where_packets_get_to_and_as_far_as_there_is_room() {
        let base = |name: &str, kind: &str| Chain {
            name: name.into(),
            base: Some(Base {
                hook: NetfilterHook::Forward,
                priority: 0,
                drops: false,
                kind: kind.into(),
                policy_packets: None,
                devices: Vec::new(),
            }),
            rules: Vec::new(),
        };
        let chains = [base("forward", "filter"), base("dnat", "nat")];
        let mut rules = [
            row("forward", "first"),
            row("behind", "second"),
            row("dnat", "services"),
            row("behind", "third"),
        ];
        let (mut room, mut asked) = (3, Vec::new());
        resolve(&chains, &mut rules, &mut room, |name, most| {
            asked.push((name.to_owned(), most));
            let to = Action::Jump("behind".into());
            let two = vec![element(&[6], Some(to.clone())), element(&[17], Some(to))];
            Some(set(false, two)).filter(|set| set.elements.len() <= most)
        });
        assert_eq!(
            asked,
            [
                ("first".into(), 3),
                ("second".into(), 1),
                ("third".into(), 1)
            ]
        );
        assert_eq!(room, 1);
        let known = rules.map(|row| {
            matches!(
                row.rule.action,
                Action::Map {
                    choices: Some(_),
                    ..
                }
            )
        });
        assert_eq!(known, [true, false, false, false]);
    }
}
