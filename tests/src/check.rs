//! `tracer check` on a node that was made for it: healthy, and with one fault after the other.
//!
//! ```text
//! up0 192.0.2.1 check-n 10.244.0.1 cni0 ── vethpod ── 10.244.0.9 check-p
//!                                      └── vethtwo ── 10.244.0.8 check-q
//! ```

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::tour::command;
use crate::{Answer, Test, Tracer, check, finish};

const HOSTS: [&str; 3] = ["check-n", "check-p", "check-q"];
/// What kube-proxy before 1.32 writes when it finds no program `conntrack`.
const LOG: &str = "E1209 20:24:26.204991   14968 proxier.go:1689] Failed to delete stale service IP 10.96.0.2 connections, error: error deleting connection tracking state for UDP service IP: 10.96.0.2, error: error looking for path of conntrack: exec: \"conntrack\": executable file not found in $PATH\n";
/// The kernel looks at carriers once a second.
const SETTLED: Duration = Duration::from_secs(5);
const LOG_FILE: &str = "/tmp/check-kube-proxy.log";
/// What the container runtime, the kubelet and the network plugin leave of a pod.
const POD_CGROUP: &str =
    "/sys/fs/cgroup/kubepods/besteffort/pod6f0f3b9e-52a4-4d0c-9a55-0c8d1b7e2f31";
const POD_LOGS: &str = "/var/log/pods/shop_web-0_6f0f3b9e-52a4-4d0c-9a55-0c8d1b7e2f31";
const CNI_FILE: &str = "/etc/cni/net.d/10-pods.conflist";
const CNI: &str = r#"{"cniVersion": "0.4.0", "name": "pods", "plugins": [
    {"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local", "subnet": "10.244.0.0/24"}}]}"#;
const HAIRPIN_CNI: &str = r#"{"cniVersion": "0.4.0", "name": "pods", "plugins": [
    {"type": "bridge", "bridge": "cni0", "hairpinMode": true}]}"#;
/// Fills the namespace's table: 60,000 connections from each address, each from a port of its own.
const FILL: &str = r#"limit=$(cat /proc/sys/net/netfilter/nf_conntrack_max); seq $limit | awk '{ printf "-I -p udp -s 198.18.0.%d -d 203.0.113.9 --sport %d --dport 53 -t 600 -u SEEN_REPLY,ASSURED\n", $1 / 60000 + 1, $1 % 60000 + 1024 }' | conntrack -R -; test $(cat /proc/sys/net/netfilter/nf_conntrack_count) -ge $limit"#;

/// A fault of the node, and what has to be said about it.
struct Fault {
    cause: &'static str,
    severity: &'static str,
    /// Commands that make it.
    lines: &'static [&'static str],
}

const NODE: &[&str] = &[
    "ip -n check-n link set lo up",
    "ip -n check-n link add up0 type dummy",
    "ip -n check-n addr add 192.0.2.1/24 dev up0",
    "ip -n check-n link set up0 up",
    "ip -n check-n link add cni0 type bridge",
    "ip -n check-n addr add 10.244.0.1/24 dev cni0",
    "ip -n check-n link set cni0 up",
    "ip -n check-n link add vethpod master cni0 up type veth peer name eth0 netns check-p",
    "ip -n check-n link add vethtwo master cni0 up type veth peer name eth0 netns check-q",
    "ip -n check-p addr add 10.244.0.9/24 dev eth0",
    "ip -n check-q addr add 10.244.0.8/24 dev eth0",
    "ip -n check-p link set eth0 up",
    "ip -n check-q link set eth0 up",
    "ip netns exec check-n sysctl -qw net.ipv4.ip_forward=1 net.ipv4.vs.expire_nodest_conn=1",
    "ip netns exec check-n ipvsadm -A -t 192.0.2.1:30080 -s rr",
    "ip netns exec check-n ipvsadm -a -t 192.0.2.1:30080 -r 10.244.0.9:80 -m",
    "ip netns exec check-n ipvsadm -A -t 10.244.0.1:30080 -s rr",
    "ip netns exec check-n ipvsadm -a -t 10.244.0.1:30080 -r 10.244.0.9:80 -m",
];

const FAULTS: &[Fault] = &[
    Fault {
        cause: "ip-forward-off",
        severity: "error",
        lines: &["ip netns exec check-n sysctl -qw net.ipv4.ip_forward=0"],
    },
    Fault {
        cause: "forward-policy-drop",
        severity: "error",
        // As Docker does; what its rules accept is for its own containers.
        lines: &[
            "ip netns exec check-n iptables-nft -P FORWARD DROP",
            "ip netns exec check-n iptables-nft -N DOCKER",
            "ip netns exec check-n iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "ip netns exec check-n iptables-nft -A FORWARD -o docker0 -j DOCKER",
            "ip netns exec check-n iptables-nft -A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
            "ip netns exec check-n iptables-nft -A FORWARD -i docker0 -o docker0 -j ACCEPT",
            "ip netns exec check-n iptables-nft -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT",
        ],
    },
    Fault {
        cause: "vip-nodeport-unbound",
        // kube-proxy may not have seen an address of this moment.
        severity: "warning",
        lines: &["ip -n check-n addr add 192.0.2.9/24 dev up0"],
    },
    Fault {
        cause: "nodeport-taken",
        severity: "warning",
        lines: &["ip netns exec check-n sysctl -qw net.ipv4.ip_local_port_range=20000\t60999"],
    },
    Fault {
        cause: "ipvs-no-destination",
        severity: "warning",
        lines: &["ip netns exec check-n ipvsadm -A -t 10.96.0.9:80 -s rr"],
    },
    Fault {
        cause: "ipvs-stale-connection",
        severity: "warning",
        lines: &["ip netns exec check-n sysctl -qw net.ipv4.vs.expire_nodest_conn=0"],
    },
    Fault {
        cause: "ipvs-conn-reuse",
        severity: "warning",
        lines: &["ip netns exec check-n sysctl -qw net.ipv4.vs.conn_reuse_mode=0"],
    },
    Fault {
        cause: "mtu-exceeded",
        severity: "warning",
        lines: &["ip -n check-n link set cni0 mtu 1400"],
    },
    Fault {
        cause: "dns-stale-conntrack",
        severity: "error",
        lines: &[
            "ip netns exec check-n ipvsadm -A -u 10.96.0.10:53 -s rr",
            "ip netns exec check-n ipvsadm -a -u 10.96.0.10:53 -r 10.244.0.9:53 -m",
            "ip netns exec check-n conntrack -I -p udp -s 10.244.0.8 -d 10.96.0.10 --sport 4000 --dport 53 -r 10.244.0.7 -q 10.244.0.8 --reply-port-src 53 --reply-port-dst 4000 -t 300 -u SEEN_REPLY,ASSURED",
        ],
    },
    Fault {
        cause: "bridge-nf-off",
        severity: "error",
        lines: &["ip netns exec check-n sysctl -qw net.bridge.bridge-nf-call-iptables=0"],
    },
    Fault {
        cause: "rp-filter",
        severity: "warning",
        lines: &[
            "ip -n check-n link add up1 type dummy",
            "ip -n check-n addr add 192.0.2.7/24 dev up1",
            "ip -n check-n link set up1 up",
            "ip netns exec check-n sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.up1.rp_filter=1",
            // As kube-proxy does for each address of a node.
            "ip netns exec check-n ipvsadm -A -t 192.0.2.7:30080 -s rr",
            "ip netns exec check-n ipvsadm -a -t 192.0.2.7:30080 -r 10.244.0.9:80 -m",
        ],
    },
    Fault {
        cause: "masquerade-missing",
        severity: "warning",
        lines: &[
            // As kube-proxy in ipvs mode has it.
            "ip -n check-n link add kube-ipvs0 type dummy",
            "ip netns exec check-n sysctl -qw net.ipv4.vs.conntrack=0",
        ],
    },
    Fault {
        cause: "veth-peer-down",
        severity: "error",
        lines: &["ip -n check-p link set eth0 down"],
    },
    Fault {
        cause: "bridge-port-blocked",
        severity: "error",
        lines: &["bridge -n check-n link set dev vethpod state 0"],
    },
    Fault {
        cause: "duplicate-address",
        severity: "error",
        lines: &["ip -n check-q addr add 10.244.0.9/24 dev eth0"],
    },
    Fault {
        // Nothing says that these are pods and not Docker's own containers.
        cause: "pod-on-docker0",
        severity: "warning",
        lines: &[
            "ip -n check-n link add docker0 type bridge",
            "ip -n check-n addr add 172.17.0.1/16 dev docker0",
            "ip -n check-n link set docker0 up",
            // As kube-proxy does for each address of a node.
            "ip netns exec check-n ipvsadm -A -t 172.17.0.1:30080 -s rr",
            "ip netns exec check-n ipvsadm -a -t 172.17.0.1:30080 -r 10.244.0.9:80 -m",
            "ip -n check-n link set vethtwo master docker0",
            "ip -n check-q addr flush dev eth0",
            "ip -n check-q addr add 172.17.0.2/16 dev eth0",
        ],
    },
];

/// The node; dropping it removes it.
struct Node;

impl Node {
    fn build() -> anyhow::Result<Self> {
        // What is left of an earlier try.
        tear_down();
        let node = Self;
        for host in HOSTS {
            command(&format!("ip netns add {host}"))?;
        }
        for line in NODE {
            command(line)?;
        }
        for port in ["vethpod", "vethtwo"] {
            settle(port)?;
        }
        Ok(node)
    }

    fn look(tracer: &Tracer, more: &[&str]) -> anyhow::Result<Answer> {
        let mut arguments = vec!["check", "--no-kube", "--format", "json"];
        for host in HOSTS {
            arguments.extend(["--netns", host]);
        }
        arguments.extend(more);
        tracer.run(&arguments)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        tear_down();
    }
}

/// Waits until the kernel counts a port as up: it makes it forwarding then, whatever it was set to before.
fn settle(port: &str) -> anyhow::Result<()> {
    let line = ["-n", "check-n", "-o", "link", "show", port];
    let begun = Instant::now();
    loop {
        let shown = finish(Command::new("ip").args(line))?.stdout;
        if shown.contains("state UP") {
            return Ok(());
        }
        check(begun.elapsed() < SETTLED, || {
            format!("{port} does not come up: {shown}")
        })?;
        thread::sleep(SETTLED / 20);
    }
}

fn tear_down() {
    for host in HOSTS {
        // What is not there need not go.
        let _ = command(&format!("ip netns del {host}"));
    }
}

/// The tests of the audit.
pub fn tests() -> Vec<Test> {
    let mut tests = vec![
        Test::new("check: a healthy node", healthy),
        Test::new("check: kube-proxy's log without conntrack", log),
        Test::new("check: pod-outside-cidr", stray),
        Test::new("check: hairpin-off", hairpin),
        Test::new("check: conntrack-full", full),
        Test::new(
            "check: vip-nodeport-unbound since kube-proxy's start",
            unbound,
        ),
    ];
    for fault in FAULTS {
        tests.push(Test::new(
            format!("check: {}", fault.cause),
            move |tracer| faulty(tracer, fault),
        ));
    }
    tests
}

fn healthy(tracer: &Tracer) -> anyhow::Result<()> {
    let _node = Node::build()?;
    let answer = Node::look(tracer, &[])?;
    let findings = answer.objects("finding");
    check(findings.is_empty(), || {
        format!("a healthy node has {findings:#?}")
    })?;
    answer.expect_code(0)
}

fn faulty(tracer: &Tracer, fault: &Fault) -> anyhow::Result<()> {
    let _node = Node::build()?;
    for line in fault.lines {
        command(line)?;
    }
    found(tracer, fault.cause, fault.severity)
}

/// One finding, of this cause and severity, with evidence and fixes.
fn found(tracer: &Tracer, cause: &str, severity: &str) -> anyhow::Result<()> {
    let answer = Node::look(tracer, &[])?;
    let findings = answer.objects("finding");
    check(findings.len() == 1 && findings[0]["cause"] == cause, || {
        format!("one finding {cause} was expected: {findings:#?}")
    })?;
    let finding = &findings[0];
    check(finding["severity"] == severity, || {
        format!("severity {severity} was expected: {finding:#}")
    })?;
    for part in ["evidence", "fixes"] {
        check(
            finding[part]
                .as_array()
                .is_some_and(|list| !list.is_empty()),
            || format!("no {part}: {finding:#}"),
        )?;
    }
    answer.expect_code(i32::from(severity == "error"))
}

/// Ports that the network plugin should have made otherwise.
fn hairpin(tracer: &Tracer) -> anyhow::Result<()> {
    let _node = Node::build()?;
    let _cni = CniFile::write(HAIRPIN_CNI)?;
    found(tracer, "hairpin-off", "warning")
}

fn full(tracer: &Tracer) -> anyhow::Result<()> {
    let _node = Node::build()?;
    let fill = ["netns", "exec", "check-n", "sh", "-c", FILL];
    let answer = finish(Command::new("ip").args(fill))?;
    check(answer.code == 0, || {
        format!("the table is not full: {}", answer.stderr.trim())
    })?;
    found(tracer, "conntrack-full", "error")
}

/// The network plugin's configuration; dropping it takes it away.
struct CniFile;

impl CniFile {
    fn write(text: &str) -> anyhow::Result<Self> {
        if let Some(folder) = Path::new(CNI_FILE).parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(CNI_FILE, text)?;
        Ok(Self)
    }
}

impl Drop for CniFile {
    fn drop(&mut self) {
        // What did not come to be need not go.
        let _ = fs::remove_file(CNI_FILE);
    }
}

/// Makes check-q the network of a pod; dropping it takes that back.
struct Pod {
    process: Child,
    _cni: CniFile,
}

impl Pod {
    fn start() -> anyhow::Result<Self> {
        for folder in [POD_CGROUP, POD_LOGS] {
            fs::create_dir_all(folder).with_context(|| format!("{folder} cannot be made"))?;
        }
        let cni = CniFile::write(CNI)?;
        let process = Command::new("ip")
            .args(["netns", "exec", "check-q", "sleep", "300"])
            .spawn()?;
        let pod = Self { process, _cni: cni };
        fs::write(
            Path::new(POD_CGROUP).join("cgroup.procs"),
            pod.process.id().to_string(),
        )?;
        Ok(pod)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // What did not come to be need not go.
        let _ = self.process.kill();
        let _ = self.process.wait();
        for folder in [POD_CGROUP, POD_LOGS] {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// A process that is called kube-proxy, in ipvs mode; dropping it ends it.
struct KubeProxy(Child);

impl KubeProxy {
    fn start(tracer: &Tracer) -> anyhow::Result<Self> {
        let process = Command::new("ip")
            .args(["netns", "exec", "check-n", "bash", "-c"])
            .arg("exec -a kube-proxy \"$0\" --proxy-mode=ipvs")
            .arg(tracer.path())
            .env("TRACER_STAND_IN", "none 0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut proxy = Self(process);
        // It says one byte once it is there.
        let mut stdout = proxy.0.stdout.take().context("no output")?;
        stdout
            .read_exact(&mut [0])
            .context("kube-proxy's stand-in did not start")?;
        Ok(proxy)
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// kube-proxy was started when the address was there: it has left it out.
fn unbound(tracer: &Tracer) -> anyhow::Result<()> {
    let _node = Node::build()?;
    command("ip -n check-n addr add 192.0.2.9/24 dev up0")?;
    // The kernel's times are in hundredths of a second.
    thread::sleep(Duration::from_millis(100));
    let _proxy = KubeProxy::start(tracer)?;
    let answer = Node::look(tracer, &[])?;
    let found = answer
        .objects("finding")
        .into_iter()
        .find(|finding| finding["cause"] == "vip-nodeport-unbound")
        .context("nothing was found")?;
    check(
        found["severity"] == "error" && found["certainty"] == "certain",
        || format!("an error was expected: {found:#}"),
    )?;
    answer.expect_code(1)
}

fn stray(tracer: &Tracer) -> anyhow::Result<()> {
    let _node = Node::build()?;
    let _pod = Pod::start()?;
    let answer = Node::look(tracer, &[])?;
    check(answer.objects("finding").is_empty(), || {
        format!("a pod of the range is blamed: {}", answer.stdout)
    })?;
    for line in [
        "ip -n check-q addr flush dev eth0",
        "ip -n check-q addr add 10.88.0.7/16 dev eth0",
    ] {
        command(line)?;
    }
    let answer = Node::look(tracer, &[])?;
    let findings = answer.objects("finding");
    check(
        findings.len() == 1 && findings[0]["cause"] == "pod-outside-cidr",
        || format!("pod-outside-cidr alone was expected: {findings:#?}"),
    )?;
    let text = findings[0].to_string();
    for word in ["p/shop/web-0", "10.88.0.7", "10.244.0.0/24", CNI_FILE] {
        check(text.contains(word), || {
            format!("{word} is not named: {text}")
        })?;
    }
    answer.expect_code(1)
}

fn log(tracer: &Tracer) -> anyhow::Result<()> {
    let _node = Node::build()?;
    std::fs::write(Path::new(LOG_FILE), LOG).context("the log cannot be written")?;
    let answer = Node::look(tracer, &["--log", LOG_FILE])?;
    std::fs::remove_file(LOG_FILE)?;
    let finding = answer.object("finding")?;
    check(
        finding["cause"] == "dns-stale-conntrack" && finding["certainty"] == "certain",
        || format!("the log's cause was expected: {finding:#}"),
    )?;
    check(finding.to_string().contains("10.96.0.2"), || {
        format!("the service is not named: {finding:#}")
    })?;
    answer.expect_code(1)
}
