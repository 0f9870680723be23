//! Packets freed as dropped.

use tracer_ebpf::event::Drop;
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::Field;

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
    Sight::new(HookId::Drop, ctx.argument(0)?).emit_with(|detail, skb| {
        detail.drop = Drop {
            location,
            reason,
            addressee: skb.field::<u8>(Field::SkbAddressee) & 7,
            reserved: [0; 3],
        };
        true
    })
}
