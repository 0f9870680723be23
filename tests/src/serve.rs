//! Always-on use: the counts that a real drop leads to.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;

use crate::{Tracer, check};

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

/// Connections to a closed port: packets by reason, connections by cause; every time anew.
///
/// # Errors
/// With what was other than expected.
pub fn counts(tracer: &Tracer) -> anyhow::Result<()> {
    let words = ["serve", "--listen", "127.0.0.1:0", "--no-kube", "--full"];
    let (running, first) = tracer.begin(&words)?;
    let ready: Value = serde_json::from_str(&first).context("no ready line")?;
    let address = ready["listen"].as_str().context("no address")?.to_owned();
    let outcome = counted(&address);
    running.interrupt()?;
    let answer = running.finish()?;
    outcome?;
    let diagnosis = answer.object("diagnosis")?;
    check(diagnosis["cause"] == "no-listener", || {
        format!("another cause: {diagnosis}")
    })
}

fn counted(address: &str) -> anyhow::Result<()> {
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
            if packets >= expected && connections >= expected {
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
