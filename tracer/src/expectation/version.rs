//! What the versions and modes of kube-proxy do differently, as one table.

use super::Proxy;

/// How kube-proxy writes what services need into the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mode {
    /// Virtual servers of IPVS.
    Ipvs,
    /// Chains of iptables, legacy or nft.
    Iptables,
    /// The table `kube-proxy` of nftables.
    Nftables,
}

/// Something that not every version does in every mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Habit {
    /// internalTrafficPolicy counts.
    InternalPolicy,
    /// An internalTrafficPolicy of Local binds clients from outside too, and means nothing where the
    /// externalTrafficPolicy is Local (k/k#105470).
    OnePolicyForAll,
    /// externalTrafficPolicy counts for externalIPs.
    ExternalIpPolicy,
    /// Without local endpoints a policy of Local sends to all of them, for clients of this node
    /// (k/k#97081).
    AllWithoutLocal,
    /// Without ready endpoints those serve that are going and still answer (k/k#110191).
    ServingTerminating,
    /// Hints of zones count (k/k#108747).
    ZoneHints,
    /// Hints of zones count whatever the service's annotations say (KEP-4444).
    ZoneHintsWithoutAnnotation,
    /// The annotation `topology-mode` counts, and any value but `disabled` (k/k#116522).
    TopologyMode,
    /// Hints of nodes count, before those of zones (KEP-3015).
    NodeHints,
    /// NodePorts answer on the sources of the kernel's local routes (k/k#75443).
    NodePortsOnRouteSources,
    /// NodePorts answer on no address that is a service's as well (k/k#114815, k/k#115019).
    NodePortsOffServiceAddresses,
    /// Without nodePortAddresses NodePorts answer on the primary addresses only.
    NodePortsOnPrimary,
    /// loadBalancerSourceRanges are in the rules that this program reads; in ipvs mode they are in an ipset.
    SourceRanges,
}

/// Minor versions in which a mode has a habit.
struct Row {
    habit: Habit,
    modes: &'static [Mode],
    /// First and last; the last is `NEWEST` while it lasts.
    versions: (u16, u16),
    /// The same where it could not be found out.
    doubtful: Option<(u16, u16)>,
    gate: Option<Gate>,
}

/// A feature gate that turns a habit on or off.
struct Gate {
    name: &'static str,
    /// First and last version in which it does so.
    versions: (u16, u16),
    /// From here on the habit is known where the gate is on; before, versions differ.
    known: u16,
}

const NEWEST: u16 = u16::MAX;
const RULES: &[Mode] = &[Mode::Iptables, Mode::Nftables];
const ALL: &[Mode] = &[Mode::Ipvs, Mode::Iptables, Mode::Nftables];

/// The table. Of a habit and mode that stand in no row, no version has it.
const TABLE: &[Row] = &[
    row(Habit::InternalPolicy, ALL, (22, NEWEST)),
    row(
        Habit::OnePolicyForAll,
        &[Mode::Ipvs, Mode::Iptables],
        (22, 23),
    ),
    row(Habit::ExternalIpPolicy, &[Mode::Ipvs], (22, NEWEST)),
    Row {
        doubtful: Some((0, 20)),
        ..row(Habit::ExternalIpPolicy, RULES, (21, NEWEST))
    },
    row(Habit::AllWithoutLocal, &[Mode::Ipvs], (21, NEWEST)),
    Row {
        // Before 1.26 it held for some traffic policies only, for which ones differs.
        gate: gate("ProxyTerminatingEndpoints", (22, 27), 26),
        ..row(Habit::ServingTerminating, ALL, (26, NEWEST))
    },
    Row {
        gate: gate("TopologyAwareHints", (21, 30), 24),
        ..row(Habit::ZoneHints, ALL, (24, NEWEST))
    },
    Row {
        gate: gate("ServiceTrafficDistribution", (30, 32), 30),
        ..row(Habit::ZoneHintsWithoutAnnotation, ALL, (31, NEWEST))
    },
    row(Habit::TopologyMode, ALL, (27, NEWEST)),
    Row {
        gate: gate("PreferSameTrafficDistribution", (33, 34), 33),
        ..row(Habit::NodeHints, ALL, (34, NEWEST))
    },
    row(Habit::NodePortsOnRouteSources, &[Mode::Ipvs], (0, 22)),
    row(Habit::NodePortsOffServiceAddresses, &[Mode::Ipvs], (23, 26)),
    Row {
        doubtful: Some((29, 30)),
        ..row(Habit::NodePortsOnPrimary, &[Mode::Nftables], (31, NEWEST))
    },
    row(Habit::SourceRanges, RULES, (0, NEWEST)),
];

const fn row(habit: Habit, modes: &'static [Mode], versions: (u16, u16)) -> Row {
    Row {
        habit,
        modes,
        versions,
        doubtful: None,
        gate: None,
    }
}

const fn gate(name: &'static str, versions: (u16, u16), known: u16) -> Option<Gate> {
    Some(Gate {
        name,
        versions,
        known,
    })
}

impl Mode {
    /// As in kube-proxy's configuration; not said, or empty, is its default. `None` for modes that are gone
    /// (`userspace`) or another system's.
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text.map_or("", str::trim) {
            "ipvs" => Some(Self::Ipvs),
            "iptables" | "" => Some(Self::Iptables),
            "nftables" => Some(Self::Nftables),
            _ => None,
        }
    }

    /// Of what it makes one for each address and port, in words that its address follows.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Ipvs => "virtual server",
            Self::Iptables => "iptables rule for",
            Self::Nftables => "nftables rule for",
        }
    }

    /// What holds it.
    pub const fn holder(self) -> &'static str {
        match self {
            Self::Ipvs => "IPVS",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

impl Proxy {
    /// Whether kube-proxy has a habit; `None` when its version decides and is not known.
    pub fn does(&self, habit: Habit) -> Option<bool> {
        let mut rows = TABLE
            .iter()
            .filter(|row| row.habit == habit && row.modes.contains(&self.mode));
        let Some(row) = rows.next() else {
            return Some(false);
        };
        let within = |(first, last): (u16, u16), minor| (first..=last).contains(&minor);
        let Some(minor) = self.minor else {
            return (row.versions == (0, NEWEST)).then_some(true);
        };
        if let Some(gate) = row
            .gate
            .as_ref()
            .filter(|gate| within(gate.versions, minor))
            && let Some(&on) = self.gates.get(gate.name)
        {
            return (!on || minor >= gate.known).then_some(on);
        }
        let doubtful = row.doubtful.is_some_and(|range| within(range, minor));
        (!doubtful).then(|| within(row.versions, minor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_habit_has_one_row_for_each_mode() {
        for (index, row) in TABLE.iter().enumerate() {
            let twice = TABLE[index + 1..].iter().any(|other| {
                other.habit == row.habit && other.modes.iter().any(|mode| row.modes.contains(mode))
            });
            assert!(!twice, "{:?}", row.habit);
        }
    }

    #[test]
    fn modes_are_read() {
        for (text, mode) in [
            (Some("ipvs"), Some(Mode::Ipvs)),
            (Some("iptables"), Some(Mode::Iptables)),
            (Some("nftables"), Some(Mode::Nftables)),
            (Some(""), Some(Mode::Iptables)),
            (None, Some(Mode::Iptables)),
            (Some("userspace"), None),
            (Some("kernelspace"), None),
        ] {
            assert_eq!(Mode::parse(text), mode, "{text:?}");
        }
    }
}
