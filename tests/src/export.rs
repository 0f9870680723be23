//! Captures without names: the answer stays, and nothing of the original is left in the file.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use serde_json::Value;

use crate::{Answer, Tracer, check};

/// Digits of the key: always the same, so that a failure comes again.
const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// Names that every cluster has, and a word that the tracer itself uses.
const COMMON: [&str; 5] = ["kubernetes", "kube-dns", "coredns", "kube-proxy", "node"];

/// A capture is made anonymous and explained: it must give the causes that it gave before.
pub(crate) fn same_without_names(
    tracer: &Tracer,
    file: &Path,
    before: &Answer,
) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (key, out) = (folder.path().join("key"), folder.path().join("out.pcapng"));
    std::fs::write(&key, KEY)?;
    let text = |path: &Path| path.display().to_string();
    let (file, key, out_text) = (text(file), text(&key), text(&out));
    let exported = tracer.run(&[
        "export",
        &file,
        "--format",
        "pcapng",
        "--anonymize",
        "--key",
        &key,
        "-o",
        &out_text,
    ])?;
    exported.expect_code(0)?;
    let after = tracer.run(&["explain", &out_text, "--all", "--format", "json"])?;
    equal("diagnoses", &diagnoses(before), &diagnoses(&after))?;
    equal("journeys", &journeys(before), &journeys(&after))?;
    let events = tracer.run(&["show", &out_text, "--events", "--format", "json"])?;
    let mut bytes = std::fs::read(&out)?;
    for said in [&after.stdout, &events.stdout] {
        bytes.extend_from_slice(said.as_bytes());
    }
    for secret in secrets(before) {
        let found = bytes
            .windows(secret.len())
            .position(|part| part == secret.as_slice());
        check(found.is_none(), || {
            format!(
                "{:?} is left at byte {found:?}",
                String::from_utf8_lossy(&secret)
            )
        })?;
    }
    Ok(())
}

fn equal(what: &str, before: &[Value], after: &[Value]) -> anyhow::Result<()> {
    check(before == after, || {
        format!("{what} with names: {before:?}; without: {after:?}")
    })
}

/// What is not a name of each diagnosis, in an order that names do not change.
fn diagnoses(answer: &Answer) -> Vec<Value> {
    let mut found: Vec<Value> = answer
        .objects("diagnosis")
        .iter()
        .map(|found| {
            serde_json::json!([
                found["cause"],
                found["certainty"],
                found["failed_connections"],
                found["evidence"].as_array().map(Vec::len),
                found["missing"].as_array().map(Vec::len),
            ])
        })
        .collect();
    found.sort_by_key(Value::to_string);
    found
}

fn journeys(answer: &Answer) -> Vec<Value> {
    let stages = |journey: &Value| journey["path"].as_array().map(Vec::len);
    let journeys = answer.objects("journey");
    let shown = journeys.iter().map(|journey| {
        let fields = [
            &journey["id"],
            &journey["arrived"],
            &journey["ending"],
            &journey["protocol"],
            &journey["time"],
        ];
        serde_json::json!([fields, stages(journey)])
    });
    shown.collect()
}

/// Every form of every address and name that the answer with names holds.
fn secrets(answer: &Answer) -> BTreeSet<Vec<u8>> {
    let mut secrets = BTreeSet::new();
    for journey in answer.objects("journey") {
        for field in ["source", "destination", "real_destination"] {
            let socket = journey[field].as_str().and_then(|text| text.parse().ok());
            let Some(address) = socket.map(|socket: SocketAddr| socket.ip()) else {
                continue;
            };
            if !is_reserved(address) {
                secrets.insert(address.to_string().into_bytes());
                secrets.insert(match address {
                    IpAddr::V4(address) => address.octets().to_vec(),
                    IpAddr::V6(address) => address.octets().to_vec(),
                });
            }
            let name = journey[format!("{field}_name")]
                .as_str()
                .unwrap_or_default();
            let last = name
                .rsplit('/')
                .next()
                .and_then(|last| last.split(':').next());
            if let Some(last) = last.filter(|last| last.len() > 3 && !COMMON.contains(last)) {
                secrets.insert(last.as_bytes().to_vec());
            }
        }
    }
    secrets
}

/// Ranges that stay what they are.
fn is_reserved(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            first == 0 || first == 127 || first >= 224 || address.is_link_local()
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unspecified() || address.is_multicast()
        }
    }
}
