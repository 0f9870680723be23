//! Tests of the stages' words.

use super::*;
use crate::journey::constructed::event;
use crate::kernel::reasons::DropReasons;
use crate::kernel::symbols::Symbols;
use crate::node::Snapshot;
use crate::view::model::detail;
use crate::view::names::Clock;

/// Works with the names of a machine of which nothing is known.
fn unnamed<T>(work: impl FnOnce(&Names<'_>) -> T) -> T {
    work(&Names {
        facts: &Snapshot::empty(),
        reasons: &DropReasons::default(),
        symbols: &Symbols::default(),
        clock: Clock::now(),
        cluster: None,
    })
}

/// The texts of the stages of these events, `✗` before a loss.
fn texts(events: Vec<Event>) -> Vec<String> {
    let journey = Journey {
        id: 1,
        events,
        ..Journey::default()
    };
    let text = |stage: Stage| format!("{}{}", if stage.lost { "✗ " } else { "" }, stage.text);
    unnamed(|names| path(&journey, names).into_iter().map(text).collect())
}

fn at(hook: HookId, detail: Detail) -> Event {
    Event {
        detail,
        ..event(hook, 1, 10, 100)
    }
}

#[test]
fn icmp_errors_are_named_by_the_table_of_their_family() {
    for (hook, kind, code, words) in [
        (HookId::IcmpSend, 3, 0, "network unreachable"),
        (HookId::IcmpSend, 3, 3, "port unreachable"),
        (HookId::IcmpSend, 11, 0, "time exceeded"),
        (HookId::IcmpSend, 1, 0, "1/0"),
        (HookId::Icmp6Send, 1, 0, "network unreachable"),
        (HookId::Icmp6Send, 1, 3, "host unreachable"),
        (HookId::Icmp6Send, 1, 4, "port unreachable"),
        (HookId::Icmp6Send, 2, 0, "packet too big"),
        (HookId::Icmp6Send, 3, 0, "time exceeded"),
        (HookId::Icmp6Send, 11, 0, "11/0"),
    ] {
        let texts = texts(vec![at(hook, Detail::Icmp { kind, code })]);
        assert_eq!(texts, [format!("ICMP {words} sent")], "{hook:?}");
    }
}

#[test]
fn a_socket_says_what_it_is_and_the_port_that_was_asked_for() {
    let socket = |state, port| Detail::Socket { state, port };
    let asked = event(HookId::TcpDeliver, 1, 10, 100)
        .packet
        .expect("headers")
        .tuple
        .destination
        .port();
    let closed = format!("socket :{asked}");
    for (hook, detail, words) in [
        (
            HookId::TcpDeliver,
            socket(LISTEN, 80),
            "listening socket :80",
        ),
        (HookId::TcpBacklog, socket(1, 80), "socket :80"),
        (HookId::TcpChild, socket(3, 80), "socket :80"),
        (
            HookId::TcpTimeWait,
            socket(TIME_WAIT, 80),
            "socket :80 in TIME_WAIT",
        ),
        (
            HookId::TcpHalfOpen,
            socket(12, 80),
            "half-open connection :80",
        ),
        // A closed socket has no port any more.
        (HookId::TcpDeliver, socket(7, 0), &*closed),
    ] {
        assert_eq!(texts(vec![at(hook, detail)]), [words]);
    }
    let ends_handshake = vec![
        at(HookId::TcpHalfOpen, socket(12, 80)),
        at(HookId::TcpChild, socket(3, 80)),
    ];
    assert_eq!(texts(ends_handshake), ["socket :80"]);
}

#[test]
fn a_known_ipvs_connection_says_where_it_leads_and_how_it_stands() {
    let sent = |protocol, state| Detail::Sent {
        real: "10.244.1.15:3000".parse().expect("an address"),
        forwarding: 3,
        protocol,
        state,
    };
    for (detail, words) in [
        (
            sent(protocol::TCP, 5),
            " → 10.244.1.15:3000 (direct route, TIME_WAIT)",
        ),
        (
            sent(protocol::SCTP, 8),
            " → 10.244.1.15:3000 (direct route, ESTABLISHED)",
        ),
        (
            sent(protocol::TCP, u16::MAX),
            " → 10.244.1.15:3000 (direct route)",
        ),
        (sent(protocol::UDP, 0), " → 10.244.1.15:3000 (direct route)"),
        (Detail::None, ""),
    ] {
        let texts = texts(vec![at(HookId::IpvsDirectTransmit, detail)]);
        assert_eq!(texts, [format!("ipvs: known connection{words}")]);
    }
}

#[test]
fn a_route_without_a_type_is_an_error_all_the_same() {
    let route = |kind| Detail::Route {
        kind,
        error: 101,
        ifindex: None,
    };
    for (hook, kind, words) in [
        (HookId::RouteError, 6, "✗ route: blackhole"),
        (HookId::Route6Error, 0, "✗ no usable route"),
    ] {
        assert_eq!(texts(vec![at(hook, route(kind))]), [words]);
    }
    let words = |kind| unnamed(|names| detail(&route(kind), None, names));
    assert_eq!(words(6), "route blackhole errno 101");
    assert_eq!(words(0), "route errno 101");
}

#[test]
fn an_entry_says_its_state_and_what_the_packet_is_to_it() {
    let tuple = event(HookId::Nat, 1, 10, 100)
        .packet
        .expect("a packet")
        .tuple;
    let words = |relation, status, zone| {
        let entry = Detail::Conntrack {
            original: tuple,
            reply: tuple.reversed(),
            destination_nat: false,
            relation,
            status,
            zone,
        };
        unnamed(|names| detail(&entry, None, names))
    };
    let ends = "192.0.2.1:1000 → 192.0.2.2:80, reply 192.0.2.2:80 → 192.0.2.1:1000";
    assert_eq!(words(Some(2), 0, 0), format!("conntrack new {ends}"));
    assert_eq!(
        words(Some(3), 0x2e, 7),
        format!("conntrack established reply {ends} zone 7, replied, assured, confirmed, dnat")
    );
    assert_eq!(
        words(None, 0x208, 0),
        format!("conntrack {ends}, confirmed, dying")
    );
}

#[test]
fn a_packet_that_is_cut_says_into_how_many_pieces() {
    let piece = |netns, offset| {
        let mut event = event(HookId::OutputFinish, 1, 20, 100);
        event.netns = Some(netns);
        if let Some(packet) = &mut event.packet
            && offset != 0
        {
            packet.transport = crate::event::Transport::Fragment { offset };
        }
        event
    };
    let cut = event(HookId::Fragment, 1, 10, 100);
    let here = cut.netns.expect("a namespace");
    let said = |pieces: Vec<_>| texts([vec![cut.clone()], pieces].concat()).remove(0);
    assert_eq!(said(Vec::new()), "fragmented");
    // Elsewhere they pass again, and may be cut again.
    let pieces = vec![
        piece(here, 0),
        piece(here, 185),
        piece(here + 1, 185),
        piece(here + 1, 90),
    ];
    assert_eq!(said(pieces), "fragmented into 2");
}
