//! What was typed: the expression's tree, with the place of every word. Nothing is looked up yet.

use std::ops::Range;

/// A word and where it stands in the expression.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Word {
    /// As typed, without a backslash before it.
    pub text: String,
    /// Its bytes in the expression.
    pub span: Range<usize>,
}

/// An expression's tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Node {
    /// One test.
    Term(Term),
    /// The test does not hold.
    Not(Box<Node>),
    /// Both hold.
    And(Box<Node>, Box<Node>),
    /// One of both holds.
    Or(Box<Node>, Box<Node>),
}

/// One test as typed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Term {
    /// A protocol's word alone.
    Protocol(ProtocolWord),
    /// Qualifiers and what they qualify.
    Value {
        /// The qualifiers, typed here or carried on from the term before.
        qualifiers: Qualifiers,
        /// What they qualify.
        value: Word,
        /// What stands behind `mask`.
        mask: Option<Word>,
    },
}

/// What stands before a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Qualifiers {
    /// Protocol, and where its word stands.
    pub protocol: Option<(ProtocolWord, Range<usize>)>,
    /// Direction, and where its words stand.
    pub direction: Option<(Direction, Range<usize>)>,
    /// What the value is.
    pub kind: Kind,
}

/// Which end of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// `src`.
    Source,
    /// `dst`.
    Destination,
    /// `src or dst`, and where nothing is said.
    Either,
    /// `src and dst`.
    Both,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident: $($(#[$word_doc:meta])* $variant:ident = $word:literal;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$word_doc])* $variant),* }

        impl $name {
            /// Every word, in the order of the help.
            pub const WORDS: &[(&str, Self)] = &[$(($word, Self::$variant)),*];

            /// From a word.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::WORDS
                    .iter()
                    .find_map(|&(known, value)| (known == word).then_some(value))
            }

            /// The word.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }
    };
}

words! {
    /// A protocol's word.
    ProtocolWord:
    /// TCP.
    Tcp = "tcp";
    /// UDP.
    Udp = "udp";
    /// SCTP.
    Sctp = "sctp";
    /// ICMP of IPv4.
    Icmp = "icmp";
    /// ICMP of IPv6.
    Icmp6 = "icmp6";
    /// IPv4.
    Ip = "ip";
    /// IPv6.
    Ip6 = "ip6";
    /// ARP.
    Arp = "arp";
}

words! {
    /// What a value is.
    Kind:
    /// An address.
    Host = "host";
    /// A network.
    Net = "net";
    /// A port's number or name.
    Port = "port";
    /// Two ports with a dash.
    PortRange = "portrange";
    /// A protocol's number or name.
    Proto = "proto";
    /// A device's name, in any namespace.
    Interface = "iface";
    /// A network namespace's name or inode number.
    Namespace = "netns";
    /// A process whose network namespace is meant.
    Process = "pid";
    /// A pod, `namespace/name`.
    Pod = "pod";
    /// A service, `namespace/name`.
    Service = "svc";
    /// A node of the cluster.
    Node = "node";
}

impl Kind {
    /// What its value looks like.
    pub const fn expects(self) -> &'static str {
        match self {
            Self::Host => "an address such as 192.0.2.1 or 2001:db8::1",
            Self::Net => "a network such as 192.0.2.0/24, 192.0.2 or 2001:db8::/32",
            Self::Port => "a port such as 80 or domain",
            Self::PortRange => "ports such as 8000-8080",
            Self::Proto => "a protocol such as 47 or sctp",
            Self::Interface => "a device such as eth0",
            Self::Namespace => "a namespace's name or inode number",
            Self::Process => "a process number",
            Self::Pod | Self::Service => "namespace/name",
            Self::Node => "a node's name",
        }
    }

    /// `src` and `dst` mean something before it.
    pub const fn has_direction(self) -> bool {
        !matches!(
            self,
            Self::Proto | Self::Interface | Self::Namespace | Self::Process
        )
    }

    /// Its values may be any word, those of the language as well.
    pub const fn takes_any_word(self) -> bool {
        matches!(
            self,
            Self::Proto
                | Self::Interface
                | Self::Namespace
                | Self::Pod
                | Self::Service
                | Self::Node
        )
    }
}
