//! Endpoints of services, from discovery.k8s.io/v1 or v1beta1 EndpointSlices or core/v1 Endpoints.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::api::DynamicObject;
use serde::de::Error as _;
use serde::{Deserialize, Serialize};

use super::service::protocol_number;
use super::{Claim, ObjectName};

/// Label with the name of the service that a slice belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Key of the node in v1beta1's `topology`.
const TOPOLOGY_NODE: &str = "kubernetes.io/hostname";

/// An EndpointSlice; a core/v1 Endpoints object is one per subset, put together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Slice {
    /// Namespace and name of the object.
    pub name: ObjectName,
    /// The service; `None` for a slice of nothing.
    pub service: Option<ObjectName>,
    /// Endpoints, each with the ports it serves.
    pub groups: Vec<EndpointGroup>,
}

/// Endpoints that serve the same ports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointGroup {
    /// Ports.
    pub ports: Vec<EndpointPort>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of endpoints.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointPort {
    /// Name; the same as that of the service's port.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Number; `None` means every port.
    pub port: Option<u16>,
}

/// One endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its address: the first, the one that kube-proxy uses.
    pub address: IpAddr,
    /// Takes new connections. Not stated means true.
    pub ready: bool,
    /// Answers, whether or not it is going. Not stated: same as `ready`.
    pub serving: bool,
    /// Is going.
    pub terminating: bool,
    /// Node that it is on.
    pub node: Option<String>,
    /// The pod behind it.
    pub pod: Option<ObjectName>,
    /// Zones that are to use it; empty: all.
    pub zone_hints: Vec<String>,
    /// Nodes that are to use it; empty: all.
    #[serde(default)]
    pub node_hints: Vec<String>,
}

impl Slice {
    /// Every endpoint.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.groups.iter().flat_map(|group| &group.endpoints)
    }

    pub(super) fn claims(&self) -> impl Iterator<Item = (IpAddr, Claim)> {
        self.endpoints()
            .filter_map(|endpoint| Some((endpoint.address, Claim::Pod(endpoint.pod.clone()?))))
    }

    pub(super) fn read(object: discovery::EndpointSlice) -> Option<Self> {
        let name = ObjectName::of(&object.metadata)?;
        let labels = object.metadata.labels.unwrap_or_default();
        let ports = object
            .ports
            .unwrap_or_default()
            .into_iter()
            .filter_map(|port| {
                Some(EndpointPort {
                    name: port.name.unwrap_or_default(),
                    protocol: protocol_number(port.protocol.as_deref())?,
                    port: port.port.and_then(|port| u16::try_from(port).ok()),
                })
            })
            .collect();
        let endpoints = object
            .endpoints
            .unwrap_or_default()
            .into_iter()
            .filter_map(|found| endpoint(found, &name.namespace))
            .collect();
        Some(Self {
            service: labels
                .get(SERVICE_LABEL)
                .map(|service| ObjectName::new(&name.namespace, service)),
            name,
            groups: vec![EndpointGroup { ports, endpoints }],
        })
    }

    /// v1beta1 differs from v1 in the node, which may be in `topology` only.
    pub(super) fn read_beta(object: DynamicObject) -> serde_json::Result<Option<Self>> {
        let mut data = object.data;
        let endpoints = data
            .get_mut("endpoints")
            .and_then(serde_json::Value::as_array_mut);
        for endpoint in endpoints.into_iter().flatten() {
            if let Some(fields) = endpoint.as_object_mut()
                && let Some(topology) = fields.remove("topology")
            {
                fields.insert("deprecatedTopology".to_owned(), topology);
            }
        }
        let fields = data
            .as_object_mut()
            .ok_or_else(|| serde_json::Error::custom("an EndpointSlice that is no object"))?;
        fields.insert(
            "metadata".to_owned(),
            serde_json::to_value(object.metadata)?,
        );
        serde_json::from_value(data).map(Self::read)
    }

    /// core/v1 Endpoints know ready and not ready only.
    pub(super) fn read_core(object: core::Endpoints) -> Option<Self> {
        let name = ObjectName::of(&object.metadata)?;
        let groups = object
            .subsets
            .unwrap_or_default()
            .into_iter()
            .map(|subset| {
                let ports = subset
                    .ports
                    .unwrap_or_default()
                    .into_iter()
                    .filter_map(|port| {
                        Some(EndpointPort {
                            name: port.name.unwrap_or_default(),
                            protocol: protocol_number(port.protocol.as_deref())?,
                            port: Some(u16::try_from(port.port).ok()?),
                        })
                    })
                    .collect();
                let side = |addresses: Option<Vec<core::EndpointAddress>>, ready| {
                    addresses
                        .unwrap_or_default()
                        .into_iter()
                        .filter_map(move |found| {
                            Some(Endpoint {
                                address: found.ip.parse().ok()?,
                                ready,
                                serving: ready,
                                terminating: false,
                                node: found.node_name,
                                pod: pod(found.target_ref, None),
                                zone_hints: Vec::new(),
                                node_hints: Vec::new(),
                            })
                        })
                };
                EndpointGroup {
                    ports,
                    endpoints: side(subset.addresses, true)
                        .chain(side(subset.not_ready_addresses, false))
                        .collect(),
                }
            })
            .collect();
        Some(Self {
            service: Some(name.clone()),
            name,
            groups,
        })
    }
}

fn endpoint(found: discovery::Endpoint, namespace: &str) -> Option<Endpoint> {
    let conditions = found.conditions.unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let topology = found.deprecated_topology;
    let hints = found.hints.unwrap_or_default();
    Some(Endpoint {
        address: found.addresses.first()?.parse().ok()?,
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        node: found.node_name.or_else(|| topology?.remove(TOPOLOGY_NODE)),
        pod: pod(found.target_ref, Some(namespace)),
        zone_hints: (hints.for_zones.into_iter().flatten())
            .map(|zone| zone.name)
            .collect(),
        node_hints: (hints.for_nodes.into_iter().flatten())
            .map(|node| node.name)
            .collect(),
    })
}

fn pod(reference: Option<core::ObjectReference>, namespace: Option<&str>) -> Option<ObjectName> {
    let reference = reference?;
    if reference.kind.as_deref() != Some("Pod") {
        return None;
    }
    let namespace = reference.namespace.as_deref().or(namespace)?;
    Some(ObjectName::new(namespace, &reference.name?))
}
