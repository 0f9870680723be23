//! Cuts an expression into words and signs.

use std::ops::Range;

/// What a piece of the expression is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TokenKind<'a> {
    /// A word as it stands.
    Word(&'a str),
    /// A word behind a backslash: a name even where it is one of the language's own words.
    Name(&'a str),
    /// `(`.
    Open,
    /// `)`.
    Close,
    /// `not` or `!`.
    Not,
    /// `and` or `&&`.
    And,
    /// `or` or `||`.
    Or,
}

/// A piece of the expression and where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: TokenKind<'a>,
    pub(super) span: Range<usize>,
}

/// Cuts the text. Every byte that is not white space ends up in a token; what makes no sense becomes a
/// word, which the parser then refuses at its place.
pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let skipped = rest.len() - rest.trim_start().len();
        if skipped > 0 {
            at += skipped;
            continue;
        }
        let (kind, length) = first(rest);
        found.push(Token {
            kind,
            span: at..at + length,
        });
        at += length;
    }
    found
}

/// The token at the beginning of a text that does not begin with white space, and its bytes.
fn first(text: &str) -> (TokenKind<'_>, usize) {
    for (sign, kind) in [
        ("&&", TokenKind::And),
        ("||", TokenKind::Or),
        ("(", TokenKind::Open),
        (")", TokenKind::Close),
        ("!", TokenKind::Not),
    ] {
        if text.starts_with(sign) {
            return (kind, sign.len());
        }
    }
    let ends = |(index, letter): (usize, char)| {
        (letter.is_whitespace()
            || matches!(letter, '(' | ')' | '!')
            || text[index..].starts_with("&&")
            || text[index..].starts_with("||"))
        .then_some(index)
    };
    let length = text.char_indices().find_map(ends).unwrap_or(text.len());
    let word = &text[..length];
    let kind = match word.strip_prefix('\\') {
        Some(name) => TokenKind::Name(name),
        None => match word {
            "and" => TokenKind::And,
            "or" => TokenKind::Or,
            "not" => TokenKind::Not,
            _ => TokenKind::Word(word),
        },
    };
    (kind, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_need_no_spaces() {
        let kinds: Vec<_> = tokens("!(tcp&&port 80)||\\and")
            .into_iter()
            .map(|token| token.kind)
            .collect();
        assert_eq!(
            kinds,
            [
                TokenKind::Not,
                TokenKind::Open,
                TokenKind::Word("tcp"),
                TokenKind::And,
                TokenKind::Word("port"),
                TokenKind::Word("80"),
                TokenKind::Close,
                TokenKind::Or,
                TokenKind::Name("and"),
            ]
        );
    }
}
