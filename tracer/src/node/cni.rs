//! The container network's configuration: which bridge, addresses and MTU pods should get.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Missing;
use super::route::Prefix;

/// The configuration that runtimes use: the first file by name.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Cni {
    /// The file.
    pub file: PathBuf,
    /// Other configuration files, which are not used.
    pub others: Vec<PathBuf>,
    /// Types of its plugins, in order.
    pub plugins: Vec<String>,
    /// Bridge that the bridge plugin uses; its default, and flannel's, is cni0.
    pub bridge: Option<String>,
    /// Where pods' addresses come from, as far as files say.
    pub subnets: Vec<Prefix>,
    /// MTU of pods, where it is set.
    pub mtu: Option<u32>,
    /// hairpinMode, where it is set.
    pub hairpin: Option<bool>,
    /// promiscMode, where it is set: another way to what hairpinMode is for.
    pub promiscuous: Option<bool>,
    /// The bridge has to have an address of the pods' range, as their gateway: with forceAddress it is given one.
    #[serde(default)]
    pub gateway: bool,
    /// What flanneld gave this node, whether or not the file uses it.
    #[serde(default)]
    pub flannel: Vec<Prefix>,
    /// Why the file is no configuration, where it is none.
    pub damaged: Option<String>,
}

/// Reads the configuration below a root; `None` where there is none.
pub(super) fn read(root: &Path, missing: &mut Vec<Missing>) -> Option<Cni> {
    let directory = root.join("etc/cni/net.d");
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => {
            missing.push(unread(&directory, &error.to_string()));
            return None;
        }
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
        })
        .collect();
    files.sort();
    let file = files.first()?.clone();
    let mut cni = Cni {
        others: files[1..].to_vec(),
        file,
        ..Cni::default()
    };
    match fs::read_to_string(&cni.file) {
        Ok(text) => match serde_json::from_str::<Value>(&text) {
            Ok(value) => cni.fill(&value),
            Err(error) => cni.damaged = Some(error.to_string()),
        },
        Err(error) => missing.push(unread(&cni.file, &error.to_string())),
    }
    cni.fill_from_flannel(&root.join("run/flannel/subnet.env"));
    Some(cni)
}

fn unread(path: &Path, why: &str) -> Missing {
    Missing {
        what: format!("CNI configuration {}", path.display()),
        why: why.to_owned(),
        remedy: None,
    }
}

impl Cni {
    fn fill(&mut self, value: &Value) {
        let single = std::slice::from_ref(value);
        let plugins = value["plugins"].as_array().map_or(single, Vec::as_slice);
        let (mut gateway, mut forced) = (None, false);
        for plugin in plugins {
            self.plugins
                .extend(plugin["type"].as_str().map(str::to_owned));
            // flannel hands its settings on to the bridge plugin.
            for settings in [plugin, &plugin["delegate"]] {
                let bridge = settings["bridge"].as_str().map(str::to_owned);
                self.bridge = self.bridge.take().or(bridge);
                self.hairpin = self.hairpin.or(settings["hairpinMode"].as_bool());
                let promiscuous = settings["promiscMode"].as_bool();
                self.promiscuous = self.promiscuous.or(promiscuous);
                for said in [&settings["isGateway"], &settings["isDefaultGateway"]] {
                    gateway = said.as_bool().max(gateway);
                }
                forced |= settings["forceAddress"] == true;
                let mtu = settings["mtu"]
                    .as_u64()
                    .and_then(|mtu| u32::try_from(mtu).ok());
                self.mtu = self.mtu.or(mtu.filter(|&mtu| mtu > 0));
            }
            let ipam = &plugin["ipam"];
            let ranges = ipam["ranges"].as_array().into_iter().flatten();
            let nested = ranges.flat_map(|range| range.as_array().into_iter().flatten());
            let subnets = std::iter::once(ipam).chain(nested);
            self.subnets
                .extend(subnets.filter_map(|range| Prefix::parse(range["subnet"].as_str()?)));
        }
        if self.bridge.is_none() && (self.uses("flannel") || self.uses("bridge")) {
            self.bridge = Some("cni0".into());
        }
        self.gateway = gateway.unwrap_or(self.uses("flannel")) && !forced;
    }

    fn uses(&self, plugin: &str) -> bool {
        self.plugins.iter().any(|kind| kind == plugin)
    }

    fn fill_from_flannel(&mut self, path: &Path) {
        // Before flannel's first start the file is not there.
        let text = fs::read_to_string(path).unwrap_or_default();
        let used = self.uses("flannel");
        for line in text.lines() {
            match line.split_once('=') {
                // The bridge's address, which stands for its range.
                Some(("FLANNEL_SUBNET" | "FLANNEL_IPV6_SUBNET", value)) => {
                    let given = Prefix::parse(value).and_then(|prefix| prefix.masked());
                    self.flannel.extend(given);
                }
                Some(("FLANNEL_MTU", value)) if used => {
                    self.mtu = self.mtu.or(value.parse().ok());
                }
                _ => {}
            }
        }
        if used {
            self.subnets.extend(&self.flannel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_first_file_wins_and_flannel_adds_its_own() {
        let flannel = r#"{"name":"cbr0","plugins":[{"type":"flannel","delegate":{"hairpinMode":true}},{"type":"portmap"}]}"#;
        let root = root(&[
            ("etc/cni/net.d/10-flannel.conflist", flannel),
            ("etc/cni/net.d/99-other.conf", "{}"),
            ("etc/cni/net.d/ignored.txt", "{}"),
            (
                "run/flannel/subnet.env",
                "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\n",
            ),
        ]);
        let mut missing = Vec::new();
        let cni = read(root.path(), &mut missing).unwrap();
        assert_eq!(missing, []);
        assert_eq!(cni.plugins, ["flannel", "portmap"]);
        assert_eq!(
            (cni.bridge.as_deref(), cni.mtu, cni.hairpin),
            (Some("cni0"), Some(1450), Some(true))
        );
        assert_eq!(cni.subnets[0].to_string(), "10.244.1.0/24");
        assert_eq!((cni.others.len(), cni.gateway), (1, true));
    }

    #[test]
    fn a_bridge_with_ranges_and_damaged_files() {
        let bridge = r#"{"type":"bridge","bridge":"br0","promiscMode":true,"mtu":1400,"ipam":{"ranges":[[{"subnet":"10.1.0.0/16"}],[{"subnet":"bad"}]]}}"#;
        let good = root(&[("etc/cni/net.d/a.conf", bridge)]);
        let cni = read(good.path(), &mut Vec::new()).unwrap();
        assert_eq!((cni.bridge.as_deref(), cni.mtu), (Some("br0"), Some(1400)));
        assert_eq!((cni.promiscuous, cni.hairpin), (Some(true), None));
        assert_eq!(cni.subnets.len(), 1);
        assert!(!cni.gateway);
        let damaged = root(&[("etc/cni/net.d/a.conf", "{\"type\":")]);
        let mut missing = Vec::new();
        let cni = read(damaged.path(), &mut missing).unwrap();
        assert!(cni.damaged.is_some_and(|why| why.contains("EOF")));
        assert_eq!(read(Path::new("/nonexistent"), &mut missing), None);
        assert_eq!(missing, []);
    }

    #[test]
    fn a_bridge_s_address_may_be_any_where_it_is_forced() {
        for (settings, gateway) in [
            (r#"{"isGateway":true}"#, true),
            (r#"{"isGateway":true,"forceAddress":true}"#, false),
            (r#"{"isDefaultGateway":true,"forceAddress":false}"#, true),
        ] {
            let root = root(&[("etc/cni/net.d/a.conf", settings)]);
            let cni = read(root.path(), &mut Vec::new()).unwrap();
            assert_eq!(cni.gateway, gateway, "{settings}");
        }
    }

    #[test]
    fn what_flannel_gave_is_known_when_another_file_wins() {
        let root = root(&[
            (
                "etc/cni/net.d/10-containerd-net.conflist",
                r#"{"plugins":[{"type":"bridge","ipam":{"type":"host-local","ranges":[[{"subnet":"10.88.0.0/16"}]]}}]}"#,
            ),
            ("etc/cni/net.d/10-flannel.conflist", "{}"),
            (
                "run/flannel/subnet.env",
                "FLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\n",
            ),
        ]);
        let cni = read(root.path(), &mut Vec::new()).unwrap();
        assert_eq!(cni.flannel[0].to_string(), "10.244.1.0/24");
        assert_eq!((cni.subnets.len(), cni.mtu), (1, None));
        // The bridge plugin's own default.
        assert_eq!(cni.bridge.as_deref(), Some("cni0"));
    }
}
