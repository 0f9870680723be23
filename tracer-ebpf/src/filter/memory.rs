//! What a CPU remembers of the decisions about the skbs that it saw last; see the invariants of `filter`.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use network_types::eth::EtherType;
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::{Field, filter};

use super::headers::may_be_ip;
use super::{FOLLOWED, IN_TUNNEL, UNLEARNED, reads_place};
use crate::read::{self, Skb};

/// Decisions about the skbs last seen on this CPU.
#[map]
static REMEMBERED: PerCpuArray<Remembered> = PerCpuArray::with_max_entries(1, 0);

/// In [`Remembered::followed`]: the packet may have ended, and another may begin in its skb. No address is odd.
const MAY_HAVE_ENDED: u64 = 1;

/// Each word but the last is the address of the skb that it holds for; 0 for none.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Remembered {
    followed: u64,
    not_followed: u64,
    /// Its present addresses are neither matched nor kept in [`FLOWS`].
    unlearned: u64,
    /// It is a tunnel's packet around followed ones: its addresses stand for others too.
    tunnel: u64,
    /// It was handed to a device.
    transmitted: u64,
    /// Where the program asks for device names: the device at which it was not followed. The one word that
    /// is no skb's: an interrupt between the two writes may leave another packet's, which nearly always
    /// leads to a new decision.
    device: u64,
}

impl Remembered {
    /// Remembers a decision about an skb, whose EtherType and device these are; true when it is followed.
    #[inline(always)]
    pub fn decided(&mut self, decision: u32, skb: u64, protocol: u16, device: u64) -> bool {
        if decision & FOLLOWED == 0 {
            // What is not IP may end at no hook, and what begins in its skb then is asked about anew; so is what
            // a tag hid.
            self.not_followed = if may_be_ip(protocol) { skb } else { 0 };
            if read::filter(filter::INTERFACE) {
                self.device = device;
            }
            // A hook that trusts the one does not ask for the other.
            self.follow_no_more(skb);
            clear(&mut self.transmitted, skb);
            return false;
        }
        clear(&mut self.not_followed, skb);
        clear(&mut self.transmitted, skb);
        self.followed = skb;
        if may_vanish(protocol) {
            may_have_ended(&mut self.followed);
        }
        if decision & UNLEARNED == 0 {
            clear(&mut self.unlearned, skb);
        } else {
            self.unlearned = skb;
        }
        if decision & IN_TUNNEL == 0 {
            clear(&mut self.tunnel, skb);
        } else {
            self.tunnel = skb;
        }
        true
    }

    /// True, once, when the packet's addresses are to be kept as a followed flow's.
    #[inline(always)]
    pub fn learns(&mut self, skb: u64) -> bool {
        if self.unlearned != skb {
            return false;
        }
        self.unlearned = 0;
        self.tunnel != skb
    }

    #[inline(always)]
    fn follow_no_more(&mut self, skb: u64) {
        if without_mark(&self.followed) == skb {
            self.followed = 0;
        }
    }
}

/// What is known of an skb before it is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Nothing yet.
    Unknown,
    /// It is followed.
    Followed,
    /// It is not.
    NotFollowed,
    /// It is not by what it says itself; its conntrack entry has not been asked.
    NotByItself,
}

/// How far a hook trusts what is remembered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// A packet begins here.
    None,
    /// Its conntrack entry has become known: what was not followed may be.
    Followed,
    /// A packet may begin here, and then the skb was transmitted or never seen.
    Untransmitted,
    /// Nothing changed since the last hook.
    Both,
}

#[inline(always)]
pub const fn trust(hook: HookId) -> Trust {
    match hook {
        HookId::DeviceReceive | HookId::LocalOut | HookId::Local6Out => Trust::None,
        HookId::ConntrackTcp
        | HookId::ConntrackUdp
        | HookId::ConntrackIcmp
        | HookId::ConntrackIcmp6
        | HookId::Nat => Trust::Followed,
        // IPv6's neighbour discovery and multicast reports begin at the latter two.
        HookId::DeviceTransmit | HookId::NetfilterHook | HookId::Output6 => Trust::Untransmitted,
        _ => Trust::Both,
    }
}

/// What this CPU remembers; looked up once in a run, since each look-up is a call.
#[inline(always)]
pub fn remembered() -> Option<&'static mut Remembered> {
    // SAFETY: this CPU's own slot; each word is true by itself, whatever an interrupt writes in between.
    REMEMBERED.get_ptr_mut(0).map(|slot| unsafe { &mut *slot })
}

/// What is remembered of an skb, as far as the hook may trust it.
#[inline(always)]
pub fn known(hook: HookId, skb: u64, remembered: &Remembered) -> Known {
    let trust = trust(hook);
    if trust == Trust::None {
        return Known::Unknown;
    }
    if trust == Trust::Untransmitted && remembered.transmitted == skb {
        return Known::Unknown;
    }
    if remembered.not_followed == skb {
        if trust != Trust::Followed {
            return if read::filter(filter::INTERFACE)
                && read::field::<u64>(skb, Field::SkbDev) != remembered.device
            {
                Known::Unknown
            } else {
                Known::NotFollowed
            };
        }
        // What the program asks of the place has to be read again.
        return if reads_place() || !read::filter(filter::FOLLOW) {
            Known::Unknown
        } else {
            Known::NotByItself
        };
    }
    if remembered.followed == skb
        || trust == Trust::Both && without_mark(&remembered.followed) == skb
    {
        return Known::Followed;
    }
    Known::Unknown
}

/// True where a packet begins though its skb is remembered as followed: what is not IP came through no hook
/// before its device's, and its forerunner in the skb may have ended at none. IP may have got a tag just
/// before its device (`validate_xmit_vlan`).
#[inline(always)]
pub fn begins(hook: HookId, copy: &Skb) -> bool {
    if !matches!(hook, HookId::DeviceTransmit) {
        return false;
    }
    let protocol: u16 = copy.field(Field::SkbProtocol);
    protocol == 0 || may_vanish(protocol)
}

/// True for EtherTypes, in network order, of what may end at no hook: neither IP nor what a tag hides.
#[inline(always)]
const fn may_vanish(protocol: u16) -> bool {
    !may_be_ip(protocol)
        && protocol != EtherType::Ieee8021q as u16
        && protocol != EtherType::Ieee8021ad as u16
}

#[inline(always)]
fn clear(word: &mut u64, skb: u64) {
    if *word == skb {
        *word = 0;
    }
}

/// In memory: BTF programs may not change a bit of a kernel pointer. What an interrupt puts there in between is only
/// trusted less.
#[inline(always)]
fn may_have_ended(word: &mut u64) {
    // SAFETY: a reference; volatile, so that the compiler does not go by the register that it was written from.
    unsafe { write_volatile(word, read_volatile(word) | MAY_HAVE_ENDED) };
}

/// The skb's address in a word that may carry [`MAY_HAVE_ENDED`].
#[inline(always)]
fn without_mark(word: &u64) -> u64 {
    // SAFETY: as above.
    unsafe { read_volatile(word) & !MAY_HAVE_ENDED }
}

/// What a hook changes for the hooks behind it; called whether the packet is followed or not.
#[inline(always)]
pub fn passed(hook: HookId, skb: u64, followed: bool, remembered: &mut Remembered) {
    match hook {
        HookId::DeviceTransmit => {
            remembered.transmitted = skb;
            if followed {
                remembered.followed = skb;
                may_have_ended(&mut remembered.followed);
            }
        }
        HookId::Nat
        | HookId::IpvsNatTransmit
        | HookId::IpvsNat6Transmit
        | HookId::IpvsReply
        | HookId::IpvsTunnelTransmit
        | HookId::IpvsTunnel6Transmit
        | HookId::VxlanTransmit
        | HookId::VxlanReceive => {
            if !followed {
                clear(&mut remembered.not_followed, skb);
            } else if read::filter(filter::FOLLOW) {
                remembered.unlearned = skb;
            } else {
                remembered.follow_no_more(skb);
            }
        }
        HookId::Drop
        | HookId::TcpDeliver
        | HookId::TcpChild
        | HookId::UdpDeliver
        | HookId::Tcp6Deliver
        | HookId::Udp6Deliver
        | HookId::IcmpReceive
        | HookId::Icmp6Receive => {
            remembered.follow_no_more(skb);
            clear(&mut remembered.not_followed, skb);
            clear(&mut remembered.transmitted, skb);
        }
        _ => {}
    }
}
