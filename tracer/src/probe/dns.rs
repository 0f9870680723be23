//! A DNS question and its answer, as bytes.

use std::net::{Ipv4Addr, Ipv6Addr};

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};

/// Answers that are shown.
const MOST_ANSWERS: usize = 8;

/// Refuses what is no domain name, in words.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a name to ask for is needed: dns://ADDRESS/NAME".into());
    }
    Name::new(name)
        .map(|_| ())
        .map_err(|error| format!("{name:?} is no domain name: {error}"))
}

/// A query for the IPv4 addresses of a name.
pub(super) fn query(id: u16, name: &str) -> Result<Vec<u8>, simple_dns::SimpleDnsError> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(
        Name::new(name)?,
        QTYPE::TYPE(TYPE::A),
        QCLASS::CLASS(CLASS::IN),
        false,
    ));
    packet.build_bytes_vec()
}

/// What an answer to the query with this id says, one line per record, or why the server has none;
/// `None` for another packet. That there is no such name is an answer.
pub(super) fn answer(id: u16, bytes: &[u8]) -> Option<Result<Vec<String>, String>> {
    let packet = Packet::parse(bytes).ok()?;
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) {
        return None;
    }
    match packet.rcode() {
        RCODE::NoError => {}
        RCODE::NameError => return Some(Ok(vec![rcode_words(RCODE::NameError)])),
        other => return Some(Err(rcode_words(other))),
    }
    let mut lines: Vec<String> = packet
        .answers
        .iter()
        .take(MOST_ANSWERS)
        .map(|record| format!("{} {}", record.name, data(&record.rdata)))
        .collect();
    if packet.answers.len() > MOST_ANSWERS {
        lines.push(format!("and {} more", packet.answers.len() - MOST_ANSWERS));
    }
    if lines.is_empty() {
        lines.push("no such record".into());
    }
    Some(Ok(lines))
}

/// A response code by its name in RFC 1035 and its successors.
fn rcode_words(rcode: RCODE) -> String {
    match rcode {
        RCODE::NameError => "NXDOMAIN: there is no such name".into(),
        RCODE::ServerFailure => "SERVFAIL: the server could not find out".into(),
        RCODE::Refused => "REFUSED: the server does not answer this client".into(),
        RCODE::FormatError => "FORMERR: the server did not understand".into(),
        RCODE::NotImplemented => "NOTIMP: the server does not do such queries".into(),
        other => format!("{other:?}: the server did not answer the question"),
    }
}

fn data(data: &RData<'_>) -> String {
    match data {
        RData::A(found) => format!("A {}", Ipv4Addr::from_bits(found.address)),
        RData::AAAA(found) => format!("AAAA {}", Ipv6Addr::from_bits(found.address)),
        RData::CNAME(found) => format!("CNAME {}", found.0),
        other => format!("{:?}", other.type_code()),
    }
}

#[cfg(test)]
mod tests {
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::A;

    use super::*;

    fn reply(id: u16, rcode: RCODE, addresses: u32) -> Vec<u8> {
        let mut packet = Packet::new_reply(id);
        *packet.rcode_mut() = rcode;
        for address in 1..=addresses {
            packet.answers.push(ResourceRecord::new(
                Name::new_unchecked("a.example"),
                CLASS::IN,
                30,
                RData::A(A {
                    address: 0xc000_0200 + address,
                }),
            ));
        }
        packet.build_bytes_vec().expect("an answer")
    }

    #[test]
    fn a_query_asks_for_the_name() {
        let bytes = query(7, "a.example").expect("a query");
        let packet = Packet::parse(&bytes).expect("a packet");
        assert_eq!(packet.id(), 7);
        assert_eq!(packet.questions[0].qname.to_string(), "a.example");
        assert!(packet.has_flags(PacketFlag::RECURSION_DESIRED));
    }

    #[test]
    fn an_answer_is_read() {
        let found = |bytes: &[u8]| answer(7, bytes);
        assert_eq!(
            found(&reply(7, RCODE::NoError, 1)),
            Some(Ok(vec!["a.example A 192.0.2.1".into()]))
        );
        assert_eq!(found(&reply(8, RCODE::NoError, 1)), None);
        assert_eq!(found(&query(7, "a.example").expect("a query")), None);
        let lines = |rcode, addresses| found(&reply(7, rcode, addresses)).expect("an answer");
        let no_name = lines(RCODE::NameError, 0).expect("it is known that there is none");
        assert!(no_name[0].starts_with("NXDOMAIN"));
        let many = lines(RCODE::NoError, 20).expect("addresses");
        assert_eq!(many.len(), MOST_ANSWERS + 1);
    }

    #[test]
    fn a_server_that_does_not_say_has_not_answered_the_question() {
        for (rcode, name) in [
            (RCODE::ServerFailure, "SERVFAIL"),
            (RCODE::Refused, "REFUSED"),
            (RCODE::FormatError, "FORMERR"),
            (RCODE::NotImplemented, "NOTIMP"),
        ] {
            let why = answer(7, &reply(7, rcode, 0)).expect("its answer");
            assert!(why.expect_err(name).starts_with(name));
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        let whole = reply(7, RCODE::NoError, 2);
        for length in 0..whole.len() {
            let _ = answer(7, &whole[..length]);
            let mut flipped = whole.clone();
            flipped[length] ^= 0xff;
            let _ = answer(7, &flipped);
        }
    }
}
