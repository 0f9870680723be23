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

#[cfg(test)]
mod tests {
    use super::super::{Address, NetnsId};
    use super::*;

    fn namespace(id: u32, is_pod: bool, addresses: &[&str]) -> NetnsFacts {
        let mut facts = NetnsFacts::unread(NetnsId(id), Some("a name"));
        facts.is_pod = is_pod;
        facts.addresses = addresses
            .iter()
            .map(|address| Address::global(2, address.parse().expect("an address"), 24))
            .collect();
        facts
    }

    #[test]
    fn an_address_of_one_pod_leads_to_it() {
        let namespaces = [
            namespace(1, false, &["192.0.2.1"]),
            namespace(
                2,
                true,
                &["127.0.0.1", "10.244.0.7", "10.244.0.7", "fe80::7"],
            ),
            namespace(3, true, &["10.244.0.8", "10.244.0.9"]),
            namespace(4, true, &["10.244.0.9"]),
            namespace(5, true, &["10.244.0.9"]),
        ];
        let index = PodIndex::default();
        for (address, place) in [
            ("10.244.0.7", Some(1)),
            ("10.244.0.8", Some(2)),
            // Several have it.
            ("10.244.0.9", None),
            // No pod's, or one that every pod has.
            ("192.0.2.1", None),
            ("127.0.0.1", None),
            ("fe80::7", None),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(index.place(&namespaces, address), place, "{address}");
        }
    }
}
