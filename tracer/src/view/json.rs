//! JSON: one object a line, its kind under `"type"`.

use std::io::{self, Write};

use serde::Serialize;

#[derive(Serialize)]
struct Line<'a, T> {
    r#type: &'static str,
    #[serde(flatten)]
    value: &'a T,
}

/// Writes one object.
///
/// # Errors
/// When writing fails.
pub fn line(out: &mut impl Write, kind: &'static str, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(
        &mut *out,
        &Line {
            r#type: kind,
            value,
        },
    )?;
    writeln!(out)
}
