//! What is wrong with an expression, shown under the expression itself.

use std::fmt;
use std::ops::Range;

/// An expression that is not understood, or that means nothing here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    text: String,
    /// Bytes of `text` that are wrong; empty at its end where something is missing.
    span: Range<usize>,
    message: String,
}

impl Error {
    pub(super) fn new(text: &str, span: Range<usize>, message: impl Into<String>) -> Self {
        Self {
            text: text.to_owned(),
            span,
            message: message.into(),
        }
    }

    /// What is wrong, without the expression.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The wrong bytes of the expression.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns =
            |range: Range<usize>| self.text.get(range).map_or(0, |part| part.chars().count());
        let before = columns(0..self.span.start);
        let carets = columns(self.span.clone()).max(1);
        write!(
            formatter,
            "filter: {}\n    {}\n    {}{}",
            self.message,
            self.text,
            " ".repeat(before),
            "^".repeat(carets)
        )
    }
}
