//! What is wrong with an expression, shown under the expression itself.

use std::fmt;
use std::ops::Range;

use unicode_width::UnicodeWidthStr as _;

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
        // A line break would tear the expression from the marks under it.
        let shown = |range: Range<usize>| -> String {
            let part = self.text.get(range).unwrap_or_default().chars();
            part.map(|letter| if letter.is_control() { ' ' } else { letter })
                .collect()
        };
        let before = shown(0..self.span.start).width();
        let carets = shown(self.span.clone()).width().max(1);
        write!(
            formatter,
            "filter: {}\n    {}\n    {}{}",
            self.message,
            shown(0..self.text.len()),
            " ".repeat(before),
            "^".repeat(carets)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stand_under_the_words_they_are_of() {
        let text = "host 日本語 and\nprot\t80";
        let begin = text.find("prot").expect("the word");
        let shown = Error::new(text, begin..begin + 4, "why").to_string();
        // Four columns of indent, and sixteen of `host 日本語 and `.
        let expected = "filter: why\n    host 日本語 and prot 80\n                    ^^^^";
        assert_eq!(shown, expected);
        let wide = Error::new(text, 5..14, "why").to_string();
        assert!(wide.ends_with("\n         ^^^^^^"), "{wide}");
    }
}
