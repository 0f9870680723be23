//! A server that answers three questions and nothing else.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use tokio::sync::Semaphore;

use super::Meter;

/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 16;
/// A request's head has to come within.
const HEAD: Duration = Duration::from_secs(5);
/// A connection ends after.
const LIFE: Duration = Duration::from_secs(60);
/// Pause after the listener failed: no file descriptors are left.
const PAUSE: Duration = Duration::from_millis(200);
/// The text format's own name.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A bound server that does not serve yet.
pub struct Server {
    listener: TcpListener,
}

impl Server {
    /// Takes the port. `[::]` stands for every address of the machine, IPv4's where it has no IPv6.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let every = address.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED);
        let listener = TcpListener::bind(address)
            .or_else(|error| match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) if every => {
                    TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port()))
                }
                _ => Err(error),
            })
            .with_context(|| format!("cannot listen on {address}"))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves in a thread of its own until the process ends.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn serve(self, meter: Arc<Meter>) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let entered = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        drop(entered);
        std::thread::Builder::new()
            .name("metrics".into())
            .spawn(move || runtime.block_on(accept(listener, meter)))?;
        Ok(())
    }
}

async fn accept(listener: tokio::net::TcpListener, meter: Arc<Meter>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let meter = Arc::clone(&meter);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(&request, &meter);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            // A reader that goes away, or stays too long, is no fault of ours.
            let _ = tokio::time::timeout(LIFE, connection).await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, meter: &Meter) -> Response<Full<Bytes>> {
    respond(request.method(), request.uri().path(), meter)
}

fn respond(method: &Method, path: &str, meter: &Meter) -> Response<Full<Bytes>> {
    if method != Method::GET {
        let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        refusal
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET"));
        return refusal;
    }
    match path {
        "/metrics" => match meter.text() {
            Ok(text) => plain(StatusCode::OK, text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        "/livez" if meter.alive() => plain(StatusCode::OK, "ok\n"),
        "/healthz" if meter.alive() && meter.ready() => plain(StatusCode::OK, "ok\n"),
        "/healthz" if meter.alive() => {
            plain(StatusCode::SERVICE_UNAVAILABLE, "the trace has not begun\n")
        }
        "/livez" | "/healthz" => plain(StatusCode::SERVICE_UNAVAILABLE, "the trace hangs\n"),
        _ => plain(StatusCode::NOT_FOUND, "/metrics, /healthz or /livez\n"),
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::State;

    #[test]
    fn only_three_questions_are_answered() {
        let meter = Meter::new().expect("a meter");
        let code = |method: &Method, path: &str| respond(method, path, &meter).status().as_u16();
        assert_eq!(code(&Method::GET, "/healthz"), 503);
        assert_eq!(code(&Method::GET, "/livez"), 200);
        meter.set(&State::default());
        for (method, path, expected) in [
            (Method::GET, "/metrics", 200),
            (Method::GET, "/healthz", 200),
            (Method::GET, "/", 404),
            (Method::GET, "/metrics/../etc", 404),
            (Method::POST, "/metrics", 405),
            (Method::DELETE, "/healthz", 405),
        ] {
            assert_eq!(code(&method, path), expected, "{method} {path}");
        }
    }
}
