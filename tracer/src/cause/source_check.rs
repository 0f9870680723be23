//! What the two causes about refused source addresses share: `rp-filter` and `martian-source`.
//!
//! Source: `fib_validate_source` (net/ipv4/fib_frontend.c) refuses with EXDEV by reverse path and with
//! EINVAL for a source that cannot come from outside; both pass `ip_handle_martian_source`.

use std::net::IpAddr;

use super::Site;
use super::evidence::{Evidence, Failure};
use crate::hook::Role;
use crate::node::NetnsId;

/// Why a source address was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// The way back to it does not lead out by the device that it came in by.
    ReversePath,
    /// It cannot come from another host.
    Source,
}

/// A packet whose source address was refused: where, by which device it came, and what it was.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Refused {
    pub(super) netns: NetnsId,
    pub(super) ifindex: u32,
    pub(super) source: IpAddr,
}

/// The refused source of a packet; reasons are newer than 5.10, and there the facts tell.
pub(super) fn refused(
    evidence: &Evidence<'_>,
    failure: &Failure<'_>,
) -> Option<(Refused, Refusal)> {
    let (index, event) = failure.last(Role::Martian)?;
    let refused = Refused {
        netns: failure.netns_at(index)?,
        ifindex: event.ifindex.or_else(|| failure.ingress(index))?,
        source: failure.packet_at(index)?.tuple.source.ip(),
    };
    let site = evidence.site(refused.netns);
    let refusal = match failure.drop.and_then(|drop| drop.reason) {
        Some("IP_RPFILTER") => Refusal::ReversePath,
        Some(_) => Refusal::Source,
        None if is_impossible(site, refused.source) => Refusal::Source,
        // A kernel with reasons names the reverse path; without them nothing else is left.
        None if evidence.gives_reasons => Refusal::Source,
        None => Refusal::ReversePath,
    };
    Some((refused, refusal))
}

/// The value that counts for a device: the larger of its own and that of `all`.
pub(super) fn mode(site: &Site<'_>, ifindex: u32) -> Option<i64> {
    let of = |name: &str| site.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"));
    Some(of("all")?.max(of(&site.device(ifindex))?))
}

/// The name of a device's IPv4 setting for sysctl(8) and sysctl.d(5), where a slash stands for a dot of the device's name.
pub(super) fn device_setting(device: &str, name: &str) -> String {
    format!("net.ipv4.conf.{}.{name}", device.replace('.', "/"))
}

/// An address that no packet from outside may carry as source.
pub(super) fn is_impossible(site: Option<&Site<'_>>, source: IpAddr) -> bool {
    let special = match source {
        IpAddr::V4(address) => {
            address.is_loopback()
                || address.is_multicast()
                || address.is_broadcast()
                || address.octets()[0] == 0
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_multicast() || address.is_unspecified()
        }
    };
    special || site.is_some_and(|site| site.is_local(source))
}
