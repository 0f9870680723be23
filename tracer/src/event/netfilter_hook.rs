//! Where netfilter may end a packet.

use serde::{Deserialize, Serialize};

/// Netfilter hooks: those of the IP families, and those in front of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "Words", into = "Words")]
pub enum NetfilterHook {
    /// Before routing.
    PreRouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    PostRouting,
    /// A bridge, from a port, before it is known where to.
    BridgePreRouting,
    /// A bridge, from a port to this host.
    BridgeInput,
    /// A bridge, from one port to another.
    BridgeForward,
    /// A bridge, from this host to a port.
    BridgeOutput,
    /// A bridge, out of a port.
    BridgePostRouting,
    /// A device, before everything else.
    Ingress,
    /// A device, after everything else.
    Egress,
    /// Another family's (ARP).
    Other,
}

/// A hook in a capture: a word that every version of the tracer knows, and what later ones know besides.
#[derive(Serialize, Deserialize)]
struct Words {
    hook: Word,
    /// Of a hook in front of IP, as [`NetfilterHook::number`] gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hook_number: Option<u8>,
}

/// In the kernel's order.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Word {
    PreRouting,
    Input,
    Forward,
    Output,
    PostRouting,
    Other,
}

impl From<NetfilterHook> for Words {
    fn from(hook: NetfilterHook) -> Self {
        let word = match hook {
            NetfilterHook::PreRouting => Word::PreRouting,
            NetfilterHook::Input => Word::Input,
            NetfilterHook::Forward => Word::Forward,
            NetfilterHook::Output => Word::Output,
            NetfilterHook::PostRouting => Word::PostRouting,
            _ => Word::Other,
        };
        let known = hook.is_of_ip() || hook == NetfilterHook::Other;
        Self {
            hook: word,
            hook_number: (!known).then(|| hook.number()),
        }
    }
}

impl From<Words> for NetfilterHook {
    fn from(words: Words) -> Self {
        Self::from_number(words.hook_number.unwrap_or(words.hook as u8))
    }
}

/// Where a bridge's numbers begin in [`NetfilterHook::number`].
const BRIDGE: u8 = 16;
/// Where a device's do.
const DEVICE: u8 = 32;

impl NetfilterHook {
    /// From the kernel's numbers of a family (`NFPROTO_*`) and of a hook in it (`NF_INET_*`, `NF_BR_*`, `NF_NETDEV_*`).
    pub const fn of_family(family: u8, hook: u8) -> Self {
        match (family, hook) {
            // Rules of inet may sit at a device as well.
            (1, 5) => Self::Ingress,
            (1 | 2 | 10, ..=4) => Self::from_number(hook),
            (7, ..=4) => Self::from_number(BRIDGE + hook),
            (5, ..=1) => Self::from_number(DEVICE + hook),
            _ => Self::Other,
        }
    }

    /// From the number that [`NetfilterHook::number`] gives.
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::PreRouting,
            1 => Self::Input,
            2 => Self::Forward,
            3 => Self::Output,
            4 => Self::PostRouting,
            16 => Self::BridgePreRouting,
            17 => Self::BridgeInput,
            18 => Self::BridgeForward,
            19 => Self::BridgeOutput,
            20 => Self::BridgePostRouting,
            32 => Self::Ingress,
            33 => Self::Egress,
            _ => Self::Other,
        }
    }

    /// A number for each; of the IP families it is the kernel's (`NF_INET_*`).
    pub const fn number(self) -> u8 {
        match self {
            Self::PreRouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::PostRouting => 4,
            Self::BridgePreRouting => BRIDGE,
            Self::BridgeInput => BRIDGE + 1,
            Self::BridgeForward => BRIDGE + 2,
            Self::BridgeOutput => BRIDGE + 3,
            Self::BridgePostRouting => BRIDGE + 4,
            Self::Ingress => DEVICE,
            Self::Egress => DEVICE + 1,
            Self::Other => u8::MAX,
        }
    }

    /// A hook of the IP families.
    pub const fn is_of_ip(self) -> bool {
        self.number() < BRIDGE
    }

    /// The chain's usual name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PreRouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::PostRouting => "postrouting",
            Self::BridgePreRouting => "bridge prerouting",
            Self::BridgeInput => "bridge input",
            Self::BridgeForward => "bridge forward",
            Self::BridgeOutput => "bridge output",
            Self::BridgePostRouting => "bridge postrouting",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Other => "netfilter",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_of_all_families_are_told_apart() {
        let families = [2, 5, 7, 10].map(|family| {
            let hooks = (0..8).map(|hook| NetfilterHook::of_family(family, hook));
            let known = hooks.filter(|&hook| hook != NetfilterHook::Other);
            known.collect::<Vec<_>>()
        });
        assert_eq!(families.each_ref().map(Vec::len), [5, 2, 5, 5]);
        assert_eq!(families[0], families[3], "IPv4 and IPv6");
        let mut names: Vec<_> = families.iter().flatten().map(|hook| hook.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 12);
        for &hook in families.iter().flatten() {
            assert_eq!(NetfilterHook::from_number(hook.number()), hook);
            let words = serde_json::to_value(hook).expect("words");
            assert_eq!(
                serde_json::from_value::<NetfilterHook>(words).ok(),
                Some(hook)
            );
        }
    }

    #[test]
    fn versions_before_the_hooks_in_front_of_ip_read_their_word() {
        for (hook, words) in [
            (
                NetfilterHook::Forward,
                serde_json::json!({"hook": "Forward"}),
            ),
            (NetfilterHook::Other, serde_json::json!({"hook": "Other"})),
            (
                NetfilterHook::BridgeOutput,
                serde_json::json!({"hook": "Other", "hook_number": 19}),
            ),
        ] {
            assert_eq!(serde_json::to_value(hook).expect("words"), words);
        }
    }
}
