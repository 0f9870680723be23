//! What is to be tested, as typed: `tcp://A:P`, `udp://A:P`, `dns://A[:53]/NAME`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::event::protocol;

/// Where name servers listen.
const DNS_PORT: u16 = 53;

/// An address and what it is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Address and port.
    pub address: SocketAddr,
    /// What is sent there.
    pub question: Question,
}

/// What is sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question {
    /// A connection is opened and closed.
    Tcp,
    /// A datagram.
    Udp,
    /// A DNS query over UDP for the IPv4 addresses of a name.
    Dns(String),
}

impl Target {
    /// IP protocol number of the test.
    pub const fn protocol(&self) -> u8 {
        match self.question {
            Question::Tcp => protocol::TCP,
            Question::Udp | Question::Dns(_) => protocol::UDP,
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or("tcp://ADDRESS:PORT, udp://ADDRESS:PORT or dns://ADDRESS/NAME is needed")?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if scheme == "dns" {
            super::dns::check_name(path)?;
            return Ok(Self {
                address: address(authority, Some(DNS_PORT))?,
                question: Question::Dns(path.to_owned()),
            });
        }
        let question = match scheme {
            "tcp" => Question::Tcp,
            "udp" => Question::Udp,
            _ => return Err(format!("{scheme:?} is none of tcp, udp and dns")),
        };
        if !path.is_empty() {
            return Err(format!(
                "a {scheme} test has an address and a port, and nothing behind them"
            ));
        }
        Ok(Self {
            address: address(authority, None)?,
            question,
        })
    }
}

fn address(text: &str, port: Option<u16>) -> Result<SocketAddr, String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    let with_default = || Some(SocketAddr::new(bare.parse::<IpAddr>().ok()?, port?));
    let parsed = text.parse::<SocketAddr>().ok().or_else(with_default);
    match parsed {
        Some(address) if address.port() != 0 => Ok(address),
        _ if port.is_some() => Err(format!(
            "{text:?} is no IP address; names are not looked up here (IPv6 with a port: [2001:db8::1]:53)"
        )),
        _ => Err(format!(
            "{text:?} is no IP address and port; names are not looked up here (IPv6: [2001:db8::1]:80)"
        )),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.question {
            Question::Tcp => write!(f, "tcp://{}", self.address),
            Question::Udp => write!(f, "udp://{}", self.address),
            Question::Dns(name) => write!(f, "dns://{}/{name}", self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_as_people_type_them() {
        for (text, shown) in [
            ("tcp://192.0.2.7:30000", "tcp://192.0.2.7:30000"),
            ("udp://[2001:db8::7]:53", "udp://[2001:db8::7]:53"),
            (
                "dns://10.96.0.10/kubernetes.default.svc",
                "dns://10.96.0.10:53/kubernetes.default.svc",
            ),
            (
                "dns://[2001:db8::7]/a.example",
                "dns://[2001:db8::7]:53/a.example",
            ),
            (
                "dns://2001:db8::7/a.example",
                "dns://[2001:db8::7]:53/a.example",
            ),
            (
                "dns://192.0.2.7:5353/a.example.",
                "dns://192.0.2.7:5353/a.example.",
            ),
        ] {
            let target: Target = text.parse().expect(text);
            assert_eq!(target.to_string(), shown);
            assert_eq!(shown.parse(), Ok(target));
        }
    }

    #[test]
    fn wrong_targets_say_what_is_needed() {
        for (text, word) in [
            ("192.0.2.7:30000", "tcp://"),
            ("http://192.0.2.7:80", "http"),
            ("tcp://192.0.2.7", "port"),
            ("tcp://192.0.2.7:0", "port"),
            ("tcp://example.org:80", "names are not looked up"),
            ("tcp://192.0.2.7:80/path", "nothing behind"),
            ("dns://192.0.2.7", "name"),
            ("dns://192.0.2.7/", "name"),
        ] {
            let error = text.parse::<Target>().expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
