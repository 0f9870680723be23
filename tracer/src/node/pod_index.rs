//! Which namespace of a pod has an address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::OnceLock;

use super::NetnsFacts;

/// Made when it is first asked; a copy makes its own, since it may be changed.
#[derive(Default, Debug)]
pub(super) struct PodIndex(OnceLock<HashMap<IpAddr, Option<usize>>>);

impl PodIndex {
    /// The place among the namespaces; `None` when no pod has the address, or several have it.
    pub(super) fn place(&self, namespaces: &[NetnsFacts], address: IpAddr) -> Option<usize> {
        let found = self.0.get_or_init(|| index(namespaces));
        found.get(&address).copied().flatten()
    }
}

impl Clone for PodIndex {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// It follows from the namespaces.
impl PartialEq for PodIndex {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for PodIndex {}

fn index(namespaces: &[NetnsFacts]) -> HashMap<IpAddr, Option<usize>> {
    let mut found = HashMap::new();
    for (place, facts) in namespaces.iter().enumerate() {
        for address in facts.pod_addresses() {
            found
                .entry(address)
                .and_modify(|known| {
                    if *known != Some(place) {
                        *known = None;
                    }
                })
                .or_insert(Some(place));
        }
    }
    found
}
