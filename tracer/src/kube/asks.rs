//! Pods of other nodes, read beside the watches: a few questions at a time, each within a limit.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use kube::Client;

use super::connect::ANSWER;
use super::{ObjectName, Pod, watch};

/// Nothing is asked for again before.
pub(super) const ASKED_AGAIN: Duration = Duration::from_secs(30);
/// Questions remembered as asked.
const MOST_ASKED: usize = 4096;
/// Questions that wait for their turn.
const MOST_WAITING: usize = 256;
/// Questions that the server has at a time.
const AT_ONCE: usize = 4;

/// Which pods are asked for, on whatever node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Question {
    /// Those that have an address. The one that seems to have it is tried first: the server finds a name
    /// without looking at each pod.
    Address(IpAddr, Option<ObjectName>),
    /// That of a name.
    Name(ObjectName),
}

/// The pods as they are.
pub(super) struct Answer {
    pub(super) question: Question,
    /// `None` when the server did not say; why shows in the state of the watches.
    pub(super) pods: Option<Vec<Pod>>,
}

/// Questions to the server, and when each was asked.
pub(super) struct Asks {
    client: Client,
    asked: HashMap<Question, Instant>,
    waiting: VecDeque<Question>,
    under_way: FuturesUnordered<BoxFuture<'static, Answer>>,
}

impl Asks {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            asked: HashMap::new(),
            waiting: VecDeque::new(),
            under_way: FuturesUnordered::new(),
        }
    }

    /// Whether answers are still to come.
    pub(super) fn pending(&self) -> bool {
        !self.waiting.is_empty() || !self.under_way.is_empty()
    }

    /// Asks, unless that was done lately or too much waits already.
    pub(super) fn ask(&mut self, question: Question) {
        let now = Instant::now();
        let lately = |asked: &Instant| now.duration_since(*asked) < ASKED_AGAIN;
        if self.asked.get(&question).is_some_and(lately) || self.waiting.len() >= MOST_WAITING {
            return;
        }
        if self.asked.len() >= MOST_ASKED {
            self.asked.retain(|_, asked| lately(asked));
        }
        if self.asked.len() >= MOST_ASKED {
            return;
        }
        self.asked.insert(question.clone(), now);
        self.waiting.push_back(question);
        self.begin();
    }

    /// The next answer; never ends while nothing is asked.
    pub(super) async fn answer(&mut self) -> Answer {
        match self.under_way.next().await {
            Some(answer) => {
                self.begin();
                answer
            }
            None => std::future::pending().await,
        }
    }

    fn begin(&mut self) {
        while self.under_way.len() < AT_ONCE
            && let Some(question) = self.waiting.pop_front()
        {
            let client = self.client.clone();
            self.under_way.push(Box::pin(async move {
                let asked = tokio::time::timeout(ANSWER, watch::pods_asked_for(&client, &question));
                Answer {
                    pods: asked.await.ok().and_then(Result::ok),
                    question,
                }
            }));
        }
    }
}
