//! Gives up the capabilities that tracing does not need once the programs are attached.

use anyhow::Context as _;
use caps::{CapSet, Capability, CapsHashSet};

/// What is still needed: reading maps and program statistics, entering namespaces, asking netlink
/// there, and looking through /proc for namespaces and the owners of sockets.
const KEPT: [Capability; 6] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
];

/// Drops every other capability of this thread and of the threads that it makes from now on.
///
/// # Errors
/// When the kernel refuses.
pub fn drop_unneeded() -> anyhow::Result<()> {
    keep(&KEPT)
}

/// Drops all capabilities of this thread but these: a thread that was made before
/// [`drop_unneeded`] keeps what it had then.
///
/// # Errors
/// When the kernel refuses.
pub fn keep(capabilities: &[Capability]) -> anyhow::Result<()> {
    let held = caps::read(None, CapSet::Permitted)
        .context("the capabilities of this process cannot be read")?;
    let kept: CapsHashSet = capabilities
        .iter()
        .copied()
        .filter(|capability| held.contains(capability))
        .collect();
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())
        .and_then(|()| caps::set(None, CapSet::Effective, &kept))
        .and_then(|()| caps::set(None, CapSet::Permitted, &kept))
        .context("capabilities cannot be given up")
}
