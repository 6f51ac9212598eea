//! Giving up the shim's privileges for a container's: its capabilities and its seccomp filter.
//!
//! Both ways into a container end here, creating it and an exec. libcontainer does not do it:
//! for an exec it leaves the filter out, and for each container it compiles the filter anew,
//! which takes longer than everything else together.

use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::oci_spec::runtime::{LinuxCapabilities, Spec};
use libcontainer::syscall::linux::LinuxSyscall;

use crate::seccomp::Filter;
use crate::{Result, context};

/// What a container's processes are left with.
#[derive(Clone)]
pub(crate) struct Privileges {
    capabilities: Option<LinuxCapabilities>,
    no_new_privileges: bool,
    filter: Option<Filter>,
}

impl Privileges {
    /// Takes what the specification says out of it, for libcontainer not to do it.
    pub(crate) fn take(spec: &mut Spec, filter: Option<Filter>) -> Self {
        let process = spec.process_mut().as_mut();
        let (capabilities, no_new_privileges) = match process {
            Some(process) => {
                let capabilities = process.capabilities().clone();
                process.set_capabilities(None);
                (capabilities, process.no_new_privileges() == Some(true))
            }
            None => (None, false),
        };
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(None);
        }
        Self {
            capabilities,
            no_new_privileges,
            filter,
        }
    }

    /// Reduces this process, which has the container's user already and kept its capabilities
    /// over becoming it.
    pub(crate) fn enter(&self) -> Result<()> {
        let syscall = LinuxSyscall;
        reset_effective(&syscall).map_err(context("keeping", "capabilities"))?;
        if self.no_new_privileges {
            // SAFETY: the call takes no pointers.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        } else {
            // Without it, loading a filter is a privilege that is about to be dropped.
            self.load_filter()?;
        }
        if let Some(capabilities) = &self.capabilities {
            drop_privileges(capabilities, &syscall).map_err(context("dropping", "capabilities"))?;
        }
        if self.no_new_privileges {
            self.load_filter()?;
        }
        Ok(())
    }

    fn load_filter(&self) -> Result<()> {
        match &self.filter {
            Some(filter) => filter.load(),
            None => Ok(()),
        }
    }
}
