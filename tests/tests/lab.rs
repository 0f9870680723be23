//! The lab tests: the release binary on a real kernel, as root. `cargo xtask test` boots the kernels
//! and starts this in each: `lab --tracer PATH [--long] [FILTER ...]`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::tour::Tour;
use tests::{Answer, Shared, Test, Tracer, check, finish};
use tracer_ebpf::hook::HookId;

/// The share that the lab hands results out through.
const RESULTS: &str = "/out/results.json";
/// Everything that the scenarios need and that a node with kube-proxy in ipvs mode has.
const MODULES: &[&str] = &[
    "ip_vs",
    "ip_vs_rr",
    "veth",
    "bridge",
    "vxlan",
    "nf_conntrack",
    "nf_nat",
    "dummy",
    "br_netfilter",
    "nf_conntrack_netlink",
    "act_gact",
    "cls_flower",
    "sch_ingress",
    "sch_tbf",
];
const CASE: &str = "vip-nodeport-unbound";

fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args().skip(1).peekable();
    let usage = "usage: lab --tracer PATH [--long] [FILTER ...]";
    if arguments.next().as_deref() != Some("--tracer") {
        anyhow::bail!(usage);
    }
    let tracer = Tracer::new(PathBuf::from(arguments.next().context(usage)?));
    let with_long = arguments.next_if_eq("--long").is_some();
    let filters: Vec<_> = arguments.collect();
    let loaded = Command::new("modprobe").arg("-a").args(MODULES).status()?;
    check(loaded.success(), || {
        format!("this kernel lacks one of the modules {MODULES:?}")
    })?;
    let mut tests = list();
    if with_long {
        tests.extend(long(&tracer)?);
    }
    let passed = tests::run(&tests, &tracer, &filters, Path::new(RESULTS))?;
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn list() -> Vec<Test> {
    let variants = Shared::default();
    let for_hooks = variants.clone();
    let mut tests = vec![
        Test::new("doctor: every hook attaches", every_hook_attaches),
        Test::new("hooks: each one fires", move |tracer| {
            every_hook_fires(tracer, for_hooks.get(|| every_variant(tracer))?)
        }),
        Test::new(
            "use: wrong words get the nearest name and exit 2",
            wrong_use,
        ),
        Test::new("use: without root exit 3", without_root),
        Test::new("reproduce: Ctrl-C leaves nothing behind", interrupted),
        Test::new("reproduce: names and addresses make no difference", renamed),
        Test::new("reproduce: a healthy variant exits with 0", |tracer| {
            let arguments = ["reproduce", CASE, "--variant", "vip-32", "--format", "json"];
            tracer.run(&arguments)?.expect_code(0)
        }),
        Test::new("run: programs load with their log on", program_log),
        Test::new("run: capabilities are given up", capabilities_are_dropped),
        Test::new(
            "kubernetes: names, and a service without ready endpoints",
            tests::cluster::endpoint_not_ready,
        ),
        Test::new(
            "kubernetes: IPVS against the cluster's objects",
            tests::cluster::differences,
        ),
        Test::new(
            "serve: a real drop is counted by reason and cause, and captured",
            tests::serve::counts,
        ),
        Test::new(
            "serve: a real drop is counted at low cost",
            tests::serve::counts_at_low_cost,
        ),
        Test::new(
            "top: a failure and its cause come to the screen",
            tests::top::shows_a_failure,
        ),
        Test::new(
            "cluster run: Ctrl-C removes everything, causes are joined",
            tests::fleet::interrupted,
        ),
        Test::new(
            "cluster capture: a file for each node, parts counted, nothing left",
            tests::fleet::captured,
        ),
        Test::new(
            "cluster capture: what all nodes saw is joined and explained",
            tests::fleet::joined,
        ),
        Test::new(
            "cluster run: with a filter, what all nodes saw is joined and explained",
            tests::fleet::run_joined,
        ),
    ];
    tests.extend(tests::attach::tests());
    tests.extend(tests::ends::tests());
    tests.extend(tests::paths::tests());
    tests.extend(tests::tcp::tests());
    tests.extend(tests::rules::tests());
    tests.extend(tests::guard::tests());
    tests.extend(tests::neighbours::tests());
    tests.extend(tests::backlog::tests());
    tests.extend(tests::check::tests());
    tests.extend(tests::field_notes::tests());
    tests.extend(tests::proxy_rules::tests());
    for expectation in EXPECTATIONS {
        let variants = variants.clone();
        tests.push(Test::new(
            format!("{CASE}: {}", expectation.variant),
            move |tracer| {
                let played = variants.get(|| every_variant(tracer))?;
                no_loss(played)?;
                judge(&of_variant(played, expectation.variant)?, expectation)
            },
        ));
    }
    tests
}

/// Tests that take long, or that not every kernel has been seen to pass.
fn long(tracer: &Tracer) -> anyhow::Result<Vec<Test>> {
    let mut tests = tests::filter::tests();
    tests.extend(tests::capture::tests(tracer));
    tests.extend(tests::merge::tests());
    tests.extend(tests::matrix::tests(tracer)?);
    Ok(tests)
}

/// What a variant of the case has to come to.
struct Expectation {
    variant: &'static str,
    /// The address and port that is diagnosed; `None` for a healthy variant.
    subject: Option<&'static str>,
    /// A stage that the failing packet's path shows.
    stage: &'static str,
    /// Words that the summary or evidence must hold.
    says: &'static [&'static str],
}

const EXPECTATIONS: &[Expectation] = &[
    Expectation {
        variant: "unbound",
        subject: Some("tcp 192.168.3.187:30000"),
        stage: "tcp: no socket",
        says: &[
            "secondary",
            "src 192.168.3.182",
            "192.168.3.187/32",
            "10.244.1.15:3000",
            "the two paths part",
        ],
    },
    Expectation {
        variant: "udp",
        subject: Some("udp 192.168.3.187:30000"),
        stage: "udp: no socket",
        says: &["secondary", "ICMP port unreachable"],
    },
    Expectation {
        variant: "held-port",
        subject: Some("tcp 192.168.3.187:30000"),
        stage: "listening socket :30000",
        says: &[
            "accepted and then hang",
            "kube-proxy listens on tcp port 30000",
        ],
    },
    Expectation {
        variant: "nodeport-addresses",
        subject: Some("tcp 192.168.3.187:30000"),
        stage: "tcp: no socket",
        says: &["nodePortAddresses leaves 192.168.3.187 out"],
    },
    Expectation {
        variant: "nftables",
        subject: Some("tcp 192.168.3.187:30000"),
        stage: "tcp: no socket",
        says: &[
            "Without nodePortAddresses",
            "10.244.1.15:3000 on 192.168.3.182; 192.168.3.187 is not among them",
        ],
    },
    Expectation {
        variant: "two-vips",
        subject: Some("tcp 192.168.3.187:30000"),
        stage: "tcp: no socket",
        says: &["secondary"],
    },
    Expectation {
        variant: "vip-32",
        subject: None,
        stage: "ipvs",
        says: &[],
    },
    Expectation {
        variant: "other-mask",
        subject: None,
        stage: "ipvs",
        says: &[],
    },
];

/// All variants of the case, in one tracer so that attaching is paid once.
fn every_variant(tracer: &Tracer) -> anyhow::Result<Answer> {
    let arguments = ["reproduce", CASE, "--format", "json", "--variant", "all"];
    let answer = tracer.run_within(&arguments, Duration::from_secs(600))?;
    answer.expect_code(1)?;
    Ok(answer)
}

/// What was printed of one variant: up to its verdict, from the one before on.
fn of_variant(played: &Answer, variant: &str) -> anyhow::Result<Answer> {
    let mut lines = Vec::new();
    for line in played.stdout.lines() {
        lines.push(line);
        let object: Value = serde_json::from_str(line)?;
        if object["type"] != "verdict" {
            continue;
        }
        if object["variant"] == variant {
            return Ok(Answer {
                code: played.code,
                stdout: lines.join("\n"),
                stderr: played.stderr.clone(),
            });
        }
        lines.clear();
    }
    bail!("{variant} was not played: {}", played.stderr.trim())
}

fn judge(answer: &Answer, expectation: &Expectation) -> anyhow::Result<()> {
    let verdict = answer.object("verdict")?;
    check(verdict["as_expected"] == true, || {
        format!("verdict {verdict}, stderr {}", answer.stderr.trim())
    })?;
    let diagnoses = answer.objects("diagnosis");
    let stages: BTreeSet<String> = answer
        .objects("journey")
        .iter()
        .flat_map(|journey| journey["path"].as_array().cloned().unwrap_or_default())
        .map(|stage| stage["text"].as_str().unwrap_or_default().to_owned())
        .collect();
    check(
        stages.iter().any(|stage| stage.contains(expectation.stage)),
        || format!("no journey shows {:?}: {stages:?}", expectation.stage),
    )?;
    let Some(subject) = expectation.subject else {
        check(diagnoses.is_empty(), || {
            format!("healthy traffic was blamed: {diagnoses:?}")
        })?;
        return Ok(());
    };
    check(diagnoses.len() == 1, || {
        format!("one diagnosis is expected: {diagnoses:?}")
    })?;
    let diagnosis = &diagnoses[0];
    check(
        diagnosis["cause"] == CASE
            && diagnosis["subject"] == subject
            && diagnosis["certainty"] == "certain",
        || format!("{diagnosis}"),
    )?;
    let text = diagnosis.to_string();
    for word in expectation.says {
        check(text.contains(word), || {
            format!("{word:?} is not said: {text}")
        })?;
    }
    let attempts = answer.objects("attempt");
    let fixed: Vec<_> = attempts
        .iter()
        .filter(|attempt| attempt["phase"] == "after the fix")
        .collect();
    check(
        !fixed.is_empty() && fixed.iter().all(|attempt| attempt["answered"] == true),
        || format!("after the fix: {fixed:?}"),
    )
}

fn no_loss(answer: &Answer) -> anyhow::Result<()> {
    let summary = answer.object("summary")?;
    let mut lost = summary["lost"].as_array().into_iter().flatten();
    // A program that an interrupt comes upon is skipped for that packet; no buffer prevents it.
    check(
        lost.all(|row| row[0] == "program skipped by the kernel"),
        || format!("events were lost: {}", summary["lost"]),
    )
}

fn renamed(tracer: &Tracer) -> anyhow::Result<()> {
    let expectation = Expectation {
        variant: "unbound",
        subject: Some("tcp 172.29.7.77:31999"),
        stage: "tcp: no socket",
        says: &[
            "172.29.7.20",
            "src 172.29.7.20",
            "dev lan9",
            "172.29.7.77/32",
            "10.99.3.8:8443",
        ],
    };
    let answer = tracer.run(&[
        "reproduce",
        CASE,
        "--format",
        "json",
        "--node",
        "172.29.7.20",
        "--vip",
        "172.29.7.77",
        "--client",
        "172.29.7.5",
        "--pod",
        "10.99.3.8",
        "--bridge-address",
        "10.99.3.1",
        "--pod-port",
        "8443",
        "--node-port",
        "31999",
        "--interface",
        "lan9",
        "--bridge",
        "br-pods",
    ])?;
    answer.expect_code(1)?;
    no_loss(&answer)?;
    judge(&answer, &expectation)
}

fn every_hook_attaches(tracer: &Tracer) -> anyhow::Result<()> {
    let answer = tracer.run(&["doctor", "--format", "json"])?;
    answer.expect_code(0)?;
    let hooks = answer.objects("hook");
    check(hooks.len() == HookId::ALL.len(), || {
        format!("{} hooks are listed", hooks.len())
    })?;
    let missing: Vec<_> = hooks
        .iter()
        .filter(|hook| hook["attached"].is_null())
        .collect();
    check(missing.is_empty(), || format!("{missing:?}"))?;
    let kernel = answer.object("kernel")?;
    // 5.10 has no type information of modules.
    let of_module = |field: &Value| {
        let unknown = !Path::new("/sys/kernel/btf/ip_vs").exists();
        unknown
            && field
                .as_str()
                .is_some_and(|field| field.starts_with("ip_vs_"))
    };
    check(
        kernel["missing_fields"]
            .as_array()
            .is_some_and(|fields| fields.iter().all(of_module)),
        || format!("{kernel}"),
    )
}

/// Every hook of the catalogue is seen in real traffic: the case over TCP and UDP, and a tour past all
/// the others.
fn every_hook_fires(tracer: &Tracer, variants: &Answer) -> anyhow::Result<()> {
    let mut fired: BTreeSet<_> = variants.hooks()?.into_keys().collect();
    let tour = Tour::build()?;
    let tracing = tracer.start(&["--buffer", "32"])?;
    tour.travel()?;
    std::thread::sleep(Duration::from_secs(1));
    kill(Pid::from_raw(tracing.id().cast_signed()), Signal::SIGINT)?;
    let answer = tracing.finish()?;
    fired.extend(answer.hooks()?.into_keys());
    let silent: Vec<_> = HookId::ALL
        .iter()
        .map(|hook| hook.name())
        .filter(|name| !fired.contains(*name))
        .collect();
    check(silent.is_empty(), || {
        format!("these hooks never fired: {silent:?}")
    })?;
    let refused = Tour::healthy_that_failed(&answer);
    check(refused.is_empty(), || {
        format!("healthy packets failed: {refused:?}")
    })
}

fn wrong_use(tracer: &Tracer) -> anyhow::Result<()> {
    for (arguments, near) in [
        (&["reproduce", "vip-nodport"][..], CASE),
        (&["reproduce", CASE, "--variant", "unbond"][..], "unbound"),
        (&["why", "vip-nodeport-unbond"][..], CASE),
        (&["reproduc"][..], "reproduce"),
    ] {
        let answer = tracer.run(arguments)?;
        answer.expect_code(2)?;
        check(answer.stderr.contains(near), || {
            format!("{near} is not named: {}", answer.stderr)
        })?;
    }
    Ok(())
}

fn without_root(tracer: &Tracer) -> anyhow::Result<()> {
    for arguments in [&["run"][..], &["reproduce", CASE], &["doctor"]] {
        let answer = finish(
            Command::new("setpriv")
                .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
                .arg(tracer.path())
                .args(arguments),
        )?;
        answer.expect_code(3)?;
        check(answer.stderr.contains("root"), || answer.stderr.clone())?;
    }
    Ok(())
}

/// Processes and namespaces of this machine.
fn census() -> anyhow::Result<(BTreeSet<String>, usize)> {
    let mut namespaces = BTreeSet::new();
    let mut tracers = 0;
    for entry in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
        let path = entry.path();
        if let Ok(namespace) = std::fs::read_link(path.join("ns/net")) {
            namespaces.insert(namespace.to_string_lossy().into_owned());
        }
        let command = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        tracers += usize::from(matches!(command.trim(), "tracer" | "kube-proxy"));
    }
    Ok((namespaces, tracers))
}

fn interrupted(tracer: &Tracer) -> anyhow::Result<()> {
    let (before, _) = census()?;
    let links_before = finish(Command::new("ip").args(["-o", "link"]))?
        .stdout
        .lines()
        .count();
    for (signal, wait) in [
        (Signal::SIGINT, 3000),
        (Signal::SIGKILL, 4000),
        (Signal::SIGINT, 8000),
    ] {
        let mut child = Command::new(tracer.path())
            .args(["reproduce", CASE, "--variant", "held-port"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        std::thread::sleep(Duration::from_millis(wait));
        kill(Pid::from_raw(child.id().cast_signed()), signal)?;
        let begun = Instant::now();
        child.wait()?;
        check(begun.elapsed() < Duration::from_secs(10), || {
            format!("{signal} took {:?}", begun.elapsed())
        })?;
        // A command that was under way when we were stopped ends by itself.
        while census()? != (before.clone(), 0) && begun.elapsed() < Duration::from_secs(15) {
            std::thread::sleep(Duration::from_millis(100));
        }
        let (after, tracers) = census()?;
        check(after == before && tracers == 0, || {
            format!("after {signal}: {after:?}, {tracers} processes")
        })?;
        let links = finish(Command::new("ip").args(["-o", "link"]))?
            .stdout
            .lines()
            .count();
        check(links == links_before, || {
            format!("after {signal} there are {links} links, before {links_before}")
        })?;
    }
    Ok(())
}

/// After attaching, what tracing does not need is gone (CAP_NET_RAW, CAP_SYS_MODULE and the rest), of every
/// thread.
fn capabilities_are_dropped(tracer: &Tracer) -> anyhow::Result<()> {
    /// CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF.
    const KEPT: u64 = 1 << 2 | 1 << 12 | 1 << 19 | 1 << 21 | 1 << 38 | 1 << 39;
    /// The capture's thread may have to make a file in a folder that is not root's.
    const KEPT_BY_CAPTURE: u64 = 1 << 1;
    let directory = tempfile::tempdir()?;
    let capture = directory.path().join("x.pcapng");
    let tracing = tracer.start(&["--for", "3", "-w", &capture.to_string_lossy()])?;
    let id = tracing.id();
    let mut wrong = String::new();
    // A thread that has not come to its first line yet holds everything.
    for _ in 0..20 {
        wrong = still_held(id, KEPT, KEPT_BY_CAPTURE)?;
        if wrong.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    tracing.finish()?;
    check(wrong.is_empty(), || wrong)
}

/// What is wrong with the capabilities of a tracer's threads, in words; nothing when all is well.
fn still_held(id: u32, kept: u64, kept_by_capture: u64) -> anyhow::Result<String> {
    let mut captures = false;
    for thread in std::fs::read_dir(format!("/proc/{id}/task"))? {
        // One that has ended meanwhile holds nothing.
        let Ok(status) = std::fs::read_to_string(thread?.path().join("status")) else {
            continue;
        };
        let line = |begin| status.lines().find_map(|line| line.strip_prefix(begin));
        let name = line("Name:").unwrap_or_default().trim();
        let bits = line("CapEff:")
            .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
            .context("the kernel shows no capabilities")?;
        let kept = if name == "capture" {
            kept_by_capture
        } else {
            kept
        };
        captures |= name == "capture";
        if bits & !kept != 0 {
            return Ok(format!("thread {name} still holds capabilities {bits:x}"));
        }
    }
    Ok(match captures {
        true => String::new(),
        false => "the thread of the capture was not seen".into(),
    })
}

/// With their log on the verifier sees more code than usual; every hook attaches all the same.
fn program_log(tracer: &Tracer) -> anyhow::Result<()> {
    let answer = tracer.start(&["--for", "1", "--program-log"])?.finish()?;
    let ready = answer.object("ready")?;
    check(
        ready["not_seen"].as_array().is_some_and(Vec::is_empty),
        || format!("{ready}"),
    )
}
