//! What a filter's names meant where a capture was made.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use super::reader::{ReadError, Reader};
use super::record::Record;
use crate::filter::{Front, Here, Resolver};
use crate::kube::{ClusterFacts, ObjectName};
use crate::node::{NetnsId, Snapshot};

/// Names as they were where a capture was made.
#[derive(Clone, Default, Debug)]
pub struct There {
    /// Namespaces by their names; of the same name the one seen first.
    namespaces: Vec<(String, NetnsId)>,
    /// The cluster's facts and pods' addresses need no node to be looked up in.
    cluster: Here,
}

impl There {
    /// Reads the names that a capture holds, up to its end or to the first damage.
    ///
    /// # Errors
    /// When it cannot be opened, or is no capture.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let mut reader = Reader::open(path)?;
        let mut there = Self::default();
        // What is behind damage is not read by the replay either.
        while let Ok(Some(record)) = reader.next() {
            match record {
                Record::Facts(reading) => there.add(&reading.facts),
                // Its names still say what they meant when the facts hold no longer.
                Record::Cluster(Some(facts)) => there.know(facts),
                _ => {}
            }
        }
        Ok(there)
    }

    fn add(&mut self, facts: &Snapshot) {
        self.cluster.add_pods(&facts.namespaces);
        for namespace in &facts.namespaces {
            let Some(name) = &namespace.name else {
                continue;
            };
            if !self.namespaces.iter().any(|(known, _)| known == name) {
                self.namespaces.push((name.clone(), namespace.id));
            }
        }
    }

    fn cluster(&self) -> Result<&Here, String> {
        if self.cluster.cluster.is_none() {
            return Err("the capture holds no facts of a cluster; give addresses".into());
        }
        Ok(&self.cluster)
    }

    fn know(&mut self, facts: Arc<ClusterFacts>) {
        self.cluster.cluster = Some(facts);
    }
}

impl Resolver for There {
    fn host(&self, _name: &str) -> Result<Vec<IpAddr>, String> {
        Err("a capture holds no names of hosts; give the address".into())
    }

    fn namespace(&self, name: &str) -> Result<u32, String> {
        self.namespaces
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, id)| id.0)
            .ok_or_else(|| "the capture has no network namespace of this name".into())
    }

    fn process(&self, _pid: u32) -> Result<u32, String> {
        Err("a capture does not say in which namespace a process was; use netns".into())
    }

    fn pod(&self, name: &ObjectName) -> Result<Vec<IpAddr>, String> {
        // The node tells its own pods' addresses without a cluster.
        let found = self.cluster.pod(name);
        found.map_err(|why| self.cluster().err().unwrap_or(why))
    }

    fn service(&self, name: &ObjectName) -> Result<Vec<Front>, String> {
        self.cluster()?.service(name)
    }

    fn node(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        self.cluster()?.node(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Expression;
    use crate::node::{Address, NetnsFacts};

    #[test]
    fn a_capture_without_a_cluster_says_that_it_has_none() {
        for words in ["pod a/b", "svc a/b", "node a"] {
            let expression = Expression::parse(words).expect("a filter");
            let refused = expression.resolve(&There::default()).err();
            let said = refused.map(|error| error.to_string()).unwrap_or_default();
            assert!(said.contains("the capture holds no facts"), "{said}");
        }
    }

    #[test]
    fn a_pod_of_the_node_is_found_without_a_cluster_once_it_has_an_address() {
        let mut pod = NetnsFacts::unread(NetnsId(1), Some("p/a/b"));
        pod.is_pod = true;
        let address: IpAddr = [192, 0, 2, 7].into();
        pod.addresses = vec![Address::global(2, address, 24)];
        let mut early = pod.clone();
        early.addresses.clear();
        let mut there = There::default();
        for reading in [early, pod] {
            let mut facts = Snapshot::empty();
            facts.namespaces.push(reading);
            there.add(&facts);
        }
        let found = there.pod(&ObjectName::new("a", "b"));
        assert_eq!(found, Ok(vec![address]));
    }
}
