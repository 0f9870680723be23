//! Runs as root inside a lab kernel; `cargo xtask bench` boots one and starts it there.
//!
//! `node --record FILE` records events for the benchmark of the collector; `node --measure OUT TRACER
//! PWRU` measures what tracing costs, where PWRU is a program or `-REASON` for none.

mod measure;
mod peer;
mod record;
mod traffic;
mod world;

use std::path::Path;

use measure::Programs;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--record", file] => record::record(Path::new(file)),
        ["--measure", out, tracer, pwru] => {
            let pwru = pwru
                .strip_prefix('-')
                .map_or(Ok(pwru), |why| Err(why.to_owned()));
            measure::measure(&Programs { tracer, pwru }, Path::new(out))
        }
        _ => anyhow::bail!("usage: node --record FILE | --measure OUT TRACER PWRU|-REASON"),
    }
}
