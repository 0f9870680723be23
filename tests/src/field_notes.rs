//! The field notes that the project began with, section by section: their symptoms come back from
//! their own addresses and names, and root cause and fix are said as the notes say them, and more
//! precisely where these are vague.

use serde_json::Value;

use crate::{Answer, Test, Tracer, check};

/// A section of the notes.
struct Section {
    name: &'static str,
    case: &'static str,
    /// What is typed beside the case.
    more: &'static [&'static str],
    /// Lines of the notes' command outputs, before the fix: the command's beginning, and words that one
    /// line of its output holds in this order.
    before: &'static [(&'static str, &'static [&'static str])],
    /// The same after the fix.
    after: &'static [(&'static str, &'static [&'static str])],
    /// What the diagnosis has to say: the root cause and the fixes of the notes.
    says: &'static [&'static str],
}

const SECTIONS: &[Section] = &[
    Section {
        name: "1.1 a pod's address comes from docker0",
        case: "pod-on-docker0",
        more: &[],
        before: &[
            (
                "ip addr show eth0",
                &["inet 172.17.0.2/16", "scope global eth0"],
            ),
            (
                "ip addr show docker0",
                &["inet 172.17.0.1/16", "scope global docker0"],
            ),
            (
                "ip link show vethebd7975",
                &["vethebd7975@if", "master docker0 state UP"],
            ),
        ],
        after: &[("ip addr show eth0", &["inet 10.244.1."])],
        says: &[
            "172.17.0.2",
            "172.17.0.1/16",
            "docker0",
            "kubelet",
            "10.244.1.0/24",
            "--network-plugin=cni",
            "systemctl restart kubelet",
            "ip link del cni0",
            "--bip=10.244.1.1/24 --ip-masq=false --mtu=1450",
        ],
    },
    Section {
        name: "1.2 DNS after kube-proxy could not delete a conntrack entry",
        case: "dns-stale-conntrack",
        more: &["--service", "10.96.0.2", "--service-port", "53"],
        before: &[("conntrack -L", &["dst=10.96.0.2", "dport=53"])],
        after: &[],
        says: &[
            "10.96.0.2:53",
            "conntrack -D -p udp --orig-dst 10.96.0.2 --orig-port-dst 53",
            "apt-get install conntrack",
            "systemctl restart kube-proxy",
        ],
    },
    Section {
        name: "1.3 a NodePort that does not answer on the VIP",
        case: "vip-nodeport-unbound",
        more: &[],
        before: &[
            (
                "ip addr show",
                &["inet 192.168.3.182/24", "scope global enp1s0"],
            ),
            (
                "ip addr show",
                &["inet 192.168.3.187/24", "scope global secondary enp1s0"],
            ),
            (
                "ip route show",
                &["local 192.168.3.182 dev enp1s0 proto kernel scope host src 192.168.3.182"],
            ),
            (
                "ip route show",
                &["local 192.168.3.187 dev enp1s0 proto kernel scope host src 192.168.3.182"],
            ),
            ("ipvsadm", &["TCP", "192.168.3.182:30000 rr"]),
            ("ipvsadm", &["-> 10.244.1.15:3000", "Masq", "1"]),
        ],
        after: &[
            (
                "ip route show",
                &["local 192.168.3.187 dev enp1s0 proto kernel scope host src 192.168.3.187"],
            ),
            ("ipvsadm", &["TCP", "192.168.3.187:30000 rr"]),
        ],
        says: &[
            "secondary",
            "ip addr del 192.168.3.187/24 dev enp1s0",
            "ip addr add 192.168.3.187/32 dev enp1s0",
            "nodePortAddresses",
            "systemctl restart kube-proxy",
        ],
    },
    Section {
        name: "2 a pod that is stuck Terminating",
        case: "terminating-endpoint",
        more: &[],
        before: &[],
        after: &[],
        says: &[
            "is Terminating",
            "kubectl delete pod",
            "--grace-period=0 --force",
            "kubectl patch pod",
            "\\\"finalizers\\\":null",
            "danger",
        ],
    },
];

/// A test for each section.
pub fn tests() -> Vec<Test> {
    SECTIONS
        .iter()
        .map(|section| {
            Test::new(format!("field notes: {}", section.name), |tracer| {
                comes_back(tracer, section)
            })
        })
        .collect()
}

fn comes_back(tracer: &Tracer, section: &Section) -> anyhow::Result<()> {
    let mut arguments = vec![
        "reproduce",
        section.case,
        "--format",
        "json",
        "--requests",
        "1",
    ];
    arguments.extend(section.more);
    let answer = tracer.run(&arguments)?;
    answer.expect_code(1)?;
    shown(&answer, "before the fix", section.before)?;
    shown(&answer, "after the fix", section.after)?;
    let diagnosis = answer.object("diagnosis")?;
    check(
        diagnosis["cause"] == section.case && diagnosis["certainty"] == "certain",
        || format!("{diagnosis:#}"),
    )?;
    let text = diagnosis.to_string();
    section.says.iter().try_for_each(|words| {
        check(text.contains(words), || {
            format!("{words:?} is not said: {text}")
        })
    })
}

/// Every line of the notes is in the output of its command.
fn shown(
    answer: &Answer,
    phase: &str,
    lines: &[(&'static str, &'static [&'static str])],
) -> anyhow::Result<()> {
    let outputs = answer.objects("shown");
    for (command, words) in lines {
        let found = outputs
            .iter()
            .filter(|output| output["phase"] == phase && is_of(output, command))
            .filter_map(|output| output["output"].as_str())
            .flat_map(str::lines)
            .any(|line| in_order(line, words));
        check(found, || {
            format!("{phase}, {command}: no line with {words:?} in {outputs:?}")
        })?;
    }
    Ok(())
}

fn is_of(output: &Value, command: &str) -> bool {
    output["command"]
        .as_str()
        .is_some_and(|line| line.starts_with(command))
}

/// A line holds all these words, one after the other.
fn in_order(line: &str, words: &[&str]) -> bool {
    let mut rest = line;
    words.iter().all(|word| match rest.split_once(word) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}
