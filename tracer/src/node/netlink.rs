//! One request, all its answers: the only place that owns a netlink socket.
//!
//! Answers go to the caller as bytes, message by message, so that one message which cannot be
//! understood costs one row and never the table.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    DecodeError, DoneBuffer, ErrorBuffer, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, NlaBuffer, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::Missing;
use super::table::Table;

/// The kernel fills at most 32 KiB per answer; links with many virtual functions may need more.
const BUFFER_BYTES: usize = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);
/// Readings of a table that changes meanwhile.
pub(super) const ATTEMPTS: u32 = 3;

/// Why a request has no usable answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
    #[error("the kernel answered {0}")]
    Refused(Errno),
    #[error("the kernel did not answer within {} s", PATIENCE.as_secs())]
    Silent,
    #[error("the kernel's answer was larger than {BUFFER_BYTES} bytes")]
    TooLarge,
    #[error("there are more than {0}")]
    TooMany(usize),
    #[error("not understood: {0}")]
    Malformed(#[from] DecodeError),
}

impl ReadError {
    /// The same as a fact about the snapshot.
    pub(super) fn missing(&self, what: &str) -> Missing {
        let denied = match self {
            Self::Refused(errno) => matches!(errno, Errno::EPERM | Errno::EACCES),
            Self::Socket(error) => error.kind() == io::ErrorKind::PermissionDenied,
            Self::Silent | Self::TooLarge | Self::TooMany(_) | Self::Malformed(_) => false,
        };
        Missing {
            what: what.to_owned(),
            why: self.to_string(),
            remedy: denied.then(|| "run as root, or with CAP_NET_ADMIN".to_owned()),
        }
    }
}

/// A netlink socket in the calling thread's network namespace.
pub(super) struct Conversation {
    socket: Socket,
    protocol: isize,
    sequence: u32,
}

impl Conversation {
    /// Opens a socket of a netlink protocol (`NETLINK_ROUTE` …).
    pub(super) fn open(protocol: isize) -> Result<Self, ReadError> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(
            &socket,
            sockopt::ReceiveTimeout,
            &TimeVal::new(PATIENCE.as_secs().cast_signed(), 0),
        )
        .map_err(io::Error::from)?;
        Ok(Self {
            socket,
            protocol,
            sequence: 0,
        })
    }

    /// Makes the kernel apply the filters in a dump request's header and attributes.
    pub(super) fn filter_in_kernel(&self) -> Result<(), ReadError> {
        Ok(self.socket.set_netlink_get_strict_chk(true)?)
    }

    /// All rows of a table. `parse` gives `None` for a row that is not wanted.
    pub(super) fn dump<M, T>(
        &mut self,
        request: M,
        limit: usize,
        parse: impl Fn(&[u8]) -> Result<Option<T>, DecodeError>,
    ) -> Result<Table<T>, ReadError>
    where
        M: NetlinkSerializable,
        NetlinkPayload<M>: From<M>,
    {
        self.dump_into(request, |table, payload| {
            match parse(payload) {
                Ok(None) => {}
                Ok(Some(row)) => table.keep(row, limit),
                Err(_) => table.skip_unreadable(),
            }
            Ok(())
        })
    }

    /// All rows of a table whose messages hold several each. More than `most` are an error, and what is left
    /// of them is not waited for.
    pub(super) fn dump_lists<M, T>(
        &mut self,
        request: M,
        most: usize,
        parse: impl Fn(&[u8]) -> Result<Vec<T>, DecodeError>,
    ) -> Result<Table<T>, ReadError>
    where
        M: NetlinkSerializable,
        NetlinkPayload<M>: From<M>,
    {
        self.dump_into(request, |table, payload| {
            let Ok(rows) = parse(payload) else {
                table.skip_unreadable();
                return Ok(());
            };
            let whole = table.keep_all(rows, most);
            whole.then_some(()).ok_or(ReadError::TooMany(most))
        })
    }

    fn dump_into<M, T>(
        &mut self,
        request: M,
        mut add: impl FnMut(&mut Table<T>, &[u8]) -> Result<(), ReadError>,
    ) -> Result<Table<T>, ReadError>
    where
        M: NetlinkSerializable,
        NetlinkPayload<M>: From<M>,
    {
        let mut message = message(request, NLM_F_REQUEST | NLM_F_DUMP);
        let mut table = Table::default();
        for _ in 0..ATTEMPTS {
            table = Table::default();
            self.send(&mut message)?;
            self.receive(|answer, payload| {
                table.interrupted |= answer.interrupted;
                payload.map_or(Ok(()), |payload| add(&mut table, payload))
            })?;
            if !table.interrupted {
                break;
            }
        }
        Ok(table)
    }

    /// The one answer to a question.
    pub(super) fn ask<M, T>(
        &mut self,
        request: M,
        parse: impl Fn(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<T, ReadError>
    where
        M: NetlinkSerializable,
        NetlinkPayload<M>: From<M>,
    {
        self.send(&mut message(request, NLM_F_REQUEST))?;
        let mut row = None;
        self.receive(|_, payload| {
            row = row.take().or_else(|| payload.map(&parse));
            Ok(())
        })?;
        Ok(row.unwrap_or_else(|| Err("no answer".into()))?)
    }

    fn send<M: NetlinkSerializable>(
        &mut self,
        message: &mut NetlinkMessage<M>,
    ) -> Result<(), ReadError> {
        self.sequence += 1;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        Ok(())
    }

    fn receive(
        &mut self,
        take: impl FnMut(Answer, Option<&[u8]>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let result = self.receive_all(take);
        // The dump may still be under way, and the kernel would refuse the next one.
        if result.is_err()
            && let Ok(fresh) = Self::open(self.protocol)
        {
            *self = fresh;
        }
        result
    }

    fn receive_all(
        &self,
        mut take: impl FnMut(Answer, Option<&[u8]>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        loop {
            buffer.clear();
            let length = match self.socket.recv(&mut buffer, libc::MSG_TRUNC) {
                Ok(length) => length,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock => return Err(ReadError::Silent),
                    _ => return Err(error.into()),
                },
            };
            if length > buffer.len() {
                return Err(ReadError::TooLarge);
            }
            if take_datagram(&buffer, self.sequence, &mut take)? {
                return Ok(());
            }
        }
    }
}

fn message<M>(request: M, flags: u16) -> NetlinkMessage<M>
where
    NetlinkPayload<M>: From<M>,
{
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    NetlinkMessage::new(header, request.into())
}

/// What the header of an answer says about the whole dump.
#[derive(Clone, Copy)]
struct Answer {
    interrupted: bool,
}

/// Hands each message of a datagram to `take`; true when the answer is complete.
fn take_datagram(
    mut bytes: &[u8],
    sequence: u32,
    take: &mut impl FnMut(Answer, Option<&[u8]>) -> Result<(), ReadError>,
) -> Result<bool, ReadError> {
    while !bytes.is_empty() {
        let message = NetlinkBuffer::new_checked(bytes)?;
        let aligned = (message.length() as usize).next_multiple_of(4);
        bytes = bytes.get(aligned..).unwrap_or_default();
        if message.sequence_number() != sequence {
            continue;
        }
        let answer = Answer {
            interrupted: message.flags() & NLM_F_DUMP_INTR != 0,
        };
        let payload = message.payload();
        match message.message_type() {
            NLMSG_DONE => {
                take(answer, None)?;
                // A dump that fails half-way says so in its last message.
                let code = DoneBuffer::new_checked(payload).map_or(0, |done| done.code());
                return refusal(code).map_or(Ok(true), Err);
            }
            NLMSG_ERROR => {
                let code = ErrorBuffer::new_checked(payload)?
                    .code()
                    .map_or(0, i32::from);
                return refusal(code).map_or(Ok(true), Err);
            }
            NLMSG_NOOP => {}
            NLMSG_OVERRUN => return Err(ReadError::Refused(Errno::ENOBUFS)),
            _ => {
                take(answer, Some(payload))?;
                if message.flags() & libc::NLM_F_MULTI as u16 == 0 {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

fn refusal(code: i32) -> Option<ReadError> {
    (code < 0).then(|| ReadError::Refused(Errno::from_raw(code.wrapping_neg())))
}

/// Attributes after a fixed header, up to the first one whose length makes no sense.
pub(super) fn attributes(
    payload: &[u8],
    header_bytes: usize,
) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(payload.get(header_bytes..).unwrap_or_default()).map_while(Result::ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw_message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((16 + payload.len() as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn take_all(bytes: &[u8]) -> (Result<bool, ReadError>, Vec<Vec<u8>>, bool) {
        let mut payloads = Vec::new();
        let mut interrupted = false;
        let end = take_datagram(bytes, 7, &mut |answer, payload| {
            interrupted |= answer.interrupted;
            payloads.extend(payload.map(<[u8]>::to_vec));
            Ok(())
        });
        (end, payloads, interrupted)
    }

    const MULTI: u16 = libc::NLM_F_MULTI as u16;

    #[test]
    fn dump_ends_with_done_and_ignores_answers_to_other_requests() {
        let datagram = [
            raw_message(16, MULTI, 7, b"one!"),
            raw_message(16, MULTI, 6, b"old!"),
            raw_message(16, MULTI | NLM_F_DUMP_INTR, 7, b"two"),
        ]
        .concat();
        let (end, payloads, interrupted) = take_all(&datagram);
        assert!(!end.unwrap());
        assert_eq!(payloads, [b"one!".to_vec(), b"two".to_vec()]);
        assert!(interrupted);
        assert!(
            take_all(&raw_message(NLMSG_DONE, MULTI, 7, &0_i32.to_ne_bytes()))
                .0
                .unwrap()
        );
    }

    #[test]
    fn what_has_enough_ends_the_reading() {
        let datagram = [
            raw_message(16, MULTI, 7, b"one!"),
            raw_message(16, MULTI, 7, b"two!"),
        ]
        .concat();
        let mut taken = 0;
        let end = take_datagram(&datagram, 7, &mut |_, _| {
            taken += 1;
            Err(ReadError::TooMany(0))
        });
        assert!(matches!(end, Err(ReadError::TooMany(0))) && taken == 1);
        let mut table = Table::default();
        assert!(table.keep_all(vec![1, 2], 2) && !table.keep_all(vec![3], 2));
    }

    #[test]
    fn refusals_are_errors_with_a_remedy_when_there_is_one() {
        for kind in [NLMSG_ERROR, NLMSG_DONE] {
            let mut payload = (-1_i32).to_ne_bytes().to_vec();
            payload.extend([0; 16]);
            let (end, ..) = take_all(&raw_message(kind, 0, 7, &payload));
            let missing = end.unwrap_err().missing("routes");
            assert_eq!(missing.what, "routes");
            assert!(missing.why.contains("EPERM"), "{missing:?}");
            assert!(missing.remedy.unwrap().contains("root"));
        }
    }

    #[test]
    fn damaged_datagrams_are_errors() {
        let mut lying = raw_message(16, MULTI, 7, b"one!");
        lying[0] = 200;
        assert!(matches!(take_all(&lying).0, Err(ReadError::Malformed(_))));
        lying[0] = 3;
        assert!(matches!(take_all(&lying).0, Err(ReadError::Malformed(_))));
        assert!(matches!(
            take_all(&[1, 2, 3]).0,
            Err(ReadError::Malformed(_))
        ));
    }

    #[test]
    fn attributes_stop_at_nonsense() {
        let mut bytes = vec![9, 9, 8, 0, 1, 0, 1, 2, 3, 4];
        assert_eq!(attributes(&bytes, 2).count(), 1);
        bytes.extend([2, 0, 1, 0]);
        assert_eq!(attributes(&bytes, 2).count(), 1);
        assert_eq!(attributes(&bytes, 200).count(), 0);
    }
}
