//! An XDP program that drops the TCP packets to one port.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

use super::namespace::Namespace;

/// Which part of the kernel runs it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// The stack, whatever the device.
    Generic,
    /// The device's driver.
    Native,
}

impl Mode {
    /// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` of linux/if_link.h.
    const fn flag(self) -> u32 {
        match self {
            Self::Generic => 1 << 1,
            Self::Native => 1 << 2,
        }
    }

    /// As `ip link` names it.
    const fn name(self) -> &'static str {
        match self {
            Self::Generic => "xdpgeneric",
            Self::Native => "xdpdrv",
        }
    }
}

/// One instruction, `struct bpf_insn` of linux/bpf.h.
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination register in the lower half, source register in the upper one.
    registers: u8,
    offset: i16,
    value: i32,
}

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// Puts the program on a device, where it stays.
///
/// # Errors
/// When the kernel does not take the program or the device has one.
pub(super) fn drop_tcp_to(
    host: &Namespace,
    device: &str,
    mode: Mode,
    port: u16,
) -> anyhow::Result<()> {
    host.announce(&format!(
        "ip link set dev {device} {} object drop.o   # drops TCP to port {port}",
        mode.name()
    ));
    host.enter(|| {
        let program = load(port)?;
        attach(device, mode, &program)
    })
}

fn load(port: u16) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_XDP: u32 = 6;
    let program = program(port);
    let mut name = [0; 16];
    name[..8].copy_from_slice(b"drop_tcp");
    let request = Load {
        kind: BPF_PROG_TYPE_XDP,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr().expose_provenance() as u64,
        license: c"GPL".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name,
    };
    // SAFETY: the request has the layout that the kernel asks for, and what it points to lives until the call returns.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const request,
            size_of::<Load>(),
        )
    };
    match i32::try_from(descriptor) {
        // SAFETY: the kernel just made the descriptor for us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Looks at Ethernet, IPv4 without options, TCP and its destination port.
fn program(port: u16) -> [Instruction; 14] {
    const LOAD_8: u8 = 0x71;
    const LOAD_16: u8 = 0x69;
    const LOAD_32: u8 = 0x61;
    const COPY: u8 = 0xbf;
    const ADD: u8 = 0x07;
    const SET: u8 = 0xb7;
    const IF_MORE: u8 = 0x2d;
    const IF_NOT: u8 = 0x55;
    const EXIT: u8 = 0x95;
    const XDP_DROP: i32 = 1;
    const XDP_PASS: i32 = 2;
    const PORT_END: i32 = 14 + 20 + 4;
    let one = |code, to: u8, from: u8, offset, value| Instruction {
        code,
        registers: from << 4 | to,
        offset,
        value,
    };
    let wire = |number: u16| i32::from(number.to_be());
    [
        one(LOAD_32, 2, 1, 0, 0),
        one(LOAD_32, 3, 1, 4, 0),
        one(SET, 0, 0, 0, XDP_PASS),
        one(COPY, 4, 2, 0, 0),
        one(ADD, 4, 0, 0, PORT_END),
        one(IF_MORE, 4, 3, 7, 0),
        one(LOAD_16, 5, 2, 12, 0),
        one(IF_NOT, 5, 0, 5, wire(0x0800)),
        one(LOAD_8, 5, 2, 14 + 9, 0),
        one(IF_NOT, 5, 0, 3, libc::IPPROTO_TCP),
        one(LOAD_16, 5, 2, 14 + 20 + 2, 0),
        one(IF_NOT, 5, 0, 1, wire(port)),
        one(SET, 0, 0, 0, XDP_DROP),
        one(EXIT, 0, 0, 0, 0),
    ]
}

fn attach(device: &str, mode: Mode, program: &OwnedFd) -> io::Result<()> {
    let mut change = LinkMessage::default();
    change.header.index = nix::net::if_::if_nametoindex(device)?;
    change.attributes = vec![LinkAttribute::Xdp(vec![
        LinkXdp::Fd(program.as_raw_fd()),
        LinkXdp::Flags(mode.flag()),
    ])];
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let payload = NetlinkPayload::from(RouteNetlinkMessage::SetLink(change));
    let mut message = NetlinkMessage::new(header, payload);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer =
        NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(error) => match error.code {
            None => Ok(()),
            Some(_) => Err(error.to_io()),
        },
        other => Err(io::Error::other(format!("an odd answer: {other:?}"))),
    }
}
