//! What other programs make of exports: DuckDB counts rows; bytes are searched for what was to go.

mod written;

use std::path::{Path, PathBuf};
use std::process::Command;

use tracer::anonymize::{Anonymizer, KEY_BYTES};
use tracer::capture::{Reader, Replay};
use tracer::export::{Lines, Tables, Wanted, again, walk};
use tracer::filter::Filter;
use tracer::printer::{Format, Printer, Show};
use written::{CLIENT, Capture, NODE, PACKETS, PORT, WAY};

/// The answer of DuckDB to a query over tables in a folder, a line for each row.
fn duckdb(folder: &Path, query: &str) -> Vec<String> {
    let program = "import duckdb, sys\n\
                   for row in duckdb.sql(sys.argv[1]).fetchall(): print(*row, sep='|')";
    let packages = std::env::var("DUCKDB")
        .expect("DUCKDB: `cargo xtask test` gets it, or name the folder of its Python package");
    let output = Command::new("python3")
        .args(["-c", program, query])
        .env("PYTHONPATH", packages)
        .current_dir(folder)
        .output()
        .expect("python3");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{query}: {complaints}");
    let lines = String::from_utf8_lossy(&output.stdout);
    lines.lines().map(str::to_owned).collect()
}

fn tables(file: &Path, folder: &Path) -> Vec<(&'static str, u64)> {
    let mut reader = Reader::open(file).expect("a capture");
    let mut tables = Tables::create(folder).expect("a folder");
    let error = walk(&mut reader, Filter::default(), &mut tables, |_| {}).expect("room");
    assert!(error.is_none(), "{error:?}");
    tables.finish().expect("room")
}

#[test]
fn duckdb_counts_what_is_there() {
    let capture = Capture::write();
    let folder = tempfile::tempdir().expect("a folder");
    let counts = tables(&capture.path, folder.path());
    let events = u64::from(PACKETS) * WAY.len() as u64;
    assert_eq!(
        counts,
        [
            ("journeys", u64::from(PACKETS)),
            ("events", events),
            ("flows", u64::from(PACKETS)),
            ("diagnoses", 1)
        ]
    );
    let ask = |query: &str| duckdb(folder.path(), query);
    assert_eq!(
        ask(
            "select count(*), count(distinct source_port), bool_or(arrived), min(node) from 'journeys.parquet' \
             where destination_address = '192.168.3.187' and destination_port = 30000"
        ),
        [format!("{PACKETS}|{PACKETS}|False|node-1")]
    );
    assert_eq!(
        ask(
            "select count(*) from 'events.parquet' e join 'journeys.parquet' j using (journey) \
             where e.device = 'enp1s0' and j.ending = 'refused with RST'"
        ),
        [events.to_string()]
    );
    assert_eq!(
        ask("select sum(requests), sum(replies), bool_or(answered) from 'flows.parquet'"),
        [format!("{PACKETS}|0|False")]
    );
    assert_eq!(
        ask("select cause, failed_connections from 'diagnoses.parquet'"),
        [format!("no-listener|{PACKETS}")]
    );
    // The moment of the capture's header, and a millisecond from packet to packet.
    assert_eq!(
        ask("select epoch_ns(min(time)), epoch_ns(max(time)) from 'journeys.parquet'"),
        [format!(
            "1800000000000000000|{}",
            1_800_000_000_000_000_000 + u64::from(PACKETS - 1) * 1_000_000
        )]
    );
    assert_eq!(
        ask("select path from 'journeys.parquet' order by journey limit 1").len(),
        1
    );
}

#[test]
fn every_column_is_described_and_is_in_the_file() {
    let capture = Capture::write();
    let folder = tempfile::tempdir().expect("a folder");
    tables(&capture.path, folder.path());
    let described = tracer::export::describe();
    let mut table = String::new();
    let mut columns = Vec::new();
    for line in described.lines().filter(|line| !line.is_empty()) {
        if let Some((name, _)) = line.split_once(".parquet:") {
            table = name.to_owned();
            continue;
        }
        let mut words = line.split_whitespace();
        let (name, kind) = (words.next().unwrap_or_default(), words.next());
        assert!(words.next().is_some(), "{line} says nothing");
        columns.push(format!("{table}|{name}|{}", kind.unwrap_or_default()));
    }
    let mut found = Vec::new();
    for table in ["journeys", "events", "flows", "diagnoses"] {
        let query = format!(
            "select '{table}', column_name, column_type from (describe select * from '{table}.parquet')"
        );
        found.extend(duckdb(folder.path(), &query));
    }
    assert_eq!(found, columns);
}

#[test]
fn objects_are_those_of_the_schema() {
    let capture = Capture::write();
    let mut reader = Reader::open(&capture.path).expect("a capture");
    let mut text = Vec::new();
    let mut lines = Lines::new(&mut text);
    walk(&mut reader, Filter::default(), &mut lines, |_| {}).expect("room");
    let counts = lines.finish().expect("room");
    let text = String::from_utf8(text).expect("text");
    let all: u64 = counts.iter().map(|(_, count)| count).sum();
    assert_eq!(text.lines().count() as u64, all);
    tests::schema::validate(&text).expect("the schema allows them");
}

/// A capture without names, made of another one.
fn anonymous(file: &Path, mapping: &Anonymizer) -> PathBuf {
    let out = file.with_extension("anonymous.pcapng");
    let mut reader = Reader::open(file).expect("a capture");
    let wanted = Wanted {
        events: None,
        mapping: Some(mapping),
    };
    let done = again(&mut reader, &wanted, &out, |_| {}).expect("room");
    assert!(done.error.is_none() && done.written.is_some());
    out
}

/// Codes of what is found in a capture, and the endings of its journeys.
fn answer(file: &Path) -> (Vec<(&'static str, usize)>, Vec<Option<bool>>) {
    let mut reader = Reader::open(file).expect("a capture");
    let mut replay = Replay::new(Printer::new(Format::Silent, Show::All));
    let mut arrived = Vec::new();
    let ended = replay
        .run(
            &mut reader,
            |_| {},
            |journey, names| {
                let view = tracer::view::model::JourneyView::new(journey, names);
                arrived.push(view.and_then(|view| view.arrived));
            },
        )
        .expect("an answer");
    assert!(ended.error.is_none(), "{:?}", ended.error);
    let found = replay.diagnoses().iter();
    (
        found.map(|found| (found.code, found.failed)).collect(),
        arrived,
    )
}

/// Everything in a file, with what is packed in it unpacked.
fn unpacked(file: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(file).expect("a file");
    let mut reader = Reader::open(file).expect("a capture");
    while let Some(record) = reader.next().expect("no damage") {
        bytes.extend(format!("{record:?}").into_bytes());
    }
    bytes
}

#[test]
fn nothing_of_the_original_is_left_and_the_answer_is_the_same() {
    let capture = Capture::write();
    let original = unpacked(&capture.path);
    let mapping = Anonymizer::new(&[7; KEY_BYTES]);
    let file = anonymous(&capture.path, &mapping);
    let bytes = unpacked(&file);
    let contains =
        |bytes: &[u8], secret: &[u8]| bytes.windows(secret.len()).any(|part| part == secret);
    let texts = [
        "192.168.3.187",
        "192.168.3.10",
        "enp1s0",
        "node-1",
        "Mac([2, 0, 0, 0, 0, 10])",
    ];
    let mut secrets: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    secrets.extend([NODE.to_vec(), CLIENT.to_vec(), written::MAC.to_vec()]);
    for secret in &secrets {
        let shown = String::from_utf8_lossy(secret);
        assert!(contains(&original, secret), "{shown:?} was never there");
        assert!(!contains(&bytes, secret), "{shown:?} is left");
    }
    assert!(contains(&bytes, &PORT.to_be_bytes()), "ports stay");
    assert_eq!(answer(&file), answer(&capture.path));
    assert_eq!(answer(&file).0, [("no-listener", PACKETS as usize)]);
    // The same key, the same file: two exports can be compared.
    let once = std::fs::read(&file).expect("a file");
    anonymous(&capture.path, &mapping);
    let (again, end) = (std::fs::read(&file).expect("a file"), 400);
    assert_eq!(once.len(), again.len());
    assert_eq!(once[..end], again[..end]);
}
