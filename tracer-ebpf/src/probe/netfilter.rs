//! Netfilter hooks.

use tracer_ebpf::event::Netfilter;
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::Field;

use super::{Arguments, Sight};
use crate::read;

/// `nf_hook_slow(skb, state, entries, index)`.
#[inline(always)]
pub fn hook(ctx: &impl Arguments) -> Option<()> {
    let state = ctx.argument(1)?;
    let skb = ctx.argument(0)?;
    Sight::in_namespace_of(HookId::NetfilterHook, skb, state, Field::HookStateNet).emit_with(
        |detail, _| {
            // The hook number is an unsigned int on 5.10 and a byte later; its first byte says it both
            // ways on the little-endian machines that these programs are built for.
            let hook = read::field(state, Field::HookStateHook);
            let family = read::field(state, Field::HookStatePf);
            detail.netfilter = Netfilter { hook, family };
            // NFPROTO_UNSPEC, the zero, has no hooks.
            family != 0
        },
    )
}
