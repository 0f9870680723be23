//! From a meaning to the program that both sides run: tests in a row, joined by jumps.

use std::net::IpAddr;

use tracer_ebpf::program::{ACCEPT, Instruction, MOST_INSTRUCTIONS, Program, REJECT, kind, side};

use super::meaning::{Predicate, Side, Test};

/// Where to go on.
#[derive(Clone, Copy)]
enum Target {
    Accept,
    Reject,
    /// Number of the instruction, counted from the end of the program.
    FromEnd(usize),
}

/// Compiles; the number of tests that it would need where they are too many.
pub(super) fn compile(predicate: &Predicate) -> Result<Program, usize> {
    let mut code = Vec::new();
    lower(predicate, false, Target::Accept, Target::Reject, &mut code);
    let length = code.len();
    if length > MOST_INSTRUCTIONS {
        return Err(length);
    }
    let mut program = Program::EVERYTHING;
    program.length = length as u32;
    let jump = |target| match target {
        Target::Accept => ACCEPT,
        Target::Reject => REJECT,
        Target::FromEnd(number) => (length - 1 - number) as u8,
    };
    // What was written last comes first.
    for (place, (instruction, holds, fails)) in
        program.instructions.iter_mut().zip(code.into_iter().rev())
    {
        *place = Instruction {
            on_match: jump(holds),
            on_miss: jump(fails),
            ..instruction
        };
    }
    Ok(program)
}

/// Writes a predicate back to front, so that every jump goes to what is already there. Returns where
/// the predicate begins. `negated` under an odd number of `not`.
fn lower(
    predicate: &Predicate,
    negated: bool,
    holds: Target,
    fails: Target,
    code: &mut Vec<(Instruction, Target, Target)>,
) -> Target {
    match predicate {
        Predicate::Test(test) => {
            let instruction = Instruction {
                negated: u16::from(negated),
                ..instruction(test)
            };
            code.push((instruction, holds, fails));
            Target::FromEnd(code.len() - 1)
        }
        Predicate::Not(one) => lower(one, !negated, fails, holds, code),
        Predicate::And(one, two) => {
            let two = lower(two, negated, holds, fails, code);
            lower(one, negated, two, fails, code)
        }
        Predicate::Or(one, two) => {
            let two = lower(two, negated, holds, fails, code);
            lower(one, negated, holds, two, code)
        }
    }
}

fn instruction(test: &Test) -> Instruction {
    let bits = |which: Side| match which {
        Side::Source => side::SOURCE,
        Side::Destination => side::DESTINATION,
        Side::Either => side::EITHER,
    };
    match test {
        Test::Network(networks) => Instruction {
            kind: kind::NETWORK,
            networks: *networks,
            ..Instruction::NEVER
        },
        Test::Protocol { networks, protocol } => Instruction {
            kind: kind::PROTOCOL,
            networks: *networks,
            protocol: *protocol,
            ..Instruction::NEVER
        },
        Test::Address {
            side,
            networks,
            address,
            mask,
        } => Instruction {
            kind: kind::ADDRESS,
            side: bits(*side),
            networks: *networks,
            value: words(&octets(*address)),
            mask: words(&octets(*mask)),
            ..Instruction::NEVER
        },
        Test::Port {
            side,
            protocol,
            range,
        } => Instruction {
            kind: kind::PORT,
            side: bits(*side),
            networks: u8::MAX,
            protocol: protocol.unwrap_or(0),
            low: *range.start(),
            high: *range.end(),
            ..Instruction::NEVER
        },
        Test::Interface(name) => Instruction {
            kind: kind::INTERFACE,
            value: device_name(name),
            ..Instruction::NEVER
        },
        Test::Namespace(inode) => Instruction {
            kind: kind::NAMESPACE,
            netns: *inode,
            ..Instruction::NEVER
        },
    }
}

/// An address as programs hold it: IPv4 in the first four bytes.
pub(super) fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            octets
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// A device's name as programs hold it, cut behind 15 bytes like the kernel's.
pub(super) fn device_name(name: &str) -> [u64; 2] {
    let mut bytes = [0; 16];
    let length = name.len().min(bytes.len() - 1);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    words(&bytes)
}

/// Sixteen bytes as they lie in memory.
pub(super) fn words(bytes: &[u8; 16]) -> [u64; 2] {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    [word(0), word(8)]
}
