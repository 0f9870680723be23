//! Reproductions: a topology, a fault, traffic, and the fix, in private namespaces.
//!
//! Map: `world` makes namespaces and runs commands in them, `traffic` sends and answers, `kube_proxy`
//! makes what kube-proxy would have made, `vip_nodeport` is the case. Invariants: namespaces are held
//! by descriptors of this process only, so that nothing is left behind however it ends; nothing
//! outside of them is changed.

pub mod kube_proxy;
pub mod traffic;
pub mod vip_nodeport;
pub mod world;

pub use kube_proxy::stand_in;
