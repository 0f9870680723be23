//! From words to the tree: tcpdump's grammar as pcap-filter(7) gives it, and our own words.
//!
//! Of that grammar this keeps what surprises people: `and` and `or` bind equally tight and group from
//! the left, and a value without qualifiers takes those of the term before (`port 80 or 443`).

use std::iter::Peekable;
use std::ops::Range;
use std::vec::IntoIter;

use super::error::Error;
use super::syntax::{Direction, Kind, Node, ProtocolWord, Qualifiers, Term, Word};
use super::token::{Token, TokenKind, tokens};

/// Deepest nesting of parentheses and `not`, so that the stack is enough.
const MOST_NESTED: usize = 100;

/// Parses an expression; `None` for one without words.
///
/// # Errors
/// With the first word that does not fit.
pub(super) fn parse(text: &str) -> Result<Option<Node>, Error> {
    let mut parser = Parser {
        text,
        tokens: tokens(text).into_iter().peekable(),
        carried: None,
        nested: 0,
    };
    if parser.tokens.peek().is_none() {
        return Ok(None);
    }
    let node = parser.expression()?;
    match parser.tokens.next() {
        None => Ok(Some(node)),
        Some(token) if token.kind == TokenKind::Close => {
            Err(parser.error(token.span, "nothing was opened that this could close"))
        }
        Some(token) => {
            let found = &text[token.span.clone()];
            let near = nearest(found, ["and", "or"].into_iter());
            Err(parser.error(
                token.span,
                format!("expected `and`, `or` or the end here{near}"),
            ))
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    tokens: Peekable<IntoIter<Token<'a>>>,
    /// Qualifiers of the term before, for a value that has none.
    carried: Option<Qualifiers>,
    nested: usize,
}

impl<'a> Parser<'a> {
    fn error(&self, span: Range<usize>, message: impl Into<String>) -> Error {
        Error::new(self.text, span, message)
    }

    fn missing(&self, what: &str) -> Error {
        let end = self.text.len();
        self.error(end..end, format!("expected {what} here"))
    }

    fn take(&mut self, kind: TokenKind<'_>) -> Option<Token<'a>> {
        self.tokens.next_if(|token| token.kind == kind)
    }

    fn expression(&mut self) -> Result<Node, Error> {
        let mut node = self.factor()?;
        loop {
            if self.take(TokenKind::And).is_some() {
                node = Node::And(Box::new(node), Box::new(self.factor()?));
            } else if self.take(TokenKind::Or).is_some() {
                node = Node::Or(Box::new(node), Box::new(self.factor()?));
            } else {
                return Ok(node);
            }
        }
    }

    fn factor(&mut self) -> Result<Node, Error> {
        let Some(token) = self.tokens.peek().cloned() else {
            return Err(self.missing("a test such as `host 192.0.2.1` or `tcp port 80`"));
        };
        if self.nested >= MOST_NESTED {
            return Err(self.error(token.span, "this is nested too deeply"));
        }
        self.nested += 1;
        let node = match token.kind {
            TokenKind::Not => {
                self.tokens.next();
                Node::Not(Box::new(self.factor()?))
            }
            TokenKind::Open => self.group()?,
            TokenKind::Word(_) | TokenKind::Name(_) => self.term()?,
            TokenKind::Close | TokenKind::And | TokenKind::Or => {
                return Err(self.error(
                    token.span,
                    "expected a test such as `host 192.0.2.1` or `tcp port 80` here",
                ));
            }
        };
        self.nested -= 1;
        Ok(node)
    }

    /// An expression in parentheses; the next token opens them.
    fn group(&mut self) -> Result<Node, Error> {
        let open = self.tokens.next().map(|token| token.span);
        let node = self.expression()?;
        if self.take(TokenKind::Close).is_some() {
            return Ok(node);
        }
        match (self.tokens.next(), open) {
            (Some(token), _) => Err(self.error(token.span, "expected `and`, `or` or `)` here")),
            (None, Some(open)) => Err(self.error(open, "this is never closed; expected `)`")),
            (None, None) => Err(self.missing("`)`")),
        }
    }

    fn word(&mut self) -> Option<&'a str> {
        match self.tokens.peek()?.kind {
            TokenKind::Word(word) => Some(word),
            _ => None,
        }
    }

    fn term(&mut self) -> Result<Node, Error> {
        let protocol = self.protocol();
        let direction = self.direction()?;
        let kind = self.kind();
        let qualifiers = match (protocol, direction, kind) {
            (None, None, None) => match self.carried.clone() {
                Some(carried) if !self.begins_wrongly() => carried,
                _ => return Err(self.unknown_word()),
            },
            (Some((protocol, _)), None, None) => {
                self.carried = None;
                return Ok(Node::Term(Term::Protocol(protocol)));
            }
            // tcpdump's default; a value with a length behind it is taken as a network later.
            (protocol, direction, kind) => Qualifiers {
                protocol,
                direction,
                kind: kind.unwrap_or(Kind::Host),
            },
        };
        self.carried = Some(qualifiers.clone());
        if self
            .tokens
            .peek()
            .is_some_and(|token| token.kind == TokenKind::Open)
        {
            return self.group();
        }
        self.value(qualifiers)
    }

    fn protocol(&mut self) -> Option<(ProtocolWord, Range<usize>)> {
        let protocol = ProtocolWord::from_word(self.word()?)?;
        self.tokens.next().map(|token| (protocol, token.span))
    }

    fn kind(&mut self) -> Option<Kind> {
        let kind = Kind::from_word(self.word()?)?;
        self.tokens.next();
        Some(kind)
    }

    /// `src`, `dst`, or both with `or` or `and` between.
    fn direction(&mut self) -> Result<Option<(Direction, Range<usize>)>, Error> {
        let Some(first) = self.word().and_then(one_direction) else {
            return Ok(None);
        };
        let Some(token) = self.tokens.next() else {
            return Ok(None);
        };
        let both = if self.take(TokenKind::Or).is_some() {
            Direction::Either
        } else if self.take(TokenKind::And).is_some() {
            Direction::Both
        } else {
            return Ok(Some((first, token.span)));
        };
        let other = self.tokens.next();
        match other.as_ref().map(|token| (token.kind, &token.span)) {
            Some((TokenKind::Word(word), span))
                if one_direction(word).is_some_and(|second| second != first) =>
            {
                Ok(Some((both, token.span.start..span.end)))
            }
            Some((_, span)) => Err(self.error(
                span.clone(),
                "expected the other of `src` and `dst`, or a test before the `or` or `and`",
            )),
            None => Err(self.missing("the other of `src` and `dst`")),
        }
    }

    fn value(&mut self, qualifiers: Qualifiers) -> Result<Node, Error> {
        let expects = qualifiers.kind.expects();
        let Some(token) = self.tokens.next() else {
            return Err(self.missing(expects));
        };
        let text = match token.kind {
            TokenKind::Name(text) => text,
            TokenKind::Word(text) if qualifiers.kind.takes_any_word() || !is_ours(text) => text,
            _ => return Err(self.error(token.span, format!("expected {expects} here"))),
        };
        let value = Word {
            text: text.to_owned(),
            span: token.span,
        };
        let mask = if qualifiers.kind == Kind::Net && self.word() == Some("mask") {
            self.tokens.next();
            let Some(token) = self.tokens.next() else {
                return Err(self.missing("a mask such as 255.255.255.0"));
            };
            let TokenKind::Word(text) = token.kind else {
                return Err(self.error(token.span, "expected a mask such as 255.255.255.0 here"));
            };
            Some(Word {
                text: text.to_owned(),
                span: token.span,
            })
        } else {
            None
        };
        Ok(Node::Term(Term::Value {
            qualifiers,
            value,
            mask,
        }))
    }

    /// The next word cannot be a value of the carried qualifiers: it looks like a mistyped word.
    fn begins_wrongly(&mut self) -> bool {
        let carried = self.carried.as_ref().map(|qualifiers| qualifiers.kind);
        let Some(word) = self.word() else {
            return false;
        };
        let takes_names = matches!(
            carried,
            Some(Kind::Interface | Kind::Namespace | Kind::Pod | Kind::Service | Kind::Node)
        );
        let second_is_value = {
            let mut ahead = self.tokens.clone();
            ahead.next();
            ahead
                .next()
                .is_some_and(|token| matches!(token.kind, TokenKind::Word(_) | TokenKind::Name(_)))
        };
        !takes_names && second_is_value && !near_words(word).is_empty()
    }

    fn unknown_word(&mut self) -> Error {
        let Some(token) = self.tokens.next() else {
            return self.missing("a test");
        };
        let word = &self.text[token.span.clone()];
        let bare_address = word.contains(':') || word.starts_with(|c: char| c.is_ascii_digit());
        let hint = if bare_address && word.parse::<u16>().is_ok() {
            format!(": `port {word}`?")
        } else if bare_address && word.contains('/') {
            format!(": `net {word}`?")
        } else if bare_address {
            format!(": `host {word}`?")
        } else {
            near_words(word)
        };
        self.error(token.span, format!("expected a filter word here{hint}"))
    }
}

fn one_direction(word: &str) -> Option<Direction> {
    match word {
        "src" => Some(Direction::Source),
        "dst" => Some(Direction::Destination),
        _ => None,
    }
}

/// Every word of the language that a term can begin with.
fn words() -> impl Iterator<Item = &'static str> {
    let protocols = ProtocolWord::WORDS.iter().map(|&(word, _)| word);
    let kinds = Kind::WORDS.iter().map(|&(word, _)| word);
    kinds.chain(protocols).chain(["src", "dst", "not"])
}

fn is_ours(word: &str) -> bool {
    words().any(|known| known == word)
}

fn near_words(word: &str) -> String {
    nearest(word, words())
}

/// ", did you mean ..." for the nearest word, when one is near.
fn nearest<'a>(typed: &str, words: impl Iterator<Item = &'a str>) -> String {
    /// Below this a likeness is chance.
    const NEAR: f64 = 0.75;
    words
        .map(|word| (strsim::jaro_winkler(typed, word), word))
        .filter(|&(likeness, _)| likeness >= NEAR)
        .max_by(|one, two| one.0.total_cmp(&two.0))
        .map_or_else(String::new, |(_, word)| format!("; did you mean `{word}`?"))
}
