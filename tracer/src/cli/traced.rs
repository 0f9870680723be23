//! What is traced, as typed.

use clap::Args;

use super::cluster::{Connection, settled_facts};
use super::{Failure, value};
use crate::filter::{Expression, Here};
use crate::kernel::load::Options;
use crate::kube::{Cluster, ObjectName};
use crate::node::{Directory, NetnsFacts, Snapshot};

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Traced {
    /// Packets to trace, in tcpdump's words and `iface`, `netns`, `pid`, `pod`, `svc`, `node`; none for all.
    /// What belongs to a matching packet is traced as well, through NAT and in both directions. What `not`
    /// excludes is shown neither before nor behind NAT, though a capture may hold the side that matches.
    /// Example: udp port 53 and not host 192.0.2.1
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Trace only packets that match the filter themselves where they are.
    #[arg(long)]
    no_follow: bool,
    /// Ring buffer: 512K, 8M, 1GiB, rounded up to a power of two; a plain number is MiB.
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = value::buffer)]
    buffer: u32,
}

impl Traced {
    /// The filter, its names not yet looked up.
    pub(super) fn expression(&self) -> Result<Expression, Failure> {
        Expression::parse(&self.filter.join(" ")).map_err(|error| Failure::usage(error.to_string()))
    }

    /// What to load. A filter that names pods, services or nodes waits for the cluster, which is given
    /// back then.
    pub(super) fn resolve(
        &self,
        expression: Expression,
        connection: &Connection,
    ) -> Result<(Options, Option<Cluster>), Failure> {
        let mut cluster = None;
        let mut here = Here::default();
        if expression.names_cluster() {
            let pods = expression.pods();
            cluster = connection.start_unprivileged(pods.clone())?;
            here.cluster = cluster.as_ref().and_then(settled_facts);
            here.add_pods(&namespaces_of(&pods));
        }
        let filter = expression
            .resolve(&here)
            .map_err(|error| Failure::usage(error.to_string()))?;
        let options = Options {
            ring_bytes: self.buffer,
            follow: !self.no_follow,
            filter,
            ..Options::default()
        };
        Ok((options, cluster))
    }
}

/// Namespaces of this node's pods of these names, as their processes tell.
fn namespaces_of(pods: &[ObjectName]) -> Vec<NetnsFacts> {
    if pods.is_empty() {
        return Vec::new();
    }
    let directory = Directory::find();
    let called: Vec<_> = pods.iter().map(|pod| format!("p/{pod}")).collect();
    let mut ids = directory.ids();
    ids.retain(|&id| directory.pod(id).is_some_and(|name| called.contains(&name)));
    Snapshot::take(&directory, &ids).namespaces
}
