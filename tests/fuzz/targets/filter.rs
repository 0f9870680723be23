//! A filter's words and a packet, apart by a zero byte: parsed, resolved, compiled and matched. What is
//! negated must match exactly the packets that the plain words do not.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use tracer::filter::{Expression, Filter, Front, Resolver};
use tracer::kube::ObjectName;

const ETHERTYPES: [u16; 3] = [0x0800, 0x86dd, 0x0806];

fuzz_target!(|input: &[u8]| {
    let (words, packet) = match input.iter().position(|&byte| byte == 0) {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (input, &[][..]),
    };
    let Ok(words) = std::str::from_utf8(words) else {
        return;
    };
    let Some(filter) = compiled(words) else {
        return;
    };
    let negated = compiled(&format!("not ({words})")).filter(|_| !filter.is_everything());
    for ethertype in ETHERTYPES {
        let matched = filter.matches_packet(packet, ethertype);
        if let Some(negated) = &negated {
            assert_ne!(matched, negated.matches_packet(packet, ethertype));
        }
    }
});

/// A filter, where the words are one; an error names a part of the words.
fn compiled(words: &str) -> Option<Filter> {
    let resolved = Expression::parse(words).and_then(|expression| expression.resolve(&Everybody));
    match resolved {
        Ok(filter) => Some(filter),
        Err(error) => {
            assert!(error.span().end <= words.len());
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// Every name has both kinds of address.
struct Everybody;

const FOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const SIX: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

impl Resolver for Everybody {
    fn host(&self, _: &str) -> Result<Vec<IpAddr>, String> {
        Ok(vec![FOUR, SIX])
    }

    fn namespace(&self, _: &str) -> Result<u32, String> {
        Ok(1)
    }

    fn process(&self, pid: u32) -> Result<u32, String> {
        Ok(pid)
    }

    fn pod(&self, _: &ObjectName) -> Result<Vec<IpAddr>, String> {
        Ok(vec![FOUR, SIX])
    }

    fn service(&self, _: &ObjectName) -> Result<Vec<Front>, String> {
        Ok(vec![Front {
            address: Some(FOUR),
            protocol: Some(6),
            port: Some(80),
        }])
    }

    fn node(&self, _: &str) -> Result<Vec<IpAddr>, String> {
        Ok(vec![FOUR])
    }
}
