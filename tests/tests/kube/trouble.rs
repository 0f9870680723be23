//! Servers that refuse, break, hang, or are away.

use std::time::{Duration, Instant};

use tests::api_server::rbac::Rules;
use tests::api_server::{Fault, Options as ServerOptions, Slices};
use tracer::kube::{Cluster, Freshness, Options, Place, Resource, State};

use super::*;

#[test]
fn the_rights_of_the_manifest_are_enough_and_all_needed() {
    let rules = Rules::parse(tracer::kube::RBAC).expect("the manifest");
    let mut used = Vec::new();
    for slices in [Slices::V1, Slices::None] {
        let server = server(ServerOptions {
            slices,
            rules: Some(rules.clone()),
            ..ServerOptions::default()
        });
        let cluster = watching(&server);
        until(&cluster, "everything is fresh", all_fresh);
        cluster.want("10.244.1.6".parse().expect("an address"));
        until(&cluster, "the pod is known", |facts| {
            name(facts, "10.244.1.6:1").is_some()
        });
        let begun = Instant::now();
        // A watch follows its list at once, but not at the same moment.
        while begun.elapsed() < PATIENCE
            && server
                .actions()
                .iter()
                .filter(|action| action.verb == "watch")
                .count()
                < Resource::ALL.len()
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        used.extend(server.actions());
    }
    assert!(used.iter().all(|action| rules.allow(action)));
    assert!(used.iter().all(|action| action.resource != "secrets"));
    for (group, resource, verb) in rules.rights() {
        assert!(
            used.iter()
                .any(|action| (&action.group, &action.resource, action.verb)
                    == (&group, &resource, &*verb)),
            "{verb} {resource} is never used"
        );
    }
}

#[test]
fn one_forbidden_kind_leaves_the_others_fresh() {
    let server = ordinary();
    server.misbehave(&[Fault::Status("networkpolicies", 403)]);
    let cluster = watching(&server);
    let others = [
        Resource::Services,
        Resource::Endpoints,
        Resource::Pods,
        Resource::Nodes,
    ];
    let facts = until(&cluster, "the others", |facts| {
        facts.fresh(&others) && facts.freshness(Resource::NetworkPolicies) != Freshness::Waiting
    });
    let freshness = facts.freshness(Resource::NetworkPolicies);
    assert!(
        matches!(freshness, Freshness::Unavailable(_)),
        "{freshness:?}"
    );
    let why = &freshness.trouble().expect("a trouble").why;
    assert!(why.contains("403") || why.contains("forbidden"), "{why}");
    server.misbehave(&[]);
    until(&cluster, "all is well", all_fresh);
}

#[test]
fn damaged_answers_are_troubles_that_pass() {
    for fault in [
        Fault::GarbageList("services"),
        Fault::Status("services", 500),
        Fault::Status("services", 429),
    ] {
        let server = ordinary();
        server.misbehave(std::slice::from_ref(&fault));
        let cluster = watching(&server);
        until(&cluster, "the trouble shows", |facts| {
            matches!(
                facts.freshness(Resource::Services),
                Freshness::Unavailable(_)
            )
        });
        server.misbehave(&[]);
        let facts = until(&cluster, "all is well", all_fresh);
        assert_eq!(facts.count(Resource::Services), 1, "{fault:?}");
    }
}

#[test]
fn damaged_watches_are_troubles_that_pass() {
    for fault in [
        Fault::GarbageWatch("services"),
        Fault::GoneInWatch("services"),
    ] {
        let server = ordinary();
        let cluster = watching(&server);
        until(&cluster, "everything is fresh", all_fresh);
        server.misbehave(std::slice::from_ref(&fault));
        let facts = until(&cluster, "the trouble shows", |facts| {
            matches!(facts.freshness(Resource::Services), Freshness::Stale(_))
        });
        // What was known stays known.
        assert!(facts.service(&web()).is_some());
        server.misbehave(&[]);
        server.put("services", service("late", "10.96.0.12", "ClusterIP", 0));
        until(&cluster, "the change", |facts| {
            name(facts, "10.96.0.12:80").is_some()
        });
        until(&cluster, "all is well", all_fresh);
    }
}

#[test]
fn an_object_that_cannot_be_read_keeps_its_kind_from_being_fresh() {
    let server = ordinary();
    let configuration = |text: &str| {
        server.put(
            "configmaps",
            json!({"metadata": {"namespace": "kube-system", "name": "kube-proxy"},
                "data": {"config.conf": text}}),
        );
    };
    let resource = Resource::ProxyConfiguration;
    let stale = |facts: &ClusterFacts| matches!(facts.freshness(resource), Freshness::Stale(_));
    configuration("mode: [");
    let cluster = watching(&server);
    // Its list is complete all the same.
    let facts = until(&cluster, "the trouble shows", stale);
    let freshness = facts.freshness(resource);
    let why = &freshness.trouble().expect("a trouble").why;
    assert!(why.contains("kube-system/kube-proxy"), "{why}");
    configuration("mode: ipvs\n");
    until(&cluster, "all is well", all_fresh);
    // What was good stays, and neither a new list nor a new watch hides that it is old.
    configuration("mode: [");
    until(&cluster, "the trouble shows again", stale);
    server.compact();
    server.misbehave(&[Fault::GoneInWatch("configmaps")]);
    let gone = |facts: &ClusterFacts| {
        let trouble = facts.freshness(resource).trouble();
        trouble.is_some_and(|trouble| trouble.why.contains("410"))
    };
    until(&cluster, "the watch ends", gone);
    server.misbehave(&[]);
    let facts = until(&cluster, "the list is complete", |facts| {
        stale(facts) && !gone(facts)
    });
    let known = facts.proxy_configuration.as_ref().expect("what was good");
    assert_eq!(known.mode.as_deref(), Some("ipvs"));
    server.delete("configmaps", "kube-system", "kube-proxy");
    let facts = until(&cluster, "all is well without it", all_fresh);
    assert!(facts.proxy_configuration.is_none());
}

#[test]
fn a_config_map_that_is_not_kubeadms_is_no_trouble() {
    let server = ordinary();
    let cluster = watching(&server);
    let facts = until(&cluster, "everything is fresh", all_fresh);
    assert!(facts.proxy_configuration.is_some());
    // Managed clusters keep kube-proxy's way to the server under this name.
    server.put(
        "configmaps",
        json!({"metadata": {"namespace": "kube-system", "name": "kube-proxy"},
            "data": {"kubeconfig": "kind: Config\n"}}),
    );
    let facts = until(&cluster, "the configuration is gone", |facts| {
        facts.proxy_configuration.is_none()
    });
    assert!(all_fresh(&facts));
    let facts = until(&watching(&server), "everything is fresh", all_fresh);
    assert!(facts.proxy_configuration.is_none());
}

#[test]
fn a_slice_that_cannot_be_read_is_not_hidden_by_others() {
    let server = server(ServerOptions {
        slices: Slices::V1Beta1,
        version: "v1.20.2",
        ..ServerOptions::default()
    });
    let beta = |name: &str, good: bool| {
        let mut object = slice(true);
        object["apiVersion"] = json!("discovery.k8s.io/v1beta1");
        object["metadata"]["name"] = json!(name);
        if !good {
            object["endpoints"] = json!("none");
        }
        server.put("endpointslices", object);
    };
    beta("web-x", true);
    let cluster = watching(&server);
    until(&cluster, "everything is fresh", all_fresh);
    beta("web-x", false);
    let stale = |facts: &ClusterFacts| {
        let trouble = facts.freshness(Resource::Endpoints).trouble();
        trouble.is_some_and(|trouble| trouble.why.contains("default/web-x"))
    };
    until(&cluster, "the trouble shows", stale);
    beta("web-y", true);
    let facts = until(&cluster, "the other slice", |facts| {
        facts.count(Resource::Endpoints) == 2
    });
    assert!(stale(&facts));
    beta("web-x", true);
    until(&cluster, "all is well", all_fresh);
}

#[test]
fn a_change_that_cannot_be_read_is_not_hidden_by_the_next() {
    let server = ordinary();
    let cluster = watching(&server);
    until(&cluster, "everything is fresh", all_fresh);
    let mut bad = service("bad", "10.96.0.14", "ClusterIP", 0);
    bad["spec"]["ports"] = json!("none");
    server.put("services", bad);
    server.put("services", service("good", "10.96.0.15", "ClusterIP", 0));
    let begun = Instant::now();
    until(&cluster, "the trouble shows", |facts| {
        matches!(facts.freshness(Resource::Services), Freshness::Stale(_))
    });
    // Longer than the pause before it is tried again.
    while begun.elapsed() < Duration::from_secs(3) {
        let state = cluster.state();
        assert!(!all_fresh(state.facts().expect("facts")));
        std::thread::sleep(Duration::from_millis(5));
    }
    server.delete("services", "default", "bad");
    until(&cluster, "all is well", all_fresh);
}

#[test]
fn a_server_that_is_away_makes_facts_stale_and_comes_back() {
    let mut server = ordinary();
    let cluster = watching(&server);
    until(&cluster, "everything is fresh", all_fresh);
    server.stop();
    let facts = until(&cluster, "the trouble shows", |facts| {
        facts.trouble().is_some()
    });
    let freshness = facts.freshness(Resource::Endpoints);
    assert!(matches!(freshness, Freshness::Stale(_)), "{freshness:?}");
    assert!(
        freshness
            .trouble()
            .expect("a trouble")
            .why
            .contains("refused"),
        "{freshness:?}"
    );
    assert_eq!(ready(&facts), [true]);
    server.misbehave(&[Fault::Hang("endpointslices")]);
    server.resume().expect("the server listens again");
    // What was known from before is not fresh because the server is back.
    let facts = until(&cluster, "the others are well", |facts| {
        facts.fresh(&[Resource::Services, Resource::Nodes, Resource::Pods])
    });
    let freshness = facts.freshness(Resource::Endpoints);
    assert!(matches!(freshness, Freshness::Stale(_)), "{freshness:?}");
    server.misbehave(&[]);
    server.stop();
    server.resume().expect("the server listens again");
    until(&cluster, "all is well", all_fresh);
}

#[test]
fn a_silent_server_is_noticed_and_nobody_waits_for_it() {
    let server = ordinary();
    let cluster = watching(&server);
    until(&cluster, "everything is fresh", all_fresh);
    server.misbehave(&[Fault::Silent]);
    let facts = until(&cluster, "the trouble shows", |facts| {
        facts.trouble().is_some()
    });
    assert!(
        facts
            .trouble()
            .expect("a trouble")
            .why
            .contains("no answer")
    );
    server.misbehave(&[]);
    until(&cluster, "all is well", all_fresh);
    let never = {
        server.misbehave(&[Fault::Silent]);
        let begun = Instant::now();
        let cluster = watching(&server);
        let state = cluster.state();
        drop(cluster);
        assert!(begun.elapsed() < Duration::from_secs(1));
        state
    };
    assert!(never.facts().is_none_or(|facts| !all_fresh(facts)));
}

#[test]
fn a_slow_server_is_only_slow() {
    let server = ordinary();
    server.misbehave(&[Fault::Slow(Duration::from_millis(700))]);
    let cluster = watching(&server);
    let facts = until(&cluster, "everything is fresh", all_fresh);
    assert_eq!(ready(&facts), [true]);
}

#[test]
fn questions_that_hang_hold_up_nothing_else() {
    let server = ordinary();
    let cluster = watching(&server);
    until(&cluster, "everything is fresh", all_fresh);
    server.misbehave(&[Fault::Hang("pods")]);
    for number in 100..130 {
        cluster.want(format!("10.244.1.{number}").parse().expect("an address"));
    }
    // The questions are with the server before anything changes.
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    server.put("endpointslices", slice(false));
    until(&cluster, "the endpoint is not ready", |facts| {
        ready(facts) == [false]
    });
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_list_that_hangs_is_a_trouble_of_its_kind() {
    let server = ordinary();
    server.misbehave(&[Fault::Hang("services")]);
    let cluster = Cluster::start(Options {
        place: Place {
            kubeconfig: Some(server.kubeconfig()),
            context: None,
        },
        host_name: NODE.into(),
        listed_within: Duration::from_secs(2),
        ..Options::default()
    })
    .expect("a thread");
    let facts = until(&cluster, "the trouble shows", |facts| {
        matches!(
            facts.freshness(Resource::Services),
            Freshness::Unavailable(_)
        )
    });
    let freshness = facts.freshness(Resource::Services);
    let why = &freshness.trouble().expect("a trouble").why;
    assert!(why.contains("not listed within 2s"), "{why}");
    assert!(facts.fresh(&[Resource::Endpoints, Resource::Pods, Resource::Nodes]));
}

#[test]
fn a_server_that_does_not_say_what_it_serves_is_a_trouble() {
    let server = ordinary();
    server.misbehave(&[Fault::Hang("discovery.k8s.io")]);
    let cluster = watching(&server);
    let facts = until(&cluster, "the trouble shows", |facts| {
        facts.trouble().is_some()
    });
    let why = &facts.trouble().expect("a trouble").why;
    assert!(why.contains("no answer"), "{why}");
    server.misbehave(&[]);
    until(&cluster, "all is well", all_fresh);
}

#[test]
fn wrong_credentials_are_said() {
    let server = ordinary();
    let cluster = Cluster::start(Options {
        place: Place {
            kubeconfig: Some(server.wrong_kubeconfig()),
            context: None,
        },
        ..Options::default()
    })
    .expect("a thread");
    let facts = until(&cluster, "the trouble shows", |facts| {
        facts.trouble().is_some()
    });
    let why = &facts.trouble().expect("a trouble").why;
    assert!(why.contains("unauthorized"), "{why}");
}

#[test]
fn unusable_configurations_are_said() {
    let server = ordinary();
    let broken = server.folder().join("broken");
    std::fs::write(&broken, "clusters: [1").expect("a file");
    for (path, words) in [
        (broken, "parse"),
        (server.folder().join("none"), "No such file"),
    ] {
        let cluster = Cluster::start(Options {
            place: Place {
                kubeconfig: Some(path),
                context: None,
            },
            ..Options::default()
        })
        .expect("a thread");
        let begun = Instant::now();
        let why = loop {
            if let State::Unusable(why) = cluster.state() {
                break why;
            }
            assert!(begun.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(why.contains(words), "{why}");
    }
}

#[test]
fn watches_that_end_at_once_are_not_begun_in_a_loop() {
    let server = ordinary();
    server.misbehave(&[Fault::EndedWatch("services")]);
    let cluster = watching(&server);
    until(&cluster, "the services are there", |facts| {
        facts.services().next().is_some()
    });
    std::thread::sleep(Duration::from_secs(3));
    let actions = server.actions();
    let watches = (actions.iter())
        .filter(|action| (action.verb, action.resource.as_str()) == ("watch", "services"))
        .count();
    assert!((1..=6).contains(&watches), "{watches}");
}
