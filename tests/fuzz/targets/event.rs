//! Events as the programs in the kernel write them, whatever their bytes: decoded, joined to journeys
//! and turned into words.

#![no_main]

use std::mem::size_of;

use libfuzzer_sys::fuzz_target;
use tracer::analysis::{Analysis, Kernel};
use tracer::event::{Decoder, Event};
use tracer::node::Source;
use tracer::printer::{Format, Printer, Show};
use tracer_ebpf::event as raw;

fuzz_target!(|bytes: &[u8]| {
    let printer = Printer::new(Format::Silent, Show::All);
    let mut analysis = Analysis::new(Source::recorded(), Kernel::default(), printer);
    let (mut decoder, mut now_ns) = (Decoder::default(), 0);
    for bytes in bytes.chunks_exact(size_of::<raw::Event>()) {
        // SAFETY: the length is that of an event, an event is plain data for which every bit pattern
        // is valid, and the read does not ask for alignment.
        let event = unsafe { bytes.as_ptr().cast::<raw::Event>().read_unaligned() };
        let decoded = decoder.decode(&event);
        assert_eq!(
            decoded,
            Event::decode(&event),
            "what is remembered changes nothing"
        );
        if let Some(event) = decoded {
            now_ns = event.time_ns;
            analysis.push(event);
        }
    }
    let journeys = analysis.take_all();
    analysis.views(&journeys, now_ns);
    analysis
        .judge(journeys, now_ns)
        .expect("nothing is printed that could fail");
});
