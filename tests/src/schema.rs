//! Everything that the tracer prints with `--format json` is held against the schema in the repository.

use anyhow::{Context as _, bail};
use serde_json::Value;

const SCHEMA: &str = include_str!("../../tracer/schema/output.schema.json");

/// Fails at the first object that the schema does not allow. Lines that are no objects are a person's.
///
/// # Errors
/// With what is wrong and where.
pub fn validate(stdout: &str) -> anyhow::Result<()> {
    let schema = serde_json::from_str(SCHEMA).context("the schema is no JSON")?;
    let validator = jsonschema::validator_for(&schema).context("the schema is no schema")?;
    let objects = stdout
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(Value::is_object);
    for object in objects {
        if let Err(error) = validator.validate(&object) {
            bail!(
                "the schema does not allow this at {:?}: {error}; in {object}",
                error.instance_path.to_string()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_documented_is_refused() {
        let good = r#"{"type":"difference","difference":"x"}"#;
        validate(good).expect("it is documented");
        for wrong in [
            r#"{"type":"difference","difference":"x","more":1}"#,
            r#"{"type":"difference"}"#,
            r#"{"type":"difference","difference":1}"#,
            r#"{"type":"unheard-of"}"#,
            r#"{"difference":"x"}"#,
        ] {
            assert!(validate(&format!("{good}\n{wrong}")).is_err(), "{wrong}");
        }
        validate("tracing\n7\n").expect("a person's lines");
    }
}
