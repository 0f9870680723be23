//! What the view lists, what the keys choose, and how it is painted at any size.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use tracer_ebpf::hook::HookId;

use super::*;
use crate::cause::{Certainty, Fix};
use crate::event::{Detail, Event};
use crate::journey::Ending;
use crate::journey::constructed::{event, journey};
use crate::kernel::reasons::DropReasons;
use crate::kernel::symbols::Symbols;
use crate::node::Snapshot;
use crate::view::names::Clock;

const LOST: Ending = Ending::Dropped {
    location: 1,
    reason: Some(9),
};

fn diagnosis(flow: u64) -> Diagnosis {
    Diagnosis {
        code: "no-listener",
        subject: "udp 192.0.2.1:53".into(),
        certainty: Certainty::Certain,
        summary: "Nothing answers there.".into(),
        evidence: Vec::new(),
        missing: Vec::new(),
        fixes: vec![Fix {
            lines: vec!["systemctl restart it".into()],
            risk: "what it serves stops for a moment",
        }],
        check: "tracer probe udp://192.0.2.1:53".into(),
        flows: vec![flow],
        failed: 1,
        total: 3,
        consequences: Vec::new(),
    }
}

/// Three flows, the second of which fails and the first of which met no virtual server but arrived.
fn shown(choice: &Choice) -> TopView {
    let mut flows = Flows::default();
    for (id, ending) in [(1, Ending::Delivered), (2, LOST), (3, Ending::Delivered)] {
        let source = format!("10.0.0.{id}:4000");
        let mut journey = journey(id, 17, &[(&source, "192.0.2.1:53")]);
        journey.ending = ending;
        if id == 1 {
            let address = "192.0.2.1:53".parse().expect("an address");
            let protocol = 17;
            for (hook, detail) in [
                (
                    HookId::IpvsServiceFind,
                    Detail::Service { address, protocol },
                ),
                (HookId::LocalDeliver, Detail::None),
            ] {
                journey.events.push(Event {
                    detail,
                    packet: journey.events[0].packet.clone(),
                    ..event(hook, id, id, 0)
                });
            }
            assert!(journey.is_suspicious());
        }
        flows.add(journey);
    }
    let (facts, reasons, symbols) = (
        Snapshot::empty(),
        DropReasons::default(),
        Symbols::default(),
    );
    let names = Names {
        facts: &facts,
        reasons: &reasons,
        symbols: &symbols,
        clock: Clock::recorded(std::time::SystemTime::UNIX_EPOCH, 0),
        cluster: None,
    };
    let mut view = TopView::new("tracer top · node1".into());
    view.summary.packets = 3;
    view.summary.failed = 1;
    view.summary.drops = vec![("NO_SOCKET".into(), 1)];
    view.list(&flows, &names, choice);
    view.choose(&flows, &[diagnosis(2)], &names, choice);
    view
}

fn painted(width: u16, height: u16, choice: &Choice) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    let view = shown(choice);
    terminal
        .draw(|frame| draw(frame, &view, choice))
        .expect("it is painted");
    terminal.backend().to_string()
}

fn order(view: &TopView) -> Vec<u64> {
    view.flows.iter().map(|row| row.key.id).collect()
}

#[test]
fn what_fails_comes_first_then_what_was_last_heard_of() {
    let mut choice = Choice::default();
    let view = shown(&choice);
    assert_eq!(
        (order(&view), view.failing, view.total),
        (vec![2, 3, 1], 1, 3)
    );
    choice.failing_only = true;
    assert_eq!(order(&shown(&choice)), [2]);
}

#[test]
fn the_choice_stays_with_its_flow() {
    let mut choice = Choice::default();
    let view = shown(&choice);
    choice.go(1, &view);
    assert_eq!(choice.flow, Some(3));
    choice.go(isize::MAX, &view);
    assert_eq!(choice.flow, Some(1));
    choice.go(isize::MIN, &view);
    assert_eq!(choice.flow, Some(2));
    choice.go(-1, &view);
    assert_eq!(choice.flow, Some(2));
    assert_eq!(shown(&choice).cause, Some(0));
    choice.go(2, &view);
    assert_eq!(shown(&choice).cause, None);
    choice.failing_only = true;
    assert_eq!(shown(&choice).row(&choice), Some(0));
    Choice::default().go(1, &TopView::default());
}

#[test]
fn a_wide_terminal_shows_all_of_it() {
    insta::assert_snapshot!(painted(120, 24, &Choice::default()));
}

#[test]
fn a_narrow_terminal_shows_what_fits() {
    let mut choice = Choice::default();
    choice.go(1, &shown(&choice));
    insta::assert_snapshot!(painted(72, 24, &choice));
}

#[test]
fn the_chosen_flow_may_have_the_whole_screen() {
    let mut choice = Choice::default();
    assert!(!painted(80, 24, &choice).contains("More"));
    choice.whole = true;
    let whole = painted(80, 24, &choice);
    for words in [
        "Evidence",
        "Fix",
        "systemctl restart it",
        "Check",
        "tracer why no-listener",
    ] {
        assert!(whole.contains(words), "{words}: {whole}");
    }
}

#[test]
fn no_size_is_too_small() {
    for (width, height) in [(1, 1), (3, 2), (200, 1), (1, 100), (9, 9)] {
        for whole in [false, true] {
            let choice = Choice {
                whole,
                ..Choice::default()
            };
            painted(width, height, &choice);
        }
    }
}
