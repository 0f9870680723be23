//! What ends a trace: enough packets, or a cause.

use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::{Answer, Running, Test, Tracer, check};

/// A port that nothing listens on.
const CLOSED: &str = "127.0.0.1:81";
/// Ends a trace that nothing else has ended.
const LIMIT: &str = "90s";
/// Between two packets; some that are too many for the trace come before its end.
const PAUSE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);

/// The tests of this file.
pub fn tests() -> Vec<Test> {
    vec![
        Test::new("run: --count ends it, and its command", counted),
        Test::new("run: --until-diagnosis ends it", until_diagnosis),
    ]
}

/// Exactly as many packets are shown as were asked for, with a command that would go on as well.
fn counted(tracer: &Tracer) -> anyhow::Result<()> {
    const COUNT: &str = "3";
    let server = UdpSocket::bind("127.0.0.1:0")?;
    server.set_read_timeout(Some(PATIENCE))?;
    let to = server.local_addr()?;
    let port = to.port().to_string();
    for command in [&[][..], &["--cmd", "sleep 100"]] {
        let limits = ["--no-kube", "--for", LIMIT, "--count", COUNT];
        let filter = ["udp", "port", &port];
        let tracing = tracer.start(&[&limits[..], command, &filter].concat())?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        let answer = ended(tracing, || {
            client.send_to(b"x", to)?;
            // What nobody reads would fill the socket, and be a cause.
            server.recv(&mut [0])?;
            Ok(())
        })?;
        answer.expect_code(0)?;
        let shown = answer.objects("journey").len();
        check(shown.to_string() == COUNT, || {
            format!("{shown} packets were shown instead of {COUNT}")
        })?;
        if command.is_empty() {
            continue;
        }
        let ended = answer.object("command")?;
        check(ended["signal"] == 9 && ended["exit_code"].is_null(), || {
            format!("the command ended otherwise: {ended}")
        })?;
    }
    Ok(())
}

/// The first cause that is named ends it.
fn until_diagnosis(tracer: &Tracer) -> anyhow::Result<()> {
    let limits = ["--no-kube", "--for", LIMIT, "--until-diagnosis"];
    let tracing = tracer.start(&[&limits[..], &["tcp", "port", "81"]].concat())?;
    let answer = ended(tracing, || {
        let refused = TcpStream::connect(CLOSED).is_err();
        check(refused, || format!("something listens on {CLOSED}"))
    })?;
    answer.expect_code(1)?;
    let named = answer.objects("diagnosis");
    check(
        named.len() == 1 && named[0]["cause"] == "no-listener",
        || format!("one cause is expected: {named:?}"),
    )
}

/// The answer of a trace that ends by itself while packets are sent, well before its limit.
fn ended(
    mut tracing: Running,
    mut send: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Answer> {
    let begun = Instant::now();
    while !tracing.has_ended()? {
        check(begun.elapsed() < PATIENCE, || "it does not end".into())?;
        send()?;
        std::thread::sleep(PAUSE);
    }
    tracing.finish()
}
