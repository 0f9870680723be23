//! Recorded events, replayed as many times as wanted: each pass from another client, by other skbs,
//! later.

use tracer::collector::Collector;
use tracer::event::Decoder;
use tracer_ebpf::event as raw;

/// Real events of UDP and TCP round trips through a NodePort; `node --record` made them.
const RECORDED: &[u8] = include_bytes!("events.bin");
const EVENT_BYTES: usize = size_of::<raw::Event>();
// Events that were recorded with another layout would be read as something else.
const _: () = assert!(RECORDED.len().is_multiple_of(EVENT_BYTES));
/// The addresses that differ in each pass: the client's, and the one that it is masqueraded to.
const VARIED: [[u8; 4]; 2] = [[192, 168, 3, 10], [10, 244, 1, 1]];
/// A session empties the ring buffer this often.
const PERIOD_NS: u64 = 10_000_000;

/// The recorded events and where the addresses are that differ in each pass.
pub(crate) struct Replay {
    events: Vec<Recorded>,
    span_ns: u64,
    /// Passes after which the clients begin again.
    clients: u64,
}

struct Recorded {
    event: raw::Event,
    /// Offset in the event's bytes, and index into [`VARIED`].
    places: Vec<(usize, usize)>,
}

/// What a replay came to.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Replayed {
    pub(crate) events: u64,
    pub(crate) packets: u64,
}

impl Replay {
    pub(crate) fn new() -> Self {
        let events: Vec<Recorded> = RECORDED
            .as_chunks::<EVENT_BYTES>()
            .0
            .iter()
            .map(|bytes| Recorded {
                // SAFETY: an event is plain data of this size, and every value is one.
                event: unsafe { bytes.as_ptr().cast::<raw::Event>().read_unaligned() },
                places: places(bytes),
            })
            .collect();
        let time = |recorded: Option<&Recorded>| recorded.map_or(0, |it| it.event.time_ns);
        let span_ns = time(events.last()) - time(events.first()) + 1_000;
        Self {
            events,
            span_ns,
            clients: 0x0040_0000,
        }
    }

    /// The same with so many clients, which come again and again.
    pub(crate) fn of_clients(self, clients: u64) -> Self {
        Self { clients, ..self }
    }

    pub(crate) fn events(&self) -> usize {
        self.events.len()
    }

    /// Gives the events of one pass to `take`.
    fn pass(&self, number: u64, mut take: impl FnMut(&raw::Event)) {
        // 10.64.0.0/10 for the clients, 100.64.0.0/10 for what they are masqueraded to.
        let low = (number % self.clients) as u32;
        let varied = [0x0a40_0000 | low, 0x6440_0000 | low].map(u32::to_be_bytes);
        for recorded in &self.events {
            let mut event = recorded.event;
            event.time_ns += number * self.span_ns;
            event.skb += number << 12;
            let bytes = std::ptr::from_mut(&mut event).cast::<u8>();
            for &(at, which) in &recorded.places {
                // SAFETY: `places` gives offsets of four bytes within the event, which is plain data.
                unsafe {
                    bytes
                        .add(at)
                        .cast::<[u8; 4]>()
                        .write_unaligned(varied[which])
                };
            }
            take(std::hint::black_box(&event));
        }
    }

    /// Replays passes into a collector as a session does: it empties the ring buffer, decodes, and
    /// keeps what ended.
    pub(crate) fn into(&self, collector: &mut Collector, passes: std::ops::Range<u64>) -> Replayed {
        let (mut decoder, mut ended) = (Decoder::default(), Vec::new());
        let mut done = Replayed::default();
        let mut next_ns = 0;
        for number in passes {
            self.pass(number, |raw| {
                let now = raw.time_ns;
                if now >= next_ns {
                    next_ns = now + PERIOD_NS;
                    collector.expire(now, &mut ended);
                    done.packets += ended.len() as u64;
                    collector.keep(std::mem::take(&mut ended), now);
                }
                if let Some(event) = decoder.decode(raw) {
                    collector.push(event, &mut ended);
                }
                done.events += 1;
            });
        }
        done.packets += ended.len() as u64;
        collector.keep(ended, next_ns);
        done
    }

    /// Only makes the events, for what the replay itself costs.
    pub(crate) fn nowhere(&self, passes: std::ops::Range<u64>) -> u64 {
        let mut times = 0;
        for number in passes {
            self.pass(number, |event| times ^= event.time_ns);
        }
        times
    }
}

/// Where the varied addresses are, in the packet's headers and in what the hook adds.
fn places(bytes: &[u8; EVENT_BYTES]) -> Vec<(usize, usize)> {
    let first = std::mem::offset_of!(raw::Event, detail);
    (first..=EVENT_BYTES - 4)
        .filter_map(|at| {
            let which = VARIED
                .iter()
                .position(|address| bytes[at..at + 4] == *address)?;
            Some((at, which))
        })
        .collect()
}
