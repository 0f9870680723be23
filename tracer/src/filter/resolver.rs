//! Looks up what an expression names: on this node, or wherever a capture was made.

use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::kube::{ClusterFacts, ObjectName};
use crate::node::{NetnsFacts, NetnsHandle};

/// Where a service answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Front {
    /// Its address; `None` for a port of every node.
    pub address: Option<IpAddr>,
    /// IP protocol number; `None` for every one.
    pub protocol: Option<u8>,
    /// Its port; `None` for all ports of the address.
    pub port: Option<u16>,
}

/// Gives names their meaning. An error says in words why a name has none.
pub trait Resolver {
    /// Addresses of a host's name.
    ///
    /// # Errors
    /// When it has none.
    fn host(&self, name: &str) -> Result<Vec<IpAddr>, String>;
    /// Inode number of a network namespace by its name.
    ///
    /// # Errors
    /// When there is none of that name.
    fn namespace(&self, name: &str) -> Result<u32, String>;
    /// Inode number of a process's network namespace.
    ///
    /// # Errors
    /// When there is no such process.
    fn process(&self, pid: u32) -> Result<u32, String>;
    /// Addresses of a pod.
    ///
    /// # Errors
    /// When it is not known or has none.
    fn pod(&self, name: &ObjectName) -> Result<Vec<IpAddr>, String>;
    /// Where a service answers.
    ///
    /// # Errors
    /// When it is not known or answers nowhere.
    fn service(&self, name: &ObjectName) -> Result<Vec<Front>, String>;
    /// Addresses of a node of the cluster.
    ///
    /// # Errors
    /// When it is not known or has none.
    fn node(&self, name: &str) -> Result<Vec<IpAddr>, String>;
}

/// Names as they are on this node now.
#[derive(Clone, Default, Debug)]
pub struct Here {
    /// The cluster's facts, where there are any.
    pub cluster: Option<Arc<ClusterFacts>>,
    /// Pods of this node with their addresses, as their processes tell: `p/namespace/name`.
    pub pods: Vec<(String, Vec<IpAddr>)>,
}

impl Here {
    /// Adds the pods whose namespaces are known; of a pod that was added before, its new addresses.
    pub fn add_pods(&mut self, namespaces: &[NetnsFacts]) {
        for facts in namespaces {
            let Some(name) = facts.pod_name() else {
                continue;
            };
            let known = self.pods.iter().position(|(known, _)| known == name);
            let at = known.unwrap_or_else(|| {
                self.pods.push((name.to_owned(), Vec::new()));
                self.pods.len() - 1
            });
            let addresses = &mut self.pods[at].1;
            for address in facts.pod_addresses() {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
    }

    fn cluster(&self) -> Result<&ClusterFacts, String> {
        self.cluster.as_deref().ok_or_else(|| {
            "no facts of the cluster are at hand to look this up; see `tracer cluster facts`".into()
        })
    }
}

impl Resolver for Here {
    fn host(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        let found = (name, 0)
            .to_socket_addrs()
            .map_err(|error| format!("no address is known for this name ({error})"))?;
        let mut addresses: Vec<_> = found.map(|address| address.ip()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }

    fn namespace(&self, name: &str) -> Result<u32, String> {
        let candidates = if name.contains('/') {
            vec![PathBuf::from(name)]
        } else {
            ["/run/netns", "/run/docker/netns"]
                .map(|folder| Path::new(folder).join(name))
                .into()
        };
        candidates
            .iter()
            .find_map(|path| NetnsHandle::from_path(path).ok())
            .map(|handle| handle.id().0)
            .ok_or_else(|| "no network namespace of this name; `ip netns` lists them".into())
    }

    fn process(&self, pid: u32) -> Result<u32, String> {
        NetnsHandle::from_pid(pid)
            .map(|handle| handle.id().0)
            .map_err(|error| format!("this process's network namespace cannot be read ({error})"))
    }

    fn pod(&self, name: &ObjectName) -> Result<Vec<IpAddr>, String> {
        let by_cluster = self.cluster().and_then(|facts| {
            facts
                .addresses_of_pod(name)
                .ok_or_else(|| "the cluster has no such pod, or it was not read".into())
        });
        let called = format!("p/{name}");
        let here = self.pods.iter().find(|(pod, _)| *pod == called);
        let addresses =
            by_cluster.or_else(|why| here.map(|(_, addresses)| addresses.clone()).ok_or(why))?;
        some(addresses, "this pod has no address yet")
    }

    fn service(&self, name: &ObjectName) -> Result<Vec<Front>, String> {
        let facts = self.cluster()?;
        let service = facts
            .service(name)
            .ok_or("the cluster has no such service")?;
        let mut fronts: Vec<_> = service
            .addresses()
            .map(|address| Front {
                address: Some(address),
                protocol: None,
                port: None,
            })
            .collect();
        fronts.extend(service.ports.iter().filter_map(|port| {
            Some(Front {
                address: None,
                protocol: Some(port.protocol),
                port: Some(port.node_port?),
            })
        }));
        some(
            fronts,
            "this service has no address of its own; name its pods with `pod`",
        )
    }

    fn node(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        let node = self
            .cluster()?
            .node(name)
            .ok_or("the cluster has no such node")?;
        let addresses = node.internal_ips.iter().chain(&node.external_ips);
        some(addresses.copied().collect(), "this node has no address")
    }
}

fn some<T>(found: Vec<T>, none: &str) -> Result<Vec<T>, String> {
    if found.is_empty() {
        Err(none.into())
    } else {
        Ok(found)
    }
}
