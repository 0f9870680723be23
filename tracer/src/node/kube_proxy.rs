//! kube-proxy as it runs on this node: its process and the flags that decide where NodePorts answer.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use super::{NetnsId, ProxyReport};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A kube-proxy process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KubeProxy {
    /// Process id.
    pub pid: u32,
    /// When it was started, by CLOCK_MONOTONIC in nanoseconds.
    #[serde(default)]
    pub started_ns: Option<u64>,
    /// Network namespace that it works in.
    pub netns: Option<NetnsId>,
    /// `--proxy-mode`, where it stands on the command line.
    pub mode: Option<String>,
    /// `--nodeport-addresses`; empty means every address.
    pub node_port_addresses: Vec<String>,
    /// `--ipvs-exclude-cidrs`: virtual servers there are not kube-proxy's.
    #[serde(default)]
    pub excluded_prefixes: Vec<String>,
    /// `--config`: where it is given, kube-proxy ignores most other flags. In another program: where that
    /// program has the flags from.
    pub config: Option<String>,
    /// `--metrics-bind-address`.
    #[serde(default)]
    pub metrics: Option<String>,
    /// `--healthz-bind-address`.
    #[serde(default)]
    pub healthz: Option<String>,
    /// `--feature-gates`.
    #[serde(default)]
    pub feature_gates: BTreeMap<String, bool>,
    /// It finds the program `conntrack` in its own mount namespace; `None` when that is not known.
    pub conntrack_tool: Option<bool>,
    /// What it says of itself, once it was asked.
    #[serde(default)]
    pub report: Option<ProxyReport>,
}

impl KubeProxy {
    /// Every kube-proxy process that can be seen.
    pub fn running() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(Self::read)
            .collect()
    }

    fn read(pid: u32) -> Option<Self> {
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let mut proxy = Self::parse(pid, &command_line)?;
        proxy.conntrack_tool = finds(pid, "conntrack");
        proxy.started_ns = started_ns(pid);
        let namespace = fs::metadata(format!("/proc/{pid}/ns/net")).ok();
        proxy.netns = namespace
            .and_then(|found| u32::try_from(found.ino()).ok())
            .map(NetnsId);
        Some(proxy)
    }

    /// Parses a NUL-separated command line; `None` when it is another program's.
    fn parse(pid: u32, command_line: &[u8]) -> Option<Self> {
        let words: Vec<String> = command_line
            .split(|&byte| byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .filter(|word| !word.is_empty())
            .collect();
        let Flags { words, hidden } = Flags::of(words)?;
        let flag = |name| flag(&words, name);
        let list = |name| -> Vec<String> {
            flag(name).map_or_else(Vec::new, |list| {
                list.split(',')
                    .map(|part| part.trim().to_owned())
                    .filter(|part| !part.is_empty())
                    .collect()
            })
        };
        let gates = list("feature-gates");
        let gates = gates.iter().filter_map(|gate| {
            let (name, value) = gate.split_once('=')?;
            Some((name.to_owned(), value.to_lowercase().parse().ok()?))
        });
        Some(Self {
            pid,
            started_ns: None,
            netns: None,
            mode: flag("proxy-mode"),
            node_port_addresses: list("nodeport-addresses"),
            excluded_prefixes: list("ipvs-exclude-cidrs"),
            config: flag("config").or(hidden),
            metrics: flag("metrics-bind-address"),
            healthz: flag("healthz-bind-address"),
            feature_gates: gates.collect(),
            conntrack_tool: None,
            report: None,
        })
    }

    /// A process with this command line.
    #[cfg(test)]
    pub(crate) fn constructed(line: &str) -> Self {
        Self::parse(1, line.replace(' ', "\0").as_bytes()).expect("kube-proxy's command line")
    }

    /// A flag's value, where flags count: not beside a configuration file.
    pub(super) fn counting<'a>(&self, flag: &'a Option<String>) -> Option<&'a str> {
        flag.as_deref().filter(|_| self.config.is_none())
    }
}

/// kube-proxy's flags among the words of a command line.
struct Flags {
    words: Vec<String>,
    /// Where there may be more of them.
    hidden: Option<String>,
}

impl Flags {
    /// `None` for a program that does not do kube-proxy's work.
    fn of(words: Vec<String>) -> Option<Self> {
        let program = words.first()?.rsplit('/').next()?;
        let second = words.get(1).map_or("", String::as_str);
        let (words, hidden) = match program.split_once(' ').unwrap_or((program, second)) {
            ("kube-proxy", _) | ("hyperkube", "kube-proxy" | "proxy") => (words, None),
            // It puts a title without flags in the place of its command line (k3s-io/k3s pkg/proctitle).
            ("k3s", "server" | "agent") => {
                if words.iter().any(|word| word == "--disable-kube-proxy") {
                    return None;
                }
                (Vec::new(), Some("/etc/rancher/k3s/config.yaml".into()))
            }
            ("kubelite", _) => {
                let file = flag(&words, "kube-proxy-args-file");
                (Vec::new(), Some(file.unwrap_or_else(|| "kubelite".into())))
            }
            _ => return None,
        };
        Some(Self { words, hidden })
    }
}

/// When a process was started, by CLOCK_MONOTONIC in nanoseconds.
fn started_ns(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything. The kernel counts hundredths of a second for programs.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let now = |clock| -> Option<i64> {
        let time = clock_gettime(clock).ok()?;
        Some(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
    };
    // It counts the time that the machine slept, and the other clock does not.
    let slept = now(ClockId::CLOCK_BOOTTIME)? - now(ClockId::CLOCK_MONOTONIC)?;
    Some((ticks * 10_000_000).saturating_sub(u64::try_from(slept).unwrap_or(0)))
}

/// The value of a flag among a program's words, `--name=value` or `--name value`.
pub(super) fn flag(words: &[String], name: &str) -> Option<String> {
    words.iter().enumerate().find_map(|(index, word)| {
        let rest = word.trim_start_matches('-').strip_prefix(name)?;
        match rest.strip_prefix('=') {
            Some(value) => Some(value.to_owned()),
            None if rest.is_empty() => words.get(index + 1).cloned(),
            None => None,
        }
    })
}

/// Whether a process finds a program that it can run by its PATH in its own mount namespace; `None` when
/// that cannot be looked at.
fn finds(pid: u32, program: &str) -> Option<bool> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    // A process that is just being started has none yet.
    if environment.is_empty() {
        return None;
    }
    let root = format!("/proc/{pid}/root");
    // Without this the answer would be "not found" for want of permission.
    fs::read_dir(&root).ok()?;
    Some(finds_below(Path::new(&root), &environment, program))
}

/// The same by a process' root and environment.
fn finds_below(root: &Path, environment: &[u8], program: &str) -> bool {
    let path = environment
        .split(|&byte| byte == 0)
        .find_map(|word| word.strip_prefix(b"PATH="))
        .map_or_else(
            || DEFAULT_PATH.to_owned(),
            |path| String::from_utf8_lossy(path).into_owned(),
        );
    path.split(':').any(|directory| {
        let file = within(root, &Path::new(directory).join(program));
        // Programs run what may be executed by anybody when they run as root.
        let runs = |file: fs::Metadata| file.is_file() && file.mode() & 0o111 != 0;
        file.and_then(|file| fs::symlink_metadata(file).ok())
            .is_some_and(runs)
    })
}

/// Where a path leads for a process that has this root: links are followed below it, wherever they point.
/// `None` where they lead in a circle.
fn within(root: &Path, path: &Path) -> Option<PathBuf> {
    // As many as the kernel follows.
    let mut links = 40;
    let mut found = PathBuf::new();
    let mut rest: Vec<OsString> = Vec::new();
    let push = |rest: &mut Vec<OsString>, path: &Path| {
        let parts = path.components().rev();
        rest.extend(parts.map(|part| part.as_os_str().to_owned()));
    };
    push(&mut rest, path);
    while let Some(part) = rest.pop() {
        match Path::new(&part).components().next() {
            Some(Component::RootDir) => found = PathBuf::new(),
            Some(Component::ParentDir) => {
                found.pop();
            }
            Some(Component::Normal(name)) => match fs::read_link(root.join(&found).join(name)) {
                Ok(target) => {
                    links = usize::checked_sub(links, 1)?;
                    push(&mut rest, &target);
                }
                Err(_) => found.push(name),
            },
            Some(Component::CurDir | Component::Prefix(_)) | None => {}
        }
    }
    Some(root.join(found))
}

/// Where programs are looked for without PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// A file that may be executed, or not, and the folders that it is in.
    fn put(path: &Path, mode: u32) {
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        fs::write(path, "").expect("a file");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
    }

    fn proxy(line: &str) -> Option<KubeProxy> {
        KubeProxy::parse(1, line.replace(' ', "\0").as_bytes())
    }

    #[test]
    fn flags_are_read_in_both_forms() {
        let found = proxy(
            "/usr/bin/kube-proxy --proxy-mode=ipvs --nodeport-addresses 192.0.2.0/25,127.0.0.0/8",
        )
        .expect("kube-proxy");
        assert_eq!(found.mode.as_deref(), Some("ipvs"));
        assert_eq!(found.node_port_addresses, ["192.0.2.0/25", "127.0.0.0/8"]);
        assert_eq!(proxy("/usr/bin/kubelet --proxy-mode=ipvs"), None);
    }

    #[test]
    fn other_programs_hold_kube_proxy_too() {
        let found = proxy("/hyperkube proxy --proxy-mode=ipvs").expect("kube-proxy");
        assert_eq!((found.mode.as_deref(), found.config), (Some("ipvs"), None));
        // Their own flags are not kube-proxy's, and those are elsewhere.
        for (line, elsewhere) in [
            (
                "/usr/local/bin/k3s server --config /x",
                "/etc/rancher/k3s/config.yaml",
            ),
            ("/snap/kubelite --kube-proxy-args-file=/args", "/args"),
        ] {
            let found = proxy(line).expect(line);
            assert_eq!(
                (found.mode, found.config.as_deref()),
                (None, Some(elsewhere))
            );
        }
        // Its title is one word.
        let titled = KubeProxy::parse(1, b"/usr/local/bin/k3s agent\0\0\0");
        assert!(titled.is_some_and(|found| found.config.is_some()));
        for other in [
            "k3s kubectl get pods",
            "k3s server --disable-kube-proxy",
            "hyperkube kubelet",
        ] {
            assert_eq!(proxy(other), None, "{other}");
        }
    }

    #[test]
    fn where_it_answers_and_its_gates_are_read() {
        let found = proxy(
            "kube-proxy --metrics-bind-address=127.0.0.1:1 --healthz-bind-address 192.0.2.1:2 --feature-gates=A=true,B=False,C",
        )
        .expect("kube-proxy");
        assert_eq!(found.metrics.as_deref(), Some("127.0.0.1:1"));
        assert_eq!(found.healthz.as_deref(), Some("192.0.2.1:2"));
        let gates = [("A".to_owned(), true), ("B".to_owned(), false)];
        assert_eq!(found.feature_gates, gates.into());
    }

    #[test]
    fn a_capture_from_before_the_report_is_read() {
        let older = serde_json::json!({"pid": 7, "netns": null, "mode": "ipvs", "node_port_addresses": [],
            "config": null, "conntrack_tool": true});
        let found: KubeProxy = serde_json::from_value(older).expect("a kube-proxy");
        assert_eq!((found.pid, found.report), (7, None));
    }

    #[test]
    fn a_process_knows_when_it_was_started() {
        let now = || {
            let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the time");
            u64::try_from(time.tv_sec() * 1_000_000_000 + time.tv_nsec()).expect("a time")
        };
        let before = now();
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("60")
            .spawn()
            .expect("a process");
        let (started, after) = (started_ns(child.id()), now());
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        // The kernel cuts its time to hundredths of a second.
        let around = before - 20_000_000..=after + 20_000_000;
        let started = started.expect("its time");
        assert!(around.contains(&started), "{started} {around:?}");
        assert_eq!(started_ns(u32::MAX), None);
    }

    #[test]
    fn a_program_is_looked_for_where_the_process_would() {
        let root = tempfile::tempdir().expect("a folder");
        let put = |path: &str| put(&root.path().join(path), 0o755);
        put("opt/tools/conntrack");
        fs::create_dir_all(root.path().join("usr/bin/conntrack")).expect("a folder");
        let found = |environment: &[u8]| finds_below(root.path(), environment, "conntrack");
        assert!(found(b"HOME=/\0PATH=/bin:/opt/tools\0"));
        // Not the host's, and no folder of that name.
        assert!(!found(b"PATH=/usr/bin:/bin\0MYPATH=/opt/tools\0"));
        assert!(!found(b""));
        put("usr/sbin/conntrack");
        assert!(found(b"HOME=/\0"));
    }

    #[test]
    fn a_file_that_nobody_may_execute_is_no_program() {
        for (mode, found) in [(0o755, true), (0o100, true), (0o001, true), (0o644, false)] {
            let root = tempfile::tempdir().expect("a folder");
            put(&root.path().join("usr/sbin/conntrack"), mode);
            assert_eq!(
                finds_below(root.path(), b"", "conntrack"),
                found,
                "{mode:o}"
            );
        }
    }

    #[test]
    fn links_are_followed_below_the_root_of_the_process() {
        // What the host has at the same place is somebody else's.
        let host = tempfile::tempdir().expect("a folder");
        put(&host.path().join("conntrack"), 0o755);
        let of_host = host.path().join("conntrack");
        let found = |links: &[(&str, &Path)], file: Option<&str>| {
            let root = tempfile::tempdir().expect("a folder");
            if let Some(file) = file {
                put(&root.path().join(file.trim_start_matches('/')), 0o755);
            }
            for (link, target) in links {
                let link = root.path().join(link);
                fs::create_dir_all(link.parent().expect("a folder")).expect("folders");
                symlink(target, link).expect("a link");
            }
            finds_below(root.path(), b"PATH=/usr/sbin:/sbin", "conntrack")
        };
        let tool = Path::new("/opt/tools/conntrack");
        for (links, file, wanted) in [
            // The link points to a file of the process, by an absolute path or a relative one.
            (
                &[("usr/sbin/conntrack", tool)][..],
                Some("/opt/tools/conntrack"),
                true,
            ),
            (
                &[("usr/sbin/conntrack", Path::new("../../opt/tools/conntrack"))],
                Some("/opt/tools/conntrack"),
                true,
            ),
            // No more than the root is above it.
            (
                &[(
                    "usr/sbin/conntrack",
                    Path::new("../../../../../opt/tools/conntrack"),
                )],
                Some("/opt/tools/conntrack"),
                true,
            ),
            // The folder is a link, and the link a link.
            (
                &[
                    ("sbin", Path::new("/usr/tools")),
                    ("usr/tools/conntrack", Path::new("/usr/lib/again")),
                    ("usr/lib/again", tool),
                ],
                Some("/opt/tools/conntrack"),
                true,
            ),
            // It points to what only the host has, to nothing, and to itself.
            (&[("usr/sbin/conntrack", &of_host)], None, false),
            (&[("usr/sbin/conntrack", tool)], None, false),
            (
                &[("sbin/conntrack", Path::new("/sbin/conntrack"))],
                None,
                false,
            ),
        ] {
            assert_eq!(found(links, file), wanted, "{links:?}");
        }
    }

    #[test]
    fn a_process_has_its_own_path() {
        let folder = tempfile::tempdir().expect("a folder");
        put(&folder.path().join("tool"), 0o755);
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("60")
            .env("PATH", folder.path())
            .spawn()
            .expect("a process");
        let found = || finds(child.id(), "tool");
        let soon = || std::thread::sleep(std::time::Duration::from_millis(10));
        let found = (0..500).find_map(|_| found().or_else(|| (soon(), None).1));
        assert_eq!(found, Some(true));
        assert_eq!(finds(child.id(), "no-such-tool"), Some(false));
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        assert_eq!(finds(u32::MAX, "tool"), None);
    }
}
