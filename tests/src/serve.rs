//! Always-on use: the counts that a real drop leads to.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;

use crate::{Answer, Tracer, check};

/// A port that nothing listens on.
const CLOSED: &str = "127.0.0.1:81";
/// Connections that are tried.
const TRIES: u64 = 5;
/// Long enough for a slow machine; what is waited for comes much sooner.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks the server; gives the status line and the body.
fn get(address: &str, request: &str) -> anyhow::Result<(String, String)> {
    let mut stream = TcpStream::connect(address).context("nothing is served")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    let status = head.lines().next().unwrap_or_default().to_owned();
    Ok((status, body.to_owned()))
}

/// Sum of the samples of a count whose labels hold all the words.
fn sum(text: &str, name: &str, words: &[&str]) -> f64 {
    text.lines()
        .filter(|line| line.starts_with(name) && words.iter().all(|word| line.contains(word)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Connections to a closed port: packets by reason, connections by cause; every time anew. What led to the cause
/// is kept as a capture.
///
/// # Errors
/// With what was other than expected.
pub fn counts(tracer: &Tracer) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let kept = folder.path().display().to_string();
    let answer = serve(tracer, &["--full", "--capture", &kept], Counted::Causes)?;
    let diagnosis = answer.object("diagnosis")?;
    check(diagnosis["cause"] == "no-listener", || {
        format!("another cause: {diagnosis}")
    })?;
    let explained = std::fs::read_dir(folder.path())?
        .map(|entry| {
            let file = entry?.path().display().to_string();
            tracer.run(&["explain", &file, "--format", "json"])
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let named = explained
        .iter()
        .flat_map(|answer| answer.objects("diagnosis"))
        .any(|found| found["cause"] == "no-listener");
    check(named, || {
        format!("{} captures, none explains it", explained.len())
    })
}

/// The same without the hooks that causes need, as it is installed: drops are counted all the same.
///
/// # Errors
/// With what was other than expected.
pub fn counts_at_low_cost(tracer: &Tracer) -> anyhow::Result<()> {
    serve(tracer, &[], Counted::Packets).map(|_| ())
}

/// What has to be counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    Packets,
    /// And the connections that causes stopped.
    Causes,
}

fn serve(tracer: &Tracer, more: &[&str], counted: Counted) -> anyhow::Result<Answer> {
    let mut words = vec!["serve", "--listen", "127.0.0.1:0", "--no-kube"];
    words.extend(more);
    let (running, first) = tracer.begin(&words)?;
    let ready: Value = serde_json::from_str(&first).context("no ready line")?;
    let address = ready["listen"].as_str().context("no address")?.to_owned();
    let outcome = count(&address, counted);
    running.interrupt()?;
    let answer = running.finish()?;
    outcome?;
    Ok(answer)
}

fn count(address: &str, counted: Counted) -> anyhow::Result<()> {
    for round in 1..=2 {
        for _ in 0..TRIES {
            // It is refused.
            let _ = TcpStream::connect(CLOSED);
        }
        let expected = (TRIES * round) as f64;
        let begun = Instant::now();
        loop {
            let (status, text) = get(address, "GET /metrics")?;
            check(status.contains("200"), || status.clone())?;
            let packets = sum(&text, "tracer_dropped_packets_total", &[]);
            let connections = sum(
                &text,
                "tracer_failed_connections_total",
                &["cause=\"no-listener\""],
            );
            let causes = counted == Counted::Packets || connections >= expected;
            if packets >= expected && causes {
                break;
            }
            check(begun.elapsed() < PATIENCE, || {
                format!("round {round}: {packets} packets, {connections} connections: {text}")
            })?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    for (request, expected) in [
        ("GET /healthz", "200"),
        ("GET /livez", "200"),
        ("GET /none", "404"),
        ("POST /metrics", "405"),
    ] {
        let (status, _) = get(address, request)?;
        check(status.contains(expected), || format!("{request}: {status}"))?;
    }
    Ok(())
}
