//! `tracer serve`: always on, at low cost, with counts for Prometheus.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::capture::Kept;
use super::cluster::Connection;
use super::limits::LimitArguments;
use super::run::{host_name, interrupted};
use super::{Exit, Failure, Output, need_root, runtime};
use crate::kernel::load::Options;
use crate::kernel::privilege;
use crate::metrics::{Meter, Server};
use crate::printer::{Printer, Show};
use crate::session::Session;

/// Port that is used unless another is named.
pub(super) const PORT: u16 = 9464;

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Where /metrics, /healthz and /livez are served.
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = SocketAddr::from(([127, 0, 0, 1], PORT)))]
    listen: SocketAddr,
    /// Attach every hook: surer causes, at the cost of each packet.
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    limits: LimitArguments,
    #[command(flatten)]
    captures: Kept,
    #[command(flatten)]
    connection: Connection,
}

/// What is served from now on.
#[derive(Serialize)]
struct ReadyView {
    host: String,
    listen: String,
    hooks: usize,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
    need_root("tracing")?;
    let server = Server::bind(arguments.listen)?;
    let listen = server.address()?.to_string();
    // Packets are counted; what is printed is the causes.
    let printer = Printer::new(output.printer_format(), Show::Nothing);
    let options = Options {
        low_cost: !arguments.full,
        ..Options::default()
    };
    runtime()?.block_on(async {
        let mut session = Session::start(&options, Vec::new(), printer)?;
        arguments.captures.start(&mut session)?;
        privilege::drop_unneeded()?;
        let meter = Arc::new(Meter::new()?);
        server.serve(Arc::clone(&meter))?;
        session.count(meter);
        arguments.limits.apply(&mut session);
        if let Some(cluster) = arguments.connection.start()? {
            session.watch(cluster);
        }
        let hooks = session.tracing().hooks.iter();
        let ready = ReadyView {
            host: host_name(),
            listen,
            hooks: hooks.filter(|state| state.outcome.is_ok()).count(),
        };
        let words = format!(
            "serving http://{}/metrics of {} · {} hooks · Ctrl-C stops",
            ready.listen, ready.host, ready.hooks
        );
        session.printer().object("ready", &ready, &words)?;
        session.collect(interrupted()).await?;
        let ended = session.finish()?;
        Ok(Exit::of_trace(false, ended.capture_failed))
    })
}
