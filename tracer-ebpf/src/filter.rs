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
mod memory;

use core::hint::black_box;
use core::mem::MaybeUninit;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use tracer_ebpf::event::Tuple;
use tracer_ebpf::header::{Network, TRANSPORT_BYTES};
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::{Field, filter};
use tracer_ebpf::program::{Key, Program, network};

use self::flows::{FlowKey, datagram_known, flow_known, remember_datagram, remember_flow};
pub use self::headers::network_offset;
use self::headers::{empty, read_headers, read_packet};
pub use self::memory::{Known, begins, known, passed, remembered};
use self::memory::{Remembered, Trust, trust};
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

/// Bits of `USED`: which maps hold something, so that nothing is looked for in an empty one.
const FLOWS_USED: u32 = 1;
const SKBS_USED: u32 = 2;
static mut USED: u32 = 0;

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
    remembered.decided(decision, skb, copy.field(Field::SkbProtocol), device)
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
            if remembered.learns(skb) {
                black_box(learn(copy));
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
