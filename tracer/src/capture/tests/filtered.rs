//! What a filter picks of a whole capture.

use std::path::Path;

use super::super::There;
use super::*;
use crate::filter::Expression;
use crate::journey::Journey;

/// The journeys of a capture of this repository that an expression picks.
fn picked(name: &str, words: &str) -> Vec<Journey> {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/captures");
    let file = captures.join(name).with_extension("pcapng");
    let mut replay = Replay::new(Printer::new(Format::Silent, Show::All));
    let expression = Expression::parse(words).expect("an expression");
    let filter = expression.resolve(&There::default()).expect("a filter");
    replay.analysis().only(filter);
    let mut journeys = Vec::new();
    let mut reader = Reader::open(&file).expect("a capture");
    replay
        .run(
            &mut reader,
            |_| {},
            |journey, _| journeys.push(journey.clone()),
        )
        .expect("journeys");
    journeys
}

#[test]
fn what_not_excludes_is_shown_on_neither_side_of_nat() {
    let name = "vip-nodeport-unbound";
    let excluded = |journey: &Journey| {
        journey.tuples().any(|tuple| {
            [tuple.source, tuple.destination]
                .map(|end| end.port())
                .contains(&30000)
        })
    };
    assert!(picked(name, "tcp").iter().any(excluded));
    assert!(!picked(name, "tcp and not port 30000").iter().any(excluded));
}

#[test]
fn refusals_are_picked_with_the_connections_that_they_are_about() {
    let refusals = |words| {
        let about = |journey: &&Journey| {
            let first = journey.first_packet();
            first.is_some_and(|packet| packet.about.is_some())
        };
        picked("service-no-endpoints", words)
            .iter()
            .filter(about)
            .count()
    };
    assert_eq!(refusals("tcp port 80"), refusals("icmp"));
    assert_eq!(refusals("tcp port 80"), 6);
    assert_eq!(refusals("tcp port 81"), 0);
}
