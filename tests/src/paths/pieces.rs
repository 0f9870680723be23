//! Packets that are cut in pieces and put together again, or copied: no piece and no copy is a loss, and each is told.

use std::time::Duration;

use super::World;
use super::row::{Seen, Traffic};
use crate::tour::command;
use crate::{Answer, Test, Tracer, check};

/// Bytes of a datagram, and what is said of it: devices here carry 1,500.
const DATAGRAM: usize = 4000;
const CUT_DATAGRAM: &str = "fragmented into 3";
const ECHO: usize = 5000;
const CUT_ECHO: &str = "fragmented into 4";

/// Each packet that is cut, how often (where connections are tracked it is put together and cut again), and where it
/// goes behind NAT.
const CUT: &[(&str, &str, usize, Option<&str>)] = &[
    (
        "udp 192.0.2.10:41001 → 192.0.2.1:30000",
        CUT_DATAGRAM,
        2,
        Some("10.244.1.2:3000"),
    ),
    (
        "udp 192.0.2.10:41002 → 10.244.1.2:3000",
        CUT_DATAGRAM,
        2,
        None,
    ),
    (
        "udp 10.244.1.2:41003 → 10.244.1.3:3000",
        CUT_DATAGRAM,
        1,
        None,
    ),
    (
        "udp [2001:db8::10]:41004 → [2001:db8::1]:30000",
        CUT_DATAGRAM,
        2,
        Some("[fd00:1::2]:3000"),
    ),
    ("icmp 8/0 192.0.2.10:0 → 10.244.1.2:0", CUT_ECHO, 2, None),
    ("icmp 0/0 10.244.1.2:0 → 192.0.2.10:0", CUT_ECHO, 2, None),
    (
        "icmp6 128/0 [2001:db8::10]:0 → [2001:db8::1]:0",
        CUT_ECHO,
        1,
        None,
    ),
    (
        "icmp6 129/0 [2001:db8::1]:0 → [2001:db8::10]:0",
        CUT_ECHO,
        1,
        None,
    ),
];

/// The tests.
pub(super) fn tests() -> [Test; 2] {
    [
        Test::new(
            "path: pieces are put together again, and none is lost",
            whole,
        ),
        Test::new(
            "path: a copy that a bridge floods is no packet of its own",
            flooded,
        ),
    ]
}

fn whole(tracer: &Tracer) -> anyhow::Result<()> {
    let traffic = [
        (
            "pt-c",
            Traffic::Udp("192.0.2.10:41001", "192.0.2.1:30000", DATAGRAM),
        ),
        (
            "pt-c",
            Traffic::Udp("192.0.2.10:41002", "10.244.1.2:3000", DATAGRAM),
        ),
        (
            "pt-p1",
            Traffic::Udp("10.244.1.2:41003", "10.244.1.3:3000", DATAGRAM),
        ),
        (
            "pt-c",
            Traffic::Udp("[2001:db8::10]:41004", "[2001:db8::1]:30000", DATAGRAM),
        ),
        ("pt-c", Traffic::Ping("10.244.1.2", ECHO)),
        ("pt-c", Traffic::Ping("2001:db8::1", ECHO)),
    ];
    judge(&traced(tracer, &[], &traffic, true)?)
}

/// A bridge that forgets at once sends what is for one pod to all of them. The pod takes it, or a rule of the pod's
/// drops it; that the others do not want their copies is no end of it.
fn flooded(tracer: &Tracer) -> anyhow::Result<()> {
    let forget = "ip -n pt-a link set cni0 type bridge ageing_time 0";
    let refuse = "ip netns exec pt-p1 iptables -A INPUT -p udp --dport 3000 -j DROP";
    let request = Traffic::Udp("192.0.2.10:41005", "10.244.1.2:3000", 8);
    let requests = [("pt-c", request)];
    let udp = |answer: Answer| {
        let mut journeys = answer.objects("journey");
        journeys.retain(|journey| journey["protocol"] == "udp");
        journeys
    };
    let journeys = udp(traced(tracer, &[forget, refuse], &requests, false)?);
    let ways: Vec<_> = journeys.iter().map(Seen::new).collect();
    let dropped = "✗ input: dropped by filter/INPUT rule 1";
    let told = ways.len() == 1 && ways[0].stages.iter().any(|stage| stage == dropped);
    check(told, || format!("{ways:#?}"))?;
    let journeys = udp(traced(tracer, &[forget], &requests, true)?);
    let ways: Vec<_> = journeys.iter().map(Seen::new).collect();
    check(
        journeys.len() == 2 && journeys.iter().all(|journey| journey["arrived"] == true),
        || format!("{ways:#?}"),
    )?;
    let floods = ways.iter().position(|way| {
        let flooded = way
            .stages
            .iter()
            .any(|stage| stage == "flooded to every port");
        flooded && way.ends.starts_with("udp 192.0.2.10:")
    });
    let copies = floods.map(|index| &journeys[index]["branches"]);
    let to_another = |copies: &serde_json::Value| {
        let way = copies[0]["path"].to_string();
        copies[0]["kind"] == "copy" && way.contains("pt-p2") && !way.contains("\"lost\":true")
    };
    check(copies.is_some_and(to_another), || {
        format!("{ways:#?}, copies {copies:?}")
    })
}

/// What is seen of this traffic, answered or not, after these commands.
fn traced(
    tracer: &Tracer,
    commands: &[&str],
    traffic: &[(&str, Traffic)],
    answered: bool,
) -> anyhow::Result<Answer> {
    let world = World::build()?;
    for line in commands {
        command(line)?;
    }
    let tracing = tracer.start(&["--all", "--buffer", "32M", "udp or icmp or icmp6"])?;
    for (from, traffic) in traffic {
        let sent = traffic.send(from);
        check(sent.is_ok() == answered, || {
            format!("{traffic:?}: {sent:?}")
        })?;
    }
    std::thread::sleep(Duration::from_millis(600));
    tracing.interrupt()?;
    let answer = tracing.finish()?;
    drop(world);
    Ok(answer)
}

fn judge(answer: &Answer) -> anyhow::Result<()> {
    let mut journeys = answer.objects("journey");
    // Neighbour discovery is for many.
    journeys.retain(|journey| {
        let to = journey["destination"].as_str();
        journey["gap"] != true && to.is_some_and(|to| !to.starts_with("[ff"))
    });
    let mut wrong = Vec::new();
    for journey in &journeys {
        let mut pieces = journey["branches"].as_array().into_iter().flatten();
        let told = pieces.all(|piece| {
            piece["ending"] == "put together"
                && piece["path"]
                    .as_array()
                    .is_some_and(|path| !path.is_empty())
        });
        if journey["arrived"] != true || !told {
            let seen = Seen::new(journey);
            wrong.push(format!("{seen:?}, pieces {}", journey["branches"]));
        }
    }
    let all: Vec<_> = journeys.iter().map(Seen::new).collect();
    for &(ends, cut, times, real) in CUT {
        let as_expected = |seen: &&Seen| {
            let cuts = seen.stages.iter().filter(|&stage| stage == cut);
            seen.ends == ends && cuts.count() == times && seen.real.as_deref() == real
        };
        if all.iter().filter(as_expected).count() != 1 {
            wrong.push(format!("not once {ends}, {cut} {times} times: {all:#?}"));
        }
    }
    check(wrong.is_empty(), || wrong.join("\n"))
}
