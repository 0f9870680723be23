//! A whole file made into a page: no panic, and no page without bound.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use tracer::capture::{Reader, report};
use tracer::filter::Filter;
use tracer::view::report::page;

/// The longest page, bytes.
const LONGEST: usize = 24 << 20;

fuzz_target!(|file: &[u8]| {
    let Ok(mut reader) = Reader::from_stream(Cursor::new(file.to_vec())) else {
        return;
    };
    let name = String::from("fuzzed.pcapng");
    let reported = report(name, &mut reader, Filter::default(), |_| {})
        .expect("nothing is printed that could fail");
    assert!(page(&reported.report).len() < LONGEST);
});
