//! Typed records without the lengths and checksums around them, which the fuzzer would have to guess.
//! The input is a list of records: kind, length (two bytes, little-endian), body.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use tracer::capture::{ENTERPRISE, Reader, report};
use tracer::filter::Filter;

/// Most records of one input.
const MOST: usize = 64;

fuzz_target!(|records: &[u8]| {
    let mut file = block(0x0a0d_0d0a, &SECTION);
    let mut rest = records;
    for _ in 0..MOST {
        let Some((&[kind, low, high], behind)) = rest.split_first_chunk() else {
            break;
        };
        let length = usize::from(u16::from_le_bytes([low, high])).min(behind.len());
        let (body, behind) = behind.split_at(length);
        rest = behind;
        file.extend(custom(kind, body));
    }
    let Ok(mut reader) = Reader::from_stream(Cursor::new(file)) else {
        return;
    };
    let name = String::from("fuzzed.pcapng");
    report(name, &mut reader, Filter::default(), |_| {})
        .expect("nothing is printed that could fail");
});

/// A section header's body: little-endian, version 1.0, of unknown length.
const SECTION: [u8; 16] = [
    0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
];

/// A custom block with one record, version 1, not compressed.
fn custom(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut record = ENTERPRISE.to_le_bytes().to_vec();
    record.extend([kind, 0, 1, 0]);
    record.extend((body.len() as u32).to_le_bytes());
    record.extend(body);
    record.resize(record.len().next_multiple_of(4), 0);
    block(0x0bad, &record)
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 12).to_le_bytes();
    [&kind.to_le_bytes(), &length, body, &length].concat()
}
