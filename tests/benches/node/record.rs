//! Records real events as the ring buffer holds them, for the benchmark of the collector.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tracer::kernel::load::{Options, Tracing};
use tracer_ebpf::event::Event;

use super::traffic::{Kind, round_trips};
use super::world::World;

/// Round trips of each kind, for about 500 events.
const UDP: usize = 4;
const TCP: usize = 2;

/// Writes the events of a few round trips, one after the other, to a file.
pub(crate) fn record(path: &Path) -> anyhow::Result<()> {
    let world = World::build()?;
    // Neighbours are found before, and unloaded code is loaded.
    for kind in Kind::ALL {
        round_trips(&world, kind, 2)?;
    }
    let (mut tracing, _) = Tracing::start(&Options::default())?;
    let mut ring = tracing.take_ring()?;
    round_trips(&world, Kind::Udp, UDP)?;
    round_trips(&world, Kind::Tcp, TCP)?;
    // Behind the last packets, which the kernel frees a little later.
    std::thread::sleep(Duration::from_millis(300));
    let mut bytes = Vec::new();
    let count = ring.drain(usize::MAX, |event: &Event| {
        // SAFETY: an event is plain data without padding, and is read as bytes while it lives.
        bytes.extend_from_slice(unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(event).cast::<u8>(), size_of::<Event>())
        });
    });
    std::fs::write(path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    println!(
        "{count} events of {UDP} UDP and {TCP} TCP round trips, {} bytes",
        bytes.len()
    );
    Ok(())
}
