//! A page cannot be made to do more than show, or to grow without bound, whatever the file says.

use super::*;
use crate::view::model::{BranchView, ConsequenceView, DeviceCount, EventView, FixView};
use crate::view::stage::Stage;

/// Breaks out of text, of an attribute and of an element, and would run.
const HOSTILE: &str = "\"'><script>alert(1)</script><img src=x onerror=alert(1)><!--";
/// The longest page: the rooms for its parts, and its head.
const LONGEST_PAGE: usize = 24 << 20;

fn journey(text: &str, stages: usize) -> JourneyView {
    let stage = |_| Stage {
        namespace: Some(text.into()),
        text: text.into(),
        lost: true,
        event: 0,
    };
    JourneyView {
        id: 1,
        time: text.into(),
        protocol: text.into(),
        source: text.into(),
        source_name: Some(text.into()),
        destination: text.into(),
        destination_name: Some(text.into()),
        real_destination: Some(text.into()),
        real_destination_name: Some(text.into()),
        arrived: Some(false),
        duration_us: 1,
        ending: text.into(),
        path: (0..stages).map(stage).collect(),
        branches: vec![BranchView {
            kind: text.to_owned().into(),
            ending: text.into(),
            path: Vec::new(),
        }],
        gap: true,
        events: vec![
            EventView {
                after_ns: 0,
                place: text.to_owned().into(),
                namespace: Some(text.into()),
                device: Some(text.into()),
                packet: Some((text.into(), text.into())),
                detail: text.into(),
            };
            stages
        ],
    }
}

fn verdict(text: &str, stages: usize) -> Verdict {
    let way = || Way {
        marks: vec![
            Mark {
                area: Area::Ipvs,
                after_ns: u64::MAX
            };
            stages
        ],
        journey: journey(text, stages),
    };
    Verdict {
        diagnosis: DiagnosisView {
            cause: text.to_owned().into(),
            certainty: text.to_owned().into(),
            severity: Some(text.to_owned().into()),
            subject: text.into(),
            failed_connections: 1,
            connections: 2,
            summary: text.into(),
            evidence: vec![(text.to_owned().into(), text.into()); stages],
            missing: vec![text.into()],
            fixes: vec![FixView {
                lines: vec![text.into(); stages],
                risk: text.to_owned().into(),
            }],
            check: text.into(),
            consequences: vec![ConsequenceView {
                cause: text.to_owned().into(),
                subject: text.into(),
                summary: text.into(),
            }],
        },
        failing: Some(way()),
        healthy: Some(way()),
        flows: vec![FlowKey { phase: 2, id: 1 }],
    }
}

/// A report in which every text is the same.
fn report(text: &str, stages: usize, flows: u64) -> Report {
    let flow = |id| FlowView {
        row: FlowRow {
            key: FlowKey { phase: 2, id },
            protocol: text.into(),
            source: text.into(),
            destination: text.into(),
            real_destination: Some(text.into()),
            packets: u64::MAX,
            failed: 1,
            answered: true,
        },
        packets: vec![PacketView {
            direction: Direction::Reply,
            start_ns: u64::MAX,
            journey: journey(text, stages),
        }],
    };
    let mut losses = Losses::default();
    losses.add(u64::MAX, text);
    losses.add(0, "NO_SOCKET");
    Report {
        about: About {
            file: text.into(),
            node: text.into(),
            kernel: text.into(),
            tool: text.into(),
            filters: vec![text.into()],
            not_seen: vec![text.into()],
            begin: Some(SystemTime::UNIX_EPOCH),
            damage: Some(text.into()),
        },
        summary: SummaryView {
            devices: vec![DeviceCount {
                device: text.into(),
                received: 1,
                sent: 1,
            }],
            drops: vec![(text.into(), 1)],
            lost: vec![(text.into(), u64::MAX), (text.into(), 1)],
            ..SummaryView::default()
        },
        verdicts: vec![verdict(text, stages)],
        flows: (1..=flows).map(flow).collect(),
        losses,
        left_out: LeftOut {
            verdicts: 1,
            flows: 1,
            packets: 1,
        },
    }
}

#[test]
fn nothing_of_the_file_becomes_markup() {
    let page = page(&report(HOSTILE, 2, 1));
    let plain = super::page(&report("plain", 2, 1));
    for (what, expected) in [("<script", 1), ("</script", 1), ("<img", 0), ("<!--", 0)] {
        assert_eq!(page.matches(what).count(), expected, "{what}");
    }
    // Every place that the plain text has, the hostile one has, escaped; pictures break it into lines.
    let escaped = page.matches("&quot;'&gt;&lt;script&gt;alert(1)").count();
    assert!(escaped > 40, "{escaped}");
    assert!(escaped <= plain.matches("plain").count());
    // The same elements, whatever the text.
    let elements = |page: &str, name: &str| page.matches(&format!("<{name}")).count();
    for name in ["a ", "article", "li", "td", "details", "svg", "rect", "pre"] {
        assert_eq!(elements(&page, name), elements(&plain, name), "{name}");
    }
}

#[test]
fn the_page_allows_nothing_but_its_own_style_and_script() {
    let page = page(&report("plain", 1, 1));
    let (_, policy) = page
        .split_once("http-equiv=\"Content-Security-Policy\" content=\"")
        .expect("a policy");
    let (policy, _) = policy.split_once('"').expect("its end");
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"));
    assert!(!policy.contains("unsafe") && !policy.contains("http"));
    // What would need more: attributes that style or run, and anything to load.
    for what in [" style=", " onclick=", " src=", "href=\"http", "url("] {
        assert!(!page.contains(what), "{what}");
    }
}

#[test]
fn the_page_is_bounded_and_says_what_it_left_out() {
    let long = HOSTILE.repeat(50);
    let mut report = report(&long, 80, MOST_FLOWS as u64);
    report.verdicts = (0..MOST_VERDICTS).map(|_| verdict(&long, 80)).collect();
    let page = page(&report);
    assert!(page.len() < LONGEST_PAGE, "{} bytes", page.len());
    assert!(page.contains("more; the capture has them"));
    assert!(page.contains("This page has room for a part only"));
    // Those that are left out are counted.
    assert!(page.contains(&format!("{} causes named", MOST_VERDICTS + 1)));
}
