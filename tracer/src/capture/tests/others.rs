//! What other programs write, and what is no capture.

use super::super::block::{self, Builder, option};
use super::super::{ENTERPRISE, ReadError};
use super::{capture, foreign, read};

/// Blocks of another program whose company has the number that stands for ours.
fn with_our_number(bytes: &mut Vec<u8>) {
    for text in [&b"hello"[..], b"hello world, this is text"] {
        let mut custom = Builder::new(bytes, block::CUSTOM);
        custom.u32(ENTERPRISE);
        custom.bytes(text);
        custom.end();
    }
    let mut interface = Builder::new(bytes, block::INTERFACE);
    interface.u16(block::link::ETHERNET);
    interface.u16(0);
    interface.u32(0);
    interface.custom(b"abcd");
    interface.end();
}

#[test]
fn another_programs_blocks_and_options_with_our_number_are_passed_over() {
    let packets = foreign(false);
    let (expected, _) = read(packets.clone());
    assert!(!expected.is_empty());
    let mut bytes = packets.clone();
    with_our_number(&mut bytes);
    let once = bytes.len();
    // The section goes on.
    let block = |at: usize| {
        block::Order::Little
            .u32(&packets, at + 4)
            .expect("a length") as usize
    };
    let packet = block(0) + block(block(0));
    bytes.extend(&packets[packet..]);
    let (records, error) = read(bytes.clone());
    assert!(error.is_none(), "{error:?}");
    assert_eq!(records, [&expected[..], &expected].concat());
    // In a capture of the tracer they are damage, also before its header is read.
    let (own, ends) = capture();
    for begin in [own.clone(), own[..ends[1]].to_vec()] {
        let whole = begin.len();
        let bytes = [&begin, &bytes[packets.len()..once]].concat();
        let (_, error) = read(bytes);
        match error {
            Some(ReadError::Damage { position, .. }) => assert_eq!(position as usize, whole),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn times_in_any_unit_are_read() {
    for (unit, time, expected) in [
        (6, 1_700_000_000_000_000, 1_700_000_000_000_000_000_u64),
        (9, 1_700_000_000_000_000_000, 1_700_000_000_000_000_000),
        (0x80 | 32, 5 << 32, 5_000_000_000),
        (0x80 | 63, 1 << 63, 1_000_000_000),
        // What a number of 64 bits can say in these is less than a second.
        (0x80 | 70, 1 << 63, 7_812_500),
        (0x80 | 127, u64::MAX, 0),
        (20, u64::MAX, 184_467_440),
        (127, u64::MAX, 0),
    ] {
        let mut bytes = foreign(false);
        let mut interface = Builder::new(&mut bytes, block::INTERFACE);
        interface.u16(block::link::ETHERNET);
        interface.u16(0);
        interface.u32(0);
        interface.option(option::INTERFACE_RESOLUTION, &[unit]);
        interface.end();
        let mut packet = Builder::new(&mut bytes, block::PACKET);
        for field in [1, (time >> 32) as u32, time as u32, 0, 0] {
            packet.u32(field);
        }
        packet.end();
        let (records, error) = read(bytes);
        assert!(error.is_none(), "{unit:#x}: {error:?}");
        let found = records.last().expect("a packet");
        assert!(
            found.contains(&format!("time_ns: {expected},")),
            "{unit:#x}: {found}"
        );
    }
}
