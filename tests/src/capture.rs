//! Captures on a real kernel: the answer from the file is the live answer, whatever happens to the file.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{Answer, Test, Tracer, check, export};

/// The share that the lab hands files out through; golden captures are made from what is there.
const OUT: &str = "/out";

/// One test for each case that can be reproduced, and what else captures promise.
pub fn tests(tracer: &Tracer) -> Vec<Test> {
    let mut tests = vec![
        Test::new("capture: kill -9 costs at most the last second", killed),
        Test::new(
            "capture: files are rotated, and each explains itself",
            rotated,
        ),
        Test::new("capture: files are their owner's alone", private),
        Test::new(
            "capture: a diagnosis keeps what came before and behind it",
            triggered,
        ),
    ];
    for case in cases(tracer) {
        tests.push(Test::new(
            format!("capture: {} explained as live", case.join(" ")),
            move |tracer| same_answer(tracer, &case),
        ));
    }
    tests
}

/// Arguments of `reproduce` for each case and variant.
fn cases(tracer: &Tracer) -> Vec<Vec<String>> {
    let Ok(listed) = tracer.run(&["reproduce", "--list", "--format", "json"]) else {
        return Vec::new();
    };
    listed
        .objects("case")
        .iter()
        .filter_map(|case| {
            let mut arguments = vec![case["case"].as_str()?.to_owned()];
            if let Some(variant) = case["variant"].as_str() {
                arguments.extend(["--variant".to_owned(), variant.to_owned()]);
            }
            Some(arguments)
        })
        .collect()
}

/// A whole matrix's capture takes a busy emulated machine minutes.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// A file for a capture; shared, so that it can be looked at afterwards.
pub fn file(name: &str) -> PathBuf {
    Path::new(OUT).join(format!("{name}.pcapng"))
}

fn explain(tracer: &Tracer, file: &Path) -> anyhow::Result<Answer> {
    let file = file.display().to_string();
    tracer.run_within(&["explain", &file, "--all", "--format", "json"], LIMIT)
}

fn same_answer(tracer: &Tracer, case: &[String]) -> anyhow::Result<()> {
    let file = file(&case.join("_").replace("--", ""));
    let path = file.display().to_string();
    let mut arguments: Vec<&str> = vec!["reproduce"];
    arguments.extend(case.iter().map(String::as_str));
    arguments.extend(["-w", &path, "--format", "json"]);
    let live = tracer.run(&arguments)?;
    check(live.code == 0 || live.code == 1, || {
        format!("the reproduction failed: {}", live.stderr.trim())
    })?;
    let replayed = explained_as_live(tracer, &live, &file)?;
    export::same_without_names(tracer, &file, &replayed).context("without names")
}

/// The file of reproductions gives the diagnoses, journeys and counts that they printed. Returns its
/// answer.
///
/// # Errors
/// With the first difference.
pub fn explained_as_live(tracer: &Tracer, live: &Answer, file: &Path) -> anyhow::Result<Answer> {
    let replayed = explain(tracer, file)?;
    replayed.expect_code(i32::from(!live.objects("diagnosis").is_empty()))?;
    equal(
        "diagnosis",
        &live.objects("diagnosis"),
        &replayed.objects("diagnosis"),
    )?;
    within(&live.objects("journey"), &replayed.objects("journey"))?;
    let (one, two) = (live.object("summary")?, replayed.object("summary")?);
    for field in [
        "events", "packets", "failed", "hooks", "drops", "devices", "causes",
    ] {
        check(one[field] == two[field], || {
            format!("{field}: live {}, from the file {}", one[field], two[field])
        })?;
    }
    let size = std::fs::metadata(file)?.len();
    let events = one["events"].as_u64().unwrap_or_default().max(1);
    println!(
        "    {} bytes, {events} events, {} bytes each with all facts",
        size,
        size / events
    );
    Ok(replayed)
}

fn equal(what: &str, live: &[Value], replayed: &[Value]) -> anyhow::Result<()> {
    for (index, (one, two)) in live.iter().zip(replayed).enumerate() {
        check(one == two, || {
            format!("{what} {index} differs; live: {one}; from the file: {two}")
        })?;
    }
    check(live.len() == replayed.len(), || {
        format!(
            "{} {what} objects live, {} from the file",
            live.len(),
            replayed.len()
        )
    })
}

/// A reproduction shows nothing while it applies its fix; the file holds those packets too.
fn within(live: &[Value], replayed: &[Value]) -> anyhow::Result<()> {
    let mut rest = replayed.iter();
    for one in live {
        let id = &one["id"];
        let two = rest
            .find(|two| two["id"] == *id)
            .with_context(|| format!("journey {id} is not told from the file, or out of order"))?;
        check(one == two, || {
            format!("journey {id} differs; live: {one}; from the file: {two}")
        })?;
    }
    check(!live.is_empty(), || "no journey at all".into())
}

/// Traffic that a trace sees: connections of this machine to itself that nobody answers.
fn knock(count: usize) {
    for _ in 0..count {
        // Refused, which is what is wanted.
        let _ = std::net::TcpStream::connect("127.0.0.1:9");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn killed(tracer: &Tracer) -> anyhow::Result<()> {
    let file = file("killed");
    let running = tracer.start(&["-w", &file.display().to_string()])?;
    knock(150);
    let before = Instant::now();
    let process = Pid::from_raw(i32::try_from(running.id())?);
    kill(process, Signal::SIGKILL)?;
    running.finish()?;
    let answer = explain(tracer, &file)?;
    check(answer.code == 1 || answer.code == 4, || {
        format!("exit {}: {}", answer.code, answer.stderr.trim())
    })?;
    if answer.code == 4 {
        check(answer.stderr.contains("at byte"), || {
            format!("no position: {}", answer.stderr.trim())
        })?;
    }
    let refused = answer
        .objects("journey")
        .iter()
        .filter(|journey| journey["destination"] == "127.0.0.1:9")
        .count();
    // 150 knocks took three seconds and more: the last second holds at most a third of them.
    check(refused >= 100, || {
        format!("{refused} of 150 refused connections are in the file, killed at {before:?}")
    })
}

fn rotated(tracer: &Tracer) -> anyhow::Result<()> {
    let file = file("rotated");
    let running = tracer.start(&[
        "-w",
        &file.display().to_string(),
        "--rotate",
        "64k,3",
        "--for",
        "6",
    ])?;
    knock(200);
    let live = running.finish()?;
    let written = live.object("capture")?;
    let files = written["files"].as_array().cloned().unwrap_or_default();
    check(files.len() == 3, || format!("not three files: {written}"))?;
    for file in &files {
        let file = Path::new(file.as_str().unwrap_or_default());
        let answer = explain(tracer, file)?;
        check(answer.code <= 1, || {
            format!("{}: {}", file.display(), answer.stderr.trim())
        })?;
        let named = answer.objects("journey").iter().any(|journey| {
            journey["path"]
                .as_array()
                .is_some_and(|path| path.iter().any(|stage| stage["text"] == "lo"))
        });
        check(named, || format!("{} does not name lo", file.display()))?;
    }
    let gone = file.with_file_name("rotated.00001.pcapng");
    check(!gone.exists(), || format!("{} was kept", gone.display()))
}

/// Connections long before a diagnosis, just before it, and long behind it: only the second is kept.
fn triggered(tracer: &Tracer) -> anyhow::Result<()> {
    let file = file("triggered");
    let path = file.display().to_string();
    let mut arguments = vec!["-w", &path, "--trigger", "no-listener"];
    arguments.extend(["--before", "4s", "--after", "1s", "--for", "15"]);
    let running = tracer.start(&arguments)?;
    let greet = || -> anyhow::Result<String> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        std::net::TcpStream::connect(address)?;
        Ok(address.to_string())
    };
    let early = greet()?;
    std::thread::sleep(Duration::from_secs(6));
    let just_before = greet()?;
    knock(3);
    std::thread::sleep(Duration::from_secs(5));
    let late = greet()?;
    let live = running.finish()?;
    let answer = explain(tracer, &file)?;
    answer.expect_code(1)?;
    equal(
        "diagnosis",
        &live.objects("diagnosis"),
        &answer.objects("diagnosis"),
    )?;
    let kept = |address: &str| {
        let journeys = answer.objects("journey");
        journeys
            .iter()
            .any(|journey| journey["destination"] == address)
    };
    let kept = [&early, &just_before, &late].map(|address| kept(address));
    check(kept == [false, true, false], || {
        format!("kept of long before, just before and long behind: {kept:?}")
    })
}

fn private(tracer: &Tracer) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("mode.pcapng");
    let path = file.display().to_string();
    tracer
        .start(&["-w", &path, "--for", "1", "--zstd"])?
        .finish()?;
    let mode = std::fs::metadata(&file)?.permissions().mode() & 0o777;
    check(mode == 0o600, || format!("mode {mode:o}"))?;
    let answer = explain(tracer, &file)?;
    check(answer.code <= 1, || answer.stderr.trim().to_owned())
}
