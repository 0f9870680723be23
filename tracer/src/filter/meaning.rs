//! From the tree that was typed to what it means: names looked up, numbers read, defaults filled in.

use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};

use tracer_ebpf::program::network;

use super::error::Error;
use super::name;
use super::resolver::{Front, Resolver};
use super::syntax::{Direction, Kind, Node, ProtocolWord, Qualifiers, Term, Word};
use crate::event::protocol;
use crate::kube::ObjectName;

/// Bytes of a device's name with the zero behind it (IFNAMSIZ).
const NAME_BYTES: usize = 16;

/// What an expression means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Predicate {
    /// One test of a packet.
    Test(Test),
    /// It does not hold.
    Not(Box<Predicate>),
    /// Both hold.
    And(Box<Predicate>, Box<Predicate>),
    /// One of both holds.
    Or(Box<Predicate>, Box<Predicate>),
}

/// One end of a packet, or one of both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The source.
    Source,
    /// The destination.
    Destination,
    /// One of both.
    Either,
}

/// A test of a packet, everything in it known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Test {
    /// The network protocol is one of these bits of [`network`].
    Network(u8),
    /// The transport protocol, within these network protocols.
    Protocol {
        /// Bits of [`network`].
        networks: u8,
        /// Its number.
        protocol: u8,
    },
    /// An address, as far as the mask goes.
    Address {
        /// Which end.
        side: Side,
        /// Bits of [`network`].
        networks: u8,
        /// The address without the bits that the mask leaves out.
        address: IpAddr,
        /// Bits that count, from the left for all that tcpdump's words can say but `mask`.
        mask: IpAddr,
    },
    /// A port of TCP, UDP or SCTP.
    Port {
        /// Which end.
        side: Side,
        /// Only of this protocol.
        protocol: Option<u8>,
        /// The ports.
        range: RangeInclusive<u16>,
    },
    /// The device's name.
    Interface(String),
    /// Inode number of the network namespace.
    Namespace(u32),
}

impl Predicate {
    fn not(self) -> Self {
        Self::Not(Box::new(self))
    }

    fn and(self, other: Self) -> Self {
        Self::And(Box::new(self), Box::new(other))
    }

    fn or(self, other: Self) -> Self {
        Self::Or(Box::new(self), Box::new(other))
    }

    /// True when some test of it satisfies `wanted`.
    pub fn any(&self, wanted: &impl Fn(&Test) -> bool) -> bool {
        match self {
            Self::Test(test) => wanted(test),
            Self::Not(one) => one.any(wanted),
            Self::And(one, two) | Self::Or(one, two) => one.any(wanted) || two.any(wanted),
        }
    }
}

/// Gives a tree its meaning.
///
/// # Errors
/// With the word that means nothing, or not here.
pub(super) fn resolve(
    text: &str,
    node: &Node,
    resolver: &dyn Resolver,
) -> Result<Predicate, Error> {
    let of = |node| resolve(text, node, resolver);
    Ok(match node {
        Node::Not(node) => of(node)?.not(),
        Node::And(one, two) => of(one)?.and(of(two)?),
        Node::Or(one, two) => of(one)?.or(of(two)?),
        Node::Term(Term::Protocol(word)) => Predicate::Test(protocol_alone(*word)),
        Node::Term(Term::Value {
            qualifiers,
            value,
            mask,
        }) => {
            let value = Value {
                text,
                qualifiers,
                word: value,
                mask: mask.as_ref(),
                resolver,
            };
            value.resolve()?
        }
    })
}

fn protocol_alone(word: ProtocolWord) -> Test {
    match (networks(word), number(word)) {
        (networks, Some(protocol)) => Test::Protocol { networks, protocol },
        (networks, None) => Test::Network(networks),
    }
}

/// Network protocols that a word leaves.
const fn networks(word: ProtocolWord) -> u8 {
    match word {
        ProtocolWord::Tcp | ProtocolWord::Udp | ProtocolWord::Sctp => network::IPV4 | network::IPV6,
        ProtocolWord::Icmp | ProtocolWord::Ip => network::IPV4,
        ProtocolWord::Icmp6 | ProtocolWord::Ip6 => network::IPV6,
        ProtocolWord::Arp => network::ARP,
    }
}

/// The transport protocol that a word names.
const fn number(word: ProtocolWord) -> Option<u8> {
    match word {
        ProtocolWord::Tcp => Some(protocol::TCP),
        ProtocolWord::Udp => Some(protocol::UDP),
        ProtocolWord::Sctp => Some(protocol::SCTP),
        ProtocolWord::Icmp => Some(protocol::ICMP),
        ProtocolWord::Icmp6 => Some(protocol::ICMP6),
        ProtocolWord::Ip | ProtocolWord::Ip6 | ProtocolWord::Arp => None,
    }
}

/// A value under its qualifiers.
struct Value<'a> {
    text: &'a str,
    qualifiers: &'a Qualifiers,
    word: &'a Word,
    mask: Option<&'a Word>,
    resolver: &'a dyn Resolver,
}

impl Value<'_> {
    fn error(&self, span: &Range<usize>, message: impl Into<String>) -> Error {
        Error::new(self.text, span.clone(), message)
    }

    /// The value itself is wrong.
    fn wrong(&self, message: impl Into<String>) -> Error {
        self.error(&self.word.span, message)
    }

    fn unreadable(&self) -> Error {
        self.wrong(format!("expected {}", self.qualifiers.kind.expects()))
    }

    fn resolve(&self) -> Result<Predicate, Error> {
        self.check_qualifiers()?;
        let name = &self.word.text;
        match self.qualifiers.kind {
            Kind::Host => self.host(),
            Kind::Net => self.net(),
            Kind::Port => self.port(),
            Kind::PortRange => {
                let (low, high) = name.split_once('-').ok_or_else(|| self.unreadable())?;
                let (low, high) = (self.named_port(low)?, self.named_port(high)?);
                let range = low.port.min(high.port)..=low.port.max(high.port);
                // tcpdump takes the names' protocol where both have the same.
                self.ports(
                    &range,
                    low.protocol.filter(|_| low.protocol == high.protocol),
                )
            }
            Kind::Proto => self.proto(),
            Kind::Interface => {
                if name.is_empty() || name.len() >= NAME_BYTES {
                    return Err(self.wrong("a device's name has 1 to 15 bytes"));
                }
                Ok(Predicate::Test(Test::Interface(name.clone())))
            }
            Kind::Namespace => {
                let known = name
                    .parse()
                    .map_or_else(|_| self.resolver.namespace(name), Ok);
                self.namespace(known)
            }
            Kind::Process => {
                let pid = name.parse().map_err(|_| self.unreadable())?;
                self.namespace(self.resolver.process(pid))
            }
            Kind::Pod => {
                let addresses = self.resolver.pod(&self.object()?);
                self.addresses(addresses)
            }
            Kind::Service => {
                let fronts = self.resolver.service(&self.object()?);
                let fronts = fronts.map_err(|why| self.wrong(why))?;
                self.any(fronts.into_iter().map(|front| self.front(front)))
            }
            Kind::Node => self.addresses(self.resolver.node(name)),
        }
    }

    /// Refuses qualifiers that mean nothing before this kind of value, as tcpdump does.
    fn check_qualifiers(&self) -> Result<(), Error> {
        let Qualifiers {
            protocol,
            direction,
            kind,
        } = self.qualifiers;
        if let Some((_, span)) = direction
            && !kind.has_direction()
        {
            let message = format!("`{}` has no source or destination", kind.word());
            return Err(self.error(span, message));
        }
        let Some((protocol, span)) = protocol else {
            return Ok(());
        };
        let fits = match kind {
            Kind::Host | Kind::Net => number(*protocol).is_none(),
            Kind::Port | Kind::PortRange => matches!(
                protocol,
                ProtocolWord::Tcp | ProtocolWord::Udp | ProtocolWord::Sctp
            ),
            Kind::Proto => matches!(protocol, ProtocolWord::Ip | ProtocolWord::Ip6),
            _ => false,
        };
        if fits {
            return Ok(());
        }
        let (protocol, kind) = (protocol.word(), kind.word());
        Err(self.error(
            span,
            format!("`{protocol}` does not go before `{kind}`; write `{protocol} and {kind} ...`"),
        ))
    }

    fn host(&self) -> Result<Predicate, Error> {
        let text = &self.word.text;
        // Without a word for what it is, tcpdump takes a length or missing bytes as a network.
        if text.contains('/') || short_network(text).is_some() && text.parse::<u32>().is_err() {
            return self.net();
        }
        if let Ok(address) = text.parse() {
            return self.address(address, whole(address));
        }
        if text.starts_with(|first: char| first.is_ascii_digit()) || text.contains(':') {
            return Err(self.unreadable());
        }
        self.addresses(self.resolver.host(text))
    }

    fn net(&self) -> Result<Predicate, Error> {
        let text = &self.word.text;
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text.as_str(), None),
        };
        let (address, mut mask) = match (address.parse::<IpAddr>(), short_network(address)) {
            (Ok(address), _) => (address, whole(address)),
            (Err(_), Some((address, length))) => {
                let address = IpAddr::from(address.to_be_bytes());
                (address, prefix(address, length))
            }
            (Err(_), None) => return Err(self.unreadable()),
        };
        if let Some(length) = length {
            let most = if address.is_ipv4() { 32 } else { 128 };
            let length = length
                .parse()
                .ok()
                .filter(|&length: &u32| length <= most)
                .ok_or_else(|| self.wrong(format!("expected a length from 0 to {most}")))?;
            mask = prefix(address, length);
        }
        if let Some(word) = self.mask {
            mask = match (address, word.text.parse::<IpAddr>()) {
                (IpAddr::V4(_), Ok(mask @ IpAddr::V4(_))) if length.is_none() => mask,
                _ => {
                    return Err(self.error(
                        &word.span,
                        "expected a mask such as 255.255.255.0 behind an IPv4 network without a length",
                    ));
                }
            };
        }
        let network = masked(address, mask);
        if network != address {
            return Err(self.wrong(format!(
                "the address has bits outside the network; did you mean `{network}` with this length or mask?"
            )));
        }
        self.address(address, mask)
    }

    /// A test of an address within what the qualifiers leave.
    fn address(&self, address: IpAddr, mask: IpAddr) -> Result<Predicate, Error> {
        let allowed = self
            .qualifiers
            .protocol
            .as_ref()
            .map_or(u8::MAX, |&(word, _)| networks(word));
        let family = match address {
            IpAddr::V4(_) => network::IPV4 | network::ARP,
            IpAddr::V6(_) => network::IPV6,
        };
        let networks = allowed & family;
        if networks == 0 {
            let word = self
                .qualifiers
                .protocol
                .as_ref()
                .map(|(word, _)| word.word());
            return Err(self.wrong(format!(
                "`{}` has no such addresses",
                word.unwrap_or_default()
            )));
        }
        Ok(self.directed(|side| Test::Address {
            side,
            networks,
            address,
            mask,
        }))
    }

    fn addresses(&self, found: Result<Vec<IpAddr>, String>) -> Result<Predicate, Error> {
        let found = found.map_err(|why| self.wrong(why))?;
        self.any(
            found
                .into_iter()
                .map(|address| self.address(address, whole(address))),
        )
    }

    fn front(&self, front: Front) -> Result<Predicate, Error> {
        let port = front
            .port
            .map(|port| self.ports(&(port..=port), front.protocol))
            .transpose()?;
        let address = front
            .address
            .map(|address| self.address(address, whole(address)))
            .transpose()?;
        match (address, port) {
            (Some(address), Some(port)) => Ok(address.and(port)),
            (Some(one), None) | (None, Some(one)) => Ok(one),
            (None, None) => Err(self.wrong("this answers nowhere")),
        }
    }

    fn any(
        &self,
        mut tests: impl Iterator<Item = Result<Predicate, Error>>,
    ) -> Result<Predicate, Error> {
        let first = tests
            .next()
            .unwrap_or_else(|| Err(self.wrong("no address is known for this")))?;
        tests.try_fold(first, |sum, test| Ok(sum.or(test?)))
    }

    fn port(&self) -> Result<Predicate, Error> {
        let named = self.named_port(&self.word.text)?;
        self.ports(&(named.port..=named.port), named.protocol)
    }

    fn named_port(&self, text: &str) -> Result<name::NamedPort, Error> {
        if let Ok(port) = text.parse() {
            return Ok(name::NamedPort {
                port,
                protocol: None,
            });
        }
        name::port(text).ok_or_else(|| {
            if text.starts_with(|first: char| first.is_ascii_digit()) {
                self.unreadable()
            } else {
                self.wrong("no port of this name is in /etc/services")
            }
        })
    }

    /// A test of a port, of the protocol that was typed or comes with a name.
    fn ports(&self, range: &RangeInclusive<u16>, named: Option<u8>) -> Result<Predicate, Error> {
        let typed = self
            .qualifiers
            .protocol
            .as_ref()
            .and_then(|&(word, _)| number(word));
        if let (Some(typed), Some(named)) = (typed, named)
            && typed != named
        {
            return Err(self.wrong(format!("this port is {}'s", protocol::name(named))));
        }
        Ok(self.directed(|side| Test::Port {
            side,
            protocol: typed.or(named),
            range: range.clone(),
        }))
    }

    fn proto(&self) -> Result<Predicate, Error> {
        let text = &self.word.text;
        let protocol = text
            .parse()
            .ok()
            .or_else(|| name::protocol_number(text))
            .ok_or_else(|| self.unreadable())?;
        let networks = self
            .qualifiers
            .protocol
            .as_ref()
            .map_or(network::IPV4 | network::IPV6, |&(word, _)| networks(word));
        Ok(Predicate::Test(Test::Protocol { networks, protocol }))
    }

    fn namespace(&self, known: Result<u32, String>) -> Result<Predicate, Error> {
        let inode = known.map_err(|why| self.wrong(why))?;
        Ok(Predicate::Test(Test::Namespace(inode)))
    }

    fn object(&self) -> Result<ObjectName, Error> {
        ObjectName::parse(&self.word.text).ok_or_else(|| self.unreadable())
    }

    /// A test of the end that the direction names.
    fn directed(&self, test: impl Fn(Side) -> Test) -> Predicate {
        let test = |side| Predicate::Test(test(side));
        match self.qualifiers.direction {
            Some((Direction::Source, _)) => test(Side::Source),
            Some((Direction::Destination, _)) => test(Side::Destination),
            Some((Direction::Both, _)) => test(Side::Source).and(test(Side::Destination)),
            Some((Direction::Either, _)) | None => test(Side::Either),
        }
    }
}

/// tcpdump's short networks: 1 to 3 leading bytes of an IPv4 address. The address and the prefix length.
fn short_network(text: &str) -> Option<(u32, u32)> {
    let bytes: Vec<u8> = text
        .split('.')
        .map(|byte| byte.parse().ok())
        .collect::<Option<_>>()?;
    if bytes.len() > 3 {
        return None;
    }
    let mut address = [0; 4];
    address[..bytes.len()].copy_from_slice(&bytes);
    Some((u32::from_be_bytes(address), 8 * bytes.len() as u32))
}

/// The mask under which every bit counts.
const fn whole(address: IpAddr) -> IpAddr {
    prefix(address, 128)
}

/// The mask of a prefix, in the address's family.
const fn prefix(address: IpAddr, length: u32) -> IpAddr {
    let ones = match u128::MAX.checked_shr(length) {
        Some(behind) => !behind,
        None => u128::MAX,
    };
    match address {
        IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::from_bits((ones >> 96) as u32)),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::from_bits(ones)),
    }
}

fn masked(address: IpAddr, mask: IpAddr) -> IpAddr {
    match (address, mask) {
        (IpAddr::V4(address), IpAddr::V4(mask)) => IpAddr::V4(address & mask),
        (IpAddr::V6(address), IpAddr::V6(mask)) => IpAddr::V6(address & mask),
        (address, _) => address,
    }
}
