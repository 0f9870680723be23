//! The `tracer` command; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(exit) = tracer::scenario::stand_in() {
        return exit;
    }
    tracer::cli::main()
}
