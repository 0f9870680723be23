//! Healthy TCP in its less usual forms: probes of idle connections, packets that come twice or late, resets. The
//! kernel frees many of them as dropped; only what a rule drops here is a loss.
//!
//! ```text
//! tcp-c 192.0.2.10 ── veth ── 192.0.2.1 tcp-s
//! ```

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::socket::{setsockopt, sockopt};

use crate::paths::Seen;
use crate::tour::{command, inside};
use crate::{Answer, Test, Tracer, check};

const CLIENT: &str = "tcp-c";
const SERVER: &str = "tcp-s";
const ADDRESS: &str = "192.0.2.1:8080";
/// The server closes so long after its client.
const LATE: Duration = Duration::from_millis(300);
/// Asks the server to close first.
const BYE: u8 = b'q';
/// A client waits so long for the server's close.
const AFTER: Duration = Duration::from_millis(700);
/// How often an idle connection is probed, seconds.
const PROBE_SECONDS: u32 = 1;
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections of one run, so that the server ends.
const CONNECTIONS: usize = 6;

/// The test.
pub fn tests() -> Vec<Test> {
    vec![Test::new(
        "tcp: what comes twice, late or to probe is no loss",
        healthy,
    )]
}

fn healthy(tracer: &Tracer) -> anyhow::Result<()> {
    let world = World::build()?;
    let tracing = tracer.start(&["--all", "--buffer", "32M", "host 192.0.2.10"])?;
    talk().context("the connections")?;
    tracing.interrupt()?;
    let answer = tracing.finish()?;
    drop(world);
    judge(&answer)
}

fn judge(answer: &Answer) -> anyhow::Result<()> {
    let journeys = answer.objects("journey");
    let wrong: Vec<_> = journeys
        .iter()
        .filter(|journey| journey["arrived"] != true && journey["gap"] != true)
        .map(Seen::new)
        .filter(|seen| {
            let ruled = "✗ input: dropped by filter/INPUT rule 1";
            !seen.stages.iter().any(|stage| stage == ruled)
        })
        .map(|seen| format!("{seen:?}"))
        .collect();
    check(wrong.is_empty(), || wrong.join("\n"))?;
    let ways: Vec<_> = journeys.iter().map(Seen::new).collect();
    let any = |protocol: &str, stage: &str| {
        ways.iter().any(|seen| {
            seen.ends.starts_with(protocol) && seen.stages.iter().any(|found| found.contains(stage))
        })
    };
    for (protocol, stage) in [
        ("tcp SYN+ACK ", "input: dropped by filter/INPUT rule 1"),
        ("tcp SYN ", "half-open connection :8080"),
        ("tcp FIN+ACK ", "in TIME_WAIT"),
        ("tcp RST", "socket :8080"),
    ] {
        check(any(protocol, stage), || {
            format!("no {protocol}past \"{stage}\": {ways:#?}")
        })?;
    }
    let causes: Vec<_> = answer
        .objects("diagnosis")
        .iter()
        .map(|diagnosis| diagnosis["cause"].clone())
        .collect();
    check(causes == ["filter-rule-drop"], || format!("{causes:?}"))
}

/// The client's connections, one after the other, and the server.
fn talk() -> anyhow::Result<()> {
    let server = serve()?;
    inside(CLIENT, || {
        let idle = greet()?;
        thread::sleep(Duration::from_secs(u64::from(PROBE_SECONDS)) * 5 / 2);
        drop(idle);
        thread::sleep(AFTER);
        anyhow::Ok(())
    })?;
    inside(CLIENT, || {
        let mut left = greet()?;
        left.write_all(&[BYE])?;
        check(left.read(&mut [0])? == 0, || {
            "the server goes on".to_owned()
        })?;
        drop(left);
        thread::sleep(AFTER);
        anyhow::Ok(())
    })?;
    // Everything twice, but for the last packet, whose second copy would find no connection.
    command("ip netns exec tcp-c tc qdisc add dev eth0 root netem duplicate 100%")?;
    let twice = inside(CLIENT, greet)?;
    thread::sleep(AFTER);
    command("ip netns exec tcp-c tc qdisc del dev eth0 root")?;
    inside(CLIENT, || {
        drop(twice);
        thread::sleep(AFTER);
        let reset = greet()?;
        // An answer may overtake the acknowledgement that was sent before it on another processor.
        thread::sleep(AFTER);
        setsockopt(&reset.as_fd(), sockopt::Linger, &linger_none())?;
        drop(reset);
        thread::sleep(AFTER);
        let reset = connect()?;
        setsockopt(&reset.as_fd(), sockopt::Linger, &linger_none())?;
        drop(reset);
        thread::sleep(AFTER);
        anyhow::Ok(())
    })?;
    // The first answer is lost; the client asks again.
    command(
        "ip netns exec tcp-c iptables -A INPUT -p tcp --tcp-flags SYN,ACK SYN,ACK -m limit --limit 1/hour --limit-burst 1 -j DROP",
    )?;
    inside(CLIENT, || {
        drop(greet()?);
        thread::sleep(AFTER);
        anyhow::Ok(())
    })?;
    server
        .join()
        .map_err(|_| anyhow::anyhow!("the server panicked"))?
}

/// Closing sends RST.
const fn linger_none() -> nix::libc::linger {
    nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    }
}

fn connect() -> anyhow::Result<TcpStream> {
    let address: SocketAddr = ADDRESS.parse()?;
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    setsockopt(&stream.as_fd(), sockopt::KeepAlive, &true)?;
    setsockopt(&stream.as_fd(), sockopt::TcpKeepIdle, &PROBE_SECONDS)?;
    setsockopt(&stream.as_fd(), sockopt::TcpKeepInterval, &PROBE_SECONDS)?;
    Ok(stream)
}

/// A connection over which something was said in both directions.
fn greet() -> anyhow::Result<TcpStream> {
    let mut stream = connect()?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Answers each connection, and closes it some time after its client did.
fn serve() -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let listener = inside(SERVER, || TcpListener::bind(ADDRESS))?;
    Ok(thread::spawn(move || {
        for _ in 0..CONNECTIONS {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut said = [0];
            loop {
                match stream.read(&mut said) {
                    Ok(1) if said == [BYE] => break,
                    Ok(1) => stream.write_all(b"x")?,
                    // Closed, or reset.
                    _ => {
                        thread::sleep(LATE);
                        break;
                    }
                }
            }
        }
        Ok(())
    }))
}

/// The two hosts; dropping it removes them.
struct World;

impl World {
    fn build() -> anyhow::Result<Self> {
        let world = Self;
        for line in [
            "ip netns add tcp-c",
            "ip netns add tcp-s",
            "ip -n tcp-c link add eth0 type veth peer name eth0 netns tcp-s",
            "ip -n tcp-c addr add 192.0.2.10/24 dev eth0",
            "ip -n tcp-s addr add 192.0.2.1/24 dev eth0",
            "ip -n tcp-c link set eth0 up",
            "ip -n tcp-s link set eth0 up",
        ] {
            command(line)?;
        }
        Ok(world)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in [CLIENT, SERVER] {
            let _ = command(&format!("ip netns del {name}"));
        }
    }
}
