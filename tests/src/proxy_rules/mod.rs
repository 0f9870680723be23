//! Rules as kube-proxy writes them, in a node's namespace, against the cluster that they are for: the
//! iptables mode of 1.20 and 1.36 by both iptables, and the nftables mode. Whole they show no difference;
//! with each fault, the difference that it makes. With hosts around the node, what becomes of packets to each
//! service (`traffic`).
//!
//! The cluster: `web`, a load balancer with two endpoints, source ranges and session affinity; `edge`, a
//! NodePort whose externalTrafficPolicy is Local and whose endpoint is elsewhere; `names` without endpoints;
//! `going`, whose one endpoint is going and still answers.

mod traffic;

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::api_server::{ApiServer, Options};
use crate::tour::command;
use crate::{Answer, Test, Tracer, check};

const HOST: &str = "proxy-n";
const NODE: &str = "node-a";
const FILE: &str = "/tmp/proxy-rules";
const CODE: &str = "kube-proxy-stale";
/// What stands for the tool in commands.
const TOOL: &str = "TOOL";

/// A kube-proxy and the tool by which its rules are loaded.
struct Setup {
    mode: &'static str,
    version: &'static str,
    tool: &'static str,
    /// Loads the file behind it.
    load: &'static str,
    rules: &'static str,
    faults: &'static [Fault],
}

/// What is done to the rules, and what has to be said then.
struct Fault {
    line: &'static str,
    says: &'static [&'static str],
}

const IPTABLES: &[Fault] = &[
    Fault {
        line: "TOOL -t nat -F KUBE-SEP-WEBB9R1T6H4J3",
        says: &[
            "iptables rule for tcp 10.96.0.10:80 of s/default/web lacks the ready endpoint 10.244.1.5:8080",
            "iptables rule for tcp 192.0.2.1:30080 of s/default/web lacks the ready endpoint 10.244.1.5:8080",
            "iptables rule for tcp 192.0.2.50:30080 of s/default/web lacks the ready endpoint 10.244.1.5:8080",
            "iptables rule for tcp 203.0.113.1:80 of s/default/web lacks the ready endpoint 10.244.1.5:8080",
        ],
    },
    Fault {
        line: "TOOL -t nat -A KUBE-SEP-EDGEA2X7V4B1 -p tcp -j DNAT --to-destination 10.244.9.9:8080",
        says: &[
            "iptables rule for tcp 10.96.0.11:80 of s/default/edge still sends to 10.244.9.9:8080, which is no endpoint of the service any more",
        ],
    },
    Fault {
        line: "TOOL -t nat -D KUBE-FW-WEBHTTP4Q7K2M5T1 -s 198.51.100.0/24 -j CHAIN",
        says: &[
            "iptables rule for tcp 203.0.113.1:80 of s/default/web lets through 203.0.113.0/25, 203.0.113.1/32 where the service says 198.51.100.0/24, 203.0.113.0/25",
        ],
    },
    Fault {
        line: "TOOL -F KUBE-SERVICES",
        says: &["no iptables rule for udp 10.96.0.12:53 (ClusterIP of s/default/names)"],
    },
    Fault {
        line: "TOOL -t nat -F KUBE-NODEPORTS",
        says: &["no iptables rule for tcp 192.0.2.50:30080 (NodePort of s/default/web)"],
    },
    Fault {
        line: "TOOL -t nat -A KUBE-SERVICES -d 10.96.0.99/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-EDGE6F2W8C3N5",
        says: &["iptables rule for tcp 10.96.0.99:80 belongs to no service"],
    },
];

const NFTABLES: &[Fault] = &[
    Fault {
        line: "TOOL flush chain ip kube-proxy endpoint-WEBB9R1T-default/web/tcp/http__10.244.1.5/8080",
        says: &[
            "nftables rule for tcp 10.96.0.10:80 of s/default/web lacks the ready endpoint 10.244.1.5:8080",
            "nftables rule for tcp 192.0.2.1:30080 of s/default/web lacks the ready endpoint 10.244.1.5:8080",
            "nftables rule for tcp 203.0.113.1:80 of s/default/web lacks the ready endpoint 10.244.1.5:8080",
        ],
    },
    Fault {
        line: "TOOL delete element ip kube-proxy nodeport-ips { 192.0.2.1 }",
        says: &["no nftables rule for tcp 192.0.2.1:30080 (NodePort of s/default/web)"],
    },
    Fault {
        line: "TOOL flush chain ip kube-proxy firewall-WEBHTTP4-default/web/tcp/http",
        says: &[
            "nftables rule for tcp 203.0.113.1:80 of s/default/web lets through everyone where",
        ],
    },
    Fault {
        line: "TOOL delete element ip kube-proxy service-ips { 10.96.0.11 . tcp . 80 }",
        says: &["no nftables rule for tcp 10.96.0.11:80 (ClusterIP of s/default/edge)"],
    },
    Fault {
        line: "TOOL delete element ip kube-proxy no-endpoint-services { 10.96.0.12 . udp . 53 }",
        says: &["no nftables rule for udp 10.96.0.12:53 (ClusterIP of s/default/names)"],
    },
    Fault {
        line: "TOOL add element ip kube-proxy service-ips { 10.96.0.99 . tcp . 80 : goto service-EDGE6F2W-default/edge/tcp/http }",
        says: &["nftables rule for tcp 10.96.0.99:80 belongs to no service"],
    },
];

const SETUPS: &[Setup] = &[
    iptables("1.20", "iptables-legacy", include_str!("v1.20.iptables")),
    iptables("1.20", "iptables-nft", include_str!("v1.20.iptables")),
    iptables("1.36", "iptables-legacy", include_str!("v1.36.iptables")),
    iptables("1.36", "iptables-nft", include_str!("v1.36.iptables")),
    Setup {
        mode: "nftables",
        version: "1.36",
        tool: "nft",
        load: "nft -f",
        rules: include_str!("v1.36.nft"),
        faults: NFTABLES,
    },
];

const fn iptables(version: &'static str, tool: &'static str, rules: &'static str) -> Setup {
    Setup {
        mode: "iptables",
        version,
        tool,
        load: "TOOL-restore",
        rules,
        faults: IPTABLES,
    }
}

/// The tests of kube-proxy's rules.
pub fn tests() -> Vec<Test> {
    let named = |setup: &Setup, what: &str| {
        let Setup {
            mode,
            version,
            tool,
            ..
        } = setup;
        format!("kube-proxy {version} in {mode} mode by {tool}: {what}")
    };
    let rules = SETUPS.iter().map(|setup| {
        Test::new(named(setup, "rules against the cluster"), move |tracer| {
            differences(tracer, setup)
        })
    });
    // Those of 1.20 end packets in the same ways, and by either iptables they are the same rules.
    let newest = SETUPS
        .iter()
        .filter(|setup| setup.version != "1.20" && setup.tool != "iptables-legacy");
    let traffic = newest.map(|setup| {
        Test::new(named(setup, "packets past the rules"), move |tracer| {
            traffic::fates(tracer, setup)
        })
    });
    rules.chain(traffic).collect()
}

fn differences(tracer: &Tracer, setup: &Setup) -> anyhow::Result<()> {
    let server = cluster(setup)?;
    let node = Node::build()?;
    node.load(setup)?;
    let answer = look(tracer, &server)?;
    check(stale(&answer).is_none(), || {
        format!(
            "rules as kube-proxy writes them differ: {:#?}",
            stale(&answer)
        )
    })?;
    for fault in setup.faults {
        node.load(setup)?;
        node.run(&fault.line.replace("CHAIN", target(setup)), setup)?;
        let answer = look(tracer, &server)?;
        let finding = stale(&answer).with_context(|| format!("{}: nothing is said", fault.line))?;
        for words in fault.says {
            let said = finding["evidence"].to_string();
            check(said.contains(words), || {
                format!("{}: {words} is not said: {finding:#}", fault.line)
            })?;
        }
    }
    Ok(())
}

/// The chain behind a firewall chain.
fn target(setup: &Setup) -> &'static str {
    match setup.version {
        "1.20" => "KUBE-SVC-WEBHTTP4Q7K2M5T1",
        _ => "KUBE-EXT-WEBHTTP4Q7K2M5T1",
    }
}

fn look(tracer: &Tracer, server: &ApiServer) -> anyhow::Result<Answer> {
    let kubeconfig = server.kubeconfig();
    let place = kubeconfig.to_string_lossy();
    tracer.run(&[
        "check",
        "--netns",
        HOST,
        "--kubeconfig",
        &place,
        "--node",
        NODE,
        "--format",
        "json",
    ])
}

fn stale(answer: &Answer) -> Option<Value> {
    let findings = answer.objects("finding");
    let mut stale = findings.iter().filter(|finding| finding["cause"] == CODE);
    stale.next().map(|finding| (*finding).clone())
}

/// The node's namespace; dropping it removes it.
struct Node;

impl Node {
    fn build() -> anyhow::Result<Self> {
        // What is left of an earlier try.
        tear_down();
        let node = Self;
        for line in [
            "ip netns add proxy-n",
            "ip -n proxy-n link set lo up",
            "ip -n proxy-n link add up0 type dummy",
            "ip -n proxy-n addr add 192.0.2.1/24 dev up0",
            "ip -n proxy-n addr add 192.0.2.50/24 dev up0",
            "ip -n proxy-n link set up0 up",
        ] {
            command(line)?;
        }
        Ok(node)
    }

    /// Loads the rules in place of those that are there.
    fn load(&self, setup: &Setup) -> anyhow::Result<()> {
        std::fs::write(Path::new(FILE), setup.rules).context("the rules cannot be written")?;
        if setup.mode == "nftables" {
            self.run("TOOL flush ruleset", setup)?;
        }
        self.run(&format!("{} {FILE}", setup.load), setup)
    }

    fn run(&self, line: &str, setup: &Setup) -> anyhow::Result<()> {
        let line = line.replace(TOOL, setup.tool);
        command(&format!("ip netns exec {HOST} {line}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        tear_down();
    }
}

fn tear_down() {
    // What is not there need not go.
    let _ = command("ip netns del proxy-n");
    let _ = std::fs::remove_file(FILE);
}

fn cluster(setup: &Setup) -> anyhow::Result<ApiServer> {
    let server = ApiServer::start(Options::default())?;
    let version = format!("v{}.2", setup.version);
    server.put(
        "nodes",
        json!({"metadata": {"name": NODE}, "status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
            "nodeInfo": {"kubeletVersion": version}}}),
    );
    server.put(
        "configmaps",
        json!({"metadata": {"namespace": "kube-system", "name": "kube-proxy"},
            "data": {"config.conf": format!("mode: {}\n", setup.mode)}}),
    );
    let mut web = service("web", "10.96.0.10", "TCP", 80, Some(30080));
    web["spec"]["type"] = json!("LoadBalancer");
    web["spec"]["sessionAffinity"] = json!("ClientIP");
    web["spec"]["loadBalancerSourceRanges"] = json!(["198.51.100.0/24", "203.0.113.0/25"]);
    web["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
    let mut edge = service("edge", "10.96.0.11", "TCP", 80, Some(30081));
    edge["spec"]["externalTrafficPolicy"] = json!("Local");
    if setup.version != "1.20" {
        edge["spec"]["externalIPs"] = json!(["203.0.113.9"]);
    }
    for object in [
        web,
        edge,
        service("names", "10.96.0.12", "UDP", 53, None),
        service("going", "10.96.0.13", "TCP", 80, None),
    ] {
        server.put("services", object);
    }
    let ready = json!({"ready": true, "serving": true, "terminating": false});
    let going = json!({"ready": false, "serving": true, "terminating": true});
    for (name, endpoints) in [
        (
            "web",
            vec![
                ("10.244.0.5", NODE, &ready),
                ("10.244.1.5", "node-b", &ready),
            ],
        ),
        ("edge", vec![("10.244.1.6", "node-b", &ready)]),
        ("going", vec![("10.244.1.7", "node-b", &going)]),
    ] {
        server.put("endpointslices", slice(name, &endpoints));
    }
    Ok(server)
}

fn service(name: &str, address: &str, protocol: &str, port: u16, node_port: Option<u16>) -> Value {
    let mut object = json!({"metadata": {"namespace": "default", "name": name}, "spec": {
        "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
        "ports": [{"name": "main", "protocol": protocol, "port": port, "targetPort": 8080}]}});
    if let Some(node_port) = node_port {
        object["spec"]["type"] = json!("NodePort");
        object["spec"]["ports"][0]["nodePort"] = json!(node_port);
    }
    object
}

fn slice(name: &str, endpoints: &[(&str, &str, &Value)]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, node, conditions)| {
            json!({"addresses": [address], "nodeName": node, "conditions": conditions})
        })
        .collect();
    json!({"metadata": {"namespace": "default", "name": format!("{name}-x"),
            "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "main", "protocol": "TCP", "port": 8080}]})
}
