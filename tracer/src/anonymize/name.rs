//! Words: what a text says with every address, name and number of nobody's in it replaced.
//!
//! A text is taken apart at what cannot be part of a name; what is left is an address, a known word, a plain
//! number, or a name. A name becomes a word made of the key and the name, so that equal names stay
//! equal, in whatever text they are.

use std::net::{IpAddr, SocketAddr};

use super::address::masked;
use super::vocabulary::{self, UNITS};
use super::{Anonymizer, Domain};
use crate::node::Mac;

/// What may stand between parts of a word, the outermost first; an address has some of them in it.
const JOINTS: [char; 6] = ['/', '@', '%', ':', '-', '.'];
/// A name without ambiguous letters.
const LETTERS: &[u8; 32] = b"abcdefghijkmnopqrstuvwxyz2345678";
/// Letters of a made-up name: with its first one it fits into a device's name behind any beginning.
const LENGTH: usize = 8;
/// Dotted numbers, so many of them, may be an address written some other way.
const MANY_NUMBERS: usize = 4;

impl Anonymizer {
    /// A text with everything replaced that is not known to be harmless.
    pub fn text(&self, text: &str) -> String {
        let mut mapped = String::with_capacity(text.len());
        let mut rest = text;
        while !rest.is_empty() {
            let run = rest
                .find(|letter| !is_of_word(letter))
                .unwrap_or(rest.len());
            self.run(&rest[..run], &mut mapped);
            rest = &rest[run..];
            let between = rest.find(is_of_word).unwrap_or(rest.len());
            mapped.push_str(&rest[..between]);
            rest = &rest[between..];
        }
        mapped
    }

    /// Letters without a space: an address, a word, or several with joints between them.
    fn run(&self, run: &str, mapped: &mut String) {
        if let Some(address) = self.whole(run) {
            mapped.push_str(&address);
            return;
        }
        // An address at the end of a sentence.
        if let Some(before) = run.strip_suffix(['.', ':'])
            && !before.is_empty()
        {
            self.run(before, mapped);
            mapped.push_str(&run[before.len()..]);
            return;
        }
        if is_address_in_disguise(run) && !self.is_range(run) {
            mapped.push_str(&self.name(run));
            return;
        }
        let joint = JOINTS
            .into_iter()
            .find(|&joint| run.contains(joint) && (joint != '-' || self.is_range(run)));
        // What software makes up with a dot in it is one word: `flannel.1`.
        let Some(joint) = joint.filter(|_| !vocabulary::knows(run)) else {
            self.word(run, mapped);
            return;
        };
        for (index, part) in run.split(joint).enumerate() {
            if index > 0 {
                mapped.push(joint);
            }
            self.run(part, mapped);
        }
    }

    /// `10.0.0.1-10.0.0.9`: other words keep their hyphens.
    fn is_range(&self, run: &str) -> bool {
        run.split('-').all(|part| self.whole(part).is_some())
    }

    /// An address in one of its forms; `None` for anything else.
    fn whole(&self, run: &str) -> Option<String> {
        if let Ok(address) = run.parse::<IpAddr>() {
            return Some(self.address(address).to_string());
        }
        if let Ok(socket) = run.parse::<SocketAddr>() {
            return Some(self.socket(socket).to_string());
        }
        if let Some(inside) = run.strip_prefix('[').and_then(|run| run.strip_suffix(']')) {
            return Some(format!("[{}]", self.address(inside.parse().ok()?)));
        }
        if let Some((address, length)) = run.split_once('/') {
            let (address, length): (IpAddr, u8) = (address.parse().ok()?, length.parse().ok()?);
            // An interface's address has a length as well, and is no network.
            let network = masked(address, length) == address;
            let mapped = self.address(address);
            let mapped = if network {
                masked(mapped, length)
            } else {
                mapped
            };
            return Some(format!("{mapped}/{length}"));
        }
        let mut bytes = [0; 6];
        let mut parts = run.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2)?;
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts
            .next()
            .is_none()
            .then(|| self.mac(Mac(bytes)).to_string())
    }

    /// A single word.
    fn word(&self, word: &str, mapped: &mut String) {
        let bare = word.trim_start_matches('-');
        mapped.push_str(&word[..word.len() - bare.len()]);
        if bare.is_empty() || is_plain(bare) || vocabulary::knows(bare) {
            mapped.push_str(bare);
            return;
        }
        let beginning = vocabulary::beginning(bare);
        mapped.push_str(beginning);
        mapped.push_str(&self.name(&bare[beginning.len()..]));
    }

    /// What a name becomes.
    pub fn name(&self, name: &str) -> String {
        if name.is_empty() {
            return String::new();
        }
        if let Some(known) = self.words.borrow().get(name) {
            return known.clone();
        }
        let random = self.bytes(Domain::Word, &[name.as_bytes()]);
        let letters = random[..LENGTH - 1].iter();
        let mapped: String = std::iter::once('n')
            .chain(letters.map(|byte| char::from(LETTERS[usize::from(byte & 31)])))
            .collect();
        self.words
            .borrow_mut()
            .insert(name.to_owned(), mapped.clone());
        mapped
    }
}

fn is_of_word(letter: char) -> bool {
    letter.is_alphanumeric()
        || letter == '_'
        || matches!(letter, '[' | ']')
        || JOINTS.contains(&letter)
}

/// Numbers, times and versions: `80`, `0x4000`, `30s`, `v1`.
fn is_plain(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = word.strip_prefix('v').unwrap_or(word);
    let mark = word.strip_prefix("0x").is_some_and(|hexadecimal| {
        // Eight hexadecimal digits may be an address; marks are shorter, or masks.
        hexadecimal.len() < 8 && hexadecimal.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    let time = UNITS
        .iter()
        .any(|unit| word.strip_suffix(unit).is_some_and(digits));
    digits(number) || mark || time
}

/// Numbers with dots that are no address as they stand: one turned round for a name server, or with more
/// behind it.
fn is_address_in_disguise(run: &str) -> bool {
    let numbers = run
        .split('.')
        .filter(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    !run.contains(['/', ':', '@', '%']) && numbers.count() >= MANY_NUMBERS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping() -> Anonymizer {
        Anonymizer::new(&[7; super::super::KEY_BYTES])
    }

    #[test]
    fn names_and_addresses_are_found_wherever_they_stand() {
        let mapping = mapping();
        for text in [
            "zebra",
            "shop/zebra:http",
            "p/shop/zebra-7d4f 10.9.8.7:80",
            "10.9.8.7/32,10.9.8.7",
            "https://10.9.8.7:6443",
            "node zebra.",
            "[2001:db8::77]:53",
            "2001:db8::77",
            "zebra@if7",
            "ip-10-9-8-7.zebra.internal",
            "7.8.9.10.in-addr.arpa",
            "02:aa:bb:cc:dd:ee",
            "10.9.8.1-10.9.8.7",
            "KUBE-SVC-ZEBRAHASH",
            "--hostname-override=zebra",
            "a zebra's 10.9.8.7.",
            "0x0a090807",
            "service-ABC-shop/zebra/tcp/http",
            "fe80::77%zebra",
            "10.9.8.7:80: refused",
        ] {
            let mapped = mapping.text(text);
            for secret in [
                "zebra",
                "ZEBRA",
                "shop",
                "10.9.8.7",
                "10.9.8.1",
                "2001:db8::77",
                "10-9-8-7",
                "7.8.9.10",
                "aa:bb",
                "0a090807",
                "fe80::77",
            ] {
                assert!(!mapped.contains(secret), "{text}: {mapped}");
            }
        }
    }

    #[test]
    fn what_causes_read_stays() {
        let mapping = mapping();
        for text in [
            "kube-proxy",
            "net/ipv4/conf/all/rp_filter",
            "lo",
            "eth0",
            "cni0",
            "kube-ipvs0",
            "flannel.1",
            "docker0",
            "--network-plugin=cni",
            "KUBE-FORWARD",
            "reject-chain",
            "nodeport-endpoints-check",
            "no-endpoint-nodeports",
            "has no endpoints",
            "127.0.0.1:10256",
            "icmp-port-unreachable",
            "30s",
            "v1.28.3",
            "nf_tables: filter tables",
            "0.0.0.0/0",
            "everything in this network namespace",
            "dropping marked packets",
            "primary",
            "rr",
            "ESTABLISHED",
            "containerd",
            "NETFILTER_DROP",
            "",
        ] {
            assert_eq!(mapping.text(text), text);
        }
        let chain = mapping.text("KUBE-SVC-ABCDEFGHIJKLMNOP");
        assert!(chain.starts_with("KUBE-SVC-n"), "{chain}");
        assert!(
            mapping
                .text("firewall-2QRHZV4L-shop/web")
                .starts_with("firewall-n")
        );
        assert!(mapping.text("veth0123abcd").starts_with("vethn"));
        assert!(mapping.text("veth0123abcd").len() < 16);
    }

    #[test]
    fn equal_names_stay_equal_and_networks_stay_networks() {
        let mapping = mapping();
        let service = mapping.text("shop/web:http");
        let (namespace, name) = (mapping.text("shop"), mapping.text("web"));
        assert!(
            service.starts_with(&format!("{namespace}/{name}:")),
            "{service}"
        );
        let network = mapping.text("10.244.0.0/16");
        assert!(
            network.ends_with(".0.0/16") && network != "10.244.0.0/16",
            "{network}"
        );
    }
}
