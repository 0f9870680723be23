//! Which server is chosen: `--kubeconfig` before `KUBECONFIG`, that before `~/.kube/config`, and last a pod's
//! service account. What decides is of a whole process, so that each choice is made in one of its own.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::api_server::{ApiServer, Options as ServerOptions};
use tracer::kube::{Cluster, Options, Place, State};

use super::*;

/// Set in the processes that choose: what `--kubeconfig` and `--context` have, or nothing.
const KUBECONFIG_OPTION: &str = "PLACE_TEST_KUBECONFIG";
const CONTEXT_OPTION: &str = "PLACE_TEST_CONTEXT";
/// What the answer begins with.
const CHOSEN: &str = "chosen: ";
/// Puts a service account where pods have theirs, for one process.
const IN_A_POD: &str = r#"
mount -t tmpfs tmpfs /var/run
mkdir -p /var/run/secrets/kubernetes.io
test -z "$ACCOUNT" || cp -r "$ACCOUNT" /var/run/secrets/kubernetes.io/serviceaccount
exec "$@"
"#;

/// Not a test by itself: in a process that was started to choose, says what was chosen.
#[test]
fn says_what_it_chose() {
    let option = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if std::env::var_os(KUBECONFIG_OPTION).is_none() {
        return;
    }
    let cluster = Cluster::start(Options {
        place: Place {
            kubeconfig: option(KUBECONFIG_OPTION).map(PathBuf::from),
            context: option(CONTEXT_OPTION).and_then(|context| context.into_string().ok()),
        },
        ..Options::default()
    })
    .expect("a thread");
    let begun = Instant::now();
    let answer = loop {
        let state = cluster.state();
        match &state {
            State::NotConfigured => break "nothing".to_owned(),
            State::Unusable(why) => break why.replace('\n', " "),
            _ => {}
        }
        let version = state.facts().and_then(|facts| facts.version.clone());
        if let Some(version) = version {
            break version;
        }
        assert!(begun.elapsed() < PATIENCE, "{}", words(&state));
        std::thread::sleep(Duration::from_millis(5));
    };
    println!("\n{CHOSEN}{answer}");
}

/// What a process is told.
#[derive(Default)]
struct Told<'a> {
    kubeconfig: Option<&'a Path>,
    context: &'a str,
    variable: Option<OsString>,
    /// A home with `.kube/config`.
    home: Option<&'a Path>,
    /// In a pod of this server's cluster, with the files of a service account.
    pod: Option<(&'a ApiServer, Option<&'a Path>)>,
}

fn chosen(told: &Told<'_>) -> String {
    let own = std::env::current_exe().expect("this program");
    let mut command = match told.pod {
        Some(_) => {
            let mut command = Command::new("unshare");
            command.args(["--map-root-user", "--mount", "sh", "-ec", IN_A_POD, "sh"]);
            command.arg(own);
            command
        }
        None => Command::new(own),
    };
    command.args(["--exact", "place::says_what_it_chose", "--nocapture"]);
    for variable in [
        "KUBECONFIG",
        "KUBERNETES_SERVICE_HOST",
        "KUBERNETES_SERVICE_PORT",
    ] {
        command.env_remove(variable);
    }
    let empty = tempfile::tempdir().expect("a folder");
    command.env("HOME", told.home.unwrap_or_else(|| empty.path()));
    command.env(
        KUBECONFIG_OPTION,
        told.kubeconfig.map_or(OsStr::new(""), Path::as_os_str),
    );
    command.env(CONTEXT_OPTION, told.context);
    if let Some(files) = &told.variable {
        command.env("KUBECONFIG", files);
    }
    if let Some((server, account)) = told.pod {
        let address = server.address();
        command.env("KUBERNETES_SERVICE_HOST", address.ip().to_string());
        command.env("KUBERNETES_SERVICE_PORT", address.port().to_string());
        command.env("ACCOUNT", account.map_or(OsStr::new(""), Path::as_os_str));
    }
    let output = command.output().expect("a process");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer = said.lines().find_map(|line| line.strip_prefix(CHOSEN));
    let trouble = String::from_utf8_lossy(&output.stderr);
    assert!(answer.is_some(), "{said}{trouble}");
    answer.unwrap_or_default().to_owned()
}

/// Whether this machine lets a process have mounts of its own; some containers do not.
fn pods_can_be_played() -> bool {
    let tried = Command::new("unshare")
        .args(["--map-root-user", "--mount", "true"])
        .status();
    let can = tried.is_ok_and(|status| status.success());
    if !can {
        eprintln!(
            "not tested: unshare may not make a mount namespace here, and a pod's files need one"
        );
    }
    can
}

fn of_version(version: &'static str) -> ApiServer {
    ApiServer::start(ServerOptions {
        version,
        ..ServerOptions::default()
    })
    .expect("an API server")
}

/// A home whose `.kube/config` is a server's.
fn home(server: &ApiServer) -> PathBuf {
    let home = server.folder().join("home");
    std::fs::create_dir_all(home.join(".kube")).expect("a folder");
    std::fs::copy(server.kubeconfig(), home.join(".kube/config")).expect("a file");
    home
}

fn list(paths: &[&Path]) -> Option<OsString> {
    Some(std::env::join_paths(paths).expect("a list"))
}

#[test]
fn the_nearest_configuration_is_chosen() {
    if !pods_can_be_played() {
        return;
    }
    let [option, variable, at_home, pod] =
        ["v1.31.1", "v1.31.2", "v1.31.3", "v1.31.4"].map(of_version);
    let (home, file, given) = (home(&at_home), variable.kubeconfig(), option.kubeconfig());
    let account = pod.service_account().expect("a service account");
    let in_pod = Some((&pod, Some(&*account)));
    let everything = || Told {
        kubeconfig: Some(&given),
        variable: list(&[&file]),
        home: Some(&home),
        pod: in_pod,
        ..Told::default()
    };
    assert_eq!(chosen(&everything()), "v1.31.1");
    let mut told = everything();
    told.kubeconfig = None;
    assert_eq!(chosen(&told), "v1.31.2");
    // Nothing in it is as good as no variable.
    for nothing in [None, Some(OsString::new()), Some(OsString::from(":"))] {
        told.variable = nothing;
        assert_eq!(chosen(&told), "v1.31.3", "{:?}", told.variable);
    }
    told.home = None;
    assert_eq!(chosen(&told), "v1.31.4");
    told.pod = None;
    assert_eq!(chosen(&told), "nothing");
}

#[test]
fn the_files_of_a_list_count_together() {
    let [first, second] = ["v1.31.1", "v1.31.2"].map(of_version);
    let missing = first.folder().join("missing");
    let damaged = first.folder().join("damaged");
    std::fs::write(&damaged, "{").expect("a file");
    let other = second.folder().join("other");
    let text = std::fs::read_to_string(second.kubeconfig()).expect("a file");
    std::fs::write(&other, text.replace("\"test\"", "\"other\"")).expect("a file");
    let by = |paths: &[&Path], context| {
        chosen(&Told {
            variable: list(paths),
            context,
            ..Told::default()
        })
    };
    let (one, two) = (first.kubeconfig(), second.kubeconfig());
    // The first to say something counts, and contexts of all can be asked for.
    assert_eq!(by(&[&one, &two], ""), "v1.31.1");
    assert_eq!(by(&[&two, &one], ""), "v1.31.2");
    assert_eq!(by(&[&one, &other], ""), "v1.31.1");
    assert_eq!(by(&[&one, &other], "other"), "v1.31.2");
    // One that is not there does not matter beside one that is, and a damaged one does.
    assert_eq!(by(&[Path::new(""), &missing, &two], ""), "v1.31.2");
    let said = by(&[&two, &damaged], "");
    assert!(said.contains("parse"), "{said}");
}

#[test]
fn what_was_asked_for_and_is_not_there_is_no_reason_to_take_another() {
    if !pods_can_be_played() {
        return;
    }
    let [server, pod] = ["v1.31.1", "v1.31.2"].map(of_version);
    let missing = server.folder().join("missing");
    let (home, account) = (home(&server), pod.service_account().expect("an account"));
    for (kubeconfig, variable) in [(Some(&*missing), None), (None, list(&[&missing]))] {
        let said = chosen(&Told {
            kubeconfig,
            variable,
            home: Some(&home),
            pod: Some((&pod, Some(&account))),
            ..Told::default()
        });
        assert!(said.contains("missing"), "{said}");
    }
}

#[test]
fn a_pod_without_a_service_account_is_told_from_one_whose_account_is_damaged() {
    if !pods_can_be_played() {
        return;
    }
    let pod = of_version("v1.31.1");
    let without = Told {
        pod: Some((&pod, None)),
        ..Told::default()
    };
    assert_eq!(chosen(&without), "nothing");
    let account = pod.service_account().expect("a service account");
    std::fs::write(
        account.join("ca.crt"),
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    )
    .expect("a file");
    let said = chosen(&Told {
        pod: Some((&pod, Some(&account))),
        ..Told::default()
    });
    assert!(said.contains("service account cannot be used"), "{said}");
}
