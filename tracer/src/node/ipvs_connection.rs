//! IPVS connections (`ipvsadm -Lnc`), read only when a packet's way asks for them.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::Missing;
use serde::{Deserialize, Serialize};

/// Lines that are read; a busy director has millions of connections.
const MOST_LINES: usize = 1_000_000;

/// A connection that IPVS keeps to its real server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IpvsConnection {
    /// IP protocol number.
    pub protocol: u8,
    /// Client.
    pub client: SocketAddr,
    /// Virtual server's address and port.
    pub service: SocketAddr,
    /// Real server.
    pub real: SocketAddr,
    /// State in the kernel's word: `ESTABLISHED`, `UDP` …
    pub state: String,
    /// Seconds until it is forgotten.
    pub expires: u64,
}

/// Connections for which `wanted` holds, of the calling thread's network namespace.
pub(super) fn read(
    wanted: impl Fn(&IpvsConnection) -> bool,
    missing: &mut Vec<Missing>,
) -> Vec<IpvsConnection> {
    let mut note = |why: String| {
        missing.push(Missing {
            what: "IPVS connections".into(),
            why,
            remedy: None,
        });
    };
    let file = match File::open("/proc/thread-self/net/ip_vs_conn") {
        Ok(file) => file,
        // No ip_vs.
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            note(error.to_string());
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for (number, line) in BufReader::new(file)
        .lines()
        .map_while(Result::ok)
        .enumerate()
    {
        if number > MOST_LINES {
            note(format!("only the first {MOST_LINES} were read"));
            break;
        }
        found.extend(parse(&line).filter(&wanted));
    }
    found
}

/// `TCP C000020A 8E1C C0000201 7530 0AF4000F 0BB8 ESTABLISHED     899`, IPv6 in its own words.
fn parse(line: &str) -> Option<IpvsConnection> {
    let mut words = line.split_whitespace();
    let protocol = match words.next()? {
        "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 132,
        _ => return None,
    };
    let mut endpoint = || {
        let address = words.next()?;
        let port = u16::from_str_radix(words.next()?, 16).ok()?;
        Some(SocketAddr::new(parse_address(address)?, port))
    };
    Some(IpvsConnection {
        protocol,
        client: endpoint()?,
        service: endpoint()?,
        real: endpoint()?,
        state: words.next()?.to_owned(),
        expires: words.next()?.parse().ok()?,
    })
}

fn parse_address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse().ok(),
        None => {
            let bits = u32::from_str_radix(text, 16).ok()?;
            Some(Ipv4Addr::from(bits).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines_of_proc() {
        let line = "TCP C000020A 8E1C C0000201 7530 0AF4000F 0BB8 ESTABLISHED     899";
        let found = parse(line).unwrap();
        assert_eq!(found.client, "192.0.2.10:36380".parse().unwrap());
        assert_eq!(found.service, "192.0.2.1:30000".parse().unwrap());
        assert_eq!(found.real, "10.244.0.15:3000".parse().unwrap());
        assert_eq!((found.state.as_str(), found.expires), ("ESTABLISHED", 899));
        let six = "UDP [2001:0db8:0000:0000:0000:0000:0000:0001] 0035 [2001:0db8:0000:0000:0000:0000:0000:0002] 0035 [2001:0db8:0000:0000:0000:0000:0000:0003] 0035 UDP 300 ";
        assert_eq!(
            parse(six).unwrap().real,
            "[2001:db8::3]:53".parse().unwrap()
        );
        assert_eq!(
            parse(
                "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData"
            ),
            None
        );
        for length in 0..line.len() {
            let _ = parse(&line[..length]);
        }
    }
}
