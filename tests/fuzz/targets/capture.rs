//! A whole file: read, replayed, and every journey turned into words. Damage is an answer; a panic,
//! a hang or memory without bound is not.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use tracer::capture::{Reader, Replay};
use tracer::printer::{Format, Printer, Show};
use tracer::view::model::JourneyView;

fuzz_target!(|file: &[u8]| {
    let Ok(mut reader) = Reader::from_stream(Cursor::new(file.to_vec())) else {
        return;
    };
    let mut replay = Replay::new(Printer::new(Format::Silent, Show::All));
    replay
        .run(
            &mut reader,
            |_| {},
            |journey, names| {
                JourneyView::new(journey, names);
            },
        )
        .expect("nothing is printed that could fail");
});
