//! Bounded traffic in a namespace: a client's attempt, and servers that answer it.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::namespace::Namespace;

const QUESTION: &[u8] = b"who answers?\n";
const ANSWER: &[u8] = b"the pod answers\n";
/// How long a server usually waits for a question: others wait behind it.
pub const QUESTION_WAIT: Duration = Duration::from_millis(300);
/// How often a server looks whether it is to stop.
const POLL: Duration = Duration::from_millis(20);

/// What came of an attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// An answer came.
    Answered,
    /// The connection was accepted, and nothing came.
    NoAnswer,
    /// The other side refused.
    Refused,
    /// Nobody accepted in time.
    TimedOut,
    /// The network said no.
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered => f.write_str("answered"),
            Self::NoAnswer => f.write_str("connected, then no answer"),
            Self::Refused => f.write_str("refused"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// One attempt of a client.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took.
    pub elapsed: Duration,
}

/// Patience of a client: long enough for a slow machine, short enough for a hanging connection.
pub const PATIENCE: Duration = Duration::from_millis(1500);

/// A way of trying that only one case has.
pub type Custom = Arc<dyn Fn(&Namespace) -> anyhow::Result<Attempt> + Send + Sync>;

/// How a target is tried.
#[derive(Clone)]
enum How {
    Tcp,
    Udp,
    Custom(Custom),
}

/// Something that a host tries.
#[derive(Clone)]
pub struct Target {
    /// What it is.
    pub label: &'static str,
    /// Where it is.
    pub address: SocketAddr,
    from: Namespace,
    how: How,
    /// Once only, however many attempts the options ask for.
    once: bool,
}

impl Target {
    /// A TCP connection with a question and an answer.
    pub fn tcp(label: &'static str, from: &Namespace, address: SocketAddr) -> Self {
        Self::new(label, from, address, How::Tcp)
    }

    /// A question and an answer over UDP.
    pub fn udp(label: &'static str, from: &Namespace, address: SocketAddr) -> Self {
        Self::new(label, from, address, How::Udp)
    }

    /// Anything else.
    pub fn custom(
        label: &'static str,
        from: &Namespace,
        address: SocketAddr,
        attempt: impl Fn(&Namespace) -> anyhow::Result<Attempt> + Send + Sync + 'static,
    ) -> Self {
        Self::new(label, from, address, How::Custom(Arc::new(attempt)))
    }

    fn new(label: &'static str, from: &Namespace, address: SocketAddr, how: How) -> Self {
        Self {
            label,
            address,
            from: from.clone(),
            how,
            once: false,
        }
    }

    /// Tried once only.
    pub fn once(self) -> Self {
        Self { once: true, ..self }
    }

    /// Tries it.
    ///
    /// # Errors
    /// When the host cannot be entered.
    pub fn send(&self, requests: u32) -> anyhow::Result<Vec<Attempt>> {
        let requests = if self.once { 1 } else { requests };
        (0..requests)
            .map(|_| match &self.how {
                How::Tcp => tcp_attempt(&self.from, self.address, PATIENCE),
                How::Udp => udp_attempt(&self.from, self.address, PATIENCE),
                How::Custom(attempt) => attempt(&self.from),
            })
            .collect()
    }
}

impl Attempt {
    /// True when it came to what a working network gives.
    pub fn answered(&self) -> bool {
        self.outcome == Outcome::Answered
    }
}

/// Connects over TCP, asks, and waits for the answer.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn tcp_attempt(
    client: &Namespace,
    to: SocketAddr,
    patience: Duration,
) -> anyhow::Result<Attempt> {
    tcp_question(client, to, patience, QUESTION)
}

/// The same with a question of so many bytes.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn long_question(
    client: &Namespace,
    to: SocketAddr,
    bytes: usize,
    patience: Duration,
) -> anyhow::Result<Attempt> {
    tcp_question(client, to, patience, &vec![b'x'; bytes])
}

fn tcp_question(
    client: &Namespace,
    to: SocketAddr,
    patience: Duration,
    question: &[u8],
) -> anyhow::Result<Attempt> {
    attempt(client, move || {
        match TcpStream::connect_timeout(&to, patience) {
            Ok(mut stream) => ask(&mut stream, patience, question),
            Err(error) => outcome(&error, Outcome::TimedOut),
        }
    })
}

/// The same from a port that may have been used before.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn tcp_attempt_from(
    client: &Namespace,
    from_port: u16,
    to: SocketAddr,
) -> anyhow::Result<Attempt> {
    let from = SocketAddr::from((Ipv4Addr::UNSPECIFIED, from_port));
    let connect = move || -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(TcpStream::from(socket))
    };
    // The kernel frees the port with the last packet of the attempt before, which may still be under way.
    let connect_once_free = move || {
        let begun = Instant::now();
        loop {
            match connect() {
                Err(error)
                    if error.kind() == io::ErrorKind::AddrNotAvailable
                        && begun.elapsed() < PATIENCE =>
                {
                    thread::sleep(Duration::from_millis(10));
                }
                ended => return ended,
            }
        }
    };
    attempt(client, move || match connect_once_free() {
        Ok(mut stream) => {
            let outcome = ask(&mut stream, PATIENCE, QUESTION);
            // Whoever closes first keeps the port for a minute: that is to be the server.
            let _ = stream.read(&mut [0; 64]);
            outcome
        }
        Err(error) => outcome(&error, Outcome::TimedOut),
    })
}

fn ask(stream: &mut TcpStream, patience: Duration, question: &[u8]) -> Outcome {
    let asked = stream
        .set_read_timeout(Some(patience))
        .and_then(|()| stream.write_all(question));
    let mut answer = [0; 64];
    match asked.and_then(|()| stream.read(&mut answer)) {
        Ok(1..) => Outcome::Answered,
        Ok(0) => Outcome::NoAnswer,
        Err(error) => outcome(&error, Outcome::NoAnswer),
    }
}

/// Asks over UDP and waits for the answer.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn udp_attempt(
    client: &Namespace,
    to: SocketAddr,
    patience: Duration,
) -> anyhow::Result<Attempt> {
    attempt(client, move || {
        let exchange = || {
            let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(patience))?;
            // Connected, so that an ICMP error about the question reaches us.
            socket.connect(to)?;
            socket.send(QUESTION)?;
            socket.recv(&mut [0; 64])
        };
        match exchange() {
            Ok(_) => Outcome::Answered,
            Err(error) => outcome(&error, Outcome::NoAnswer),
        }
    })
}

/// How datagrams are sent: more than once from one socket, until one answer comes.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams {
    /// Port that they are sent from; 0 for any.
    pub from_port: u16,
    /// Bytes of each.
    pub bytes: usize,
    /// How many are sent before the first answer is waited for.
    pub burst: usize,
    /// How often the burst is sent at most.
    pub tries: u32,
    /// Wait for an answer, all tries together.
    pub patience: Duration,
}

impl Datagrams {
    /// One small datagram from any port, sent up to three times.
    pub const ONE: Self = Self {
        from_port: 0,
        bytes: QUESTION.len(),
        burst: 1,
        tries: 3,
        patience: PATIENCE,
    };
}

/// Sends datagrams and waits for an answer.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn datagrams(client: &Namespace, to: SocketAddr, plan: Datagrams) -> anyhow::Result<Attempt> {
    attempt(client, move || {
        let exchange = || {
            let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, plan.from_port))?;
            socket.set_read_timeout(Some(plan.patience / plan.tries.max(1)))?;
            socket.connect(to)?;
            let mut answered = Err(io::Error::from(io::ErrorKind::TimedOut));
            for _ in 0..plan.tries {
                for _ in 0..plan.burst {
                    socket.send(&vec![b'x'; plan.bytes])?;
                }
                answered = socket.recv(&mut [0; 64]);
                if answered.is_ok() {
                    break;
                }
            }
            answered
        };
        match exchange() {
            Ok(_) => Outcome::Answered,
            Err(error) => outcome(&error, Outcome::NoAnswer),
        }
    })
}

fn attempt(client: &Namespace, work: impl FnOnce() -> Outcome + Send) -> anyhow::Result<Attempt> {
    let begun = Instant::now();
    let outcome = client.enter(|| Ok(work()))?;
    Ok(Attempt {
        outcome,
        elapsed: begun.elapsed(),
    })
}

fn outcome(error: &io::Error, silence: Outcome) -> Outcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Outcome::Refused,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => silence,
        _ => Outcome::Failed(error.to_string()),
    }
}

/// A server that answers until it is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers TCP connections at an address of the namespace; waits so long for each question.
    ///
    /// # Errors
    /// When the port cannot be listened on.
    pub fn tcp(namespace: &Namespace, place: SocketAddr, wait: Duration) -> anyhow::Result<Self> {
        Self::answering(namespace, place, wait, ANSWER.to_vec())
    }

    /// Answers HTTP requests on a port of the namespace with this status and nothing more.
    ///
    /// # Errors
    /// When the port cannot be listened on.
    pub fn http(namespace: &Namespace, port: u16, status: u16) -> anyhow::Result<Self> {
        let place = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let answer = format!("HTTP/1.0 {status} -\r\n\r\n");
        Self::answering(namespace, place, QUESTION_WAIT, answer.into_bytes())
    }

    fn answering(
        namespace: &Namespace,
        place: SocketAddr,
        wait: Duration,
        answer: Vec<u8>,
    ) -> anyhow::Result<Self> {
        let listener = namespace.enter(|| TcpListener::bind(place))?;
        listener.set_nonblocking(true)?;
        Ok(Self::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else {
                return false;
            };
            // A client that went away is the client's to report.
            let _ = stream
                .set_nonblocking(false)
                .and_then(|()| stream.set_read_timeout(Some(wait)))
                .and_then(|()| stream.read(&mut [0; 64]))
                .and_then(|_| stream.write_all(&answer));
            true
        }))
    }

    /// Answers UDP datagrams on a port of the namespace, one after the other; thinks so long about each.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub fn udp(namespace: &Namespace, port: u16, think: Duration) -> anyhow::Result<Self> {
        let socket = namespace.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))?;
        socket.set_nonblocking(true)?;
        Ok(Self::spawn(move || {
            let Ok((_, from)) = socket.recv_from(&mut [0; 64]) else {
                return false;
            };
            thread::sleep(think);
            // As above.
            let _ = socket.send_to(ANSWER, from);
            true
        }))
    }

    /// The opposite of a server: asks an address over TCP again and again.
    pub fn load(from: &Namespace, to: SocketAddr) -> Self {
        let from = from.clone();
        Self::spawn(move || {
            // What it is for is what others come to beside it.
            let _ = tcp_attempt(&from, to, PATIENCE);
            false
        })
    }

    /// Serves until it is to stop; `serve` says whether there was something to do.
    fn spawn(mut serve: impl FnMut() -> bool + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if !serve() {
                    thread::sleep(POLL);
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A server thread that failed has nothing to clean up.
            let _ = thread.join();
        }
    }
}
