//! What the client sends, and how long it takes to come back.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::world::{CLIENT, DEAD_PORT, NODE, NODE_PORT, Place, World};

const PATIENCE: Duration = Duration::from_secs(2);
const QUESTION: &[u8] = b"who answers?\n";

/// What a round trip is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A datagram and its answer.
    Udp,
    /// A connection, a question, an answer, and the end.
    Tcp,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Udp, Self::Tcp];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

fn node() -> SocketAddr {
    (NODE, NODE_PORT).into()
}

fn udp() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((CLIENT, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn round_trip(kind: Kind) -> io::Result<Duration> {
    let begun = match kind {
        Kind::Udp => {
            let socket = udp()?;
            socket.connect(node())?;
            let begun = Instant::now();
            socket.send(QUESTION)?;
            socket.recv(&mut [0; 64])?;
            begun
        }
        Kind::Tcp => {
            let begun = Instant::now();
            let mut stream = TcpStream::connect_timeout(&node(), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(QUESTION)?;
            stream.read_exact(&mut [0; QUESTION.len()])?;
            // The pod closes behind its answer.
            stream.read_to_end(&mut Vec::new())?;
            begun
        }
    };
    Ok(begun.elapsed())
}

/// So many round trips one after the other, each from a port of its own; their times in order.
pub(crate) fn round_trips(
    world: &World,
    kind: Kind,
    count: usize,
) -> anyhow::Result<Vec<Duration>> {
    world.enter(Place::Client, move || {
        (0..count).map(|_| round_trip(kind)).collect()
    })
}

/// What a flood came to.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Flood {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    pub(crate) seconds: f64,
}

/// Sends as fast as it can for so long, from a socket a thread; answers are counted beside.
pub(crate) fn flood(world: &World, time: Duration) -> anyhow::Result<Flood> {
    world.enter(Place::Client, move || {
        let socket = udp()?;
        socket.connect(node())?;
        let receiver = socket.try_clone()?;
        receiver.set_read_timeout(Some(Duration::from_millis(300)))?;
        let answers = std::thread::spawn(move || {
            let mut answered = 0;
            while receiver.recv(&mut [0; 64]).is_ok() {
                answered += 1;
            }
            answered
        });
        let begun = Instant::now();
        let mut sent = 0;
        while begun.elapsed() < time {
            // A full queue is no reason to stop.
            sent += u64::from(socket.send(QUESTION).is_ok());
        }
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Flood {
            sent,
            answered: answers.join().unwrap_or_default(),
            seconds,
        })
    })
}

/// Asks where nothing answers, and waits until the network has said so; gives the time of the end.
pub(crate) fn refused(world: &World) -> anyhow::Result<Instant> {
    world.enter(Place::Client, || {
        let to = SocketAddr::from((NODE, DEAD_PORT));
        match TcpStream::connect_timeout(&to, PATIENCE) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Instant::now()),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::other("a port without a listener answered")),
        }
    })
}
