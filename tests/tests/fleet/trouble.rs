//! What nodes, servers and people do to a run.

use std::time::{Duration, Instant};

use tests::api_server::{Fault, Options, Script};
use tokio::sync::{mpsc, watch};
use tracer::fleet::{self, Choice, FleetError, News, NodeEnd, Stop};

use super::{clean, place, plan, run, run_until, says, server, stays};

#[test]
fn a_node_that_cannot_start_is_said_and_the_others_go_on() {
    let server = server(Options::default());
    server.kubelet("node-a", says(5, Duration::from_millis(10)));
    server.kubelet("node-b", Script::CannotPull);
    let ran = run(&server, plan(Choice::All), |_, _| {});
    assert_eq!(ran.lines("node-a").len(), 6);
    let NodeEnd::NotStarted(why) = ran.end("node-b") else {
        panic!("it started");
    };
    for part in ["ImagePullBackOff", "Failed to pull image", "not found"] {
        assert!(why.contains(part), "{why}");
    }
    clean(&server);
}

#[test]
fn a_pod_that_waits_for_ever_is_said() {
    let server = server(Options::default());
    server.kubelet("node-a", Script::Hangs);
    let mut plan = plan(Choice::parse("node-a"));
    plan.start = Duration::from_secs(2);
    let ran = run(&server, plan, |_, _| {});
    let end = ran.end("node-a");
    assert!(
        matches!(&end, NodeEnd::NotStarted(why) if why.contains("not started within 2 s")),
        "{end:?}"
    );
    clean(&server);
}

#[test]
fn a_failed_trace_is_said_in_its_own_words() {
    let server = server(Options::default());
    server.kubelet(
        "node-a",
        Script::Says {
            lines: vec!["tracer: this kernel has no BTF".into()],
            pause: Duration::ZERO,
            stays: false,
            last: Vec::new(),
            code: 3,
        },
    );
    let ran = run(&server, plan(Choice::parse("node-a")), |_, _| {});
    assert_eq!(ran.lines("node-a"), ["tracer: this kernel has no BTF"]);
    let end = ran.end("node-a");
    assert!(
        matches!(&end, NodeEnd::Broken(why) if why.contains("exit code 3")),
        "{end:?}"
    );
    clean(&server);
}

#[test]
fn a_lost_connection_loses_no_line() {
    let mut server = server(Options::default());
    server.kubelet("node-a", says(60, Duration::from_millis(50)));
    let place = place(&server);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let (_stopper, stop) = watch::channel(Stop::No);
    let (sender, mut receiver) = mpsc::channel(64);
    let plan = plan(Choice::parse("node-a"));
    let running = runtime.spawn(async move { fleet::run(plan, &place, stop, sender).await });
    let (mut lines, mut interrupted, mut resumed) = (Vec::new(), false, false);
    while let Some(news) = runtime.block_on(receiver.recv()) {
        match news {
            News::Line { line, .. } => {
                lines.push(line);
                if lines.len() == 9 {
                    server.stop();
                    std::thread::sleep(Duration::from_millis(700));
                    server.resume().expect("the port again");
                }
            }
            News::Interrupted { .. } => interrupted = true,
            News::Resumed { .. } => resumed = true,
            News::Begun { .. } | News::Ended { .. } => {}
        }
    }
    let outcome = runtime.block_on(running).expect("a task");
    assert!(outcome.expect("an outcome").left.is_empty());
    let mut expected: Vec<_> = (0..60)
        .map(|number| format!("{{\"line\": {number}}}"))
        .collect();
    expected.push("{\"line\": \"last\"}".into());
    assert_eq!(lines, expected);
    assert!(interrupted && resumed);
    clean(&server);
}

#[test]
fn asked_to_stop_the_nodes_say_their_last_words_and_everything_goes() {
    let server = server(Options::default());
    server.kubelet("node-a", stays());
    server.kubelet("node-b", stays());
    let ran = run(&server, plan(Choice::All), |news, stopper| {
        if let News::Line { .. } = news {
            stopper.send_replace(Stop::Gently);
        }
    });
    assert!(ran.outcome.expect("an outcome").left.is_empty());
    let last: usize = ran
        .news
        .iter()
        .filter(|news| matches!(news, News::Line { line, .. } if line.contains("last")))
        .count();
    assert!(last >= 1, "{:?}", ran.news);
    clean(&server);
}

#[test]
fn stopped_at_once_everything_goes_too() {
    let server = server(Options::default());
    server.kubelet("node-a", stays());
    server.kubelet("node-b", Script::Hangs);
    let ran = run(&server, plan(Choice::All), |news, stopper| {
        if let News::Line { .. } = news {
            stopper.send_replace(Stop::AtOnce);
        }
    });
    assert!(ran.outcome.expect("an outcome").left.is_empty());
    clean(&server);
}

#[test]
fn a_refused_pod_is_said_in_the_servers_words() {
    let server = server(Options::default());
    server.misbehave(&[Fault::Refuse(
        "pods",
        "violates PodSecurity \"baseline:latest\": host namespaces",
    )]);
    let ran = run(&server, plan(Choice::parse("node-a")), |_, _| {});
    let end = ran.end("node-a");
    assert!(
        matches!(&end, NodeEnd::NotStarted(why) if why.contains("violates PodSecurity")),
        "{end:?}"
    );
    server.misbehave(&[Fault::Refuse(
        "pods",
        "error looking up serviceaccount: \"tracer\" not found",
    )]);
    let ran = run(&server, plan(Choice::parse("node-a")), |_, _| {});
    let end = ran.end("node-a");
    assert!(
        matches!(&end, NodeEnd::NotStarted(why) if why.contains("tracer cluster rbac")),
        "{end:?}"
    );
    clean(&server);
}

#[test]
fn a_server_that_never_answers_can_be_left() {
    let server = server(Options::default());
    server.misbehave(&[Fault::Silent]);
    let begun = Instant::now();
    let enough = async { tokio::time::sleep(Duration::from_millis(200)).await };
    let ran = run_until(&server, plan(Choice::All), |_, _| {}, enough);
    assert!(matches!(ran.outcome, Err(FleetError::Stopped)), "{ran:?}");
    // No request had to end first.
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[test]
fn what_was_made_without_an_answer_goes_when_it_is_stopped() {
    let server = server(Options::default());
    server.misbehave(&[Fault::NoAnswer("jobs")]);
    let made = async {
        while server.names("jobs").is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ran = run_until(&server, plan(Choice::All), |_, _| {}, made);
    assert!(matches!(ran.outcome, Err(FleetError::Stopped)), "{ran:?}");
    clean(&server);
}

#[test]
fn a_pod_whose_answer_was_lost_is_traced_all_the_same() {
    let server = server(Options::default());
    server.kubelet("node-a", says(2, Duration::ZERO));
    server.misbehave(&[Fault::NoAnswer("pods")]);
    let ran = run(&server, plan(Choice::parse("node-a")), |_, _| {});
    assert_eq!(ran.end("node-a"), NodeEnd::Finished);
    assert_eq!(ran.lines("node-a").len(), 3);
    clean(&server);
}

#[test]
fn a_pod_that_others_were_counted_before_is_made_then() {
    let server = server(Options::default());
    server.kubelet("node-a", says(2, Duration::ZERO));
    server.misbehave(&[Fault::Contended("pods")]);
    let ran = run(&server, plan(Choice::parse("node-a")), |_, _| {});
    assert_eq!(ran.end("node-a"), NodeEnd::Finished);
    assert_eq!(ran.lines("node-a").len(), 3);
    clean(&server);
}

#[test]
fn a_server_that_is_busy_for_a_moment_is_asked_again() {
    for faults in [
        [
            Fault::Once("create", "jobs", 429),
            Fault::Once("create", "pods", 503),
        ],
        [
            Fault::Once("create", "pods", 429),
            Fault::Once("delete", "jobs", 503),
        ],
    ] {
        let server = server(Options::default());
        server.kubelet("node-a", says(2, Duration::ZERO));
        server.misbehave(&faults);
        let ran = run(&server, plan(Choice::parse("node-a")), |_, _| {});
        assert_eq!(ran.end("node-a"), NodeEnd::Finished, "{faults:?}");
        assert!(
            ran.outcome.expect("an outcome").left.is_empty(),
            "{faults:?}"
        );
        clean(&server);
    }
}

#[test]
fn what_the_server_refuses_is_said_without_blaming_rights() {
    let server = server(Options::default());
    server.misbehave(&[Fault::Status("jobs", 422)]);
    let ran = run(&server, plan(Choice::All), |_, _| {});
    let error = ran.outcome.expect_err("a refusal").to_string();
    assert!(
        error.contains("422") && !error.contains("rights"),
        "{error}"
    );
}

#[test]
fn many_pods_are_removed_side_by_side() {
    let server = server(Options::default());
    for number in 0..40 {
        let name = format!("node-x{number}");
        server.put(
            "nodes",
            serde_json::json!({"kind": "Node", "metadata": {"name": name}}),
        );
        server.kubelet(&name, stays());
    }
    let pause = Duration::from_millis(250);
    server.misbehave(&[Fault::Slow(pause)]);
    let mut asked = None;
    let ran = run(&server, plan(Choice::All), |news, stopper| {
        if let News::Line { .. } = news {
            asked.get_or_insert_with(Instant::now);
            stopper.send_replace(Stop::Gently);
        }
    });
    assert!(ran.outcome.expect("an outcome").left.is_empty());
    // One after the other they take twice this for each of the two times that they are asked to go.
    let taken = asked.expect("a line").elapsed();
    assert!(taken < pause * 40, "{taken:?}");
    clean(&server);
}
