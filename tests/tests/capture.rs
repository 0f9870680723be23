//! What other programs make of our captures: tshark, tcpdump and mergecap on one that the
//! library writes here.

mod written;

use std::path::Path;
use std::process::{Command, Output};

use tracer::capture::Reader;
use tracer::export::{Wanted, again};
use written::{Capture, PACKETS, SEQUENCE, WAY};

/// Runs a program on a file.
fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .expect("a program that cargo xtask test installs")
}

/// Lines of what tshark says of a file; it must have nothing to complain about.
fn tshark(file: &Path, arguments: &[&str]) -> Vec<String> {
    let file = file.display().to_string();
    let mut all = vec!["-n", "-r", &file];
    all.extend(arguments);
    let output = run("tshark", &all);
    let complaints: Vec<String> = String::from_utf8_lossy(&output.stderr)
        .lines()
        // It says so of itself, not of the file.
        .filter(|line| !line.starts_with("Running as user"))
        .map(str::to_owned)
        .collect();
    assert!(output.status.success(), "{file}: {complaints:?}");
    assert_eq!(complaints, Vec::<String>::new(), "{file}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn tshark_reads_a_capture_without_a_warning() {
    let capture = Capture::write();
    assert!(!tshark(&capture.path, &[]).is_empty());
    assert_eq!(errors(&capture.path), Vec::<String>::new());
}

/// What tshark finds wrong with the packets of a file.
fn errors(file: &Path) -> Vec<String> {
    tshark(
        file,
        &["-Y", "_ws.malformed || _ws.expert.severity == 8388608"],
    )
}

#[test]
fn packets_of_the_lab_are_whole_for_tshark_when_they_are_written_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut seen = 0;
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures");
    for entry in std::fs::read_dir(captures).expect("a folder of captures") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|ending| ending != "pcapng") {
            continue;
        }
        let mut reader = Reader::open(&path).expect("a capture");
        let out = folder.path().join("again.pcapng");
        let done = again(&mut reader, &Wanted::default(), &out, |_| {}).expect("room");
        assert!(done.error.is_none() && done.written.is_some());
        assert_eq!(errors(&out), Vec::<String>::new(), "{}", path.display());
        seen += 1;
    }
    assert!(seen > 0);
}

#[test]
fn comments_find_the_packet() {
    let capture = Capture::write();
    let filter = "frame.comment contains \"no virtual server 192.168.3.187:30000\"";
    let fields = [
        "-Y",
        filter,
        "-T",
        "fields",
        "-e",
        "ip.dst",
        "-e",
        "tcp.dstport",
        "-e",
        "frame.interface_name",
    ];
    let found = tshark(&capture.path, &fields);
    assert_eq!(found.len(), PACKETS as usize, "{found:?}");
    for line in found {
        assert_eq!(line, "192.168.3.187\t30000\tnode/enp1s0");
    }
}

#[test]
fn packet_numbers_group_a_journey() {
    let capture = Capture::write();
    let fields = [
        "-Y",
        "tcp",
        "-T",
        "fields",
        "-e",
        "frame.packet_id",
        "-e",
        "tcp.seq_raw",
    ];
    let events = tshark(&capture.path, &fields);
    assert_eq!(events.len(), PACKETS as usize * WAY.len());
    for (number, way) in (0..PACKETS).zip(events.chunks(WAY.len())) {
        let expected = format!("{}\t{}", number + 1, SEQUENCE + number);
        assert!(way.iter().all(|line| *line == expected), "{way:?}");
    }
}

#[test]
fn addresses_have_names() {
    let capture = Capture::write();
    let file = capture.path.display().to_string();
    // Names of the file alone: nobody is asked.
    let output = run(
        "tshark",
        &[
            "-r",
            &file,
            "-N",
            "n",
            "-o",
            "nameres.use_external_name_resolver:FALSE",
            "-T",
            "fields",
            "-e",
            "ip.dst_host",
        ],
    );
    let names = String::from_utf8_lossy(&output.stdout);
    assert!(names.lines().any(|name| name == "node"), "{names}");
}

#[test]
fn tcpdump_reads_a_capture() {
    let capture = Capture::write();
    let file = capture.path.display().to_string();
    let output = run("tcpdump", &["-n", "-r", &file]);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    let lines = String::from_utf8_lossy(&output.stdout).lines().count();
    assert_eq!(lines, PACKETS as usize * WAY.len());
}

#[test]
fn mergecap_joins_captures() {
    let capture = Capture::write();
    let file = capture.path.display().to_string();
    let merged = tempfile::NamedTempFile::new().expect("a file");
    let into = merged.path().display().to_string();
    let output = run("mergecap", &["-w", &into, &file, &file]);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    let packets = tshark(merged.path(), &["-Y", "tcp"]).len();
    assert_eq!(packets, 2 * PACKETS as usize * WAY.len());
}
