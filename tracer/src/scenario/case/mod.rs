//! The registry: one file per cause, named by its code, with how it is built, sent to and mended.

use super::Scenario;

mod accept_queue_full;
mod answer_lost;
mod bad_checksum;
mod bridge_nf_off;
mod bridge_port_blocked;
mod conntrack_full;
mod conntrack_insert_clash;
mod conntrack_invalid;
mod data_lost;
mod dns_stale_conntrack;
mod duplicate_address;
mod endpoint_not_ready;
mod etp_local_no_endpoint;
mod filter_rule_drop;
mod forward_policy_drop;
mod hairpin_off;
mod ip_forward_off;
mod ipv6_forward_off;
mod ipvs_conn_reuse;
mod ipvs_no_destination;
mod ipvs_stale_connection;
mod ipvs_weight_zero;
mod kube_proxy_stale;
mod late_answer;
mod lb_source_range;
mod martian_source;
mod masquerade_missing;
mod mixed;
mod mtu_exceeded;
mod neighbour_failed;
mod network_policy_drop;
mod no_answer;
mod no_listener;
mod no_route;
mod nodeport_localhost;
mod nodeport_taken;
mod pod_on_docker0;
mod qdisc_drop;
mod receive_buffer_full;
mod refused_elsewhere;
mod route_blackhole;
mod rp_filter;
mod service_no_endpoints;
mod service_no_port;
mod service_unknown;
mod snat_exhausted;
mod source_address_ambiguous;
mod syn_flood;
mod tc_or_xdp_drop;
mod terminating_endpoint;
mod ttl_expired;
mod veth_peer_down;
mod vip_nodeport_unbound;
mod vxlan_checksum;
mod vxlan_no_fdb;
mod vxlan_udp_blocked;

/// Every scenario, in the order of the catalogue of causes.
pub const REGISTRY: &[Scenario] = &[
    vip_nodeport_unbound::SCENARIO,
    nodeport_taken::SCENARIO,
    pod_on_docker0::SCENARIO,
    terminating_endpoint::SCENARIO,
    service_no_endpoints::SCENARIO,
    endpoint_not_ready::SCENARIO,
    etp_local_no_endpoint::SCENARIO,
    kube_proxy_stale::SCENARIO,
    service_no_port::SCENARIO,
    service_unknown::SCENARIO,
    duplicate_address::SCENARIO,
    vxlan_udp_blocked::SCENARIO,
    ipvs_no_destination::SCENARIO,
    lb_source_range::SCENARIO,
    network_policy_drop::SCENARIO,
    conntrack_full::SCENARIO,
    conntrack_invalid::SCENARIO,
    tc_or_xdp_drop::SCENARIO,
    qdisc_drop::SCENARIO,
    forward_policy_drop::SCENARIO,
    filter_rule_drop::SCENARIO,
    ip_forward_off::SCENARIO,
    ipv6_forward_off::SCENARIO,
    rp_filter::SCENARIO,
    martian_source::SCENARIO,
    source_address_ambiguous::SCENARIO,
    route_blackhole::SCENARIO,
    no_route::SCENARIO,
    neighbour_failed::SCENARIO,
    mtu_exceeded::SCENARIO,
    ttl_expired::SCENARIO,
    accept_queue_full::SCENARIO,
    syn_flood::SCENARIO,
    receive_buffer_full::SCENARIO,
    dns_stale_conntrack::SCENARIO,
    ipvs_weight_zero::SCENARIO,
    ipvs_stale_connection::SCENARIO,
    ipvs_conn_reuse::SCENARIO,
    vxlan_no_fdb::SCENARIO,
    bridge_port_blocked::SCENARIO,
    veth_peer_down::SCENARIO,
    hairpin_off::SCENARIO,
    conntrack_insert_clash::SCENARIO,
    snat_exhausted::SCENARIO,
    vxlan_checksum::SCENARIO,
    bad_checksum::SCENARIO,
    nodeport_localhost::SCENARIO,
    bridge_nf_off::SCENARIO,
    masquerade_missing::SCENARIO,
    late_answer::SCENARIO,
    no_listener::SCENARIO,
    refused_elsewhere::SCENARIO,
    no_answer::SCENARIO,
    answer_lost::SCENARIO,
    data_lost::SCENARIO,
    mixed::SCENARIO,
];
