//! Tests of the stages' words.

use super::*;
use crate::journey::constructed::event;
use crate::kernel::reasons::DropReasons;
use crate::kernel::symbols::Symbols;
use crate::node::Snapshot;
use crate::view::names::Clock;

/// The texts of the stages of these events, `✗` before a loss.
fn texts(events: Vec<Event>) -> Vec<String> {
    let names = Names {
        facts: &Snapshot::empty(),
        reasons: &DropReasons::default(),
        symbols: &Symbols::default(),
        clock: Clock::now(),
        cluster: None,
    };
    let journey = Journey {
        id: 1,
        events,
        ..Journey::default()
    };
    let text = |stage: Stage| format!("{}{}", if stage.lost { "✗ " } else { "" }, stage.text);
    path(&journey, &names).into_iter().map(text).collect()
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
