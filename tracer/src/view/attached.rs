//! What became visible, or invisible, while tracing.

use serde::Serialize;

use crate::kernel::load::ModuleChange;

/// A kernel module that came or went, as shown.
#[derive(Clone, Debug, Serialize)]
pub struct AttachedView {
    /// The module.
    pub module: &'static str,
    /// It is loaded now.
    pub loaded: bool,
    /// Hooks in it that are attached now.
    pub hooks: Vec<&'static str>,
    /// Hooks in it that could not be attached, with the reason.
    pub not_seen: Vec<(&'static str, String)>,
}

impl From<&ModuleChange> for AttachedView {
    fn from(change: &ModuleChange) -> Self {
        Self {
            module: change.module,
            loaded: change.loaded,
            hooks: change.attached.clone(),
            not_seen: change.refused.clone(),
        }
    }
}

impl AttachedView {
    /// The line that a person sees.
    pub fn words(&self) -> String {
        let module = self.module;
        if !self.loaded {
            return format!("module {module} was unloaded: its stages cannot happen");
        }
        let mut text = format!(
            "module {module} was loaded: {} of its hooks attached",
            self.hooks.len()
        );
        for (hook, why) in &self.not_seen {
            text += &format!("\nnot seen: {hook} ({why})");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_in_words() {
        let mut view = AttachedView {
            module: "ip_vs",
            loaded: true,
            hooks: vec!["ipvs_lookup", "ipvs_leave"],
            not_seen: vec![("ipvs_reply", "no such function".into())],
        };
        assert_eq!(
            view.words(),
            "module ip_vs was loaded: 2 of its hooks attached\nnot seen: ipvs_reply (no such function)"
        );
        view.loaded = false;
        assert_eq!(
            view.words(),
            "module ip_vs was unloaded: its stages cannot happen"
        );
    }
}
