//! What a row of the table says, how its packets are sent, and how it is judged.

use std::path::Path;

use super::{
    Answer, Command, PATIENCE, SocketAddr, TcpStream, UdpSocket, Value, check, finish, inside,
};

const KNOWN_CONNECTION: &str = "ipvs: known connection";

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
#[derive(Debug)]
pub(super) enum Traffic {
    /// Sends so many bytes from a port and waits for the answer.
    Udp(&'static str, &'static str, usize),
    /// Opens a connection from a port.
    Tcp(&'static str, &'static str),
    /// Sends one echo request of so many bytes.
    Ping(&'static str, usize),
}

impl Row {
    pub(super) fn send(&self) -> anyhow::Result<()> {
        self.traffic.send(self.from)
    }

    pub(super) fn judge(&self, answer: &Answer) -> anyhow::Result<()> {
        let lost = answer.object("summary")?["lost"].clone();
        check(lost.as_array().is_some_and(Vec::is_empty), || {
            format!("events were lost: {lost}")
        })?;
        let mut journeys = answer.objects("journey");
        // The packets of one direction look alike: the first that was sent.
        journeys.sort_by_key(|journey| journey["id"].as_u64());
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

impl Traffic {
    /// Sends it from a namespace and waits for the answer.
    pub(super) fn send(&self, from: &str) -> anyhow::Result<()> {
        match *self {
            Self::Udp(source, destination, length) => inside(from, || {
                let socket = UdpSocket::bind(source)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.connect(destination)?;
                socket.send(&vec![b'x'; length])?;
                socket.recv(&mut [0; 4096]).map(|_| ())
            }),
            Self::Tcp(source, destination) => inside(from, || connect(source, destination)),
            Self::Ping(destination, length) => {
                let answer = finish(Command::new("ip").args([
                    "netns",
                    "exec",
                    from,
                    "busybox",
                    "ping",
                    "-c",
                    "1",
                    "-W",
                    "2",
                    "-s",
                    &length.to_string(),
                    destination,
                ]))?;
                check(answer.code == 0, || answer.stdout.clone())
            }
        }
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
pub(crate) struct Seen {
    /// As [`Way::ends`].
    pub(crate) ends: String,
    /// As [`Way::real`].
    pub(super) real: Option<String>,
    /// As [`Way::stages`].
    pub(crate) stages: Vec<String>,
    /// In words.
    pub(crate) ending: String,
}

impl Seen {
    /// Of an object `journey`.
    pub(crate) fn new(journey: &Value) -> Self {
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
        self.real.as_deref() == way.real
            && self.ending == way.ending
            && self.stages.len() == way.stages.len()
            && self.stages.iter().zip(way.stages).all(is_stage)
    }
}

/// True for the stage that is expected. Without type information of modules (5.10) nobody can say how an
/// IPVS connection stands.
fn is_stage((seen, expected): (&String, &&str)) -> bool {
    seen == expected
        || seen == KNOWN_CONNECTION
            && expected.starts_with(KNOWN_CONNECTION)
            && !Path::new("/sys/kernel/btf/ip_vs").exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::table::ROWS;

    /// What a tracer prints of a row that went well.
    fn printed(row: &Row) -> [Value; 2] {
        [&row.request, &row.reply].map(|way| {
            let (protocol, ends) = way.ends.rsplit_once(" → ").unwrap();
            let (protocol, source) = protocol.rsplit_once(' ').unwrap();
            let stages: Vec<_> = way.stages.iter().map(|stage| stage_object(stage)).collect();
            serde_json::json!({
                "type": "journey", "protocol": protocol, "source": source, "destination": ends,
                "real_destination": way.real, "path": stages, "ending": way.ending,
            })
        })
    }

    fn stage_object(stage: &str) -> Value {
        let (namespace, text) = match stage.strip_prefix('[').and_then(|it| it.split_once("] ")) {
            Some((namespace, text)) => (Some(namespace), text),
            None => (None, stage),
        };
        let lost = text.strip_prefix("✗ ");
        serde_json::json!({
            "namespace": namespace, "text": lost.unwrap_or(text), "lost": lost.is_some(),
        })
    }

    fn judged(row: &Row, journeys: &[Value], lost: &Value) -> anyhow::Result<()> {
        let summary = serde_json::json!({ "type": "summary", "lost": lost });
        let lines: Vec<_> = journeys
            .iter()
            .chain([&summary])
            .map(Value::to_string)
            .collect();
        row.judge(&Answer {
            code: 0,
            stdout: lines.join("\n"),
            stderr: String::new(),
        })
    }

    #[test]
    fn a_row_is_content_with_what_it_says_and_with_nothing_else() {
        let none = serde_json::json!([]);
        for row in ROWS {
            let good = printed(row);
            judged(row, &good, &none).unwrap_or_else(|error| panic!("{}: {error}", row.name));
            let broken = |change: &dyn Fn(&mut Value)| {
                for way in 0..good.len() {
                    let mut journeys = good.clone();
                    change(&mut journeys[way]);
                    assert!(judged(row, &journeys, &none).is_err(), "{}", row.name);
                }
            };
            broken(&|journey| journey["ending"] = "dropped elsewhere".into());
            broken(&|journey| journey["real_destination"] = "203.0.113.9:9".into());
            broken(&|journey| journey["source"] = "203.0.113.9:9".into());
            broken(&|journey| journey["path"][0]["text"] = "elsewhere".into());
            broken(&|journey| journey["path"][0]["namespace"] = "other".into());
            broken(&|journey| journey["path"][1]["lost"] = true.into());
            broken(&|journey| {
                journey["path"].as_array_mut().unwrap().pop();
            });
            broken(&|journey| journey["path"].as_array_mut().unwrap().swap(0, 1));
            assert!(judged(row, &good[..1], &none).is_err(), "{}", row.name);
            let lost = serde_json::json!([["ring full", 1]]);
            assert!(judged(row, &good, &lost).is_err(), "{}", row.name);
        }
    }
}
