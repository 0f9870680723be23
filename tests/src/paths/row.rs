//! What a row of the table says, how its packets are sent, and how it is judged.

use super::{
    Answer, Command, PATIENCE, SocketAddr, TcpStream, UdpSocket, Value, check, finish, inside,
};

/// One direction of a path.
pub(super) struct Way {
    /// `protocol source → destination`, as first seen.
    pub(super) ends: &'static str,
    /// Destination after NAT, where it is another.
    pub(super) real: Option<&'static str>,
    /// `[namespace] stage`, `✗` before a loss.
    pub(super) stages: &'static [&'static str],
    /// In words.
    pub(super) ending: &'static str,
}

/// One path.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// Namespace of the client.
    pub(super) from: &'static str,
    pub(super) traffic: Traffic,
    pub(super) request: Way,
    pub(super) reply: Way,
}

/// What the client does.
pub(super) enum Traffic {
    /// Sends so many bytes from a port and waits for the answer.
    Udp(&'static str, &'static str, usize),
    /// Opens a connection from a port.
    Tcp(&'static str, &'static str),
    /// Sends one echo request.
    Ping(&'static str),
}

impl Row {
    pub(super) fn send(&self) -> anyhow::Result<()> {
        match self.traffic {
            Traffic::Udp(source, destination, length) => inside(self.from, || {
                let socket = UdpSocket::bind(source)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.connect(destination)?;
                socket.send(&vec![b'x'; length])?;
                socket.recv(&mut [0; 4096]).map(|_| ())
            }),
            Traffic::Tcp(source, destination) => inside(self.from, || connect(source, destination)),
            Traffic::Ping(destination) => {
                let answer = finish(Command::new("ip").args([
                    "netns",
                    "exec",
                    self.from,
                    "busybox",
                    "ping",
                    "-c",
                    "1",
                    "-W",
                    "2",
                    destination,
                ]))?;
                check(answer.code == 0, || answer.stdout.clone())
            }
        }
    }

    pub(super) fn judge(&self, answer: &Answer) -> anyhow::Result<()> {
        let lost = answer.object("summary")?["lost"].clone();
        check(lost.as_array().is_some_and(Vec::is_empty), || {
            format!("events were lost: {lost}")
        })?;
        let journeys = answer.objects("journey");
        let mut wrong = Vec::new();
        for (name, way) in [("request", &self.request), ("reply", &self.reply)] {
            let seen = journeys
                .iter()
                .map(Seen::new)
                .find(|seen| seen.ends == way.ends);
            match seen {
                None => wrong.push(format!("no {name} {}", way.ends)),
                Some(seen) if !seen.is(way) => wrong.push(format!("the {name} is {seen:#?}")),
                Some(_) => {}
            }
        }
        check(wrong.is_empty(), || wrong.join("\n"))
    }
}

fn connect(source: &str, destination: &str) -> std::io::Result<()> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket,
    };
    use std::os::fd::AsRawFd as _;
    let parse = |text: &str| text.parse::<SocketAddr>().map_err(std::io::Error::other);
    let descriptor = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::empty(),
        None,
    )?;
    bind(
        descriptor.as_raw_fd(),
        &SockaddrStorage::from(parse(source)?),
    )?;
    connect(
        descriptor.as_raw_fd(),
        &SockaddrStorage::from(parse(destination)?),
    )?;
    drop(TcpStream::from(descriptor));
    Ok(())
}

/// A journey as the table writes it.
#[derive(Debug)]
struct Seen {
    ends: String,
    real: Option<String>,
    stages: Vec<String>,
    ending: String,
}

impl Seen {
    fn new(journey: &Value) -> Self {
        let text = |key: &str| journey[key].as_str().unwrap_or_default().to_owned();
        let stage = |stage: &Value| {
            let namespace = stage["namespace"]
                .as_str()
                .map_or_else(String::new, |namespace| format!("[{namespace}] "));
            let lost = if stage["lost"] == true { "✗ " } else { "" };
            format!(
                "{namespace}{lost}{}",
                stage["text"].as_str().unwrap_or_default()
            )
        };
        Self {
            ends: format!(
                "{} {} → {}",
                text("protocol"),
                text("source"),
                text("destination")
            ),
            real: journey["real_destination"].as_str().map(str::to_owned),
            stages: journey["path"]
                .as_array()
                .into_iter()
                .flatten()
                .map(stage)
                .collect(),
            ending: text("ending"),
        }
    }

    fn is(&self, way: &Way) -> bool {
        self.real.as_deref() == way.real && self.ending == way.ending && self.stages == way.stages
    }
}
