//! Sends one test from a namespace, bounded in time.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::dns;
use super::target::{Question, Target};
use crate::event::Tuple;
use crate::node::NetnsHandle;

const DATAGRAM: &[u8] = b"tracer probe\n";
/// The largest answer over UDP that is read.
const ANSWER_BYTES: usize = 4096;

/// What came of a test.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The connection was accepted.
    Connected,
    /// An answer came; a DNS answer in words, one line per record.
    Answered(Vec<String>),
    /// The server answered that it will not or cannot say, in words.
    Declined(String),
    /// A datagram was sent and nothing came back, which may be right.
    Silent,
    /// The other side, or somebody on the way, refused.
    Refused,
    /// What has to be answered was not, in time.
    TimedOut,
    /// The network said no.
    Failed(String),
}

impl Outcome {
    /// True when the test shows that the address works, false when it shows that it does not.
    pub const fn works(&self) -> Option<bool> {
        match self {
            Self::Connected | Self::Answered(_) => Some(true),
            Self::Silent => None,
            Self::Declined(_) | Self::Refused | Self::TimedOut | Self::Failed(_) => Some(false),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("connected"),
            Self::Answered(lines) if lines.is_empty() => f.write_str("answered"),
            Self::Answered(lines) => write!(f, "answered: {}", lines.join("; ")),
            Self::Declined(why) => write!(f, "answered: {why}"),
            Self::Silent => f.write_str("sent, nothing came back"),
            Self::Refused => f.write_str("refused"),
            Self::TimedOut => f.write_str("no answer"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// One test.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Addresses of its packets as they left the socket; `None` when none could be sent.
    pub tuple: Option<Tuple>,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took.
    pub elapsed: Duration,
}

/// How to send tests.
#[derive(Clone, Debug)]
pub struct Send {
    /// Where from; `None` for this process's own namespace.
    pub from: Option<NetnsHandle>,
    /// Tests, one after the other.
    pub count: u32,
    /// Patience for each.
    pub timeout: Duration,
    /// Pause between them.
    pub pause: Duration,
    /// Set from elsewhere: no further test is sent.
    pub stopped: Arc<AtomicBool>,
}

impl Send {
    /// Sends the tests and waits for what comes of them, as far as it is not stopped.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run(&self, target: &Target) -> io::Result<Vec<Attempt>> {
        let all = || {
            (0..self.count)
                .map(|number| {
                    if number > 0 {
                        std::thread::sleep(self.pause);
                    }
                    let stopped = self.stopped.load(Ordering::Relaxed);
                    (!stopped).then(|| attempt(target, self.timeout))
                })
                .map_while(|attempt| attempt)
                .collect()
        };
        match &self.from {
            Some(namespace) => namespace.run(all),
            None => Ok(all()),
        }
    }
}

fn attempt(target: &Target, timeout: Duration) -> Attempt {
    let begun = Instant::now();
    let mut tuple = None;
    let sent = match &target.question {
        Question::Tcp => connect(target, timeout, &mut tuple),
        Question::Udp => ask(target, timeout, DATAGRAM, &mut tuple, |_| Some(Vec::new()))
            .map(|answer| answer.map_or(Outcome::Silent, Outcome::Answered)),
        Question::Dns(name) => query(target, timeout, name, &mut tuple),
    };
    let outcome = sent.unwrap_or_else(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => Outcome::Refused,
        io::ErrorKind::TimedOut => Outcome::TimedOut,
        _ => Outcome::Failed(error.to_string()),
    });
    Attempt {
        tuple,
        outcome,
        elapsed: begun.elapsed(),
    }
}

/// The address that packets to the target are sent from. Connecting a UDP socket sends nothing.
fn source(target: &Target) -> io::Result<SocketAddr> {
    let socket = unbound(target)?;
    socket.connect(target.address)?;
    Ok(SocketAddr::new(socket.local_addr()?.ip(), 0))
}

fn unbound(target: &Target) -> io::Result<UdpSocket> {
    match target.address {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    }
}

/// The socket is bound before it connects: one that was refused no longer knows its address.
fn connect(target: &Target, timeout: Duration, tuple: &mut Option<Tuple>) -> io::Result<Outcome> {
    let socket = Socket::new(
        Domain::for_address(target.address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.bind(&source(target)?.into())?;
    *tuple = socket
        .local_addr()?
        .as_socket()
        .map(|source| between(target, source));
    socket.connect_timeout(&target.address.into(), timeout)?;
    Ok(Outcome::Connected)
}

fn between(target: &Target, source: SocketAddr) -> Tuple {
    Tuple {
        protocol: target.protocol(),
        source,
        destination: target.address,
    }
}

/// Sends a datagram and waits for one that `read` accepts; `None` when time is up.
fn ask<T>(
    target: &Target,
    timeout: Duration,
    question: &[u8],
    tuple: &mut Option<Tuple>,
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    let socket = unbound(target)?;
    socket.connect(target.address)?;
    *tuple = Some(between(target, socket.local_addr()?));
    socket.send(question)?;
    let begun = Instant::now();
    let mut bytes = [0; ANSWER_BYTES];
    loop {
        let left = timeout.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut bytes) {
            Ok(length) => {
                if let Some(answer) = read(&bytes[..length]) {
                    return Ok(Some(answer));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn query(
    target: &Target,
    timeout: Duration,
    name: &str,
    tuple: &mut Option<Tuple>,
) -> io::Result<Outcome> {
    // Its uniqueness matters only on this one socket.
    let id = std::process::id() as u16;
    let question = dns::query(id, name).map_err(io::Error::other)?;
    let answer = ask(target, timeout, &question, tuple, |bytes| {
        dns::answer(id, bytes)
    })?;
    Ok(match answer {
        Some(Ok(lines)) => Outcome::Answered(lines),
        Some(Err(why)) => Outcome::Declined(why),
        None => Outcome::TimedOut,
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn once(url: &str) -> Attempt {
        attempt(&url.parse().expect(url), Duration::from_millis(200))
    }

    #[test]
    fn a_connection_is_made_or_refused_and_its_addresses_are_known() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let url = format!("tcp://{address}");
        let made = once(&url);
        assert_eq!(made.outcome, Outcome::Connected);
        assert_eq!(made.tuple.map(|tuple| tuple.destination), Some(address));
        drop(listener);
        let refused = once(&url);
        assert_eq!(refused.outcome, Outcome::Refused);
        let tuple = refused.tuple.expect("its addresses");
        assert!(tuple.source.port() != 0 && tuple.source.ip().is_loopback());
    }

    #[test]
    fn silence_is_no_failure_of_a_datagram_but_of_a_query() {
        let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = silent.local_addr().expect("its address");
        assert_eq!(once(&format!("udp://{address}")).outcome, Outcome::Silent);
        let query = once(&format!("dns://{address}/a.example"));
        assert_eq!(query.outcome, Outcome::TimedOut);
    }

    #[test]
    fn no_test_is_sent_once_it_is_stopped() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let send = Send {
            from: None,
            count: 100,
            timeout: Duration::from_secs(1),
            pause: Duration::from_millis(10),
            stopped: Arc::default(),
        };
        let stopped = Arc::clone(&send.stopped);
        let stopping = std::thread::spawn(move || {
            listener.accept().expect("a connection");
            stopped.store(true, Ordering::Relaxed);
        });
        let url = format!("tcp://{address}");
        let attempts = send.run(&url.parse().expect("a target"));
        stopping.join().expect("it was reached");
        let count = attempts.expect("tests").len();
        assert!((1..100).contains(&count), "{count}");
    }

    #[test]
    fn a_name_server_that_declines_does_not_work() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = server.local_addr().expect("its address");
        let serving = std::thread::spawn(move || {
            let mut bytes = [0; 512];
            let (length, from) = server.recv_from(&mut bytes).expect("a query");
            // An answer: REFUSED.
            bytes[2] |= 0x80;
            bytes[3] |= 5;
            server.send_to(&bytes[..length], from).expect("sent");
        });
        let test = once(&format!("dns://{address}/a.example"));
        serving.join().expect("it served");
        assert_eq!(test.outcome.works(), Some(false), "{}", test.outcome);
        assert!(test.outcome.to_string().contains("REFUSED"));
    }
}
