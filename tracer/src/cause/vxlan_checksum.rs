//! `vxlan-checksum`: the outer UDP checksum of VXLAN packets is wrong.

use super::audit::nothing;
use super::bad_checksum::{counted, wrong_outside};
use super::evidence::Evidence;
use super::{Cause, Diagnosis};

pub(super) const CAUSE: Cause = Cause {
    code: "vxlan-checksum",
    title: "the outer UDP checksum of VXLAN packets is wrong (checksum offload)",
    explanation: "\
A node sends a pod's packet through the VXLAN overlay, and the outer UDP checksum is wrong, so the other
node drops the whole packet. Typically only some connections suffer: those whose inner packet went through
source NAT (a service reached from a node), where checksum offload of the tunnel device and of the network
card get in each other's way. Clients retry for 63 s; then a retransmission without offload comes through.

Proof: a UDP packet for the VXLAN port (8472 or 4789) was dropped with UDP_CSUM.

Fix: turn the tunnel device's transmit checksum offload off on the sending node.",
    references: &["https://github.com/kubernetes/kubernetes/issues/88986"],
    explains: &[],
    examine,
    audit: nothing,
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(wrong_outside)
        .into_iter()
        .map(|((netns, sender), failures)| {
            let site = evidence.site(netns);
            let device = site
                .and_then(|site| {
                    site.facts
                        .links
                        .iter()
                        .find(|link| link.kind.as_deref() == Some("vxlan"))
                })
                .map_or("flannel.1", |link| link.name.as_str());
            Diagnosis::new(
                &CAUSE,
                format!("from {sender}"),
                format!(
                    "VXLAN packets from {sender} arrive with a wrong outer UDP checksum and are dropped whole, with the \
                     pods' packets in them."
                ),
            )
            .stopped(evidence, &failures)
            .prove_if(
                "packet",
                failures
                    .first()
                    .map(|first| format!("{} {}", first.words(), first.drop_words())),
            )
            .prove_if("counter", site.and_then(counted))
            .fix(
                [format!("ethtool -K {device} tx-checksum-ip-generic off   # on {sender}")],
                "the sending node's processor computes the checksums of the overlay",
            )
            .check("nstat -az UdpInCsumErrors   # no longer rises")
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cause::Certainty;
    use crate::cause::bad_checksum::tests::with;
    use crate::cause::constructed::Bench;

    pub(in crate::cause) fn situation() -> Bench {
        with(8472)
    }

    #[test]
    fn the_sending_node_is_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.fixes[0].lines[0].contains("tx-checksum-ip-generic off"));
    }
}
