//! Reproductions: a topology, a fault, traffic, and the fix, in private namespaces.
//!
//! Map: `case` is the registry, one file per cause; `options` is every address, port and name that a
//! case may use; `topology` is the vocabulary of hosts that cases compose, in a `world` that keeps
//! what was made alive; `objects` is what the cluster says; `namespace` runs commands in a host, `traffic` sends and answers,
//! `kube_proxy` makes what kube-proxy would have made. Invariants: namespaces are held by descriptors
//! of this process only, so that nothing is left behind however it ends; nothing outside of them is
//! changed; the healthy variant of a case differs from the fault by the fault alone.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::kube::ClusterFacts;
use crate::node::NetnsHandle;

pub mod case;
pub mod kube_proxy;
pub mod namespace;
mod nft_proxy;
mod objects;
mod offload;
pub mod options;
mod printed;
mod topology;
pub mod traffic;
mod world;
mod xdp;

pub use case::REGISTRY;
pub use kube_proxy::stand_in;
pub use options::Options;
pub use traffic::Target;
pub use world::World;

/// A failure that can be built.
pub struct Scenario {
    /// Name: the code of the cause that it shows.
    pub name: &'static str,
    /// Codes of the causes that are to be named, the root first.
    pub expects: &'static [&'static str],
    /// What can be built; the first is what is built unless another is asked for.
    pub variants: &'static [Variant],
    /// Kernel modules and commands beyond those that every scenario needs.
    pub needs: &'static [Need],
    /// Kernels that cannot show it, and why.
    pub not_on: &'static [NotOn],
    /// Builds a variant.
    pub build: fn(&mut World, &'static Variant) -> anyhow::Result<Plan>,
}

/// One form of a scenario.
#[derive(PartialEq, Eq, Debug)]
pub struct Variant {
    /// Stable name.
    pub name: &'static str,
    /// One line.
    pub title: &'static str,
    /// The fault is there; else everything answers and no cause is to be named.
    pub fault: bool,
    /// Causes that are to be named instead of the scenario's own, in the order of the targets.
    pub expects: &'static [&'static str],
    /// Why the cause can be named as likely only; `None` where certainty is expected.
    pub likely: Option<&'static str>,
}

impl Variant {
    /// The same hosts and the same traffic without the fault.
    pub const HEALTHY: Self = Self {
        name: "healthy",
        title: "the fault is absent",
        fault: false,
        expects: &[],
        likely: None,
    };

    /// A form with the fault.
    pub const fn fault(name: &'static str, title: &'static str) -> Self {
        Self {
            name,
            title,
            fault: true,
            expects: &[],
            likely: None,
        }
    }

    /// A form with two faults.
    pub const fn mixed(name: &'static str, expects: &'static [&'static str]) -> Self {
        Self {
            name,
            title: "two faults at once",
            fault: true,
            expects,
            likely: None,
        }
    }

    /// A form with one fault beside traffic that goes on.
    pub const fn beside_traffic(name: &'static str, expects: &'static [&'static str]) -> Self {
        Self {
            title: "a fault beside heavy healthy traffic",
            ..Self::mixed(name, expects)
        }
    }
}

/// What a scenario needs of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// A kernel module.
    Module(&'static str),
    /// A command.
    Command(&'static str),
    /// So many processors.
    Processors(usize),
}

impl Need {
    /// IPVS with the scheduler that kube-proxy takes by default, and the command for it.
    const IPVS: &[Self] = &[
        Self::Module("ip_vs"),
        Self::Module("ip_vs_rr"),
        Self::Command("ipvsadm"),
    ];

    /// In words, where this machine lacks it.
    fn missing(&self) -> Option<String> {
        match *self {
            Self::Module(name) => {
                (!Path::new("/sys/module").join(name).exists()).then(|| name.to_owned())
            }
            Self::Command(name) => find_command(name)
                .is_none()
                .then(|| format!("the command {name}")),
            Self::Processors(count) => {
                let here = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
                (here < count).then(|| format!("{count} processors"))
            }
        }
    }
}

/// A kernel on which a scenario cannot be shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotOn {
    /// Beginning of the kernel's release: `5.10.`.
    pub kernel: &'static str,
    /// Why.
    pub why: &'static str,
}

impl NotOn {
    /// In words.
    pub fn words(&self) -> String {
        format!("{}x: {}", self.kernel, self.why)
    }
}

/// What is sent in a built case, and what mends it.
pub struct Plan {
    /// What is tried, in order.
    pub targets: Vec<Target>,
    /// What is tried after the fix; empty for the same.
    pub after: Vec<Target>,
    /// Commands whose output shows the fault to a person, each in its host.
    pub shows: Vec<(namespace::Namespace, String)>,
    /// Mends the fault.
    pub fix: Fix,
}

/// What a case does to mend its fault.
type Work = Box<dyn FnOnce(&mut World) -> anyhow::Result<()> + Send>;

/// Mends a fault.
pub enum Fix {
    /// As the case knows how.
    Own(Work),
    /// With the commands that the diagnosis prints, as they stand.
    Printed {
        /// Where they are typed.
        host: namespace::Namespace,
        /// Which of the ways that the diagnosis names.
        way: usize,
        /// What stands for the lines that restart a program, and lets go of what the fault left behind.
        then: Work,
    },
}

impl Plan {
    /// A plan whose fix is a list of commands in one host.
    pub fn fixed_by(
        targets: Vec<Target>,
        host: &namespace::Namespace,
        lines: impl Into<Vec<String>>,
    ) -> Self {
        let (host, lines) = (host.clone(), lines.into());
        Self::fixed_with(targets, move |_| host.run_all(&lines))
    }

    /// A plan with any fix.
    pub fn fixed_with(
        targets: Vec<Target>,
        fix: impl FnOnce(&mut World) -> anyhow::Result<()> + Send + 'static,
    ) -> Self {
        Self {
            targets,
            after: Vec::new(),
            shows: Vec::new(),
            fix: Fix::Own(Box::new(fix)),
        }
    }

    /// A plan that is mended by the commands of the first way that the diagnosis names, typed in a host.
    pub fn fixed_as_printed(targets: Vec<Target>, host: &namespace::Namespace) -> Self {
        let fix = Fix::Printed {
            host: host.clone(),
            way: 0,
            then: Box::new(|_| Ok(())),
        };
        Self {
            fix,
            ..Self::fixed_with(targets, |_| Ok(()))
        }
    }

    /// The same plan with another of the printed ways, counted from 0.
    #[must_use]
    pub fn by_way(mut self, number: usize) -> Self {
        if let Fix::Printed { way, .. } = &mut self.fix {
            *way = number;
        }
        self
    }

    /// The same plan, and after the printed commands this.
    #[must_use]
    pub fn and_then(
        mut self,
        work: impl FnOnce(&mut World) -> anyhow::Result<()> + Send + 'static,
    ) -> Self {
        if let Fix::Printed { then, .. } = &mut self.fix {
            *then = Box::new(work);
        }
        self
    }

    /// A plan whose fix is to use something else.
    pub fn avoided_by(targets: Vec<Target>, after: Vec<Target>) -> Self {
        Self {
            targets,
            after,
            shows: Vec::new(),
            fix: Fix::Own(Box::new(|_| Ok(()))),
        }
    }

    /// The same plan with a command whose output shows the fault to a person.
    #[must_use]
    pub fn showing(mut self, host: &namespace::Namespace, line: impl Into<String>) -> Self {
        self.shows.push((host.clone(), line.into()));
        self
    }
}

/// A scenario, built.
pub struct Case {
    world: World,
    targets: Vec<Target>,
    after: Vec<Target>,
    shows: Vec<(namespace::Namespace, String)>,
    fix: Option<Fix>,
}

impl Case {
    /// The namespaces, held open.
    pub fn namespaces(&self) -> Vec<NetnsHandle> {
        self.world.namespaces()
    }

    /// What the cluster says, where the case has one.
    pub fn cluster(&self) -> Option<Arc<ClusterFacts>> {
        self.world.cluster.clone()
    }

    /// What is tried, in order.
    pub fn targets(&self) -> Vec<Target> {
        self.targets.clone()
    }

    /// What shows the fault to a person: the command, and what it prints now.
    ///
    /// # Errors
    /// When a command fails.
    pub fn show(&self) -> anyhow::Result<Vec<(String, String)>> {
        self.shows
            .iter()
            .map(|(host, line)| Ok((line.clone(), host.output(line)?)))
            .collect()
    }

    /// Applies the fix, once; `printed` are the lines of each way that the diagnosis names.
    ///
    /// # Errors
    /// When a command fails, or the diagnosis prints none where one is wanted.
    pub fn apply_fix(&mut self, printed: &[Vec<String>]) -> anyhow::Result<()> {
        if !self.after.is_empty() {
            self.targets = std::mem::take(&mut self.after);
        }
        match self.fix.take() {
            Some(Fix::Own(work)) => work(&mut self.world),
            Some(Fix::Printed { host, way, then }) => {
                printed::run(
                    &self.world,
                    &host,
                    printed.get(way).map_or(&[], Vec::as_slice),
                )?;
                then(&mut self.world)
            }
            None => Ok(()),
        }
    }
}

impl Scenario {
    /// The causes that are to be named for a variant, the root first.
    pub fn expected(&self, variant: &Variant) -> &'static [&'static str] {
        match (variant.fault, variant.expects) {
            (false, _) => &[],
            (true, []) => self.expects,
            (true, expects) => expects,
        }
    }

    /// Builds a variant.
    ///
    /// # Errors
    /// When a namespace cannot be made or a command fails.
    pub fn build(
        &self,
        variant: &'static Variant,
        options: Options,
        announce: namespace::Announce,
    ) -> anyhow::Result<Case> {
        let mut world = World::new(options, announce);
        let Plan {
            targets,
            after,
            shows,
            fix,
        } = (self.build)(&mut world, variant)?;
        Ok(Case {
            world,
            targets,
            after,
            shows,
            fix: Some(fix),
        })
    }

    /// What this machine lacks for it; with `load_modules` modules are loaded first.
    pub fn missing(&self, load_modules: bool) -> Vec<String> {
        if load_modules {
            let modules = self.needs.iter().filter_map(|need| match need {
                Need::Module(name) => Some(*name),
                _ => None,
            });
            // What cannot be loaded is seen to be missing below.
            let _ = Command::new("modprobe")
                .arg("-a")
                .args(["veth", "bridge"])
                .args(modules)
                .output();
        }
        [Need::Command("ip"), Need::Command("sysctl")]
            .iter()
            .chain(self.needs)
            .filter_map(Need::missing)
            .collect()
    }

    /// Why this kernel cannot show it; `None` when it can.
    pub fn impossible_on(&self, release: &str) -> Option<&'static str> {
        self.not_on
            .iter()
            .find(|row| release.starts_with(row.kernel))
            .map(|row| row.why)
    }
}

/// A command's file, found as a shell would.
fn find_command(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// The scenario with this name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    REGISTRY.iter().find(|scenario| scenario.name == name)
}

/// Whether a scenario builds the cause with this code, and it alone.
pub fn builds(code: &str) -> bool {
    REGISTRY.iter().any(|scenario| scenario.expects == [code])
}

/// Causes that no scenario builds, each with the reason.
const NOT_BUILT: &[(&str, &str)] = &[
    (
        "pod-outside-cidr",
        "no traffic shows it, tracer check finds it",
    ),
    (
        "backlog-full",
        "the limit is the whole machine's, which a reproduction leaves alone",
    ),
];

/// Why no scenario builds the cause with this code.
pub fn why_not_built(code: &str) -> Option<&'static str> {
    let row = NOT_BUILT.iter().find(|(unbuilt, _)| *unbuilt == code)?;
    Some(row.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause;

    #[test]
    fn every_scenario_expects_causes_of_the_catalogue() {
        for scenario in REGISTRY {
            for variant in scenario.variants {
                let expected = scenario.expected(variant);
                assert_eq!(variant.fault, !expected.is_empty(), "{}", scenario.name);
                for code in expected {
                    assert!(cause::find(code).is_some(), "{}: {code}", scenario.name);
                }
            }
            if let [code] = scenario.expects {
                assert_eq!(scenario.name, *code);
            }
        }
    }

    #[test]
    fn every_cause_is_built_or_has_a_reason_not_to_be() {
        for cause in cause::CATALOGUE {
            let code = cause.code;
            assert_ne!(builds(code), why_not_built(code).is_some(), "{code}");
        }
    }

    #[test]
    fn names_are_unique_and_a_fault_comes_first() {
        for (index, scenario) in REGISTRY.iter().enumerate() {
            assert!(
                REGISTRY[..index]
                    .iter()
                    .all(|other| other.name != scenario.name)
            );
            let variants = scenario.variants;
            assert!(
                variants.first().is_some_and(|first| first.fault),
                "{}",
                scenario.name
            );
            assert_eq!(
                variants.iter().filter(|v| **v == Variant::HEALTHY).count(),
                1,
                "{}",
                scenario.name
            );
            for (index, variant) in variants.iter().enumerate() {
                assert!(variants[..index].iter().all(|v| v.name != variant.name));
            }
        }
    }
}
