//! Network namespaces: finding them, keeping hold of them, reading inside them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs, statfs};
use serde::{Deserialize, Serialize};

use super::pod::pod_of;

/// A network namespace: the inode number of its file, the same number that the kernel side reads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct NetnsId(pub u32);

impl fmt::Display for NetnsId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A network namespace that stays alive and reachable as long as this value lives.
#[derive(Clone, Debug)]
pub struct NetnsHandle {
    file: Arc<OwnedFd>,
    id: NetnsId,
    name: Option<String>,
}

impl NetnsHandle {
    /// The calling thread's namespace.
    pub fn current() -> io::Result<Self> {
        Self::from_path(Path::new("/proc/thread-self/ns/net"))
    }

    /// A process's namespace.
    pub fn from_pid(pid: u32) -> io::Result<Self> {
        Self::from_path(&PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// From a file such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub fn from_path(path: &Path) -> io::Result<Self> {
        Self::from_fd(File::open(path)?.into())
    }

    /// From an open namespace file.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        if fstatfs(&fd)?.filesystem_type() != NSFS_MAGIC {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a namespace file",
            ));
        }
        let file = File::from(fd);
        let id = namespace_id(&file.metadata()?)?;
        Ok(Self {
            file: Arc::new(file.into()),
            id,
            name: None,
        })
    }

    /// The same namespace with a name for people.
    pub fn named(self, name: impl Into<String>) -> Self {
        Self {
            name: Some(name.into()),
            ..self
        }
    }

    /// Which namespace.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Its name, where it has one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Runs `work` in the namespace, in a thread of its own: the caller's thread never moves.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    // Staying needs no privilege, moving does.
                    if Self::current()?.id != self.id {
                        setns(self, CloneFlags::CLONE_NEWNET)?;
                    }
                    Ok(work())
                })?;
            inside
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the reading thread panicked")))
        })
    }
}

impl AsFd for NetnsHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Only permissions are in the way of looking at a file.
fn is_denied(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

fn namespace_id(metadata: &fs::Metadata) -> io::Result<NetnsId> {
    let number = u32::try_from(metadata.ino()).map_err(io::Error::other)?;
    Ok(NetnsId(number))
}

/// The namespaces of this node. Those that were found are not kept alive: a file is opened only
/// when a namespace is asked for, and a namespace that is gone by then is gone.
#[derive(Clone, Default, Debug)]
pub struct Directory {
    found: BTreeMap<NetnsId, Found>,
    held: BTreeMap<NetnsId, NetnsHandle>,
    /// The namespace of process 1, the node's.
    own: Option<NetnsId>,
    /// Processes whose namespace may not be read.
    hidden: usize,
}

#[derive(Clone, Default, Debug)]
struct Found {
    name: Option<String>,
    files: Vec<PathBuf>,
    processes: Vec<u32>,
}

/// Where `ip netns`, container runtimes and Docker keep their namespace files.
const NAMED: [&str; 2] = ["run/netns", "run/docker/netns"];

/// Enough that one is still alive when it is needed.
const PROCESSES_PER_NAMESPACE: usize = 8;

impl Directory {
    /// Looks through the processes and the named namespaces of the node.
    pub fn find() -> Self {
        Self::find_below(Path::new("/"))
    }

    fn find_below(root: &Path) -> Self {
        let mut directory = Self::default();
        for parent in NAMED {
            for entry in fs::read_dir(root.join(parent))
                .into_iter()
                .flatten()
                .flatten()
            {
                let path = entry.path();
                // What is left of a deleted namespace is an ordinary file.
                if !statfs(&path).is_ok_and(|statistics| statistics.filesystem_type() == NSFS_MAGIC)
                {
                    continue;
                }
                if let Some(found) = directory.found_at(&path) {
                    found.name = entry.file_name().into_string().ok();
                    found.files.push(path);
                }
            }
        }
        let proc = root.join("proc");
        directory.own = fs::metadata(proc.join("1/ns/net"))
            .and_then(|metadata| namespace_id(&metadata))
            .ok();
        for pid in process_ids(&proc) {
            let path = proc.join(format!("{pid}/ns/net"));
            match directory.found_at(&path) {
                Some(found) if found.processes.len() < PROCESSES_PER_NAMESPACE => {
                    found.processes.push(pid);
                }
                Some(_) => {}
                None => directory.hidden += usize::from(is_denied(&path)),
            }
        }
        directory
    }

    fn found_at(&mut self, path: &Path) -> Option<&mut Found> {
        let id = namespace_id(&fs::metadata(path).ok()?).ok()?;
        Some(self.found.entry(id).or_default())
    }

    /// Adds a namespace that is held open, for example one that only a file descriptor reaches.
    pub fn add(&mut self, handle: NetnsHandle) {
        self.held.insert(handle.id, handle);
    }

    /// All namespaces.
    pub fn ids(&self) -> Vec<NetnsId> {
        let mut ids: Vec<_> = self.found.keys().chain(self.held.keys()).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// A namespace's name, where it has one.
    pub fn name(&self, id: NetnsId) -> Option<&str> {
        let held = self.held.get(&id).and_then(NetnsHandle::name);
        held.or_else(|| self.found.get(&id)?.name.as_deref())
    }

    /// A file that leads to a namespace: one with a name, which stays, before one of a process.
    pub fn path(&self, id: NetnsId) -> Option<String> {
        let found = self.found.get(&id)?;
        let file = found.files.first().map(|file| file.display().to_string());
        let process = found.processes.first();
        file.or_else(|| Some(format!("/proc/{}/ns/net", process?)))
    }

    /// The namespace with this name.
    pub fn named(&self, name: &str) -> Option<NetnsId> {
        self.ids()
            .into_iter()
            .find(|&id| self.name(id) == Some(name))
    }

    /// Every name that a namespace has.
    pub fn names(&self) -> Vec<&str> {
        self.ids()
            .into_iter()
            .filter_map(|id| self.name(id))
            .collect()
    }

    /// How many processes there are whose namespace may not be read: without root, those of others.
    pub fn hidden_processes(&self) -> usize {
        self.hidden
    }

    /// Some of the processes in a namespace, lowest pid first.
    pub fn processes(&self, id: NetnsId) -> &[u32] {
        self.found.get(&id).map_or(&[], |found| &found.processes)
    }

    /// The pod that a namespace belongs to, by its processes; pods that share the node's do not own it.
    pub fn pod(&self, id: NetnsId) -> Option<String> {
        if self.own == Some(id) {
            return None;
        }
        self.processes(id)
            .iter()
            .find_map(|pid| pod_of(Path::new("/"), *pid))
    }

    /// Opens a namespace; `None` when it is not known or no longer there.
    pub fn open(&self, id: NetnsId) -> Option<NetnsHandle> {
        if let Some(held) = self.held.get(&id) {
            return Some(held.clone());
        }
        let found = self.found.get(&id)?;
        let files = found
            .files
            .iter()
            .filter_map(|path| NetnsHandle::from_path(path).ok());
        let processes = found
            .processes
            .iter()
            .filter_map(|pid| NetnsHandle::from_pid(*pid).ok());
        // Names and process ids may have gone to another namespace since.
        let handle = files.chain(processes).find(|handle| handle.id == id)?;
        Some(NetnsHandle {
            name: found.name.clone(),
            ..handle
        })
    }
}

/// Ids of all processes, ascending.
pub(super) fn process_ids(proc: &Path) -> Vec<u32> {
    let mut ids: Vec<u32> = fs::read_dir(proc)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    ids.sort_unstable();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_this_processs_namespace() {
        let current = NetnsHandle::current().unwrap();
        let directory = Directory::find();
        assert!(directory.ids().contains(&current.id()));
        assert!(!directory.processes(current.id()).is_empty());
        assert_eq!(directory.open(current.id()).unwrap().id(), current.id());
        assert!(directory.open(NetnsId(1)).is_none());
        assert_eq!(
            NetnsHandle::from_pid(std::process::id()).unwrap().id(),
            current.id()
        );
    }

    #[test]
    fn held_namespaces_are_found_and_named() {
        let mut directory = Directory::default();
        let handle = NetnsHandle::current().unwrap().named("node");
        directory.add(handle.clone());
        assert_eq!(directory.ids(), [handle.id()]);
        assert_eq!(directory.name(handle.id()), Some("node"));
        assert_eq!(directory.open(handle.id()).unwrap().name(), Some("node"));
    }

    #[test]
    fn ordinary_files_are_no_namespaces() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(NetnsHandle::from_path(file.path()).is_err());
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("run/netns")).unwrap();
        fs::write(root.path().join("run/netns/stale"), "").unwrap();
        assert_eq!(Directory::find_below(root.path()).ids(), []);
    }

    #[test]
    fn work_runs_on_another_thread() {
        let here = thread::current().id();
        let there = NetnsHandle::current()
            .unwrap()
            .run(|| thread::current().id())
            .unwrap();
        assert_ne!(here, there);
        assert!(
            NetnsHandle::current()
                .unwrap()
                .run(|| panic!("as tested"))
                .is_err()
        );
    }
}
