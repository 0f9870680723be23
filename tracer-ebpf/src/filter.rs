//! Which packets are followed, decided before anything is reserved.
//!
//! A packet is followed when its own addresses match the program in either direction; when an address
//! of its flow was followed before (`flows`); when its conntrack entry's do; when it quotes such a
//! packet in an ICMP error; or when the same skb was followed and its headers are not expected to say
//! so any more (tunnels, IPVS without conntrack: [`SKBS`]).
//!
//! A decision is kept per CPU for the hooks that the skb passes next ([`Remembered`]). Invariants:
//! - Hooks where a packet begins (device receive, local output) always decide anew, so a decision never
//!   outlives its packet past them. So do device transmit, netfilter hooks and IPv6's output when the
//!   skb was transmitted before, since a new packet may begin there (a segment, neighbour discovery), and
//!   device transmit when it holds no IP (ARP).
//! - A decision ends where its packet ends: at a socket and at a drop. What is not IP may end at no hook: that
//!   it is not followed is never kept. That it is, as that of what was handed to a device, counts only where no
//!   packet begins.
//! - "Not followed" ends as well where NAT rewrites: the new addresses may match. So it does at another
//!   device where the program asks for devices.
//! - Each word of [`Remembered`] but `device` is one skb's address, so that an interrupt's writes in between leave
//!   every word true by itself.
//! - What [`SKBS`] holds counts only with the same identity (what NAT leaves alone), so a reused skb
//!   joins nothing.

mod flows;
mod headers;

use core::hint::black_box;
use core::mem::MaybeUninit;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use network_types::eth::EtherType;
use tracer_ebpf::event::Tuple;
use tracer_ebpf::header::{Network, TRANSPORT_BYTES};
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::{Field, filter};
use tracer_ebpf::program::{Key, Program, network};

use self::flows::{FlowKey, datagram_known, flow_known, remember_datagram, remember_flow};
pub use self::headers::network_offset;
use self::headers::{empty, may_be_ip, read_headers, read_packet};
use crate::read::{self, Skb};

// Functions that are not inlined share the 512 bytes of stack in turn. Each returns a number that its
// caller looks at (`black_box` where it does not matter): in the register of one that returns nothing
// the verifier may find a pointer to the stack, and refuses it.

/// The compiled filter; the loader puts it here.
#[unsafe(no_mangle)]
static PROGRAM: Program = Program::EVERYTHING;

/// Followed skbs whose headers do not say so; the value is an [`identity`] or [`ANY`].
#[map]
static SKBS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4096, 0);

/// Decisions about the skbs last seen on this CPU.
#[map]
static REMEMBERED: PerCpuArray<Remembered> = PerCpuArray::with_max_entries(1, 0);

/// Bits of `USED`: which maps hold something, so that nothing is looked for in an empty one.
const FLOWS_USED: u32 = 1;
const SKBS_USED: u32 = 2;
static mut USED: u32 = 0;

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

/// The skb's next headers are new ones (tunnels).
const ANY: u64 = 0;
/// Set in every [`identity`], so that none is [`ANY`].
const KNOWN: u64 = 1 << 32;
/// The skb holds a tunnel's packet.
const TUNNEL: u64 = 1 << 33;

/// Bits of a decision.
const FOLLOWED: u32 = 1 << 0;
/// The flow has to be kept when its addresses are final.
const UNLEARNED: u32 = 1 << 1;
const IN_TUNNEL: u32 = 1 << 2;
/// The program matches it.
const OWN: u32 = 1 << 3;

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
enum Trust {
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
const fn trust(hook: HookId) -> Trust {
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

/// True when there is a filter: without one, another object is loaded.
#[inline(always)]
pub const fn active() -> bool {
    cfg!(feature = "filter")
}

/// True when the program asks for more than the packet itself says.
#[inline(always)]
pub fn reads_place() -> bool {
    read::filter(filter::INTERFACE | filter::NAMESPACE)
}

#[inline(always)]
fn used(bit: u32) -> bool {
    // SAFETY: a word that programs only ever set bits in; a stale value delays a look-up by a packet.
    unsafe { read_volatile(addr_of!(USED)) & bit != 0 }
}

#[inline(always)]
fn set_used(bit: u32) {
    // SAFETY: as above; both bits set at once by two CPUs are set again by the next packet.
    unsafe { write_volatile(addr_of_mut!(USED), read_volatile(addr_of!(USED)) | bit) }
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
        || trust == Trust::Both && remembered.followed & !MAY_HAVE_ENDED == skb
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

/// Decides about an skb that nothing is known of, and remembers the decision.
#[inline(always)]
pub fn decides(
    hook: HookId,
    skb: u64,
    copy: &Skb,
    device: u64,
    net: u64,
    remembered: &mut Remembered,
) -> bool {
    // The network header is where the data begins.
    let at_link = u32::from(matches!(hook, HookId::DeviceReceive));
    let decision = if matches!(trust(hook), Trust::Both) {
        decide_by_itself(skb, copy, device, net)
    } else {
        decide(skb, copy, device, net, at_link)
    };
    if decision & FOLLOWED == 0 {
        // What is not IP may end at no hook, and what begins in its skb then is asked about anew; so is what
        // a tag hid.
        remembered.not_followed = if may_be_ip(copy.field(Field::SkbProtocol)) {
            skb
        } else {
            0
        };
        if read::filter(filter::INTERFACE) {
            remembered.device = device;
        }
        // A hook that trusts the one does not ask for the other.
        follow_no_more(remembered, skb);
        clear(&mut remembered.transmitted, skb);
        return false;
    }
    clear(&mut remembered.not_followed, skb);
    clear(&mut remembered.transmitted, skb);
    remembered.followed = skb;
    if may_vanish(copy.field(Field::SkbProtocol)) {
        may_have_ended(&mut remembered.followed);
    }
    if decision & UNLEARNED == 0 {
        clear(&mut remembered.unlearned, skb);
    } else {
        remembered.unlearned = skb;
    }
    if decision & IN_TUNNEL == 0 {
        clear(&mut remembered.tunnel, skb);
    } else {
        remembered.tunnel = skb;
    }
    true
}

/// 1 when the conntrack entry of an skb makes it followed.
#[inline(never)]
pub fn by_entry(skb: u64) -> u32 {
    entry_followed(read::field::<u64>(skb, Field::SkbNfct) & !7)
}

/// 1 when a conntrack entry is one of followed packets; 0 for no entry.
#[inline(always)]
pub fn entry_followed(entry: u64) -> u32 {
    if entry == 0 {
        return 0;
    }
    let mut room = MaybeUninit::uninit();
    let found = empty(&mut room);
    if read::filter(filter::NAMESPACE) {
        let net: u64 = read::field(entry, Field::ConnNet);
        found.key.netns = read::field(net, Field::NetInum);
    }
    u32::from(entry_matches(entry, &mut found.key))
}

#[inline(always)]
fn clear(word: &mut u64, skb: u64) {
    if *word == skb {
        *word = 0;
    }
}

/// In memory: BTF programs may not set a bit in a kernel pointer.
#[inline(always)]
fn may_have_ended(word: &mut u64) {
    // SAFETY: a reference; volatile, so that the compiler does not go by the register that it was written from.
    unsafe { write_volatile(word, read_volatile(word) | MAY_HAVE_ENDED) };
}

#[inline(always)]
fn follow_no_more(remembered: &mut Remembered, skb: u64) {
    if remembered.followed & !MAY_HAVE_ENDED == skb {
        remembered.followed = 0;
    }
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
                follow_no_more(remembered, skb);
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
            follow_no_more(remembered, skb);
            clear(&mut remembered.not_followed, skb);
            clear(&mut remembered.transmitted, skb);
        }
        _ => {}
    }
}

/// Keeps what a followed packet's headers will not say from here on; `copy` is the skb's.
#[inline(always)]
pub fn keep(hook: HookId, skb: u64, copy: &Skb, remembered: &mut Remembered) {
    if !read::filter(filter::FOLLOW) {
        return;
    }
    match hook {
        HookId::VxlanTransmit
        | HookId::VxlanReceive
        | HookId::IpvsTunnelTransmit
        | HookId::IpvsTunnel6Transmit => {
            let tunnel = if matches!(hook, HookId::VxlanReceive) {
                ANY
            } else {
                TUNNEL
            };
            remember_skb(skb, tunnel);
        }
        HookId::IpvsNatTransmit | HookId::IpvsNat6Transmit | HookId::IpvsReply => {
            black_box(keep_identity(skb, copy));
        }
        HookId::Fragment => {
            black_box(keep_datagram(copy));
        }
        HookId::DeviceTransmit => {
            if remembered.unlearned == skb {
                remembered.unlearned = 0;
                if remembered.tunnel != skb {
                    black_box(learn(copy));
                }
            }
        }
        HookId::Drop if used(SKBS_USED) => {
            let _ = SKBS.remove(&skb);
        }
        _ => {}
    }
}

#[inline(always)]
fn remember_skb(skb: u64, identity: u64) {
    if SKBS.insert(&skb, &identity, 0).is_ok() {
        set_used(SKBS_USED);
    }
}

#[inline(never)]
fn keep_identity(skb: u64, copy: &Skb) -> u32 {
    let mut room = MaybeUninit::uninit();
    let found = empty(&mut room);
    read_packet(copy, 0, found);
    remember_skb(skb, KNOWN | u64::from(found.identity));
    0
}

#[inline(never)]
fn keep_datagram(copy: &Skb) -> u32 {
    let mut room = MaybeUninit::uninit();
    let found = empty(&mut room);
    read_packet(copy, 0, found);
    if found.key.network != 0 {
        black_box(remember_datagram(found));
    }
    0
}

/// Keeps the packet's present addresses, unless the program knows them by itself.
#[inline(never)]
fn learn(copy: &Skb) -> u32 {
    let mut room = MaybeUninit::uninit();
    let found = empty(&mut room);
    read_packet(copy, 0, found);
    if reads_place() || evaluate(&mut found.key) == 0 {
        black_box(learn_flow(&found.key));
    }
    0
}

/// Keeps a flow that is not kept yet.
#[inline(never)]
fn learn_flow(key: &Key) -> u32 {
    if key.source_port != 0 && flow_known(key) == 0 {
        remember_flow(&FlowKey::of(key));
    }
    0
}

/// The decision about an skb: bits from [`FOLLOWED`] on.
///
/// Not inlined: its stack is then shared with what the program does later.
#[inline(never)]
fn decide(skb: u64, copy: &Skb, device: u64, net: u64, at_link: u32) -> u32 {
    let mut room = MaybeUninit::uninit();
    let found = empty(&mut room);
    if let Some(decision) = by_itself(skb, copy, device, net, at_link, found) {
        if decision & OWN != 0 {
            if found.fragment {
                black_box(remember_datagram(found));
            }
            // Elsewhere the place says nothing any more.
            if reads_place() {
                black_box(learn_flow(&found.key));
            }
        }
        return decision;
    }
    let identity = KNOWN | u64::from(found.identity);
    let entry = copy.field::<u64>(Field::SkbNfct) & !7;
    let mut decision = 0;
    if entry != 0 && entry_matches(entry, &mut found.key) {
        decision = FOLLOWED | UNLEARNED;
    } else if found.quotes && quoted_matches(copy, at_link, found) {
        decision = FOLLOWED;
    }
    if decision != 0 {
        remember_skb(skb, identity);
    }
    decision
}

/// As [`decide`], but conntrack entries and quoted packets are not looked at, nor is anything learned: for hooks that
/// trust what is remembered, where what was found that way is in [`SKBS`]. The less there is, the sooner it is verified.
#[inline(never)]
fn decide_by_itself(skb: u64, copy: &Skb, device: u64, net: u64) -> u32 {
    let mut room = MaybeUninit::uninit();
    by_itself(skb, copy, device, net, 0, empty(&mut room)).unwrap_or(0)
}

/// The decision by what the skb says itself and what is kept of it; `None` leaves it to its entry and quotes.
#[inline(always)]
fn by_itself(
    skb: u64,
    copy: &Skb,
    device: u64,
    net: u64,
    at_link: u32,
    found: &mut Network,
) -> Option<u32> {
    read_packet(copy, at_link, found);
    if read::filter(filter::INTERFACE) {
        // A name that cannot be read is empty, which no test asks for.
        read::into(
            &mut found.key.interface,
            device.wrapping_add(read::offset(Field::NetDeviceName)),
        );
        cut(&mut found.key.interface);
    }
    if read::filter(filter::NAMESPACE) {
        found.key.netns = read::field(net, Field::NetInum);
    }
    let own = evaluate(&mut found.key) != 0;
    if !read::filter(filter::FOLLOW) {
        return Some(if own { FOLLOWED } else { 0 });
    }
    if used(SKBS_USED)
        && let Some(kept) = SKBS.get_ptr_mut(&skb)
    {
        // SAFETY: a map value; two CPUs do not work on one skb.
        let kept = unsafe { &mut *kept };
        let tunnel = *kept & TUNNEL;
        if *kept & !TUNNEL == ANY {
            *kept = KNOWN | tunnel | u64::from(found.identity);
        }
        if *kept & !TUNNEL == KNOWN | u64::from(found.identity) {
            return Some(if tunnel == 0 {
                FOLLOWED | UNLEARNED
            } else {
                FOLLOWED | IN_TUNNEL
            });
        }
    }
    if own {
        return Some(FOLLOWED | OWN);
    }
    let known = flow_known(&found.key) != 0 || found.fragment && datagram_known(found) != 0;
    known.then_some(FOLLOWED)
}

/// Zeroes what stands behind the zero that ends a name.
#[inline(always)]
fn cut(name: &mut [u64; 2]) {
    let Some(zero) = first_zero(name[0]) else {
        if let Some(zero) = first_zero(name[1]) {
            name[1] &= (1 << zero) - 1;
        }
        return;
    };
    name[0] &= (1 << zero) - 1;
    name[1] = 0;
}

/// Bits before the first zero byte.
#[inline(always)]
const fn first_zero(word: u64) -> Option<u32> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let zeros = word.wrapping_sub(ONES) & !word & (ONES << 7);
    if zeros == 0 {
        None
    } else {
        Some((zeros & zeros.wrapping_neg()).trailing_zeros() & 56)
    }
}

/// 1 when the program matches the key; with following, in either direction.
#[inline(never)]
fn evaluate(key: &mut Key) -> u32 {
    if matches(key) != 0 {
        return 1;
    }
    if !read::filter(filter::FOLLOW) || !read::filter(filter::DIRECTED) {
        return 0;
    }
    key.exchange();
    let matched = matches(key);
    key.exchange();
    matched
}

/// 1 when the program matches the key as it is. Not inlined: once in the program for both directions.
#[inline(never)]
fn matches(key: &Key) -> u32 {
    // The loader changes it, so the compiler may not know what is in it.
    // SAFETY: a valid static.
    let program = unsafe { &*black_box(addr_of!(PROGRAM)) };
    u32::from(program.matches(key))
}

/// True when one of the conntrack entry's tuples matches; the key's place stays, the rest is replaced.
#[inline(always)]
fn entry_matches(entry: u64, key: &mut Key) -> bool {
    let [first, second] = read::tuples(entry);
    black_box(take_tuple(first, key));
    if evaluate(key) | flow_known(key) != 0 {
        return true;
    }
    black_box(take_tuple(second, key));
    evaluate(key) | flow_known(key) != 0
}

/// Puts a tuple's ends into the key.
#[inline(never)]
fn take_tuple(address: u64, key: &mut Key) -> u32 {
    let mut room = MaybeUninit::<Tuple>::uninit();
    if !read::into(&mut room, address) {
        return 0;
    }
    // SAFETY: read just now, and every bit pattern is a valid `Tuple`.
    let tuple = unsafe { room.assume_init_ref() };
    key.source = words(&tuple.source);
    key.destination = words(&tuple.destination);
    key.protocol = tuple.protocol_or_manipulation;
    key.network = if tuple.family_or_status == 2 {
        network::IPV4
    } else {
        network::IPV6
    };
    key.has_ports = u8::from(matches!(key.protocol, 6 | 17 | 132));
    key.source_port = u16::from_be(tuple.source_port);
    key.destination_port = if key.has_ports != 0 {
        u16::from_be(tuple.destination_port)
    } else {
        key.source_port
    };
    1
}

#[inline(always)]
fn words(bytes: &[u8; 16]) -> [u64; 2] {
    // SAFETY: sixteen bytes, read without asking for alignment.
    unsafe { bytes.as_ptr().cast::<[u64; 2]>().read_unaligned() }
}

/// True when the packet that an ICMP error quotes is a followed one.
#[inline(always)]
fn quoted_matches(copy: &Skb, at_link: u32, found: &mut Network) -> bool {
    let outer = network_offset(copy, at_link);
    let inner = outer + u32::from(found.transport) + TRANSPORT_BYTES as u32;
    read::zero(&mut found.key.source);
    read::zero(&mut found.key.destination);
    found.key.network = 0;
    found.transport = 0;
    found.fragment = false;
    black_box(read_headers(copy, inner, 0, found));
    evaluate(&mut found.key) | flow_known(&found.key) != 0
}
