//! The counts for Prometheus, read by its own parser.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use tracer::metrics::{Meter, State, Who};

fn who(pod: &str) -> Who {
    Who {
        namespace: "default".into(),
        pod: pod.into(),
        service: "web".into(),
    }
}

#[test]
fn promtool_reads_the_counts_and_has_nothing_to_say() {
    let meter = Meter::new().expect("a meter");
    // A reason with what the format has to escape.
    meter.dropped("in \"some\\function\"\n".into(), who("web-0"));
    meter.dropped("NO_SOCKET".into(), Who::default());
    meter.dropped("NO_SOCKET".into(), Who::default());
    meter.stopped("no-listener", who("web-0"));
    meter.set(&State {
        events: 7,
        packets: 5,
        lost: vec![("ring buffer full".into(), 3)],
        left_out: 4,
        kernel_runs: 9,
        kernel_time: Duration::from_micros(1500),
        process_time: Duration::from_millis(20),
        memory: None,
        facts_age: Some(Duration::from_millis(2500)),
        fresh: vec![("services", true), ("nodes", false)],
        stale_for: vec![
            ("services", Some(Duration::ZERO)),
            ("nodes", Some(Duration::from_millis(1500))),
            ("endpoints", None),
        ],
    });
    let text = meter.text().expect("text");
    for line in [
        "tracer_dropped_packets_total{namespace=\"\",pod=\"\",reason=\"NO_SOCKET\",service=\"\"} 2",
        "tracer_failed_connections_total{cause=\"no-listener\",namespace=\"default\",pod=\"web-0\",service=\"web\"} 1",
        "tracer_lost_events_total{why=\"ring buffer full\"} 3",
        "tracer_left_out_events_total 4",
        "tracer_events_total 7",
        "tracer_node_facts_age_seconds 2.5",
        "tracer_kubernetes_facts_fresh{kind=\"nodes\"} 0",
        "tracer_kubernetes_facts_stale_seconds{kind=\"services\"} 0",
        "tracer_kubernetes_facts_stale_seconds{kind=\"nodes\"} 1.5",
        "tracer_kubernetes_facts_stale_seconds{kind=\"endpoints\"} NaN",
        "tracer_process_resident_memory_bytes NaN",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let program = std::env::var("PROMTOOL").unwrap_or_else(|_| "promtool".into());
    let mut promtool = Command::new(program)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool: `cargo xtask test` gets it, or name one in PROMTOOL");
    let mut input = promtool.stdin.take().expect("its input");
    input.write_all(text.as_bytes()).expect("room");
    drop(input);
    let output = promtool.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

#[test]
fn totals_never_fall() {
    let meter = Meter::new().expect("a meter");
    for events in [5, 3, 9] {
        meter.set(&State {
            events,
            ..State::default()
        });
    }
    let text = meter.text().expect("text");
    assert!(text.contains("tracer_events_total 9\n"), "{text}");
}
