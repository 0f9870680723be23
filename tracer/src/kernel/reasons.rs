//! Names of drop reasons: they shift with every kernel release, so they come from its BTF.

use std::collections::HashMap;

use super::btf::Btf;

/// Names that `enum skb_drop_reason` has on this kernel.
#[derive(Clone, Default, Debug)]
pub struct DropReasons(HashMap<u32, String>);

impl DropReasons {
    /// From the kernel's BTF; empty before 5.17.
    pub fn read(btf: &Btf) -> Self {
        let values = btf.enumeration("skb_drop_reason").unwrap_or_default();
        Self(
            values
                .into_iter()
                .filter_map(|(name, value)| {
                    let name = name
                        .strip_prefix("SKB_DROP_REASON_")
                        .or(name.strip_prefix("SKB_"))?;
                    Some((u32::try_from(value).ok()?, name.to_owned()))
                })
                .collect(),
        )
    }

    /// True when this kernel has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of a reason by its name without prefix.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.0
            .iter()
            .find(|(_, found)| *found == name)
            .map(|(&number, _)| number)
    }

    /// Every number with its name.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.0.iter().map(|(&number, name)| (number, name.as_str()))
    }

    /// Name of a reason, without its prefix.
    pub fn name(&self, reason: u32) -> Option<&str> {
        self.0.get(&reason).map(String::as_str)
    }
}

impl FromIterator<(u32, String)> for DropReasons {
    fn from_iter<I: IntoIterator<Item = (u32, String)>>(reasons: I) -> Self {
        Self(reasons.into_iter().collect())
    }
}
