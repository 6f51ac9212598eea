//! What must hold before anything is started.

use nix::unistd::Uid;

/// Refuses to go on without root, which namespaces, mounts and cgroups need.
pub fn require_root(command: &str) -> anyhow::Result<()> {
    if !Uid::effective().is_root() {
        anyhow::bail!(
            "`skiff {command}` needs root: it makes namespaces, mounts and cgroups; run it with sudo"
        );
    }
    Ok(())
}
