//! What the kernel side and userspace share: the event layout, the hook ids and the list of kernel
//! fields whose offsets userspace resolves.
//!
//! Map: `event` is the ABI of one event, `hook` numbers the hooks, `layout` names kernel fields,
//! `program` is a compiled filter, `header` reads what it looks at, `sample` says which flow a packet is of
//! when some are left out.
//! Nothing here knows a kernel header or does I/O; the programs are in `main.rs` and `probe/`.
#![no_std]

pub mod event;
pub mod header;
pub mod hook;
pub mod layout;
pub mod program;
pub mod sample;
