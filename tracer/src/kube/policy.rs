//! NetworkPolicies: which pods they select, and which way they limit.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::{Deserialize, Serialize};

use super::{ObjectName, Pod};

/// A NetworkPolicy, as far as it selects pods.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub name: ObjectName,
    /// Pods of its namespace that it limits.
    pub pods: Selector,
    /// It limits what comes in.
    pub ingress: bool,
    /// It limits what goes out.
    pub egress: bool,
}

/// A label selector; all its requirements must hold.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Whether labels meet it; an empty selector selects all.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match &requirement.operator {
                Operator::In(values) => value.is_some_and(|value| values.contains(value)),
                Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }

    /// `None` when an operator is not known: then nobody can say whom it selects.
    fn read(selector: LabelSelector) -> Option<Self> {
        let equal = selector
            .match_labels
            .unwrap_or_default()
            .into_iter()
            .map(|(key, value)| {
                Some(Requirement {
                    key,
                    operator: Operator::In(vec![value]),
                })
            });
        let expressions = selector
            .match_expressions
            .unwrap_or_default()
            .into_iter()
            .map(|expression| {
                let values = expression.values.unwrap_or_default();
                Some(Requirement {
                    key: expression.key,
                    operator: match expression.operator.as_str() {
                        "In" => Operator::In(values),
                        "NotIn" => Operator::NotIn(values),
                        "Exists" => Operator::Exists,
                        "DoesNotExist" => Operator::DoesNotExist,
                        _ => return None,
                    },
                })
            });
        let requirements = equal.chain(expressions).collect::<Option<_>>()?;
        Some(Self { requirements })
    }
}

impl NetworkPolicy {
    /// Whether it limits a pod.
    pub fn selects(&self, pod: &Pod) -> bool {
        self.name.namespace == pod.name.namespace && self.pods.selects(&pod.labels)
    }

    pub(super) fn read(object: api::NetworkPolicy) -> Option<Self> {
        let name = ObjectName::of(&object.metadata)?;
        let spec = object.spec.unwrap_or_default();
        let types = spec.policy_types;
        let named = |kind: &str| {
            types
                .as_ref()
                .map(|types| types.iter().any(|found| found == kind))
        };
        Some(Self {
            name,
            pods: Selector::read(spec.pod_selector.unwrap_or_default())?,
            // Without policyTypes: ingress always, egress where there is an egress section.
            ingress: named("Ingress").unwrap_or(true),
            egress: named("Egress")
                .unwrap_or_else(|| spec.egress.is_some_and(|rules| !rules.is_empty())),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(spec: serde_json::Value) -> Option<NetworkPolicy> {
        let object = json!({"metadata": {"namespace": "a", "name": "p"}, "spec": spec});
        NetworkPolicy::read(serde_json::from_value(object).expect("a policy"))
    }

    #[test]
    fn selectors_select() {
        let labels: BTreeMap<_, _> = [("app", "web"), ("tier", "1")]
            .map(|(key, value)| (key.into(), value.into()))
            .into();
        for (spec, selected) in [
            (json!({}), true),
            (
                json!({"podSelector": {"matchLabels": {"app": "web"}}}),
                true,
            ),
            (
                json!({"podSelector": {"matchLabels": {"app": "db"}}}),
                false,
            ),
            (
                json!({"podSelector": {"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["1"]}]}}),
                false,
            ),
            (
                json!({"podSelector": {"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["1"]}]}}),
                true,
            ),
            (
                json!({"podSelector": {"matchExpressions": [{"key": "none", "operator": "DoesNotExist"}]}}),
                true,
            ),
        ] {
            let found = policy(spec.clone())
                .expect("a policy")
                .pods
                .selects(&labels);
            assert_eq!(found, selected, "{spec}");
        }
        let strange =
            json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}});
        assert_eq!(policy(strange), None);
    }

    #[test]
    fn directions_follow_the_api_default() {
        let both = |spec| policy(spec).map(|policy| (policy.ingress, policy.egress));
        assert_eq!(both(json!({})), Some((true, false)));
        assert_eq!(both(json!({"egress": [{}]})), Some((true, true)));
        assert_eq!(
            both(json!({"policyTypes": ["Egress"]})),
            Some((false, true))
        );
    }
}
