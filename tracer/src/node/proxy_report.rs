//! kube-proxy's own word: its mode, version and health over HTTP, and the configuration file that it
//! was started with.
//!
//! Sources: kubernetes cmd/kube-proxy/app/server.go (/proxyMode and /metrics on metricsBindAddress, default
//! 127.0.0.1:10249) and pkg/proxy/healthcheck (/healthz, from 1.28 /livez, on healthzBindAddress, default
//! 0.0.0.0:10256).

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use super::{KubeProxy, Missing, NetnsHandle, ProxyConfiguration, socket};
use serde::{Deserialize, Serialize};

/// Where kube-proxy answers when nothing else is configured.
const METRICS: u16 = 10249;
const HEALTHZ: u16 = 10256;
/// Longest wait for a whole answer: it comes from this machine.
const PATIENCE: Duration = Duration::from_millis(500);
/// Most that is read of an answer; /metrics is the longest.
const MOST: usize = 4 << 20;

/// What a running kube-proxy says of itself.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ProxyReport {
    /// Its configuration file, where it was started with one.
    pub configuration: Option<ProxyConfiguration>,
    /// The mode that it really works in.
    pub mode: Option<String>,
    /// Its version: `v1.20.2`.
    pub version: Option<String>,
    /// Whether it finds itself healthy: its last sync is not long ago.
    pub healthy: Option<bool>,
    /// When it last synced, as it writes it (RFC 3339).
    pub last_sync: Option<String>,
    /// How long ago that was when it was asked, by its own clock.
    #[serde(default)]
    pub sync_age: Option<Duration>,
    /// What it does not say.
    pub missing: Vec<Missing>,
}

/// An HTTP answer.
struct Answer {
    status: u16,
    body: String,
}

impl ProxyReport {
    /// Asks a running kube-proxy, in its own network namespace; changes nothing.
    pub fn read(proxy: &KubeProxy) -> Self {
        let mut report = Self::default();
        if let Some(path) = &proxy.config {
            match read_configuration(proxy.pid, path) {
                Ok(configuration) => report.configuration = Some(configuration),
                Err(why) => report.miss("kube-proxy's configuration file", why),
            }
        }
        let (metrics, healthz) = report.places(proxy);
        let asked = NetnsHandle::from_pid(proxy.pid)
            .and_then(|netns| netns.run(|| report.ask(metrics, healthz)));
        if let Err(error) = asked {
            report.miss("what kube-proxy says of itself", error.to_string());
        }
        report
    }

    /// Where it answers: by its file, else by its flags.
    fn places(&self, proxy: &KubeProxy) -> (SocketAddr, SocketAddr) {
        let file = self.configuration.as_ref();
        let metrics = file.and_then(|file| file.metrics.as_deref());
        let healthz = file.and_then(|file| file.healthz.as_deref());
        (
            place(metrics.or_else(|| proxy.counting(&proxy.metrics)), METRICS),
            place(healthz.or_else(|| proxy.counting(&proxy.healthz)), HEALTHZ),
        )
    }

    fn ask(&mut self, metrics: SocketAddr, healthz: SocketAddr) {
        match get(metrics, "/proxyMode") {
            Ok(answer) if answer.status == 200 => {
                self.mode = Some(answer.body.trim().to_owned()).filter(|mode| !mode.is_empty());
            }
            Ok(answer) => self.miss("kube-proxy's mode", format!("status {}", answer.status)),
            Err(error) => self.miss("kube-proxy's mode", format!("{metrics}: {error}")),
        }
        if let Ok(answer) = get(metrics, "/metrics") {
            self.version = version(&answer.body);
        }
        // The older path also fails on a node that is being deleted; the newer one only when it does not sync.
        let health = match get(healthz, "/livez") {
            Ok(answer) if answer.status != 404 => Ok(answer),
            Ok(_) => get(healthz, "/healthz"),
            Err(error) => Err(error),
        };
        match health {
            Ok(answer) => {
                self.healthy = Some(answer.status == 200);
                (self.last_sync, self.sync_age) = last_sync(&answer.body);
            }
            Err(error) => self.miss("kube-proxy's health", format!("{healthz}: {error}")),
        }
    }

    fn miss(&mut self, what: &str, why: String) {
        self.missing.push(Missing {
            what: what.to_owned(),
            why,
            remedy: None,
        });
    }
}

/// The file as the process sees it.
fn read_configuration(pid: u32, path: &str) -> Result<ProxyConfiguration, String> {
    let path = format!("/proc/{pid}/root/{path}");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    ProxyConfiguration::parse(&text)
}

/// Where to ask: a configured address, a wildcard as this machine itself.
fn place(configured: Option<&str>, port: u16) -> SocketAddr {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Some(text) = configured else {
        return default;
    };
    let found = text.parse().or_else(|_| {
        text.parse::<IpAddr>()
            .map(|address| SocketAddr::new(address, port))
    });
    let mut found = found.unwrap_or(default);
    match found.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => found.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => found.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    found
}

/// HTTP/1.0: one answer, and the connection ends with it.
fn get(place: SocketAddr, path: &str) -> io::Result<Answer> {
    // A connection that is refused would be seen as a failure by whoever traces meanwhile: us.
    if !socket::listens(place) {
        return Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            "refused: nothing listens there",
        ));
    }
    let begun = Instant::now();
    let mut stream = TcpStream::connect_timeout(&place, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // In one piece.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {place}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let (mut bytes, mut part) = (Vec::new(), [0; 16 << 10]);
    while bytes.len() < MOST {
        let rest = PATIENCE.saturating_sub(begun.elapsed());
        if rest.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(rest))?;
        match stream.read(&mut part)? {
            0 => break,
            length => bytes.extend_from_slice(&part[..length]),
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    parse(&text).ok_or_else(|| io::Error::other("the answer is not HTTP"))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let line = head.lines().next()?;
    let status = line
        .strip_prefix("HTTP/")?
        .split(' ')
        .nth(1)?
        .parse()
        .ok()?;
    Some(Answer {
        status,
        body: body.to_owned(),
    })
}

/// The label `git_version` of the metric `kubernetes_build_info`.
fn version(metrics: &str) -> Option<String> {
    let line = metrics
        .lines()
        .find(|line| line.starts_with("kubernetes_build_info{"))?;
    let (_, rest) = line
        .split_once("git_version=\"")
        .or_else(|| line.split_once("gitVersion=\""))?;
    rest.split('"').next().map(str::to_owned)
}

/// When it last synced, and how long ago that was.
fn last_sync(body: &str) -> (Option<String>, Option<Duration>) {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(body) else {
        return (None, None);
    };
    let (last, now) = (value["lastUpdated"].as_str(), value["currentTime"].as_str());
    let age = last.and_then(moment).zip(now.and_then(moment));
    let age = age.and_then(|(last, now)| now.duration_since(last).ok());
    (last.map(str::to_owned), age)
}

/// A time as Go writes it, `2026-01-02 03:04:05.6 +0000 UTC m=+7.8`, or as RFC 3339. Both times of an answer are of
/// one zone, which is left out.
fn moment(text: &str) -> Option<SystemTime> {
    let mut words = text.split_whitespace();
    let date = words.next()?;
    let both = if date.contains('T') {
        date.to_owned()
    } else {
        format!("{date} {}", words.next()?)
    };
    humantime::parse_rfc3339_weak(&both).ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const BUILD: &str = "# HELP kubernetes_build_info x\nkubernetes_build_info{build_date=\"d\",git_commit=\"c\",git_version=\"v1.20.2\",major=\"1\"} 1\n";

    /// Answers by path until the listener's thread ends with the test.
    fn server(answers: &'static [(&'static str, u16, &'static str)]) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut request = [0; 512];
                let length = stream.read(&mut request).unwrap_or(0);
                let text = String::from_utf8_lossy(&request[..length]).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default();
                let (status, body) = answers
                    .iter()
                    .find(|(known, ..)| *known == path)
                    .map_or((404, ""), |(_, status, body)| (*status, *body));
                // The client may be gone.
                let _ = write!(
                    stream,
                    "HTTP/1.0 {status} X\r\nContent-Type: text/plain\r\n\r\n{body}"
                );
            }
        });
        address
    }

    fn asked(answers: &'static [(&'static str, u16, &'static str)]) -> ProxyReport {
        let place = server(answers);
        let mut report = ProxyReport::default();
        report.ask(place, place);
        report
    }

    #[test]
    fn mode_version_and_health_are_read() {
        let found = asked(&[
            ("/proxyMode", 200, "ipvs"),
            ("/metrics", 200, BUILD),
            (
                "/healthz",
                200,
                "{\"lastUpdated\": \"2026-01-02 03:04:05\",\"currentTime\": \"x\"}",
            ),
        ]);
        assert_eq!(found.mode.as_deref(), Some("ipvs"));
        assert_eq!(found.version.as_deref(), Some("v1.20.2"));
        assert_eq!(found.healthy, Some(true));
        assert_eq!(found.last_sync.as_deref(), Some("2026-01-02 03:04:05"));
        assert_eq!(found.missing, []);
    }

    #[test]
    fn the_age_of_the_last_sync_is_by_its_own_clock() {
        let age = |last: &str, now: &str| {
            let body = format!("{{\"lastUpdated\": \"{last}\", \"currentTime\": \"{now}\"}}");
            last_sync(&body).1.map(|age| age.as_secs())
        };
        for (last, now, wanted) in [
            (
                "2026-01-02 03:04:05.25 +0100 CET m=+12.3",
                "2026-01-02 03:05:40.5 +0100 CET m=+107.6",
                Some(95),
            ),
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:06Z", Some(1)),
            // It never did.
            (
                "0001-01-01 00:00:00 +0000 UTC",
                "2026-01-02 03:04:05 +0000 UTC",
                None,
            ),
            ("soon", "2026-01-02 03:04:05 +0000 UTC", None),
        ] {
            assert_eq!(age(last, now), wanted, "{last} {now}");
        }
    }

    #[test]
    fn the_newer_health_path_comes_first() {
        let found = asked(&[("/livez", 503, "{}"), ("/healthz", 200, "{}")]);
        assert_eq!(found.healthy, Some(false));
    }

    #[test]
    fn a_silent_or_absent_kube_proxy_is_unknown() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let silent = listener.local_addr().expect("an address");
        let mut report = ProxyReport::default();
        report.ask(silent, silent);
        assert_eq!((&report.mode, report.healthy), (&None, None));
        assert_eq!(report.missing.len(), 2);
        drop(listener);
        let mut report = ProxyReport::default();
        report.ask(silent, silent);
        assert_eq!(report.missing.len(), 2);
        assert!(report.missing[0].why.contains("refused"), "{report:?}");
    }

    #[test]
    fn it_answers_where_its_file_or_else_its_flags_say() {
        let proxy = |config| KubeProxy {
            config,
            ..KubeProxy::constructed(
                "kube-proxy --metrics-bind-address=[::]:1 --healthz-bind-address=192.0.2.1:2",
            )
        };
        let places = |report: &ProxyReport, config: Option<&str>| {
            let (metrics, healthz) = report.places(&proxy(config.map(str::to_owned)));
            (metrics.to_string(), healthz.to_string())
        };
        let of = |metrics: &str, healthz: &str| (metrics.to_owned(), healthz.to_owned());
        let unread = ProxyReport::default();
        assert_eq!(places(&unread, None), of("[::1]:1", "192.0.2.1:2"));
        // Beside a file flags do not count.
        let defaults = of("127.0.0.1:10249", "127.0.0.1:10256");
        assert_eq!(places(&unread, Some("/etc/k.yml")), defaults);
        let file = ProxyConfiguration::parse("metricsBindAddress: 127.0.0.1:3");
        let read = ProxyReport {
            configuration: Some(file.expect("a configuration")),
            ..ProxyReport::default()
        };
        let found = places(&read, Some("/etc/k.yml"));
        assert_eq!(found, of("127.0.0.1:3", "127.0.0.1:10256"));
    }

    #[test]
    fn an_answer_that_never_ends_is_not_waited_for() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let place = listener.local_addr().expect("an address");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            // Until the client is gone.
            while stream.write_all(b"x").is_ok() {
                thread::sleep(PATIENCE / 10);
            }
        });
        let begun = Instant::now();
        assert!(get(place, "/healthz").is_err());
        assert!(begun.elapsed() < PATIENCE * 3);
    }

    #[test]
    fn places_are_read() {
        for (text, expected) in [
            (None, "127.0.0.1:10249"),
            (Some("0.0.0.0:1234"), "127.0.0.1:1234"),
            (Some("[::]:1234"), "[::1]:1234"),
            (Some("192.0.2.1"), "192.0.2.1:10249"),
            (Some("nonsense"), "127.0.0.1:10249"),
        ] {
            assert_eq!(place(text, METRICS).to_string(), expected);
        }
        assert!(parse("HTTP/1.1 abc\r\n\r\n").is_none());
        assert!(parse("").is_none());
    }
}
