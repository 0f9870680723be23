//! Names for numbers, and wall times for the kernel's.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::event::NetfilterHook;
use crate::journey::{Ending, Journey, Loss};
use crate::kernel::reasons::DropReasons;
use crate::kernel::symbols::Symbols;
use crate::kube::{Claim, ClusterFacts};
use crate::node::{NetnsFacts, NetnsId, Snapshot};
use crate::ruling::{self, Ruling};

/// Turns the kernel's clock into the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall: SystemTime,
    monotonic_ns: u64,
}

impl Clock {
    /// Reads both clocks now.
    pub fn now() -> Self {
        Self {
            wall: SystemTime::now(),
            monotonic_ns: monotonic_ns(),
        }
    }

    /// Both clocks at one moment, as they were recorded.
    pub const fn recorded(wall: SystemTime, monotonic_ns: u64) -> Self {
        Self { wall, monotonic_ns }
    }

    /// Both clocks at one moment, nanoseconds.
    pub fn both_ns(&self) -> (u64, u64) {
        (self.wall_ns(self.monotonic_ns), self.monotonic_ns)
    }

    /// Nanoseconds since 1970 of a kernel time.
    pub fn wall_ns(&self, monotonic_ns: u64) -> u64 {
        self.wall(monotonic_ns)
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64)
    }

    /// Kernel time of nanoseconds since 1970.
    pub fn monotonic(&self, wall_ns: u64) -> u64 {
        let base = self.wall_ns(self.monotonic_ns);
        self.monotonic_ns.wrapping_add(wall_ns.wrapping_sub(base))
    }

    /// Wall time of a kernel time.
    pub fn wall(&self, monotonic_ns: u64) -> SystemTime {
        let (before, after) = (
            self.monotonic_ns.saturating_sub(monotonic_ns),
            monotonic_ns.saturating_sub(self.monotonic_ns),
        );
        self.wall - Duration::from_nanos(before) + Duration::from_nanos(after)
    }
}

/// CLOCK_MONOTONIC, as `bpf_ktime_get_ns` counts it.
pub fn monotonic_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| Duration::from(time).as_nanos() as u64)
}

/// What is needed to put names on numbers.
pub struct Names<'a> {
    /// Devices, namespaces and virtual servers.
    pub facts: &'a Snapshot,
    /// Drop reasons of this kernel.
    pub reasons: &'a DropReasons,
    /// Code addresses of this kernel.
    pub symbols: &'a Symbols,
    /// Times.
    pub clock: Clock,
    /// Services, pods and nodes, where a cluster is known.
    pub cluster: Option<&'a ClusterFacts>,
}

/// Addresses of a namespace that are looked up to name it: service addresses come last, in thousands.
const LOOKED_UP: usize = 64;

const REFUSED_WITH_RST: &str = "refused with RST";
const REFUSED_WITH_ICMP: &str = "refused with an ICMP error";

impl Names<'_> {
    /// A device's name, or its number where no fact names it.
    pub fn device(&self, netns: Option<u32>, ifindex: u32) -> String {
        netns
            .and_then(|netns| self.facts.namespace(NetnsId(netns)))
            .and_then(|facts| facts.link(ifindex))
            .map_or_else(|| format!("if{ifindex}"), |link| link.name.clone())
    }

    /// A namespace's name: its pod or node, else what its file is called, else its inode number.
    pub fn namespace(&self, netns: u32) -> String {
        let facts = self.facts.namespace(NetnsId(netns));
        facts
            .and_then(|facts| self.owner(facts))
            .or_else(|| facts?.name.clone())
            .unwrap_or_else(|| format!("netns {netns}"))
    }

    /// The pod or node whose addresses a namespace carries.
    fn owner(&self, facts: &NetnsFacts) -> Option<String> {
        let cluster = self.cluster?;
        facts.addresses.iter().take(LOOKED_UP).find_map(|found| {
            match cluster.claims(found.address).next()? {
                Claim::Node(name) => Some(format!("n/{name}")),
                Claim::Pod(name) => Some(format!("p/{name}")),
                Claim::Service(_) => None,
            }
        })
    }

    /// What people call an address and port: `s/namespace/service:port`, `p/namespace/pod`, `n/node`. Pods of
    /// this node have their names without the cluster's facts as well.
    pub fn endpoint(&self, protocol: u8, address: SocketAddr) -> Option<String> {
        let by_cluster = self
            .cluster
            .and_then(|cluster| cluster.name(self.facts, protocol, address));
        by_cluster.or_else(|| self.facts.pod_at(address.ip()).map(str::to_owned))
    }

    /// An address and port, its name before it where it has one.
    pub fn named(&self, protocol: u8, address: SocketAddr) -> String {
        named(
            self.endpoint(protocol, address).as_deref(),
            &address.to_string(),
        )
    }

    /// The hook and rule that ended a packet, where rules did and are known.
    pub fn ruling(&self, journey: &Journey) -> Option<(NetfilterHook, Ruling<'_>)> {
        let Ending::Dropped { location, reason } = journey.ending else {
            return None;
        };
        let reason = reason.and_then(|reason| self.reasons.name(reason));
        let by_netfilter = ruling::by_netfilter(reason, self.symbols.name(location));
        let filtered = ruling::filtered(journey, by_netfilter)?;
        let facts = self.facts.namespace(filtered.netns)?;
        Some((filtered.hook, ruling::judge(journey, filtered, facts)?))
    }

    /// Why a packet did not arrive, in few words: bounded in number, for counts.
    pub fn loss(&self, loss: Loss) -> String {
        match loss {
            Loss::Dropped { location, reason } => self.drop(location, reason),
            Loss::Reset => REFUSED_WITH_RST.into(),
            Loss::IcmpError => REFUSED_WITH_ICMP.into(),
            Loss::NoRoute => "no route".into(),
        }
    }

    /// How a packet's way ended, in words.
    pub fn ending(&self, journey: &Journey) -> String {
        match journey.ending {
            _ if journey.was_reset() => REFUSED_WITH_RST.into(),
            _ if journey.rejected() => REFUSED_WITH_ICMP.into(),
            Ending::Delivered => "delivered".into(),
            Ending::Dropped { location, reason } => {
                let what = if journey.was_only_freed() {
                    "freed"
                } else {
                    "dropped"
                };
                format!("{what}: {}", self.drop(location, reason))
            }
            Ending::Reassembled => "put together".into(),
            Ending::ForAnotherHost => "for another host".into(),
            Ending::Transmitted => "sent".into(),
            Ending::OutOfSight => "out of sight".into(),
        }
    }

    /// A drop: the kernel's reason, else the function that dropped.
    pub fn drop(&self, location: u64, reason: Option<u32>) -> String {
        let named = reason
            .and_then(|reason| self.reasons.name(reason))
            .filter(|name| *name != "NOT_SPECIFIED");
        named.map_or_else(
            || {
                self.symbols
                    .name(location)
                    .map_or_else(|| "unknown place".into(), |name| format!("in {name}"))
            },
            str::to_owned,
        )
    }
}

/// An address with its name before it.
pub(super) fn named(name: Option<&str>, address: &str) -> String {
    name.map_or_else(|| address.to_owned(), |name| format!("{name} {address}"))
}
