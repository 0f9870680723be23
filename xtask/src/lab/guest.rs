//! What happens inside a guest once it has its root: mounts, the command, its exit status.

use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::kernel::Kernel;
use crate::tool;

/// Variables of the caller that a guest gets too. TRACER_LAB is not among them: a guest must
/// never start a lab of its own.
fn passed_on(name: &str) -> bool {
    const NAMES: [&str; 4] = ["RUST_BACKTRACE", "RUST_LOG", "NO_COLOR", "LANG"];
    NAMES.contains(&name) || (name.starts_with("TRACER_") && name != "TRACER_LAB")
}

/// How the command's streams reach the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Streams {
    /// stdout and stderr apart, no stdin.
    Separate,
    /// All three on a terminal of that many rows and columns.
    Terminal { rows: u16, columns: u16 },
}

/// Names by which a guest finds its ports.
pub(super) const STDOUT_PORT: &str = "lab.stdout";
pub(super) const STDERR_PORT: &str = "lab.stderr";
pub(super) const CONTROL_PORT: &str = "lab.control";

/// Sent over the control port when the command starts; `exit N` follows when it ends.
pub(super) const STARTED: &str = "started";

/// What a guest is to do.
pub(super) struct Guest {
    pub(super) command: Vec<OsString>,
    pub(super) folder: PathBuf,
    pub(super) streams: Streams,
}

impl Guest {
    /// The script that runs as process 1 in the guest's root.
    pub(super) fn second_stage(&self, kernel: &Kernel) -> Result<String> {
        let modules = format!("lib/modules/{}", kernel.release);
        let source = quote(kernel.folder.join(&modules).as_os_str())?;
        let run = match self.streams {
            Streams::Separate => SEPARATE
                .replace("@STDOUT@", STDOUT_PORT)
                .replace("@STDERR@", STDERR_PORT),
            Streams::Terminal { rows, columns } => TERMINAL
                .replace("@ROWS@", &rows.to_string())
                .replace("@COLUMNS@", &columns.to_string()),
        };
        Ok(SECOND_STAGE
            .replace("@RUN@", &run)
            .replace("@STARTED@", STARTED)
            .replace("@CONTROL@", CONTROL_PORT)
            .replace("@MODULES@", &format!("/{modules}"))
            .replace("@MODULES_SOURCE@", &source))
    }

    /// The script that becomes the command, in the caller's folder and with its variables.
    pub(super) fn command_script(&self) -> Result<String> {
        let mut variables: Vec<(OsString, OsString)> = env::vars_os()
            .filter(|(name, _)| name.to_str().is_some_and(passed_on))
            .collect();
        variables.push(("PATH".into(), tool::search_path(&[])?));
        variables.push(("HOME".into(), "/root".into()));
        let terminal = match self.streams {
            Streams::Separate => None,
            Streams::Terminal { .. } => env::var_os("TERM"),
        };
        variables.push(("TERM".into(), terminal.unwrap_or_else(|| "dumb".into())));
        self.script_with(&variables)
    }

    fn script_with(&self, variables: &[(OsString, OsString)]) -> Result<String> {
        let mut script = String::from("#!/bin/sh\n");
        for (name, value) in variables {
            let line = format!("export {}={}\n", name.to_string_lossy(), quote(value)?);
            script.push_str(&line);
        }
        let folder = quote(self.folder.as_os_str())?;
        script.push_str(&format!("cd {folder} || exit 1\n"));
        if self.command.is_empty() {
            script.push_str("[ -x /bin/bash ] && exec /bin/bash -i\nexec /bin/sh -i\n");
        } else {
            let words: Result<Vec<String>> = self.command.iter().map(|word| quote(word)).collect();
            script.push_str(&format!("exec {}\n", words?.join(" ")));
        }
        Ok(script)
    }
}

fn quote(word: &std::ffi::OsStr) -> Result<String> {
    let quoted = shlex::bytes::try_quote(word.as_bytes())
        .with_context(|| format!("{} cannot be passed to a guest", word.display()))?;
    String::from_utf8(quoted.into_owned()).with_context(|| {
        format!(
            "{} is not UTF-8, which a guest's command must be",
            word.display()
        )
    })
}

const SECOND_STAGE: &str = r#"export PATH=/usr/sbin:/usr/bin:/sbin:/bin
busybox=/run/lab/busybox
mkdir -p /dev/pts /dev/shm /out
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs tracing /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p @MODULES@
mount --bind @MODULES_SOURCE@ @MODULES@
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 out /out || echo "lab: no /out"
echo lab >/proc/sys/kernel/hostname
ip link set lo up
ulimit -n 65536
port() {
    while :; do
        for entry in /sys/class/virtio-ports/*; do
            read -r name 2>/dev/null <"$entry/name"
            [ "$name" = "$1" ] && [ -e "/dev/${entry##*/}" ] && echo "/dev/${entry##*/}" && return
        done
        $busybox usleep 10000
    done
}
exec 7>"$(port @CONTROL@)"
@RUN@
echo "exit $status" >&7
$busybox poweroff -f
"#;

/// Pipes stand between the command and the ports, because a port can be opened only once and
/// commands may well open /dev/stderr again. A daemon left behind may keep a pipe open for
/// ever, hence the limit on waiting for the last bytes.
const SEPARATE: &str = r#"mkfifo /run/lab/stdout /run/lab/stderr
cat /run/lab/stdout >"$(port @STDOUT@)" &
stdout=$!
cat /run/lab/stderr >"$(port @STDERR@)" &
stderr=$!
echo @STARTED@ >&7
/run/lab/command </dev/null >/run/lab/stdout 2>/run/lab/stderr 7>&-
status=$?
(sleep 2; kill $stdout $stderr) 2>/dev/null &
wait $stdout
wait $stderr"#;

const TERMINAL: &str = r#"until [ -e /dev/hvc0 ]; do $busybox usleep 10000; done
stty -F /dev/hvc0 rows @ROWS@ columns @COLUMNS@
echo @STARTED@ >&7
$busybox setsid -c /run/lab/command </dev/hvc0 >/dev/hvc0 2>&1 7>&-
status=$?"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(command: &[&str], streams: Streams) -> Guest {
        Guest {
            command: command.iter().map(OsString::from).collect(),
            folder: PathBuf::from("/a b"),
            streams,
        }
    }

    #[test]
    fn words_reach_the_command_unchanged() {
        let guest = guest(&["sh", "-c", "echo $HOME 'x'; exit 3"], Streams::Separate);
        let script = guest
            .script_with(&[("TRACER_X".into(), "1 2".into())])
            .unwrap();
        assert!(script.contains("export TRACER_X='1 2'\n"), "{script}");
        assert!(script.contains("cd '/a b' || exit 1\n"), "{script}");
        let last = script
            .lines()
            .last()
            .and_then(|line| line.strip_prefix("exec "));
        let words = shlex::split(last.unwrap()).unwrap();
        assert_eq!(words, ["sh", "-c", "echo $HOME 'x'; exit 3"]);
    }

    #[test]
    fn no_command_means_a_shell() {
        let guest = guest(
            &[],
            Streams::Terminal {
                rows: 24,
                columns: 80,
            },
        );
        assert!(guest.script_with(&[]).unwrap().contains("/bin/bash -i"));
    }

    #[test]
    fn every_placeholder_is_filled() {
        let kernel = Kernel {
            release: "6.1.0-56-amd64".into(),
            folder: "/k".into(),
            image: "/k/vmlinuz".into(),
        };
        for streams in [
            Streams::Separate,
            Streams::Terminal {
                rows: 24,
                columns: 80,
            },
        ] {
            let script = guest(&["true"], streams).second_stage(&kernel).unwrap();
            assert!(!script.contains('@'), "{script}");
            assert!(script.contains(
                "mount --bind /k/lib/modules/6.1.0-56-amd64 /lib/modules/6.1.0-56-amd64\n"
            ));
        }
    }

    #[test]
    fn a_guest_never_learns_of_a_lab() {
        assert!(passed_on("TRACER_FORMAT"));
        assert!(passed_on("RUST_BACKTRACE"));
        assert!(!passed_on("TRACER_LAB"));
        assert!(!passed_on("SSH_AUTH_SOCK"));
    }
}
