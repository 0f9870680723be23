//! `bridge-port-blocked`: a bridge port is not in state forwarding, so no frame passes it.

use super::audit::Finding;
use super::bridging::{BRIDGE_DROPS, is_blocked, out_device, port_of_neighbour, port_to};
use super::evidence::{Evidence, Failure};
use super::{Cause, Diagnosis, Site};
use crate::hook::Role;
use crate::node::{Link, NetnsId};

pub(super) const CAUSE: Cause = Cause {
    code: "bridge-port-blocked",
    title: "a bridge port is blocked (not in state forwarding)",
    explanation: "\
A bridge passes frames only through ports in state forwarding. A port in state blocking, listening,
learning or disabled drops what comes in and gets nothing sent out, ARP included: hosts behind it do not
answer, and packets from it vanish.

Why: spanning tree (STP) is on and sees a loop or still waits (forward delay, 15 s by default, twice), or
somebody set the state by hand. A port without carrier is disabled too: then the other end is the cause.

Proof: the packet came in by the port, or had to leave by it, was dropped in the bridge or its neighbour did
not answer, and the port's state is not forwarding while its link is up.

Fix: take the loop away or turn STP off on bridges of pods; set the port to forwarding.",
    references: &[
        "Linux net/bridge/br_input.c, br_handle_frame: drops on a port that is not forwarding or learning (from \
         6.18 with reason BRIDGE_INGRESS_STP_STATE)",
        "Linux net/bridge/br_forward.c, should_deliver: passes over such a port on the way out",
    ],
    explains: &["neighbour-failed"],
    examine,
    audit,
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (netns, port) = stopped_at(evidence, failure)?;
            (is_blocked(port) && port.carrier != Some(false)).then_some((netns, port.index))
        })
        .into_iter()
        .filter_map(|((netns, index), failures)| {
            let site = evidence.site(netns)?;
            let port = site.link(index)?;
            let first = failures.first()?;
            let what = if first.passed(Role::NeighbourFailed) {
                "neighbour behind the port did not answer".to_owned()
            } else {
                first.drop_words()
            };
            Some(
                say(site, port)
                    .stopped(evidence, &failures)
                    .prove("packet", format!("{}: {what}", first.words())),
            )
        })
        .collect()
}

/// The port that a lost packet came in by or had to leave by.
fn stopped_at<'a>(evidence: &Evidence<'a>, failure: &Failure<'_>) -> Option<(NetnsId, &'a Link)> {
    if failure.dropped_for(&["BRIDGE_INGRESS_STP_STATE"], BRIDGE_DROPS) {
        let ingress = failure
            .last(Role::Bridge)
            .or_else(|| failure.last(Role::Receive));
        let ingress = ingress.and_then(|(index, event)| {
            let netns = failure.netns_at(index)?;
            Some((netns, evidence.site(netns)?.link(event.ifindex?)?))
        });
        if let Some((netns, port)) = ingress
            && is_blocked(port)
        {
            return Some((netns, port));
        }
        let (netns, bridge) = out_device(failure)?;
        let site = evidence.site(netns)?;
        let destination = failure.journey.last_tuple()?.destination.ip();
        return Some((netns, port_to(site, bridge, destination)?));
    }
    port_of_neighbour(evidence, failure)
}

/// The finding about one port.
pub(super) fn say(site: &Site<'_>, port: &Link) -> Diagnosis {
    let state = port
        .bridge_port
        .and_then(|port| port.state)
        .map_or_else(|| "unknown".to_owned(), |state| state.to_string());
    let bridge = port
        .master
        .map_or_else(String::new, |index| site.device(index));
    Diagnosis::new(
        &CAUSE,
        format!("{} of {bridge}", port.name),
        format!(
            "Port {} of bridge {bridge} in {} is in state {state}, so no frame passes it.",
            port.name,
            site.name()
        ),
    )
    .prove("link", format!("{} master {bridge} state {state}", port.name))
    .fix(
        [
            format!("ip link set dev {bridge} type bridge stp_state 0   # where the bridge cannot be part of a loop"),
            format!("bridge link set dev {} state 3   # forwarding", port.name),
        ],
        "with a real loop behind the port a broadcast storm begins",
    )
    .check(format!("bridge link show dev {}   # state forwarding", port.name))
}

/// Ports that pass nothing although their link is up.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    evidence
        .sites()
        .flat_map(|site| {
            let blocked = site
                .facts
                .links
                .iter()
                .filter(|port| is_blocked(port) && port.up && port.carrier == Some(true));
            blocked.map(|port| Finding::error(say(site, port)))
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, link, node};
    use crate::node::{BridgePort, BridgePortState};

    pub(in crate::cause) const PORT: u32 = 7;

    pub(in crate::cause) fn port(state: BridgePortState, hairpin: bool) -> Link {
        Link {
            kind: Some("veth".into()),
            master: Some(CNI0),
            bridge_port: Some(BridgePort {
                state: Some(state),
                hairpin: Some(hairpin),
            }),
            ..link(PORT, "veth7")
        }
    }

    fn with(state: BridgePortState) -> Bench {
        let mut bench = node();
        bench.site().links.push(port(state, false));
        bench
            .udp("10.244.0.9:4000", "10.244.0.1:53")
            .receive(PORT)
            .at(HookId::BridgeReceive)
            .dropped("NOT_SPECIFIED", "br_handle_frame");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        with(BridgePortState::Blocking)
    }

    #[test]
    fn the_port_and_its_state_are_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.summary.contains("veth7") && found.summary.contains("blocking"));
    }

    #[test]
    fn a_forwarding_port_is_another_case() {
        assert_eq!(with(BridgePortState::Forwarding).codes(), [] as [&str; 0]);
    }
}
