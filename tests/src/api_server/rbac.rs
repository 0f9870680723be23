//! Who may do what: the rules of a manifest, as an API server applies them.

use anyhow::Context as _;
use serde::Deserialize;

/// What a request is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Action {
    /// `get`, `list`, `watch`, `create` or `delete`.
    pub verb: &'static str,
    /// API group; empty for the core.
    pub group: String,
    /// Plural name, with the part of the object after a slash: `pods/log`.
    pub resource: String,
    /// Namespace asked in; `None` for all of them.
    pub namespace: Option<String>,
    /// Name, of the path or of the field selector.
    pub name: Option<String>,
}

/// The rules of Roles and ClusterRoles.
#[derive(Clone, Default, Debug)]
pub struct Rules(Vec<(Option<String>, Rule)>);

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

#[derive(Deserialize)]
struct Document {
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Metadata {
    namespace: Option<String>,
}

impl Rules {
    /// Reads the roles of a manifest.
    ///
    /// # Errors
    /// When it is not a manifest.
    pub fn parse(manifest: &str) -> anyhow::Result<Self> {
        let documents: Vec<Document> =
            serde_saphyr::from_multiple(manifest).context("not a manifest")?;
        let mut rules = Vec::new();
        for document in documents {
            let namespace = match document.kind.as_str() {
                "ClusterRole" => None,
                "Role" => document.metadata.namespace,
                _ => continue,
            };
            rules.extend(
                document
                    .rules
                    .into_iter()
                    .map(|rule| (namespace.clone(), rule)),
            );
        }
        Ok(Self(rules))
    }

    /// Number of single rights: group, resource, verb and name.
    pub fn rights(&self) -> Vec<(String, String, String)> {
        self.0
            .iter()
            .flat_map(|(_, rule)| {
                rule.api_groups.iter().flat_map(move |group| {
                    rule.resources.iter().flat_map(move |resource| {
                        rule.verbs
                            .iter()
                            .map(move |verb| (group.clone(), resource.clone(), verb.clone()))
                    })
                })
            })
            .collect()
    }

    /// Whether an action is allowed.
    pub fn allow(&self, action: &Action) -> bool {
        self.0.iter().any(|(namespace, rule)| {
            let has = |list: &[String], what: &str| list.iter().any(|found| found == what);
            let here = namespace.is_none() || *namespace == action.namespace;
            let named = rule.resource_names.is_empty()
                || action
                    .name
                    .as_ref()
                    .is_some_and(|name| rule.resource_names.contains(name));
            here && named
                && has(&rule.api_groups, &action.group)
                && has(&rule.resources, &action.resource)
                && has(&rule.verbs, action.verb)
        })
    }
}
