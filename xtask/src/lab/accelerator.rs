//! Chooses between KVM and emulation.
//!
//! That /dev/kvm opens does not mean that it can run a kernel: a short boot decides, once per
//! host kernel and guest kernel.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::guest::{Guest, Streams};
use super::kernel::Kernel;
use super::machine::{Accelerator, Hardware};
use super::session::{self, Limits};
use crate::step::{self, Step};
use crate::workspace;

/// With a KVM that works a boot takes a second or two; one that does not may hang for ever.
const TRIAL_LIMIT: Duration = Duration::from_secs(6);

/// The faster accelerator of those that work for this kernel.
pub(super) fn choose(kernel: &Kernel, hardware: &Hardware) -> Result<Accelerator> {
    let usable = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    if !usable {
        return Ok(Accelerator::Emulation);
    }
    let host = nix::sys::utsname::uname().context("cannot ask for the name of this kernel")?;
    let answer = workspace::cache("lab/kvm")?.join(format!(
        "{}-runs-{}",
        host.release().to_string_lossy(),
        kernel.release
    ));
    let survives = match fs::read_to_string(&answer).as_deref() {
        Ok("yes") => true,
        Ok("no") => false,
        _ => {
            let survives = trial(kernel, hardware);
            if session::asked_to_stop() {
                // The trial was cut short, so it has decided nothing.
                return Ok(Accelerator::Emulation);
            }
            fs::write(&answer, if survives { "yes" } else { "no" })
                .with_context(|| format!("cannot write {}", answer.display()))?;
            survives
        }
    };
    Ok(if survives {
        Accelerator::Kvm
    } else {
        Accelerator::Emulation
    })
}

fn trial(kernel: &Kernel, hardware: &Hardware) -> bool {
    let step = Step::start(format!("trying KVM with Linux {}", kernel.release));
    let hardware = Hardware {
        accelerator: Accelerator::Kvm,
        ..hardware.clone()
    };
    let guest = Guest {
        command: vec!["true".into()],
        folder: PathBuf::from("/"),
        streams: Streams::Separate,
    };
    let limits = Limits {
        boot: TRIAL_LIMIT,
        command: Some(TRIAL_LIMIT),
    };
    let survives = matches!(session::run(kernel, &guest, &hardware, limits), Ok(0));
    drop(step);
    step::note(if survives {
        "KVM works here and is used"
    } else {
        "KVM cannot run this kernel here: using software emulation"
    });
    survives
}
