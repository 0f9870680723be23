//! What other programs make of our captures: tshark, tcpdump and mergecap on captures recorded in the lab.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Recorded in the lab, each by `tracer reproduce CASE --variant VARIANT -w FILE`.
fn goldens() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the folder of captures")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "pcapng"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no capture in {}", folder.display());
    files
}

fn golden(name: &str) -> PathBuf {
    let found = goldens()
        .into_iter()
        .find(|path| path.file_stem().is_some_and(|stem| stem == name));
    found.unwrap_or_else(|| panic!("no capture {name}"))
}

/// Runs a program on a file.
fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| {
            panic!("{program} cannot be started ({error}); cargo xtask test installs it")
        })
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
fn tshark_reads_every_capture_without_a_warning() {
    for file in goldens() {
        assert!(!tshark(&file, &[]).is_empty(), "{}", file.display());
        let broken = tshark(&file, &["-Y", "_ws.malformed"]);
        assert_eq!(broken, Vec::<String>::new(), "{}", file.display());
    }
}

#[test]
fn comments_find_the_packet() {
    let file = golden("vip-nodeport-unbound");
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
    let found = tshark(&file, &fields);
    assert_eq!(found.len(), 3, "{found:?}");
    for line in found {
        assert!(line.starts_with("192.168.3.187\t30000\t"), "{line}");
        assert!(line.contains("node"), "{line}");
    }
}

#[test]
fn packet_numbers_group_a_journey() {
    let file = golden("vip-nodeport-unbound");
    let lost = tshark(
        &file,
        &[
            "-Y",
            "frame.comment contains \"no socket\"",
            "-T",
            "fields",
            "-e",
            "frame.packet_id",
        ],
    );
    let journey = lost.first().expect("a lost packet");
    let filter = format!("frame.packet_id == {journey}");
    let events = tshark(&file, &["-Y", &filter, "-T", "fields", "-e", "tcp.seq_raw"]);
    assert!(events.len() > 5, "{events:?}");
    assert!(
        events.iter().all(|sequence| *sequence == events[0]),
        "{events:?}"
    );
}

#[test]
fn addresses_have_names() {
    let file = golden("vip-nodeport-unbound").display().to_string();
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
fn tcpdump_and_mergecap_read_every_capture() {
    for file in goldens() {
        let file = file.display().to_string();
        // tcpdump takes one link type a file: those with both are for the others.
        let output = run("tcpdump", &["-n", "-r", &file]);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{file}: {complaints}");
        let merged = tempfile::NamedTempFile::new().expect("a file");
        let into = merged.path().display().to_string();
        let output = run("mergecap", &["-w", &into, &file, &file]);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{file}: {complaints}");
        let (one, two) = (
            tshark(Path::new(&file), &[]).len(),
            tshark(merged.path(), &[]).len(),
        );
        assert_eq!(two, one * 2, "{file}");
    }
}
