//! Two ways side by side, aligned by stage, and where they part.

use std::net::{IpAddr, SocketAddr};

use similar::{Algorithm, DiffOp, capture_diff_slices};

use super::stage::Stage;

/// Two ways side by side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Comparison {
    /// Stages that stand for the same, next to each other.
    pub rows: Vec<Row>,
    /// Index of the first row whose stages differ in more than addresses; `None` when none does.
    pub parting: Option<usize>,
}

/// One row: the stage of each way, where it has one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Of the first way.
    pub left: Option<Stage>,
    /// Of the second way.
    pub right: Option<Stage>,
}

impl Row {
    /// Both ways do the same here, whatever the addresses.
    pub fn same(&self) -> bool {
        match (&self.left, &self.right) {
            (Some(left), Some(right)) => {
                left.lost == right.lost && without_addresses(left) == without_addresses(right)
            }
            _ => false,
        }
    }

    /// What the row is about: `ipvs`, `prerouting`, a device's name.
    pub fn subject(&self) -> &str {
        let stage = self.left.as_ref().or(self.right.as_ref());
        stage.map_or("", subject)
    }
}

/// Sets two ways side by side. Stages stand next to each other when they are about the same part of
/// the stack in the same namespace: "ipvs: rr → …" and "ipvs: no virtual server …".
pub fn compare(left: &[Stage], right: &[Stage]) -> Comparison {
    let (left_keys, right_keys) = (keys(left), keys(right));
    let mut rows = Vec::new();
    let row = |left: Option<&Stage>, right: Option<&Stage>| Row {
        left: left.cloned(),
        right: right.cloned(),
    };
    for operation in capture_diff_slices(Algorithm::Patience, &left_keys, &right_keys) {
        let (ours, theirs) = (operation.old_range(), operation.new_range());
        let (ours, theirs) = (&left[ours], &right[theirs]);
        if let DiffOp::Equal { .. } = operation {
            let pairs = ours.iter().zip(theirs);
            rows.extend(pairs.map(|(ours, theirs)| row(Some(ours), Some(theirs))));
        } else {
            rows.extend(ours.iter().map(|ours| row(Some(ours), None)));
            rows.extend(theirs.iter().map(|theirs| row(None, Some(theirs))));
        }
    }
    let parting = rows.iter().position(|row| !row.same());
    Comparison { rows, parting }
}

/// What each stage is about, with the namespace that it happens in.
fn keys(stages: &[Stage]) -> Vec<(&str, &str)> {
    let mut namespace = "";
    stages
        .iter()
        .map(|stage| {
            namespace = stage.namespace.as_deref().unwrap_or(namespace);
            (namespace, subject(stage))
        })
        .collect()
}

/// The words before a colon: `ipvs: rr → …` is about ipvs, `listening socket :80` about its socket.
fn subject(stage: &Stage) -> &str {
    let subject = stage.text.split(':').next().unwrap_or_default();
    subject.trim_end()
}

/// The words of a stage; an address or port is only said to be one.
fn without_addresses(stage: &Stage) -> Vec<&str> {
    let is_address = |word: &str| {
        let word = word.trim_matches([',', ';', '(', ')']);
        let port = word.strip_prefix(':').unwrap_or("none");
        word.parse::<SocketAddr>().is_ok()
            || word.parse::<IpAddr>().is_ok()
            || port.parse::<u16>().is_ok()
    };
    stage
        .text
        .split(' ')
        .map(|word| if is_address(word) { "ADDRESS" } else { word })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stages from words: `[x]` in front moves to namespace x, `!` loses the packet.
    fn way(texts: &[&str]) -> Vec<Stage> {
        let stage = |text: &&str| {
            let (namespace, text) = match text.strip_prefix('[') {
                Some(rest) => {
                    let (namespace, text) = rest.split_once("] ").expect("a bracket");
                    (Some(namespace.to_owned()), text)
                }
                None => (None, *text),
            };
            Stage {
                namespace,
                text: text.trim_start_matches('!').to_owned(),
                lost: text.starts_with('!'),
                event: 0,
            }
        };
        texts.iter().map(stage).collect()
    }

    #[test]
    fn ways_part_where_they_differ_in_more_than_addresses() {
        let works = way(&[
            "[client] postrouting",
            "eth0",
            "[node] enp1s0",
            "prerouting",
            "input",
            "ipvs: rr → 10.244.1.15:3000 (masq)",
            "postrouting: snat 10.244.1.1:33430",
            "[pod] eth0",
        ]);
        let lost = way(&[
            "[client] postrouting",
            "eth0",
            "[node] enp1s0",
            "prerouting",
            "input",
            "ipvs: no virtual server 192.168.3.187:30000",
            "!tcp: no socket",
            "RST sent",
        ]);
        let comparison = compare(&works, &lost);
        let parting = comparison.parting.expect("they part");
        assert_eq!(comparison.rows[parting].subject(), "ipvs");
        assert_eq!(comparison.rows[parting].right.as_ref(), lost.get(5));
        assert_eq!(comparison.rows.len(), 6 + 2 + 2);
    }

    #[test]
    fn other_ports_and_addresses_are_the_same_way() {
        let one = way(&["postrouting: snat 10.244.1.1:33430", "listening socket :80"]);
        let two = way(&["postrouting: snat 10.244.1.1:50001", "listening socket :81"]);
        assert_eq!(compare(&one, &two).parting, None);
    }

    #[test]
    fn a_stage_that_one_way_lacks_is_where_they_part() {
        let one = way(&["[node] eth0", "prerouting", "forward", "cni0"]);
        let two = way(&["[node] eth0", "prerouting", "cni0"]);
        let comparison = compare(&one, &two);
        assert_eq!(comparison.parting, Some(2));
        assert_eq!(comparison.rows[2].right, None);
        // A way that ends early parts where it ends.
        assert_eq!(compare(&one[..3], &two[..2]).parting, Some(2));
        assert_eq!(compare(&one, &[]).parting, Some(0));
    }

    #[test]
    fn the_same_words_in_another_namespace_are_another_stage() {
        let one = way(&["[node-a] eth0", "input"]);
        let two = way(&["[node-b] eth0", "input"]);
        assert_eq!(compare(&one, &two).parting, Some(0));
    }

    #[test]
    fn a_loss_is_a_difference() {
        let one = way(&["[node] forward"]);
        let two = way(&["[node] !forward"]);
        assert_eq!(compare(&one, &two).parting, Some(0));
    }
}
