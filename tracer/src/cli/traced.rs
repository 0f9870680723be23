//! What is traced, as typed.

use clap::Args;

use super::cluster::{Connection, settled_facts};
use super::{Failure, value};
use crate::filter::{Expression, Here};
use crate::kernel::load::Options;
use crate::kube::Cluster;

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Traced {
    /// Packets to trace, in tcpdump's words and `iface`, `netns`, `pid`, `pod`, `svc`, `node`; none for all.
    /// What belongs to a matching packet is traced as well, through NAT and in both directions.
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
            cluster = connection.start_unprivileged(expression.pods())?;
            here.cluster = cluster.as_ref().and_then(settled_facts);
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
