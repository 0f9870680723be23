//! A device's transmit checksum offload. veth devices promise it and never compute anything, so that a
//! wrong checksum is never looked at between namespaces; without the promise the kernel computes it.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

use super::namespace::Namespace;

/// From linux/ethtool.h: set transmit checksumming.
const ETHTOOL_STXCSUM: u32 = 0x17;

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// What `ethtool -K DEVICE tx off` does.
///
/// # Errors
/// When the namespace cannot be entered or the device does not allow it.
pub(super) fn transmit_off(host: &Namespace, device: &str) -> anyhow::Result<()> {
    host.announce(&format!("ethtool -K {device} tx off"));
    host.enter(|| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let mut value = Value {
            command: ETHTOOL_STXCSUM,
            data: 0,
        };
        // SAFETY: all of ifreq's variants are plain data, for which zeroes are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let name = device.as_bytes();
        if name.len() >= request.ifr_name.len() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: the request and what it points to live until the call returns, and have the
        // layouts that SIOCETHTOOL asks for.
        let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    })
}
