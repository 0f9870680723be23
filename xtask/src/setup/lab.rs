//! The programs that the lab and its guests need.

use anyhow::Result;

use super::packages;
use crate::failure::missing;
use crate::tool;

/// A program and the Debian package that holds it. Guests see this machine's files, so what
/// runs inside must be installed here.
struct Needed {
    program: &'static str,
    package: &'static str,
}

const fn needed(program: &'static str, package: &'static str) -> Needed {
    Needed { program, package }
}

const NEEDED: [Needed; 13] = [
    needed("qemu-system-x86_64", "qemu-system-x86"),
    needed("busybox", "busybox-static"),
    needed("modprobe", "kmod"),
    needed("xz", "xz-utils"),
    needed("ip", "iproute2"),
    needed("ipvsadm", "ipvsadm"),
    needed("conntrack", "conntrack"),
    needed("iptables", "iptables"),
    needed("ipset", "ipset"),
    needed("nft", "nftables"),
    needed("tcpdump", "tcpdump"),
    needed("mount", "mount"),
    needed("dpkg-deb", "dpkg"),
];

/// Installs what the lab lacks, or names it where there is no apt.
pub(crate) fn lab_programs() -> Result<()> {
    if packages::debian_like() {
        return packages::install("the lab", &NEEDED.map(|needed| needed.package));
    }
    require_lab_programs()
}

/// Installs the programs that read our captures in tests; where there is no apt, the tests name what
/// is missing.
pub(crate) fn capture_readers() -> Result<()> {
    if packages::debian_like() {
        return packages::install(
            "tests of captures",
            &["tshark", "tcpdump", "wireshark-common"],
        );
    }
    Ok(())
}

/// Names what the lab lacks, and how to get it.
pub(crate) fn require_lab_programs() -> Result<()> {
    let debian = packages::debian_like();
    let absent: Vec<&str> = if debian {
        packages::absent(&NEEDED.map(|needed| needed.package))?
    } else {
        let programs = NEEDED.iter().map(|needed| needed.program);
        programs
            .filter(|program| tool::find(program).is_none())
            .collect()
    };
    if absent.is_empty() {
        return Ok(());
    }
    let remedy = if debian {
        "install them with `cargo xtask setup --lab`"
    } else {
        "install them with its package manager (busybox must be statically linked), \
         or use a Debian or Ubuntu machine"
    };
    Err(missing(format!(
        "the lab needs {}, which this machine lacks; {remedy}",
        absent.join(", ")
    )))
}
