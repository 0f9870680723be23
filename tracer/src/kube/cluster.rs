//! The thread that watches the cluster and hands over its facts.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::SelectAll;
use kube::Client;
use tokio::sync::{mpsc, watch as channel};
use tokio::time::MissedTickBehavior;

use super::asks::{Answer, Asks, Question};
use super::connect::{self, NoServer, Place, Server, configuration, words};
use super::watch::{self, Change, Update, Updates};
use super::{ClusterFacts, Node, ObjectName, Resource};

/// Shortest pause between two copies of the facts that are handed over.
const PUBLISH: Duration = Duration::from_millis(20);
/// Pause between two signs of life of the server.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// Pause before a server that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// A kind of object is to be listed within.
const LISTED_WITHIN: Duration = Duration::from_secs(15);
/// A connection on which nothing came for this long is dead: the server ends every watch before.
const SILENCE: Duration = Duration::from_secs(watch::WATCH_SECONDS as u64 + 15);
/// Pause between two looks at pods of other nodes: which to read, which to forget.
const ROUND: Duration = Duration::from_secs(30);
/// Pods of other nodes that are remembered.
const MOST_SEEN: usize = 4096;
/// Addresses that wait to be looked at.
const QUEUE: usize = 64;

/// What to watch.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the configuration is.
    pub place: Place,
    /// This node's name, where the person said it.
    pub node: Option<String>,
    /// This machine's host name.
    pub host_name: String,
    /// This machine's addresses.
    pub addresses: Vec<IpAddr>,
    /// Pods to read by their names, on whatever node.
    pub pods: Vec<ObjectName>,
    /// Pause between two questions whether the server is still there.
    pub sign_of_life: Duration,
    /// A kind of object that is not listed within is a trouble.
    pub listed_within: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            place: Place::default(),
            node: None,
            host_name: String::new(),
            addresses: Vec::new(),
            pods: Vec::new(),
            sign_of_life: SIGN_OF_LIFE,
            listed_within: LISTED_WITHIN,
        }
    }
}

/// What became of the connection.
#[derive(Clone, Debug)]
pub enum State {
    /// The configuration is being read.
    Starting,
    /// No cluster was configured.
    NotConfigured,
    /// What was configured cannot be used, and why.
    Unusable(String),
    /// What is known.
    Facts(Arc<ClusterFacts>),
}

impl State {
    /// The facts, if there are any.
    pub const fn facts(&self) -> Option<&Arc<ClusterFacts>> {
        match self {
            Self::Facts(facts) => Some(facts),
            Self::Starting | Self::NotConfigured | Self::Unusable(_) => None,
        }
    }
}

/// A cluster that is watched by a thread of its own; the thread ends with this value.
pub struct Cluster {
    state: channel::Receiver<State>,
    wanted: mpsc::Sender<IpAddr>,
}

impl Cluster {
    /// Begins to watch; does not wait for anything.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(options: Options) -> std::io::Result<Self> {
        let (publisher, state) = channel::channel(State::Starting);
        let (wanted, addresses) = mpsc::channel(QUEUE);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name("kubernetes".into())
            .spawn(move || runtime.block_on(run(options, publisher, addresses)))?;
        Ok(Self { state, wanted })
    }

    /// What is known now.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// What is known now, and whether it is news since the last call.
    pub fn news(&mut self) -> Option<State> {
        // The thread may be gone when nothing was configured; its last word stays.
        match self.state.has_changed() {
            Ok(false) => None,
            Ok(true) | Err(_) => Some(self.state.borrow_and_update().clone()),
        }
    }

    /// Waits for news; never ends when there will be none.
    pub async fn changed(&mut self) -> State {
        if self.state.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.state.borrow_and_update().clone()
    }

    /// Asks for the pod that has an address, on whatever node. The answer comes with the facts;
    /// when too many wait already, the address is asked for when it is seen again.
    pub fn want(&self, address: IpAddr) {
        // A full queue only means later.
        let _ = self.wanted.try_send(address);
    }
}

/// The work of the thread: ends when the other side is gone.
async fn run(options: Options, publisher: channel::Sender<State>, wanted: mpsc::Receiver<IpAddr>) {
    let client = match configuration(&options.place).await {
        Ok(mut config) => {
            config.read_timeout = Some(SILENCE);
            let server = config.cluster_url.to_string();
            Client::try_from(config)
                .map(|client| (client, server))
                .map_err(|error| NoServer::Unusable(words(&error)))
        }
        Err(none) => Err(none),
    };
    match client {
        Ok((client, server)) => {
            let closed = publisher.clone();
            let mut watcher = Watcher::new(options, client, server, publisher, wanted);
            tokio::select! {
                () = watcher.work() => {}
                () = closed.closed() => {}
            }
        }
        Err(NoServer::NotConfigured) => {
            publisher.send_replace(State::NotConfigured);
        }
        Err(NoServer::Unusable(why)) => {
            publisher.send_replace(State::Unusable(why));
        }
    }
}

struct Watcher {
    options: Options,
    client: Client,
    facts: ClusterFacts,
    publisher: channel::Sender<State>,
    wanted: mpsc::Receiver<IpAddr>,
    /// Objects that the list under way has named.
    named: HashMap<Resource, HashSet<ObjectName>>,
    /// Pods that are read one by one.
    asks: Asks,
    /// When to hand over, if there is something new.
    due: Option<tokio::time::Instant>,
}

/// Why watching ended.
enum Ended {
    /// The server was away: what it sends on old connections may never come.
    Away,
    /// The other side is gone.
    Closed,
}

impl Watcher {
    fn new(
        options: Options,
        client: Client,
        server: String,
        publisher: channel::Sender<State>,
        wanted: mpsc::Receiver<IpAddr>,
    ) -> Self {
        let watcher = Self {
            options,
            asks: Asks::new(client.clone()),
            client,
            facts: ClusterFacts::unread(server),
            publisher,
            wanted,
            named: HashMap::new(),
            due: None,
        };
        watcher.publish();
        watcher
    }

    async fn work(&mut self) {
        loop {
            let server = self.reach().await;
            if let Ended::Closed = self.watch(&server).await {
                return;
            }
        }
    }

    /// Asks until the server answers.
    async fn reach(&mut self) -> Server {
        loop {
            match connect::ask(&self.client).await {
                Ok(server) => {
                    self.facts.version = Some(server.version.clone());
                    self.facts.set_server(Ok(()));
                    self.publish();
                    return server;
                }
                Err(why) => {
                    self.facts.set_server(Err(why));
                    self.publish();
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        }
    }

    async fn watch(&mut self, server: &Server) -> Ended {
        let (note, mut started) = mpsc::unbounded_channel();
        let mut streams: SelectAll<Updates> =
            futures::stream::select_all(watch::cluster_wide(&self.client, server.endpoints, &note));
        let mut pods_of: Option<Arc<str>> = None;
        for name in &self.options.pods {
            self.asks.ask(Question::Name(name.clone()));
        }
        let client = self.client.clone();
        let away = signs_of_life(&client, self.options.sign_of_life);
        let late = tokio::time::sleep(self.options.listed_within);
        // Not `is_elapsed`: that holds before this branch has had its turn.
        let mut lists_due = true;
        tokio::pin!(away, late);
        let mut round = tokio::time::interval(ROUND);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.due;
            let publish = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // A watch that began is noted before what it brings.
                biased;
                Some(resource) = started.recv() => {
                    self.facts.arriving(resource);
                    self.changed();
                }
                () = publish => {
                    self.due = None;
                    self.publish();
                }
                why = &mut away => {
                    // Each kind stays stale until it is listed again.
                    for resource in Resource::ALL {
                        self.facts.fail(resource, why.clone());
                    }
                    self.facts.set_server(Err(why));
                    self.publish();
                    return Ended::Away;
                }
                () = &mut late, if lists_due => {
                    lists_due = false;
                    self.miss_lists();
                }
                answer = self.asks.answer() => self.hear(answer),
                _ = round.tick() => {
                    if self.facts.forget_unmet(MOST_SEEN) {
                        self.changed();
                    }
                    self.ask_for_doubtful();
                }
                address = self.wanted.recv() => match address {
                    Some(address) if self.facts.to_be_read(address) => {
                        let mut known = self.facts.pods_at(address).cloned();
                        let only = known.next().filter(|_| known.next().is_none());
                        self.asks.ask(Question::Address(address, only));
                    }
                    Some(_) => {}
                    None => return Ended::Closed,
                },
                Some(update) = streams.next() => {
                    let nodes = update.resource == Resource::Nodes;
                    self.take(update);
                    if nodes && self.facts.this_node != pods_of && let Some(node) = &self.facts.this_node {
                        streams.push(watch::pods(&self.client, node, &note));
                        pods_of = Some(Arc::clone(node));
                    }
                }
            }
        }
    }

    fn take(&mut self, update: Update) {
        let resource = update.resource;
        match update.change {
            Change::Begun => {
                self.named.insert(resource, HashSet::new());
            }
            Change::Named(object) => {
                let named = self.named.entry(resource).or_default();
                named.insert(object.name().clone());
                self.facts.put(*object);
            }
            Change::Complete => {
                let named = self.named.remove(&resource).unwrap_or_default();
                self.facts.keep_only(resource, &named);
                self.facts.complete(resource);
                if resource == Resource::Nodes {
                    self.find_this_node();
                }
                if matches!(resource, Resource::Nodes | Resource::Endpoints) {
                    self.ask_for_doubtful();
                }
            }
            Change::Put(object) => {
                self.facts.put(*object);
                self.facts.arriving(resource);
                if resource == Resource::Nodes && self.facts.this_node.is_none() {
                    self.find_this_node();
                }
            }
            Change::Damaged { name, named, why } => {
                if named {
                    let names = self.named.entry(resource).or_default();
                    names.insert(name.clone());
                }
                self.facts.damaged(resource, name, why);
                // A list says that it is complete.
                if !named {
                    self.facts.arriving(resource);
                }
            }
            Change::Gone(name) => {
                self.facts.forget(resource, &name);
                self.facts.arriving(resource);
            }
            Change::Failed(why) => self.facts.fail(resource, why),
        }
        self.changed();
    }

    /// Which of the nodes this machine is: the one named, else of its host name, else with an
    /// address of it.
    fn find_this_node(&mut self) {
        if self.facts.this_node.is_some() {
            return;
        }
        let options = &self.options;
        let host = options.host_name.to_lowercase();
        let is_named = |node: &Node| match &options.node {
            Some(name) => *node.name.name == **name,
            None => *node.name.name == *host || node.host_name.as_deref() == Some(&host),
        };
        let has_address = |node: &Node| {
            node.internal_ips
                .iter()
                .any(|own| options.addresses.contains(own))
        };
        let found = self.facts.nodes().find(|node| is_named(node)).or_else(|| {
            let unnamed = options.node.is_none();
            self.facts.nodes().find(|node| unnamed && has_address(node))
        });
        match found.map(|node| Arc::clone(&node.name.name)) {
            Some(name) => self.facts.this_node = Some(name),
            None => {
                let who = options.node.as_deref().unwrap_or(&options.host_name);
                let why = format!("{who} is no node of this cluster; --node says which one it is");
                self.facts.fail(Resource::Pods, why);
            }
        }
    }

    /// What was not listed by now is a trouble: its request may hang.
    fn miss_lists(&mut self) {
        let why = format!(
            "not listed within {:?}, though the server answers",
            self.options.listed_within
        );
        for resource in self.facts.waiting() {
            self.facts.fail(resource, why.clone());
        }
        self.changed();
    }

    /// Reads the pods of other nodes that may be stuck.
    fn ask_for_doubtful(&mut self) {
        for name in self.facts.doubtful() {
            self.asks.ask(Question::Name(name));
        }
    }

    /// Takes an answer; without pods it is an answer as well for who waits for it.
    fn hear(&mut self, answer: Answer) {
        if let Some(pods) = answer.pods {
            self.facts.put_seen(&answer.question, pods);
        }
        self.changed();
    }

    /// Something is new: it is handed over soon.
    fn changed(&mut self) {
        self.due
            .get_or_insert_with(|| tokio::time::Instant::now() + PUBLISH);
    }

    fn publish(&self) {
        let mut facts = self.facts.taken_now();
        facts.asking = self.asks.pending();
        self.publisher.send_replace(State::Facts(Arc::new(facts)));
    }
}

/// Ends with the reason once the server gives no sign of life.
async fn signs_of_life(client: &Client, pause: Duration) -> String {
    loop {
        tokio::time::sleep(pause).await;
        if let Err(why) = connect::version(client).await {
            return why;
        }
    }
}
