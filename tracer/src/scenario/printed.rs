//! Commands that a diagnosis prints, run as they stand: the proof that its fix is one.

use anyhow::{Context as _, bail};

use super::namespace::Namespace;
use super::world::World;

/// Commands that change nothing but the network namespace that they are run in.
const TOOLS: &[&str] = &[
    "bridge",
    "conntrack",
    "ethtool",
    "ip",
    "ip6tables-nft",
    "iptables",
    "iptables-legacy",
    "iptables-nft",
    "ipvsadm",
    "nft",
    "sysctl",
    "tc",
];

/// Runs those of the lines that are commands about the network. What writes a file that lasts, restarts a program or
/// asks the cluster is left out: it would reach beyond the private namespaces.
///
/// # Errors
/// When a command fails, or none is among the lines.
pub(super) fn run(world: &World, host: &Namespace, lines: &[String]) -> anyhow::Result<()> {
    let commands = commands(lines);
    if commands.is_empty() {
        bail!("the diagnosis prints no command that could be run here: {lines:?}");
    }
    for command in commands {
        match elsewhere(command) {
            None => host.run(command)?,
            Some((name, command)) => world
                .host_called(name)
                .with_context(|| format!("there is no host {name}"))?
                .run(command)?,
        }
    }
    Ok(())
}

fn commands(lines: &[String]) -> Vec<&str> {
    lines
        .iter()
        .map(|line| line.split("   #").next().unwrap_or(line))
        .flat_map(|line| line.split(" && "))
        .filter(|command| {
            let command = elsewhere(command).map_or(*command, |(_, command)| command);
            command
                .split(' ')
                .next()
                .is_some_and(|program| TOOLS.contains(&program))
        })
        .collect()
}

/// The host and the command of one that is run in a named namespace.
fn elsewhere(command: &str) -> Option<(&str, &str)> {
    command.strip_prefix("ip netns exec ")?.split_once(' ')
}

#[cfg(test)]
mod tests {
    use super::commands;

    #[test]
    fn only_what_stays_in_the_namespace_is_run() {
        let lines = [
            "ip addr del 192.0.2.1/24 dev eth0 && ip addr add 192.0.2.1/32 dev eth0",
            "sysctl -w net.ipv4.ip_forward=1   # at once",
            "echo 'net.ipv4.ip_forward = 1' > /etc/sysctl.d/99.conf",
            "systemctl restart kube-proxy",
            "ip netns exec pod ip link set eth0 up",
            "ip netns exec pod reboot",
            "or another way",
        ];
        assert_eq!(
            commands(&lines.map(str::to_owned)),
            [
                "ip addr del 192.0.2.1/24 dev eth0",
                "ip addr add 192.0.2.1/32 dev eth0",
                "sysctl -w net.ipv4.ip_forward=1",
                "ip netns exec pod ip link set eth0 up",
            ]
        );
    }
}
