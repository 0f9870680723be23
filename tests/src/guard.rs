//! The overhead guard: over its limit, whole flows are left out, said and counted.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::filter::{Proxy, World};
use crate::{Answer, Test, Tracer, check};

/// The guard has looked several times by the end of the first part.
const BEFORE: std::ops::Range<u16> = 40_000..40_400;
const AFTER: std::ops::Range<u16> = 50_000..50_200;
/// Between round trips, so that the guard looks several times on a fast machine too.
const PAUSE: Duration = Duration::from_millis(10);
/// Far below what the round trips come to on the slowest machine.
const MOST_EVENTS: &str = "300";

/// The tests.
pub fn tests() -> Vec<Test> {
    vec![
        Test::new("guard: over the rate whole flows are left out", left_out),
        Test::new(
            "guard: over its limit of kernel time whole flows are left out",
            kernel_time,
        ),
    ]
}

/// Journeys by the client's port, each as its stages.
fn flows(answer: &Answer) -> BTreeMap<u16, Vec<usize>> {
    let mut flows = BTreeMap::<u16, Vec<usize>>::new();
    for journey in answer.objects("journey") {
        let port = |end: &str| {
            let address = journey[end].as_str()?;
            address.rsplit_once(':')?.1.parse::<u16>().ok()
        };
        let ports = [port("source"), port("destination")];
        let client = ports.into_iter().flatten().max().unwrap_or_default();
        let stages = journey["path"].as_array().map_or(0, Vec::len);
        flows.entry(client).or_default().push(stages);
    }
    flows
}

fn number(summary: &Value, name: &str) -> anyhow::Result<u64> {
    summary[name]
        .as_u64()
        .with_context(|| format!("the summary has no {name}"))
}

/// Events that round trips from these ports come to: traced, and left out.
fn events(answer: &Answer) -> anyhow::Result<(u64, u64)> {
    let summary = answer.object("summary")?;
    Ok((number(&summary, "events")?, number(&summary, "left_out")?))
}

fn traced(
    tracer: &Tracer,
    limit: &[&str],
    ports: &[std::ops::Range<u16>],
) -> anyhow::Result<Answer> {
    let usual = ["--all", "--no-kube", "--buffer", "64"];
    let tracing = tracer.start(&[&usual, limit].concat())?;
    for port in ports.iter().cloned().flatten() {
        World::travel_from(port..=port, 1)?;
        std::thread::sleep(PAUSE);
    }
    tracing.interrupt()?;
    tracing.finish()
}

fn left_out(tracer: &Tracer) -> anyhow::Result<()> {
    let _world = World::build(Proxy::Iptables)?;
    World::travel_from(BEFORE.start..BEFORE.start + 1, 1)?;
    for filter in [&[][..], &["udp"]] {
        counted(tracer, filter).with_context(|| format!("with the filter {filter:?}"))?;
    }
    Ok(())
}

/// What is left out is as much as is missing, and whole flows.
fn counted(tracer: &Tracer, filter: &[&str]) -> anyhow::Result<()> {
    let (whole, none) = events(&traced(tracer, filter, &[AFTER])?)?;
    check(none == 0, || {
        format!("{none} events were left out without a limit")
    })?;

    let limited = [filter, &["--max-rate", MOST_EVENTS]].concat();
    let answer = traced(tracer, &limited, &[BEFORE, AFTER])?;
    let changes = answer.objects("sampling");
    check(!changes.is_empty(), || "the guard said nothing".into())?;
    let (seen, left) = events(&answer)?;
    // Nothing but the round trips makes events in these namespaces, beside a few for neighbours.
    let trips = (BEFORE.len() + AFTER.len()) as u64;
    let expected = whole * trips / AFTER.len() as u64;
    check(
        left > 0 && (seen + left).abs_diff(expected) * 20 < expected,
        || format!("{seen} events seen and {left} left out are not {expected}"),
    )?;

    let flows = flows(&answer);
    let sampled: Vec<_> = flows.range(AFTER.start..AFTER.end).collect();
    check(sampled.len() < AFTER.len() / 2, || {
        format!("{} of {} flows are traced", sampled.len(), AFTER.len())
    })?;
    // The first one asks for the neighbours as well.
    let mut ours = flows.range(BEFORE.start + 1..);
    let (_, full) = ours.next().context("no flow is traced")?;
    let cut = ours.filter(|(_, stages)| *stages != full).count();
    // A flow under way when the share changes is cut; no other is.
    check(cut <= changes.len(), || {
        format!(
            "{cut} flows are not whole after {} changes: {flows:?}",
            changes.len()
        )
    })
}

/// The programs' time is measured, and over its limit fewer and fewer flows are traced.
fn kernel_time(tracer: &Tracer) -> anyhow::Result<()> {
    let _world = World::build(Proxy::Iptables)?;
    let whole = traced(tracer, &["--max-cpu", "0"], &[AFTER])?;
    check(whole.objects("sampling").is_empty(), || {
        "there was no limit, and flows were left out".into()
    })?;

    let answer = traced(tracer, &["--max-cpu", "0.1"], &[BEFORE, AFTER])?;
    let changes = answer.objects("sampling");
    let first = changes.first().context("the guard said nothing")?;
    check(first["kernel_percent"].as_f64() > Some(0.1), || {
        format!("{first}")
    })?;
    check(first["share"].as_f64() < Some(1.0), || format!("{first}"))?;
    let (_, left) = events(&answer)?;
    check(left > 0, || "nothing was left out".into())?;
    // What decides which flows to leave out has its cost too, so the time itself is the benchmark's to compare.
    let traced = flows(&answer).range(AFTER.start..AFTER.end).count();
    check(traced < AFTER.len() / 2, || {
        format!("{traced} of {} flows are traced: {changes:#?}", AFTER.len())
    })
}
