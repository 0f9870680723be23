//! The registry: one file per cause, named by its code, with how it is built, sent to and mended.

use super::Scenario;

mod vip_nodeport_unbound;

/// Every scenario, in the order of the catalogue of causes.
pub const REGISTRY: &[Scenario] = &[vip_nodeport_unbound::SCENARIO];
