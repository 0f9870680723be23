//! What kube-proxy says of itself: asked once something failed, by a thread of its own, so that events do not
//! wait for it.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use crate::node::{KubeProxy, ProxyReport, Snapshot};

/// What was said is good for so long; kube-proxy syncs at least every 30 s.
const AGE_NS: u64 = 10_000_000_000;
/// Longest wait at the end of a test or a trace, when nothing else is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was said, and what is still asked.
#[derive(Default)]
pub(super) struct ProxyReports {
    said: Vec<KubeProxy>,
    asked_ns: Option<u64>,
    answer: Option<Receiver<Vec<KubeProxy>>>,
}

impl ProxyReports {
    /// Asks every kube-proxy of this machine, unless that was done lately.
    pub(super) fn ask(&mut self, now_ns: u64) {
        self.ask_with(now_ns, || {
            let mut proxies = KubeProxy::running();
            for proxy in &mut proxies {
                proxy.report = Some(ProxyReport::read(proxy));
            }
            proxies
        });
    }

    fn ask_with(&mut self, now_ns: u64, read: impl FnOnce() -> Vec<KubeProxy> + Send + 'static) {
        let recently = self
            .asked_ns
            .is_some_and(|asked| now_ns.saturating_sub(asked) < AGE_NS);
        if recently {
            return;
        }
        self.asked_ns = Some(now_ns);
        let (sender, receiver) = sync_channel(1);
        let asking = thread::Builder::new()
            .name("kube-proxy".into())
            .spawn(move || {
                // Whoever asked may have gone on without it.
                let _ = sender.send(read());
            });
        // Without a thread it stays unknown.
        self.answer = asking.is_ok().then_some(receiver);
    }

    /// Takes an answer that came; with `hurry` it is waited for. True when there is news.
    pub(super) fn hear(&mut self, hurry: bool) -> bool {
        let Some(answer) = &self.answer else {
            return false;
        };
        let said = if hurry {
            answer.recv_timeout(PATIENCE).ok()
        } else {
            answer.try_recv().ok()
        };
        let Some(said) = said else {
            return false;
        };
        self.said = said;
        self.answer = None;
        true
    }

    /// Puts what was said into facts that were just read.
    pub(super) fn put(&self, facts: &mut Snapshot) {
        for proxy in &mut facts.kube_proxies {
            let same = |known: &&KubeProxy| known.pid == proxy.pid && known.netns == proxy.netns;
            let known = self.said.iter().find(same);
            proxy.report = known.and_then(|known| known.report.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn asked(reports: &mut ProxyReports, now_ns: u64, version: &str) {
        let mut proxy = KubeProxy::constructed("kube-proxy");
        proxy.report = Some(ProxyReport {
            version: Some(version.into()),
            ..ProxyReport::default()
        });
        reports.ask_with(now_ns, || vec![proxy]);
    }

    #[test]
    fn what_is_said_stands_in_the_facts() {
        let mut reports = ProxyReports::default();
        let mut facts = Snapshot::empty();
        facts.kube_proxies = vec![KubeProxy::constructed("kube-proxy")];
        assert!(!reports.hear(true));
        for (now_ns, version, heard, known) in [
            (1, "v1.20.2", true, "v1.20.2"),
            // It was asked just now.
            (2, "v1.23.0", false, "v1.20.2"),
            (2 * AGE_NS, "v1.23.0", true, "v1.23.0"),
        ] {
            asked(&mut reports, now_ns, version);
            assert_eq!(reports.hear(true), heard, "{now_ns}");
            reports.put(&mut facts);
            let report = facts.kube_proxies[0].report.as_ref();
            assert_eq!(report.and_then(|said| said.version.as_deref()), Some(known));
        }
        // Another process.
        facts.kube_proxies[0].pid += 1;
        reports.put(&mut facts);
        assert_eq!(facts.kube_proxies[0].report, None);
    }

    #[test]
    fn nobody_waits_for_a_silent_one() {
        let mut reports = ProxyReports::default();
        let (_hold, held) = sync_channel::<()>(0);
        reports.ask_with(1, move || {
            // Until the test ends.
            let _ = held.recv();
            Vec::new()
        });
        let begun = Instant::now();
        assert!(!reports.hear(false));
        assert!(begun.elapsed() < PATIENCE);
        // Not even where it is hoped for.
        assert!(!reports.hear(true));
    }
}
