//! Packets freed as dropped.

use tracer_ebpf::event::Drop;
use tracer_ebpf::hook::HookId;

use super::{Arguments, Sight};
use crate::read;

/// Tracepoint `kfree_skb(skb, location[, reason])`.
#[inline(always)]
pub fn drop(ctx: &impl Arguments) -> Option<()> {
    let location = ctx.argument(1)?;
    let reason = if read::drop_reason() {
        ctx.argument(2)? as u32
    } else {
        u32::MAX
    };
    Sight::new(HookId::Drop, ctx.argument(0)?).emit_with(|detail, _| {
        detail.drop = Drop {
            location,
            reason,
            reserved: 0,
        };
        true
    })
}
