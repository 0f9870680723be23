//! Filters: tcpdump's expressions, and what they match.
//!
//! ```text
//! text → token → parse → syntax (what was typed) → meaning (what it means) → compile → Program
//! ```
//!
//! The program is the kernel's as well (`tracer_ebpf::program`), so live traces and captures agree.
//! Following is the history's, not the program's: a journey matches when any address that it had on
//! its way does, in either direction, and what belongs to the same flow is picked with it ([`Following`]).
//! What `not` excludes may then be nowhere on its way. The kernel sees one place at a time, so live it
//! follows what it does not yet know to be excluded, and such journeys are left out of what is told.
//!
//! ARP is followed where the expression says `arp`; addresses alone do not ask for it.
//!
//! Known limits: a later fragment has no ports, so alone it does not match a port; live it is followed
//! by its identification once an earlier fragment was. Of IPv6 no fragment has ports for tcpdump, nor for
//! the kernel's programs: live, a filter of ports does not follow them. What a connection's first packet met
//! before NAT chose its destination does not match that destination, nor is a packet that was lost there
//! left out by it. Nor is it shown what a first packet met before it came to the device or the namespace
//! that matched; the rest of its flow is shown everywhere.

use std::fmt;

use tracer_ebpf::program::{Program, kind, network, side};

use crate::event::Event;
use crate::kube::ObjectName;

mod compile;
mod error;
mod following;
mod key;
pub mod meaning;
mod name;
mod parse;
mod resolver;
pub mod syntax;
mod token;

pub use error::Error;
pub use following::Following;
pub use resolver::{Front, Here, Resolver};

use meaning::{Predicate, Test};
use syntax::{Kind, Node, Term};

/// The name of a device by namespace and interface index.
pub type NameOf<'a> = dyn Fn(u32, u32) -> Option<String> + 'a;

/// An expression as typed: the grammar holds, nothing is looked up yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expression {
    text: String,
    /// `None` for everything.
    root: Option<Node>,
}

impl Expression {
    /// Parses an expression; an empty one means everything.
    ///
    /// # Errors
    /// With the word that does not fit.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Ok(Self {
            root: parse::parse(text)?,
            text: text.to_owned(),
        })
    }

    /// It names objects of the cluster, so their facts are needed to resolve it.
    pub fn names_cluster(&self) -> bool {
        let of_cluster = |kind| matches!(kind, Kind::Pod | Kind::Service | Kind::Node);
        self.named().iter().any(|&(kind, _)| of_cluster(kind))
    }

    /// The pods that it names.
    pub fn pods(&self) -> Vec<ObjectName> {
        self.named()
            .into_iter()
            .filter(|(kind, _)| *kind == Kind::Pod)
            .filter_map(|(_, name)| ObjectName::parse(name))
            .collect()
    }

    /// What it names, and as what.
    fn named(&self) -> Vec<(Kind, &str)> {
        fn collect<'a>(node: &'a Node, found: &mut Vec<(Kind, &'a str)>) {
            match node {
                Node::Term(Term::Value {
                    qualifiers, value, ..
                }) => found.push((qualifiers.kind, &value.text)),
                Node::Term(Term::Protocol(_)) => {}
                Node::Not(one) => collect(one, found),
                Node::And(one, two) | Node::Or(one, two) => {
                    collect(one, found);
                    collect(two, found);
                }
            }
        }
        let mut found = Vec::new();
        if let Some(root) = &self.root {
            collect(root, &mut found);
        }
        found
    }

    /// Looks names up and compiles.
    ///
    /// # Errors
    /// With the word that means nothing, or when the program would be too large.
    pub fn resolve(self, resolver: &dyn Resolver) -> Result<Filter, Error> {
        let Some(root) = &self.root else {
            return Ok(Filter::default());
        };
        let meaning = meaning::resolve(&self.text, root, resolver)?;
        let program = compile::compile(&meaning).map_err(|tests| {
            Error::new(
                &self.text,
                0..self.text.len(),
                format!(
                    "this needs {tests} tests, more than the {} that a filter may have; \
                     a `net` or `portrange` can stand for many",
                    tracer_ebpf::program::MOST_INSTRUCTIONS
                ),
            )
        })?;
        Ok(Filter {
            text: self.text,
            meaning: Some(meaning),
            program,
        })
    }
}

/// A filter ready for use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    text: String,
    meaning: Option<Predicate>,
    program: Program,
}

impl Default for Filter {
    /// Everything.
    fn default() -> Self {
        Self {
            text: String::new(),
            meaning: None,
            program: Program::EVERYTHING,
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl Filter {
    /// It matches everything.
    pub const fn is_everything(&self) -> bool {
        self.program.length == 0
    }

    /// What it means; `None` for everything.
    pub const fn meaning(&self) -> Option<&Predicate> {
        self.meaning.as_ref()
    }

    /// The compiled program.
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// It asks for the devices' names.
    pub fn reads_names(&self) -> bool {
        self.meaning
            .as_ref()
            .is_some_and(|meaning| meaning.any(&|test| matches!(test, Test::Interface(_))))
    }

    /// It asks for network namespaces.
    pub fn reads_namespaces(&self) -> bool {
        self.meaning
            .as_ref()
            .is_some_and(|meaning| meaning.any(&|test| matches!(test, Test::Namespace(_))))
    }

    /// It asks for ARP by that word. Packets of ARP have journeys only then, though addresses match theirs.
    pub fn asks_for_arp(&self) -> bool {
        let asks = |test: &Test| {
            matches!(
                *test,
                Test::Network(network::ARP)
                    | Test::Address {
                        networks: network::ARP,
                        ..
                    }
            )
        };
        (self.meaning.as_ref()).is_some_and(|meaning| meaning.any(&asks))
    }

    /// Both directions of a packet are not the same to it.
    pub fn is_directed(&self) -> bool {
        self.program.used().iter().any(|test| {
            matches!(test.kind, kind::ADDRESS | kind::PORT) && test.side != side::EITHER
        })
    }

    /// True when a packet alone matches, without following: `bytes` begin at the network header.
    pub fn matches_packet(&self, bytes: &[u8], ethertype: u16) -> bool {
        self.program.matches(&key::of_packet(bytes, ethertype))
    }

    /// It has a `not`.
    pub fn negates(&self) -> bool {
        (self.program.used().iter()).any(|test| test.negated != 0)
    }

    /// True when one of the event's own addresses matches, in either direction.
    pub fn matches_event(&self, event: &Event, name_of: &NameOf<'_>) -> bool {
        self.is_everything() || self.program.matches_one_of(&key::of_event(event, name_of))
    }
}

#[cfg(test)]
mod agreement;
#[cfg(test)]
mod tests;
