//! Puts the root before what it brings about, and the surest first.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use super::diagnosis::{Certainty, Consequence, Diagnosis};

/// Lists every diagnosis that another one explains under that one, and orders the rest: certainty,
/// root before consequence, the catalogue's order (special before general), how many flows.
///
/// `explains` are the codes that a code brings about, `place` its place in the catalogue. Two
/// diagnoses belong together when they share a flow, or when both are about no flow at all and the
/// same subject. A root stands where the surest of its consequences would: that something is wrong there
/// is as sure, and only the root's own words say how sure the root is.
pub(super) fn rank(
    mut found: Vec<Diagnosis>,
    explains: impl Fn(&str) -> &'static [&'static str],
    place: impl Fn(&str) -> usize,
) -> Vec<Diagnosis> {
    let links = links(&found, explains);
    let mut covered: HashMap<usize, HashSet<u64>> = HashMap::new();
    let mut surest: Vec<Certainty> = found.iter().map(|found| found.certainty).collect();
    for &(root, consequence) in &links {
        let (flows, swallowed) = (&found[root].flows, &found[consequence]);
        covered.entry(consequence).or_default().extend(flows);
        surest[root] = surest[root].max(swallowed.certainty);
        let said = Consequence {
            code: swallowed.code,
            subject: swallowed.subject.clone(),
            summary: swallowed.summary.clone(),
        };
        found[root].consequences.push(said);
    }
    let explained: HashSet<usize> = links.iter().map(|&(_, consequence)| consequence).collect();
    let mut kept: Vec<(Certainty, bool, Diagnosis)> = found
        .into_iter()
        .enumerate()
        // What goes beyond its roots' flows stands for itself as well.
        .filter(|(index, diagnosis)| {
            covered
                .get(index)
                .is_none_or(|flows| !diagnosis.flows.iter().all(|flow| flows.contains(flow)))
        })
        .map(|(index, diagnosis)| (surest[index], explained.contains(&index), diagnosis))
        .collect();
    kept.sort_by_key(|(surest, is_explained, diagnosis)| {
        (
            Reverse(*surest),
            *is_explained,
            place(diagnosis.code),
            Reverse(diagnosis.failed),
        )
    });
    kept.into_iter().map(|(.., diagnosis)| diagnosis).collect()
}

/// Pairs of root and consequence, by their places in `found`.
fn links(
    found: &[Diagnosis],
    explains: impl Fn(&str) -> &'static [&'static str],
) -> Vec<(usize, usize)> {
    let mut by_flow: HashMap<u64, Vec<usize>> = HashMap::new();
    for (index, diagnosis) in found.iter().enumerate() {
        for &flow in &diagnosis.flows {
            by_flow.entry(flow).or_default().push(index);
        }
    }
    let mut links = Vec::new();
    for (root, diagnosis) in found.iter().enumerate() {
        let codes = explains(diagnosis.code);
        if codes.is_empty() {
            continue;
        }
        let mut sharing: Vec<usize> = diagnosis
            .flows
            .iter()
            .flat_map(|flow| &by_flow[flow])
            .copied()
            .filter(|&other| other != root && codes.contains(&found[other].code))
            .collect();
        if diagnosis.flows.is_empty() {
            sharing.extend(found.iter().enumerate().filter_map(|(other, candidate)| {
                let same = candidate.flows.is_empty() && candidate.subject == diagnosis.subject;
                (same && codes.contains(&candidate.code)).then_some(other)
            }));
        }
        sharing.sort_unstable();
        sharing.dedup();
        links.extend(sharing.into_iter().map(|consequence| (root, consequence)));
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnosis(code: &'static str, certainty: Certainty, flows: &[u64]) -> Diagnosis {
        Diagnosis {
            code,
            subject: format!("about {code}"),
            certainty,
            summary: String::new(),
            evidence: Vec::new(),
            missing: Vec::new(),
            fixes: Vec::new(),
            check: String::new(),
            flows: flows.to_vec(),
            failed: flows.len(),
            total: flows.len(),
            consequences: Vec::new(),
        }
    }

    fn ranked(found: Vec<Diagnosis>) -> Vec<(&'static str, usize)> {
        const ORDER: [&str; 3] = ["root", "other", "leaf"];
        rank(
            found,
            |code| if code == "root" { &["leaf"] } else { &[] },
            |code| ORDER.iter().position(|known| *known == code).unwrap_or(9),
        )
        .into_iter()
        .map(|diagnosis| (diagnosis.code, diagnosis.consequences.len()))
        .collect()
    }

    use Certainty::{Certain, Likely};

    #[test]
    fn a_consequence_is_listed_under_its_root() {
        let found = vec![
            diagnosis("leaf", Certain, &[1, 2]),
            diagnosis("root", Certain, &[1, 2, 3]),
        ];
        assert_eq!(ranked(found), [("root", 1)]);
    }

    #[test]
    fn causes_of_other_flows_stand_for_themselves() {
        let found = vec![
            diagnosis("leaf", Certain, &[4]),
            diagnosis("root", Certain, &[1]),
        ];
        assert_eq!(ranked(found), [("root", 0), ("leaf", 0)]);
    }

    #[test]
    fn what_goes_beyond_the_root_is_shown_twice() {
        let found = vec![
            diagnosis("leaf", Certain, &[1, 4]),
            diagnosis("root", Certain, &[1]),
        ];
        assert_eq!(ranked(found), [("root", 1), ("leaf", 0)]);
    }

    #[test]
    fn an_unsure_root_comes_first_and_lists_a_sure_consequence_once() {
        let found = vec![
            diagnosis("other", Likely, &[2]),
            diagnosis("root", Likely, &[1]),
            diagnosis("leaf", Certain, &[1]),
        ];
        assert_eq!(ranked(found), [("root", 1), ("other", 0)]);
        // What the root does not explain stands for itself, below it.
        let found = vec![
            diagnosis("leaf", Certain, &[1, 4]),
            diagnosis("root", Likely, &[1]),
        ];
        assert_eq!(ranked(found), [("root", 1), ("leaf", 0)]);
    }

    #[test]
    fn the_surest_then_the_more_special_then_the_more_frequent_comes_first() {
        let found = vec![
            diagnosis("leaf", Likely, &[1]),
            diagnosis("other", Certain, &[5]),
            diagnosis("other", Certain, &[6, 7]),
            diagnosis("leaf", Certain, &[8, 9, 10]),
        ];
        let order: Vec<_> = rank(found, |_| &[], |code| usize::from(code == "leaf"))
            .into_iter()
            .map(|diagnosis| (diagnosis.code, diagnosis.failed))
            .collect();
        assert_eq!(
            order,
            [("other", 2), ("other", 1), ("leaf", 3), ("leaf", 1)]
        );
    }
}
