//! What a person sees of it, and what kubectl sees of the server.

use std::process::Command;

use serde_json::Value;
use tracer::event::{Detail, Event, Packet, Transport, Tuple, protocol};
use tracer::filter::{Expression, Here};
use tracer::hook::Role;
use tracer::journey::{Ending, Journey};
use tracer::kernel::reasons::DropReasons;
use tracer::kernel::symbols::Symbols;
use tracer::node::{Address, NetnsFacts, NetnsId, Snapshot};
use tracer::view::cluster::ClusterView;
use tracer::view::model::JourneyView;
use tracer::view::names::{Clock, Names};
use tracer::view::text::Style;

use super::*;

/// A packet of a pod of this node to a service, as IPVS sends it on.
fn journey() -> Journey {
    let event = |hook, source: &str, destination: &str, detail| Event {
        time_ns: 1,
        skb: 1,
        netns: Some(1),
        ifindex: None,
        length: None,
        mark: None,
        hook,
        detail,
        packet: Some(Packet {
            tuple: Tuple {
                protocol: protocol::TCP,
                source: source.parse().expect("an address"),
                destination: destination.parse().expect("an address"),
            },
            named_protocol: protocol::TCP,
            ip_id: None,
            transport: Transport::Other,
            about: None,
        }),
        not_ip: false,
        arp: None,
    };
    let chosen = Detail::Connection {
        real: "10.244.1.5:8080".parse().expect("an address"),
        forwarding: 0,
    };
    let hooks = &tracer::hook::CATALOGUE;
    let of = |role| {
        hooks
            .iter()
            .find(|hook| hook.role == role)
            .expect("a hook")
            .id
    };
    Journey {
        id: 1,
        events: vec![
            event(
                of(Role::LocalIn),
                "10.244.0.5:40000",
                "10.96.0.10:80",
                Detail::None,
            ),
            event(
                of(Role::IpvsConnection),
                "10.244.0.5:40000",
                "10.96.0.10:80",
                chosen,
            ),
            event(
                of(Role::Transmit),
                "192.0.2.1:40000",
                "10.244.1.5:8080",
                Detail::None,
            ),
        ],
        ending: Ending::Transmitted,
        ..Journey::default()
    }
}

#[test]
fn journeys_carry_the_names_of_every_leg() {
    let server = ordinary();
    let cluster = watching(&server);
    let facts = until(&cluster, "everything is fresh", all_fresh);
    let shown = |cluster, facts: &Snapshot| {
        let names = Names {
            facts,
            reasons: &DropReasons::default(),
            symbols: &Symbols::default(),
            clock: Clock::now(),
            cluster,
        };
        let view = JourneyView::new(&journey(), &names).expect("a view");
        let mut text = Vec::new();
        tracer::view::text::journey(&mut text, &view, Style { colour: false }, false)
            .expect("text");
        String::from_utf8(text).expect("text")
    };
    let text = shown(Some(&*facts), &Snapshot::empty());
    for part in [
        "p/default/web-0 10.244.0.5:40000 → s/default/web:http 10.96.0.10:80 ⇒ p/default/web-1 10.244.1.5:8080",
        "ipvs: → p/default/web-1 10.244.1.5:8080 (masq)",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let text = shown(None, &Snapshot::empty());
    assert!(
        text.contains("10.244.0.5:40000 → 10.96.0.10:80 ⇒ 10.244.1.5:8080"),
        "{text}"
    );
    // The processes of this node's pods tell their names without the cluster.
    let mut node = Snapshot::empty();
    let mut namespace = NetnsFacts::unread(NetnsId(1), Some("p/default/web-0"));
    namespace.is_pod = true;
    namespace.addresses = vec![Address::global(
        2,
        "10.244.0.5".parse().expect("an address"),
        24,
    )];
    node.namespaces = vec![namespace];
    let text = shown(None, &node);
    assert!(
        text.contains("p/default/web-0 10.244.0.5:40000 → 10.96.0.10:80 ⇒ 10.244.1.5:8080"),
        "{text}"
    );
    let mut here = Here::default();
    here.add_pods(&node.namespaces);
    let resolved = |text: &str| {
        Expression::parse(text)
            .and_then(|expression| expression.resolve(&here))
            .expect("a filter")
    };
    assert_eq!(
        resolved("pod default/web-0").program(),
        resolved("host 10.244.0.5").program()
    );
}

#[test]
fn the_state_of_the_facts_is_said_in_words() {
    let mut server = ordinary();
    let cluster = watching(&server);
    until(&cluster, "everything is fresh", all_fresh);
    let fresh = ClusterView::from(&cluster.state());
    assert_eq!(fresh.state, "fresh");
    let words = fresh.words();
    let part = "v1.31.0 · node node-a · 1 services, 1 endpoints, 1 pods of this node, 2 nodes";
    assert!(words.contains(part), "{words}");
    server.stop();
    until(&cluster, "the trouble shows", |facts| {
        facts.trouble().is_some()
    });
    let stale = ClusterView::from(&cluster.state());
    assert!(stale.settled() && !stale.says_the_same(&fresh));
    let words = stale.words();
    assert!(
        words.contains("stale since ") && words.contains(" s ago): ") && words.contains("refused"),
        "{words}"
    );
}

/// The server answers kubectl as a real one would; skipped where there is no kubectl.
#[test]
fn kubectl_understands_the_server() {
    let server = ordinary();
    let kubectl = |arguments: &[&str]| {
        Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(server.kubeconfig())
            .arg("--cache-dir")
            .arg(server.folder())
            .args(arguments)
            .output()
    };
    let output = kubectl(&["get", "services", "--all-namespaces", "-o", "json"])
        .expect("kubectl, which cargo xtask test installs (apt-get install kubernetes-client)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(list["items"][0]["metadata"]["name"], "web");
    for (arguments, expected) in [
        (&["get", "nodes", "-o", "name"][..], "node/node-b"),
        (
            &["get", "endpointslices", "-n", "default", "-o", "name"],
            "endpointslice.discovery.k8s.io/web-x",
        ),
        (
            &[
                "get",
                "pods",
                "-n",
                "default",
                "--field-selector",
                "spec.nodeName=node-a",
                "-o",
                "name",
            ],
            "pod/web-0",
        ),
        (
            &[
                "get",
                "pod",
                "-n",
                "default",
                "web-1",
                "-o",
                "jsonpath={.status.podIP}",
            ],
            "10.244.1.5",
        ),
        (
            &[
                "get",
                "networkpolicies",
                "-A",
                "--chunk-size=1",
                "-o",
                "name",
            ],
            "networkpolicy.networking.k8s.io/limit",
        ),
        (
            &[
                "get",
                "pods",
                "-n",
                "default",
                "--watch",
                "--request-timeout=2s",
                "-o",
                "name",
            ],
            "pod/other",
        ),
    ] {
        let output = kubectl(arguments).expect("kubectl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.contains(expected),
            "{arguments:?}: {text} {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
