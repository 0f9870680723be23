//! Structure as code: which room of tracer may know which, that every file says what it is, and that
//! none grows past reading.
//!
//! The arrows are those of the map in the README. A new arrow is a decision: it is written here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::workspace;

/// Longest file that still is one room, lines.
const LONGEST_FILE: usize = 650;

/// What a room may know beside itself.
struct Room {
    name: &'static str,
    knows: &'static [&'static str],
}

const fn room(name: &'static str, knows: &'static [&'static str]) -> Room {
    Room { name, knows }
}

/// Rooms in the order of the data's way. Those that put everything together (`cli`, `session`) and the
/// crate's roots are not held to any arrow.
const ROOMS: &[Room] = &[
    room("hook", &[]),
    room("event", &["hook"]),
    room("journey", &["hook", "event"]),
    room("flow", &["hook", "event", "journey"]),
    room("node", &["event"]),
    room("kube", &["event", "node"]),
    room("filter", &["event", "journey", "node", "kube"]),
    // The programs in the kernel are given the filter.
    room("kernel", &["hook", "filter"]),
    room("fleet", &["kube"]),
    room("metrics", &["event", "node", "kube"]),
    room("expectation", &["event", "node", "kube"]),
    room("ruling", &["hook", "event", "journey", "node"]),
    room(
        "cause",
        &[
            "hook",
            "event",
            "journey",
            "flow",
            "node",
            "kube",
            "expectation",
            "ruling",
            "kernel",
        ],
    ),
    room(
        "collector",
        &[
            "hook",
            "event",
            "journey",
            "flow",
            "node",
            "kube",
            "expectation",
            "ruling",
            "cause",
        ],
    ),
    room("probe", &["event", "journey", "flow", "node"]),
    room(
        "view",
        &[
            "hook", "event", "journey", "flow", "node", "kube", "ruling", "cause", "kernel",
            "probe",
        ],
    ),
    room("printer", &["event", "journey", "cause", "view"]),
    room(
        "analysis",
        &[
            "event",
            "journey",
            "flow",
            "filter",
            "node",
            "kube",
            "cause",
            "metrics",
            "kernel",
            "collector",
            "view",
            "printer",
        ],
    ),
    room(
        "capture",
        &[
            "hook", "event", "journey", "node", "kube", "cause", "kernel", "view", "printer",
            "analysis", "filter",
        ],
    ),
    room("anonymize", &["event", "node", "kube", "capture"]),
    room(
        "export",
        &[
            "event",
            "journey",
            "flow",
            "cause",
            "view",
            "printer",
            "analysis",
            "filter",
            "capture",
            "anonymize",
        ],
    ),
    room(
        "merge",
        &[
            "event", "hook", "journey", "node", "kube", "view", "printer", "capture",
        ],
    ),
    // The cause only to check that every scenario names one of the catalogue.
    room("scenario", &["event", "node", "kube", "cause"]),
];
const FREE: &[&str] = &["cli", "session", "lib", "main"];

/// Everything that is out of order, a line each.
pub(crate) fn findings() -> Result<Vec<String>> {
    let root = workspace::root();
    let mut found = Vec::new();
    let mut files = Vec::new();
    for folder in ["tracer", "tracer-ebpf", "xtask", "tests"] {
        rust_files(&root.join(folder), &mut files)?;
    }
    let rooms = root.join("tracer/src");
    for path in files {
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path
            .strip_prefix(root)
            .unwrap_or(&path)
            .display()
            .to_string();
        found.extend(judge(&name, &text));
        if let Ok(inside) = path.strip_prefix(&rooms) {
            found.extend(arrows(&name, &room_of(inside), &text));
        }
    }
    Ok(found)
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// The first component of a path below `tracer/src`, without its ending.
fn room_of(path: &Path) -> String {
    path.components()
        .next()
        .map(|first| {
            first
                .as_os_str()
                .to_string_lossy()
                .trim_end_matches(".rs")
                .to_owned()
        })
        .unwrap_or_default()
}

/// What a file says of itself, and how long it is.
fn judge(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push(format!(
            "{name}: begins without `//!`: say what the file is"
        ));
    }
    let lines = text.lines().count();
    if lines > LONGEST_FILE {
        found.push(format!(
            "{name}: {lines} lines are more than one room ({LONGEST_FILE})"
        ));
    }
    found
}

/// Rooms that a file names and its own room may not know.
fn arrows(name: &str, room: &str, text: &str) -> Vec<String> {
    if FREE.contains(&room) {
        return Vec::new();
    }
    let Some(known) = ROOMS.iter().find(|known| known.name == room) else {
        return vec![format!(
            "{name}: room {room} is not on the map (xtask/src/tidy.rs)"
        )];
    };
    let named: BTreeSet<&str> = text
        .split("crate::")
        .skip(1)
        .map(|rest| {
            let end = rest.find(|letter: char| !letter.is_ascii_lowercase() && letter != '_');
            &rest[..end.unwrap_or(rest.len())]
        })
        .filter(|named| *named != room && is_room(named))
        .collect();
    named
        .into_iter()
        .filter(|named| !known.knows.contains(named))
        .map(|named| format!("{name}: {room} may not know {named}"))
        .collect()
}

fn is_room(name: &str) -> bool {
    FREE.contains(&name) || ROOMS.iter().any(|room| room.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrow_against_the_flow_is_found() {
        let text = "//! A file.\nuse crate::event::Event;\nuse crate::view::model;\n";
        assert_eq!(
            arrows("tracer/src/journey.rs", "journey", text),
            ["tracer/src/journey.rs: journey may not know view"]
        );
        assert!(arrows("tracer/src/cli/run.rs", "cli", text).is_empty());
        assert_eq!(arrows("x.rs", "attic", text).len(), 1);
    }

    #[test]
    fn files_say_what_they_are() {
        assert!(judge("a.rs", "//! A file.\n").is_empty());
        assert_eq!(judge("a.rs", "use std::fs;\n").len(), 1);
        assert_eq!(
            judge(
                "a.rs",
                &("//! A file.\n".to_owned() + &"\n".repeat(LONGEST_FILE))
            )
            .len(),
            1
        );
    }

    #[test]
    fn the_data_goes_one_way() {
        for (place, room) in ROOMS.iter().enumerate() {
            for known in room.knows {
                let earlier = ROOMS[..place].iter().any(|other| other.name == *known);
                assert!(
                    earlier,
                    "{} knows {known}, which comes behind it",
                    room.name
                );
            }
        }
    }

    #[test]
    fn the_repository_is_tidy() {
        let found = findings().unwrap();
        assert!(found.is_empty(), "{found:#?}");
    }
}
