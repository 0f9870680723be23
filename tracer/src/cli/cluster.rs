//! The cluster on the command line: options that other commands share, and `tracer cluster`.

use std::io::{Write as _, stdout};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::run::host_name;
use super::{Exit, Failure, Output, fleet, need_root};
use crate::expectation::{Comparison, Mode, Proxy};
use crate::kernel::privilege;
use crate::kube::{Cluster, ClusterFacts, ObjectName, Options, Place, RBAC, Resource, State};
use crate::node::{Directory, KubeProxy, NetnsFacts, NetnsHandle, ProxyReport};
use crate::printer::{Printer, Show};
use crate::view::cluster::ClusterView;

/// How to find the cluster.
#[derive(Args, Clone, Debug)]
pub(super) struct Connection {
    /// Use no facts of Kubernetes.
    #[arg(long, conflicts_with_all = ["kubeconfig", "context"])]
    no_kube: bool,
    /// Kubeconfig; else KUBECONFIG, ~/.kube/config, or the service account of this pod.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context in it; else its current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Name of this node; else the node with this machine's host name or one of its addresses.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node: Option<String>,
}

impl Connection {
    /// Begins to watch the cluster; `None` when no facts are wanted.
    pub(super) fn start(&self) -> std::io::Result<Option<Cluster>> {
        self.start_with(Vec::new())
    }

    /// The same, and reads pods by their names.
    fn start_with(&self, pods: Vec<ObjectName>) -> std::io::Result<Option<Cluster>> {
        if self.no_kube {
            return Ok(None);
        }
        Cluster::start(Options {
            place: Place {
                kubeconfig: self.kubeconfig.clone(),
                context: self.context.clone(),
            },
            node: self.node.clone(),
            host_name: host_name(),
            addresses: own_addresses(),
            pods,
            ..Options::default()
        })
        .map(Some)
    }

    /// The same before this thread gave up what tracing does not need; the watching thread does without.
    pub(super) fn start_unprivileged(
        &self,
        pods: Vec<ObjectName>,
    ) -> anyhow::Result<Option<Cluster>> {
        let starter = || {
            privilege::drop_unneeded()?;
            Ok(self.start_with(pods)?)
        };
        std::thread::scope(|scope| scope.spawn(starter).join())
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the thread that asks the cluster failed")))
    }
}

/// The cluster's facts once everything was read, or as far as they are after ten seconds.
pub(super) fn settled_facts(cluster: &Cluster) -> Option<Arc<ClusterFacts>> {
    settled(cluster, Duration::from_secs(10));
    cluster.state().facts().cloned()
}

/// Addresses of this namespace; none when they cannot be read.
fn own_addresses() -> Vec<IpAddr> {
    let Ok(found) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    found
        .filter_map(|interface| {
            let address = interface.address?;
            let four = address.as_sockaddr_in().map(|found| IpAddr::V4(found.ip()));
            four.or_else(|| {
                address
                    .as_sockaddr_in6()
                    .map(|found| IpAddr::V6(found.ip()))
            })
        })
        .collect()
}

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Say what is known of the cluster and how fresh it is. Example: tracer cluster facts --wait 10
    Facts(Facts),
    /// Compare what kube-proxy should have made on this node with what IPVS, iptables or nftables hold.
    /// Example: tracer cluster differences
    Differences(Facts),
    /// Trace many nodes at once: a pod on each, everything removed in the end.
    /// Example: tracer cluster run --image registry.example/tracer:1 --nodes zone=b --for 60s
    Run(fleet::Run),
    /// Trace many nodes at once and keep what each one saw as a capture.
    /// Example: tracer cluster capture --image registry.example/tracer:1 --for 60s -o captures port 53
    Capture(fleet::Capture),
    /// Remove what an earlier run left behind. Example: tracer cluster clean
    Clean(fleet::Clean),
    /// Print a DaemonSet for always-on use. Example: tracer cluster install --print --image IMAGE | kubectl apply -f -
    Install(fleet::Install),
    /// Print the least rights that reading the facts needs. Example: tracer cluster rbac | kubectl apply -f -
    Rbac {
        /// Those that `cluster run` and `cluster clean` need instead.
        #[arg(long)]
        run: bool,
    },
}

#[derive(Args, Debug)]
struct Facts {
    #[command(flatten)]
    connection: Connection,
    /// Wait at most this many seconds for everything to be read.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    wait: u64,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
    match &arguments.command {
        Command::Rbac { run } => {
            let text = if *run { crate::fleet::RBAC } else { RBAC };
            write!(stdout(), "{text}")?;
            Ok(Exit::Healthy)
        }
        Command::Run(run) => fleet::run(run, output),
        Command::Capture(capture) => fleet::capture(capture, output),
        Command::Clean(clean) => fleet::clean(clean, output),
        Command::Install(install) => fleet::install(install),
        Command::Facts(facts) => show_facts(facts, output),
        Command::Differences(facts) => show_differences(facts, output),
    }
}

fn show_facts(arguments: &Facts, output: &Output) -> Result<Exit, Failure> {
    let printer = Printer::new(output.printer_format(), Show::Nothing);
    let Some(cluster) = arguments.connection.start()? else {
        return Err(Failure::usage("--no-kube leaves nothing to show".into()));
    };
    let view = settled(&cluster, Duration::from_secs(arguments.wait));
    printer.object("kubernetes", &view, &view.words())?;
    Ok(match view.state {
        "fresh" => Exit::Healthy,
        _ => Exit::CannotTrace,
    })
}

#[derive(Serialize)]
struct DifferenceView {
    difference: String,
}

/// A running kube-proxy as shown.
#[derive(Serialize)]
struct ReportView {
    pid: u32,
    mode: Option<String>,
    version: Option<String>,
    healthy: Option<bool>,
    last_sync: Option<String>,
    not_said: Vec<String>,
}

impl ReportView {
    fn new(proxy: &KubeProxy, report: &ProxyReport) -> Self {
        Self {
            pid: proxy.pid,
            mode: report.mode.clone(),
            version: report.version.clone(),
            healthy: report.healthy,
            last_sync: report.last_sync.clone(),
            not_said: report
                .missing
                .iter()
                .map(|missing| format!("{}: {}", missing.what, missing.why))
                .collect(),
        }
    }
}

fn said(proxy: &KubeProxy, report: &ProxyReport) -> String {
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
    let health = match report.healthy {
        Some(true) => "healthy",
        Some(false) => "not healthy",
        None => "health unknown",
    };
    format!(
        "kube-proxy: process {}, mode {}, version {}, {health}, last sync {}",
        proxy.pid,
        known(&report.mode),
        known(&report.version),
        known(&report.last_sync)
    )
}

fn show_differences(arguments: &Facts, output: &Output) -> Result<Exit, Failure> {
    need_root("reading IPVS and packet filter rules")?;
    let printer = Printer::new(output.printer_format(), Show::Nothing);
    let Some(cluster) = arguments.connection.start()? else {
        return Err(Failure::usage("--no-kube leaves nothing to compare".into()));
    };
    let view = settled(&cluster, Duration::from_secs(arguments.wait));
    let state = cluster.state();
    let needed = [Resource::Services, Resource::Endpoints, Resource::Nodes];
    let Some(facts) = state.facts().filter(|facts| facts.fresh(&needed)) else {
        return Err(Failure::cannot_trace(view.words()));
    };
    let handle = NetnsHandle::current()?;
    let running = KubeProxy::running()
        .into_iter()
        .find(|proxy| proxy.netns == Some(handle.id()));
    let proxy = match running {
        Some(mut running) => {
            let report = ProxyReport::read(&running);
            printer.object(
                "kube-proxy",
                &ReportView::new(&running, &report),
                &said(&running, &report),
            )?;
            running.report = Some(report);
            Proxy::running(&running, Some(facts))
        }
        None => Proxy::of_cluster(facts),
    };
    let mut node = NetnsFacts::read(&handle, &Directory::default());
    if proxy.as_ref().is_none_or(|proxy| proxy.mode != Mode::Ipvs) {
        node.read_service_rules(&handle);
    }
    let Some(proxy) = proxy.or_else(|| Proxy::of_kernel(facts, &node)) else {
        return Err(Failure::cannot_trace(
            "kube-proxy's mode on this node is not known: neither it nor its ConfigMap says it, nor what the kernel holds",
        ));
    };
    if let Some(lacks) = proxy.told.lacks() {
        printer.warning(&format!("not known: {lacks}"))?;
    }
    let holder = proxy.mode.holder();
    let Some(comparison) = Comparison::of(facts, &node, &proxy) else {
        return Err(Failure::cannot_trace(format!(
            "nothing of kube-proxy's is in {holder} on this node, or it could not be read"
        )));
    };
    for difference in &comparison.differences {
        let view = DifferenceView {
            difference: difference.words(proxy.mode),
        };
        printer.object("difference", &view, &format!("✗ {}", view.difference))?;
    }
    for words in comparison.not_compared() {
        printer.warning(&words)?;
    }
    if comparison.differences.is_empty() {
        printer.remark(&format!(
            "✓ {holder} holds what kube-proxy should have made for {} service addresses",
            comparison.expected
        ))?;
        return Ok(Exit::Healthy);
    }
    Ok(Exit::CauseNamed)
}

/// The cluster once everything was read, or after `most`.
pub(super) fn settled(cluster: &Cluster, most: Duration) -> ClusterView {
    const PAUSE: Duration = Duration::from_millis(10);
    let begun = Instant::now();
    loop {
        let state = cluster.state();
        let view = ClusterView::from(&state);
        let last_word = matches!(state, State::NotConfigured | State::Unusable(_));
        let read = view.state == "fresh" && state.facts().is_some_and(|facts| !facts.asking());
        if last_word || read || begun.elapsed() >= most {
            return view;
        }
        std::thread::sleep(PAUSE);
    }
}
