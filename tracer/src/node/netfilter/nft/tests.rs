//! Tests of rules as the kernel gives them.

use super::*;
use crate::node::netfilter::field::Field;
use crate::node::netfilter::{Action, Subject, Test, state};

/// An attribute as the kernel writes it.
pub(in crate::node::netfilter) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn data(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind, &attribute(1, value))
}

fn expression(name: &str, parts: &[Vec<u8>]) -> Vec<u8> {
    let name = attribute(1, name.as_bytes());
    attribute(1, &[name, attribute(2, &parts.concat())].concat())
}

/// `ip saddr 10.0.0.0/8 tcp dport 80 ct state new counter packets 5 drop comment "x"`.
fn message() -> Vec<u8> {
    let list = [
        expression(
            "payload",
            &[number(1, 1), number(2, 1), number(3, 12), number(4, 1)],
        ),
        expression("cmp", &[number(1, 1), number(2, 0), data(3, &[10])]),
        expression("meta", &[number(2, 16), number(1, 1)]),
        expression("cmp", &[number(1, 1), number(2, 0), data(3, &[6])]),
        expression(
            "payload",
            &[number(1, 1), number(2, 2), number(3, 2), number(4, 2)],
        ),
        expression(
            "cmp",
            &[number(1, 1), number(2, 0), data(3, &80u16.to_be_bytes())],
        ),
        expression("ct", &[number(2, 0), number(1, 1)]),
        expression(
            "bitwise",
            &[
                number(1, 1),
                number(2, 1),
                data(4, &8u32.to_ne_bytes()),
                data(5, &[0; 4]),
            ],
        ),
        expression("cmp", &[number(1, 1), number(2, 1), data(3, &[0; 4])]),
        expression(
            "counter",
            &[attribute(1, &[0; 8]), attribute(2, &5u64.to_be_bytes())],
        ),
        expression(
            "immediate",
            &[number(1, 0), attribute(2, &attribute(2, &number(1, 0)))],
        ),
    ]
    .concat();
    [
        vec![2, 0, 0, 0],
        attribute(RULE_TABLE, b"filter\0"),
        attribute(RULE_CHAIN, b"forward\0"),
        attribute(RULE_HANDLE, &7u64.to_be_bytes()),
        attribute(RULE_EXPRESSIONS, &list),
        attribute(RULE_USERDATA, b"\0\x02x\0"),
    ]
    .concat()
}

#[test]
fn a_rule_of_the_kernel() {
    let row = parse_rule(&message(), 2).unwrap().unwrap();
    assert_eq!(row.chain, "forward");
    let yes = |on| Test { negated: false, on };
    assert_eq!(
        row.rule.tests,
        [
            yes(Subject::Source("10.0.0.0".parse().unwrap(), 8)),
            yes(Subject::Protocol(6)),
            yes(Subject::DestinationPort(vec![80..=80])),
            yes(Subject::State(state::NEW)),
        ]
    );
    assert_eq!((row.rule.handle, row.rule.packets), (Some(7), Some(5)));
    assert_eq!(row.rule.action, Action::Drop);
    assert_eq!(row.rule.comment.as_deref(), Some("x"));
}

/// The base chain of a message that the kernel lists.
fn base_of(family: u8, hook: &[Vec<u8>]) -> Base {
    let message = [
        vec![family, 0, 0, 0],
        attribute(CHAIN_TABLE, b"guard\0"),
        attribute(CHAIN_NAME, b"way\0"),
        attribute(CHAIN_HOOK, &hook.concat()),
    ]
    .concat();
    let row = parse_chain(&message).unwrap().unwrap();
    row.chain.base.unwrap()
}

#[test]
fn a_chain_of_a_bridge_or_of_devices() {
    let place = |hook: u32| vec![number(HOOK_NUMBER, hook), number(HOOK_PRIORITY, 7)];
    let forward = base_of(7, &place(2));
    assert_eq!(forward.hook, NetfilterHook::BridgeForward);
    assert_eq!((forward.priority, forward.devices.len()), (7, 0));
    let mut hook = place(0);
    hook.push(attribute(HOOK_DEVICE, b"eth0\0"));
    let one = base_of(5, &hook);
    assert_eq!(
        (one.hook, &one.devices),
        (NetfilterHook::Ingress, &vec!["eth0".into()])
    );
    let names = [attribute(1, b"eth0\0"), attribute(DEVICE_PREFIX, b"veth\0")];
    hook.push(attribute(HOOK_DEVICES, &names.concat()));
    assert_eq!(base_of(5, &hook).devices, ["eth0", "veth*"]);
    let of_inet = base_of(1, &place(5));
    assert_eq!(of_inet.hook, NetfilterHook::Ingress);
    assert_eq!(base_of(3, &place(0)).hook, NetfilterHook::Other);
    // As a capture holds them.
    for base in [forward, one, of_inet, base_of(2, &place(2))] {
        let bytes = minicbor_serde::to_vec(&base).unwrap();
        let read: Base = minicbor_serde::from_slice(&bytes).unwrap();
        assert_eq!(read, base);
    }
}

#[test]
fn damage_is_survived() {
    let bytes = message();
    for length in 0..bytes.len() {
        let _ = parse_rule(&bytes[..length], 2);
        let mut changed = bytes.clone();
        changed[length] ^= 0x5a;
        let _ = parse_rule(&changed, 2);
        let _ = parse_chain(&changed);
        let _ = parse_table(&changed);
    }
}

#[test]
fn unknown_expressions_leave_the_rule_undecided() {
    let list = [
        expression("limit", &[number(1, 1)]),
        expression("cmp", &[number(1, 9), number(2, 0), data(3, &[1])]),
    ]
    .concat();
    let (rule, _) = expression::read(&list, Family::Inet);
    assert_eq!(rule.tests.len(), 2);
    assert!(
        rule.tests
            .iter()
            .all(|test| matches!(test.on, Subject::Other(_)))
    );
}

#[test]
fn what_an_unknown_expression_loads_is_not_compared_as_what_was_there_before() {
    let list = [
        expression("meta", &[number(2, 16), number(1, 1)]),
        expression("cmp", &[number(1, 1), number(2, 0), data(3, &[17])]),
        expression("numgen", &[number(1, 1), number(2, 2), number(3, 1)]),
        expression("cmp", &[number(1, 1), number(2, 0), data(3, &[0; 4])]),
    ]
    .concat();
    let (rule, _) = expression::read(&list, Family::Inet);
    let subjects: Vec<_> = rule.tests.into_iter().map(|test| test.on).collect();
    assert_eq!(subjects[0], Subject::Protocol(17));
    assert!(
        subjects[1..]
            .iter()
            .all(|on| matches!(on, Subject::Other(_))),
        "{subjects:?}"
    );
    // The same value in another order of bytes is another value.
    let list = [
        expression("meta", &[number(2, 3), number(1, 1)]),
        expression("byteorder", &[number(1, 1), number(2, 1)]),
        expression("cmp", &[number(1, 1), number(2, 0), data(3, &[0, 0, 0, 9])]),
    ]
    .concat();
    let (rule, _) = expression::read(&list, Family::Inet);
    assert!(matches!(rule.tests[0].on, Subject::Other(_)), "{rule:?}");
}

#[test]
fn a_lookup_keeps_the_fields_of_its_key() {
    let port = || {
        expression(
            "payload",
            &[number(1, 1), number(2, 2), number(3, 2), number(4, 2)],
        )
    };
    let lookup = |parts: &[Vec<u8>]| {
        let set = [attribute(1, b"__set0\0"), number(2, 1)].concat();
        expression("lookup", &[vec![set], parts.to_vec()].concat())
    };
    let read = |list: &[Vec<u8>]| expression::read(&list.concat(), Family::Ip);
    let (rule, lookups) = read(&[port(), lookup(&[number(5, 1)])]);
    assert!(
        matches!(&rule.tests[..], [Test { negated: true, on: Subject::Set { set, members: None, .. } }]
            if set == "__set0")
    );
    let expected = |key: &[Field], test| Lookup {
        set: "__set0".into(),
        key: key.to_vec(),
        test,
    };
    let port_field = [Field::DestinationPort];
    assert_eq!(lookups, [expected(&port_field, Some(0))]);
    let (rule, lookups) = read(&[port(), lookup(&[number(3, 0)])]);
    assert!(matches!(rule.action, Action::Map { choices: None, .. }) && rule.tests.is_empty());
    assert_eq!(lookups, [expected(&port_field, None)]);
    // A map of values does not match without the key either.
    let (rule, lookups) = read(&[port(), lookup(&[number(3, 2)])]);
    assert_eq!((rule.tests.len(), lookups.len()), (1, 1));
    // Under a mask, or of another family's address, it is no whole field.
    let mask = [
        number(1, 1),
        number(2, 1),
        data(4, &[0xff, 0]),
        data(5, &[0; 2]),
    ];
    let (_, lookups) = read(&[port(), expression("bitwise", &mask), lookup(&[])]);
    assert_eq!(lookups, [expected(&[], Some(0))]);
    let part = [number(1, 1), number(2, 1), number(3, 12), number(4, 2)];
    let (_, lookups) = read(&[expression("payload", &part), lookup(&[])]);
    assert_eq!(lookups, [expected(&[], Some(0))]);
}

#[test]
fn a_key_of_several_fields_lies_in_registers_one_behind_the_other() {
    let payload = |register, base, offset, length| {
        let parts = [
            number(1, register),
            number(2, base),
            number(3, offset),
            number(4, length),
        ];
        expression("payload", &parts)
    };
    let lookup = [attribute(1, b"services\0"), number(2, 1), number(3, 0)];
    let protocol = expression("meta", &[number(2, 16), number(1, 9)]);
    // `ip saddr 10.0.0.1 ip daddr . meta l4proto . th dport vmap @services`, the first address still in its register.
    let list = [
        payload(1, 1, 12, 4),
        payload(1, 1, 16, 4),
        protocol,
        payload(10, 2, 2, 2),
        expression("lookup", &lookup),
    ]
    .concat();
    let (rule, lookups) = expression::read(&list, Family::Ip);
    let address = Field::Destination {
        offset: 0,
        length: 4,
    };
    let key = [address, Field::Protocol, Field::DestinationPort];
    assert_eq!(lookups[0].key, key);
    assert!(
        matches!(&rule.action, Action::Map { words, .. }
            if words == "daddr . meta l4proto . th dport vmap @services"),
        "{rule:?}"
    );
    // What a longer key of before left behind is no part of the next one.
    let list = [
        payload(10, 2, 2, 2),
        payload(1, 1, 16, 4),
        expression("lookup", &lookup),
    ]
    .concat();
    let (_, lookups) = expression::read(&list, Family::Ip);
    assert_eq!(lookups[0].key, key[..1]);
}

#[test]
fn statements_that_may_stop_a_rule_are_conditions() {
    let limit = expression("limit", &[]);
    for (name, parts, stops) in [
        ("dynset", vec![number(3, 1)], false),
        ("dynset", vec![number(3, 1), attribute(7, &limit)], true),
        ("dynset", vec![number(3, 1), attribute(10, &limit)], true),
        ("dynset", vec![number(3, 0), number(9, 1)], true),
        ("objref", vec![number(1, 1)], false),
        ("objref", vec![number(1, 2)], true),
        ("objref", vec![number(1, 4)], true),
        ("objref", vec![number(1, 5)], true),
        ("objref", vec![number(3, 1)], true),
    ] {
        let (rule, _) = expression::read(&expression(name, &parts), Family::Inet);
        assert_eq!(rule.tests.len(), usize::from(stops), "{name} {parts:?}");
        assert_eq!(rule.notes.len(), usize::from(!stops), "{name} {parts:?}");
    }
}
