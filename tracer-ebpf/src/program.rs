//! The match program: a filter expression as both sides run it.
//!
//! A flat list of tests, each with two jumps, laid out so that jumps only lead forward: a run ends
//! after at most [`MOST_INSTRUCTIONS`] steps whatever the list holds. The kernel runs it over the
//! [`Key`] of an skb, userspace over the key of a captured packet, by the same [`Program::matches`].
//!
//! Absent on purpose: following. A program says whether one key matches; what else belongs to the same
//! packet or flow is decided where the history is (`filter` in the programs and in userspace).

use core::hint::black_box;
use core::mem::{offset_of, size_of, swap};

/// Most tests of one program.
pub const MOST_INSTRUCTIONS: usize = 32;

/// Jump target: the packet matches.
pub const ACCEPT: u8 = 0xff;
/// Jump target: the packet does not match.
pub const REJECT: u8 = 0xfe;

/// Network protocols, as bits: those of a packet (one bit), or those that a test allows.
pub mod network {
    /// IPv4.
    pub const IPV4: u8 = 1 << 0;
    /// IPv6.
    pub const IPV6: u8 = 1 << 1;
    /// ARP.
    pub const ARP: u8 = 1 << 2;
}

/// Which end of a packet a test looks at, as bits.
pub mod side {
    /// The source.
    pub const SOURCE: u8 = 1 << 0;
    /// The destination.
    pub const DESTINATION: u8 = 1 << 1;
    /// One of both.
    pub const EITHER: u8 = SOURCE | DESTINATION;
}

/// What [`Instruction::kind`] may be.
pub mod kind {
    /// The network protocol is one of `networks`.
    pub const NETWORK: u8 = 0;
    /// An address, masked, is `value`.
    pub const ADDRESS: u8 = 1;
    /// A port is within `low..=high`; of `protocol`, or of any with ports where that is 0.
    pub const PORT: u8 = 2;
    /// The transport protocol is `protocol`.
    pub const PROTOCOL: u8 = 3;
    /// The device's name is `value`.
    pub const INTERFACE: u8 = 4;
    /// The inode number of the network namespace is `netns`.
    pub const NAMESPACE: u8 = 5;
}

/// One test.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instruction {
    /// See [`kind`].
    pub kind: u8,
    /// See [`side`]; for addresses and ports.
    pub side: u8,
    /// See [`network`]; a packet of another network protocol does not pass the test. Zero for tests
    /// that do not look at the packet.
    pub networks: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Where to go when the test holds: a later index, [`ACCEPT`] or [`REJECT`].
    pub on_match: u8,
    /// Where to go when it does not.
    pub on_miss: u8,
    /// Lowest port, host order.
    pub low: u16,
    /// Highest port, host order.
    pub high: u16,
    /// 1 under an odd number of `not`, for [`Program::matches_one_of`].
    pub negated: u16,
    /// Inode number of a namespace.
    pub netns: u32,
    /// An address, IPv4 in the first four bytes, or a device's name; both with zeros behind.
    pub value: [u64; 2],
    /// Bits of the address that count; `value` has no others.
    pub mask: [u64; 2],
}

/// What a program looks at.
///
/// A field that does not apply or could not be read is zero, which no test asks for: there is no
/// namespace 0, no network 0, and ports count only with `has_ports`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Key {
    /// Source address, IPv4 in the first four bytes; the sender of ARP.
    pub source: [u64; 2],
    /// Destination address; the target of ARP.
    pub destination: [u64; 2],
    /// Name of the device that the packet is at, with zeros behind.
    pub interface: [u64; 2],
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Host order; the identifier of an ICMP echo, without `has_ports`.
    pub source_port: u16,
    /// Host order; as `source_port` for ICMP echo.
    pub destination_port: u16,
    /// IP protocol number; that behind a fragment header for IPv6.
    pub protocol: u8,
    /// A bit of [`network`].
    pub network: u8,
    /// 1 for TCP, UDP and SCTP where this packet, not an earlier fragment, has the ports.
    pub has_ports: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

impl Key {
    /// Makes it that of a packet that goes the other way.
    #[inline(always)]
    pub const fn exchange(&mut self) {
        swap(&mut self.source, &mut self.destination);
        swap(&mut self.source_port, &mut self.destination_port);
    }
}

/// A compiled filter. One without instructions matches everything.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Program {
    /// Number of instructions in use.
    pub length: u32,
    /// Zero.
    pub reserved: u32,
    /// The tests; the first one begins.
    pub instructions: [Instruction; MOST_INSTRUCTIONS],
}

impl Program {
    /// Matches everything.
    pub const EVERYTHING: Self = Self {
        length: 0,
        reserved: 0,
        instructions: [Instruction::NEVER; MOST_INSTRUCTIONS],
    };

    /// True when the key matches.
    #[inline(always)]
    pub fn matches(&self, key: &Key) -> bool {
        self.run(&Alone { key })
    }

    /// True when one of the keys that are known of a packet matches, in either direction. Addresses, ports
    /// and places under `not` may be in none of them: behind NAT nearly every packet has some without.
    pub fn matches_one_of(&self, keys: &[Key]) -> bool {
        let matches = |key, exchanged| {
            self.run(&|test: &Instruction| {
                if test.negated != 0 && test.changes_on_the_way() {
                    test.holds_for_one_of(keys)
                } else {
                    test.holds(key, exchanged)
                }
            })
        };
        keys.iter()
            .any(|key| matches(key, false) || matches(key, true))
    }

    /// True when a packet of which these keys are known cannot match, whatever else becomes known of it.
    pub fn leaves_out(&self, keys: &[Key]) -> bool {
        !self.run(&|test: &Instruction| {
            test.negated == 0 || test.changes_on_the_way() && test.holds_for_one_of(keys)
        })
    }

    #[inline(always)]
    fn run(&self, look: &impl Look) -> bool {
        if self.length == 0 {
            return true;
        }
        let mut at = 0_usize;
        // The count, not the jumps, shows the kernel's verifier that this ends.
        for _ in 0..MOST_INSTRUCTIONS {
            let Some(instruction) = self.instructions.get(at) else {
                return false;
            };
            let next = if look.holds(instruction) {
                instruction.on_match
            } else {
                instruction.on_miss
            };
            if next >= REJECT {
                return next == ACCEPT;
            }
            at = next as usize;
        }
        false
    }

    /// The instructions in use.
    pub fn used(&self) -> &[Instruction] {
        let length = (self.length as usize).min(MOST_INSTRUCTIONS);
        &self.instructions[..length]
    }
}

/// How a test is answered.
trait Look {
    fn holds(&self, test: &Instruction) -> bool;
}

impl<F: Fn(&Instruction) -> bool> Look for F {
    fn holds(&self, test: &Instruction) -> bool {
        self(test)
    }
}

/// By one key; no closure, since the kernel's programs need it without a call.
struct Alone<'a> {
    key: &'a Key,
}

impl Look for Alone<'_> {
    #[inline(always)]
    fn holds(&self, test: &Instruction) -> bool {
        // Or all of the key would be read before the loop, for which a kernel program has no stack.
        test.holds(black_box(self.key), false)
    }
}

impl Instruction {
    /// Holds for nothing.
    pub const NEVER: Self = Self {
        kind: kind::NETWORK,
        side: 0,
        networks: 0,
        protocol: 0,
        on_match: REJECT,
        on_miss: REJECT,
        low: 0,
        high: 0,
        negated: 0,
        netns: 0,
        value: [0; 2],
        mask: [0; 2],
    };

    /// True when this one test holds; with `exchanged`, for the packet that goes the other way.
    #[inline(always)]
    fn holds(&self, key: &Key, exchanged: bool) -> bool {
        match self.kind {
            kind::INTERFACE => return same(&key.interface, &self.value),
            kind::NAMESPACE => return key.netns == self.netns,
            _ => {}
        }
        if key.network & self.networks == 0 {
            return false;
        }
        let (source, destination) = if exchanged {
            (side::DESTINATION, side::SOURCE)
        } else {
            (side::SOURCE, side::DESTINATION)
        };
        let (source, destination) = (self.side & source != 0, self.side & destination != 0);
        match self.kind {
            kind::NETWORK => true,
            kind::PROTOCOL => {
                key.protocol == self.protocol && key.network & (network::IPV4 | network::IPV6) != 0
            }
            kind::ADDRESS => {
                (source && self.covers(&key.source))
                    || (destination && self.covers(&key.destination))
            }
            kind::PORT => {
                key.has_ports != 0
                    && (self.protocol == 0 || self.protocol == key.protocol)
                    && ((source && self.within(key.source_port))
                        || (destination && self.within(key.destination_port)))
            }
            _ => false,
        }
    }

    /// What it looks at may be another at each hook, and on both sides of NAT.
    const fn changes_on_the_way(&self) -> bool {
        !matches!(self.kind, kind::NETWORK | kind::PROTOCOL)
    }

    /// True when this test holds for one of the keys, in either direction.
    fn holds_for_one_of(&self, keys: &[Key]) -> bool {
        keys.iter()
            .any(|key| self.holds(key, false) || self.holds(key, true))
    }

    #[inline(always)]
    fn covers(&self, address: &[u64; 2]) -> bool {
        (address[0] & self.mask[0]) ^ self.value[0] | (address[1] & self.mask[1]) ^ self.value[1]
            == 0
    }

    #[inline(always)]
    fn within(&self, port: u16) -> bool {
        self.low <= port && port <= self.high
    }
}

#[inline(always)]
fn same(one: &[u64; 2], two: &[u64; 2]) -> bool {
    (one[0] ^ two[0]) | (one[1] ^ two[1]) == 0
}

const _: () = {
    assert!(size_of::<Instruction>() == 16 + 2 * 16);
    assert!(offset_of!(Instruction, value) == 16);
    assert!(size_of::<Program>() == 8 + MOST_INSTRUCTIONS * size_of::<Instruction>());
    assert!(size_of::<Key>() == 3 * 16 + 4 + 2 * 2 + 3 + 5);
    assert!(MOST_INSTRUCTIONS < REJECT as usize);
};
