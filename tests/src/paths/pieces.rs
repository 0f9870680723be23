//! Packets that are cut in pieces and put together again: none of their pieces is a loss, and each is told.

use std::time::Duration;

use anyhow::Context as _;

use super::World;
use super::row::{Seen, Traffic};
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

/// The test.
pub(super) fn test() -> Test {
    Test::new(
        "path: pieces are put together again, and none is lost",
        whole,
    )
}

fn whole(tracer: &Tracer) -> anyhow::Result<()> {
    let world = World::build()?;
    let tracing = tracer.start(&["--all", "--buffer", "32M", "udp or icmp or icmp6"])?;
    for (from, traffic) in [
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
    ] {
        traffic.send(from).with_context(|| format!("{traffic:?}"))?;
    }
    std::thread::sleep(Duration::from_millis(600));
    tracing.interrupt()?;
    let answer = tracing.finish()?;
    drop(world);
    judge(&answer)
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
