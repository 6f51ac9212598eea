//! A container's security context: its own where it says something, the pod's elsewhere.

use std::collections::HashSet;
use std::path::Path;

use k8s_openapi::api::core::v1 as core;
use oci_spec::runtime::{Capability, LinuxSeccomp};

use crate::runtime::error::RuntimeError;
use crate::runtime::seccomp;

/// Where `Localhost` profiles are: the kubelet's directory.
const SECCOMP_ROOT: &str = "/var/lib/kubelet/seccomp";

/// Docker's default set, without the `CAP_`.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Kubernetes' `defaultMaskedPaths`.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Kubernetes' `defaultReadonlyPaths`.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

#[derive(Debug)]
pub(super) struct Security {
    pub(super) privileged: bool,
    pub(super) read_only_root: bool,
    pub(super) no_new_privileges: bool,
    pub(super) run_as_user: Option<u32>,
    pub(super) run_as_group: Option<u32>,
    pub(super) run_as_non_root: bool,
    pub(super) supplemental_groups: Vec<u32>,
    /// Whether the groups that the image gives the user count (`Merge`) or not (`Strict`).
    pub(super) merge_image_groups: bool,
    unmasked_proc: bool,
    capabilities: core::Capabilities,
    seccomp: Option<core::SeccompProfile>,
}

impl Security {
    /// The effective context (Kubernetes' `DetermineEffectiveSecurityContext`).
    pub(super) fn of(pod: &core::Pod, container: &core::Container) -> Result<Self, RuntimeError> {
        let spec = pod.spec.as_ref();
        let shared = spec.and_then(|spec| spec.security_context.clone());
        let shared = shared.unwrap_or_default();
        let own = container.security_context.clone().unwrap_or_default();
        let id = |value: Option<i64>, what: &str| {
            let number = value.map(u32::try_from).transpose();
            number.map_err(|_| RuntimeError::Config(format!("{what} is out of range")))
        };
        let mut supplemental_groups = Vec::new();
        let declared = shared.supplemental_groups.unwrap_or_default();
        for group in declared.into_iter().chain(shared.fs_group) {
            supplemental_groups.extend(id(Some(group), "a supplemental group")?);
        }
        let policy = shared.supplemental_groups_policy.as_deref();
        Ok(Self {
            privileged: own.privileged.unwrap_or(false),
            read_only_root: own.read_only_root_filesystem.unwrap_or(false),
            no_new_privileges: own.allow_privilege_escalation == Some(false),
            run_as_user: id(own.run_as_user.or(shared.run_as_user), "runAsUser")?,
            run_as_group: id(own.run_as_group.or(shared.run_as_group), "runAsGroup")?,
            run_as_non_root: own.run_as_non_root.or(shared.run_as_non_root) == Some(true),
            supplemental_groups,
            merge_image_groups: policy != Some("Strict"),
            unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
            capabilities: own.capabilities.unwrap_or_default(),
            seccomp: own.seccomp_profile.or(shared.seccomp_profile),
        })
    }

    pub(super) fn masked_paths(&self) -> Vec<String> {
        if self.privileged || self.unmasked_proc {
            return Vec::new();
        }
        MASKED.map(str::to_owned).to_vec()
    }

    pub(super) fn readonly_paths(&self) -> Vec<String> {
        if self.privileged || self.unmasked_proc {
            return Vec::new();
        }
        READ_ONLY.map(str::to_owned).to_vec()
    }

    /// Docker's defaults plus `add` minus `drop`, `ALL` being everything; all of them when
    /// privileged. None that this process does not have itself: it could not give it.
    pub(super) fn capabilities(&self) -> Result<HashSet<Capability>, RuntimeError> {
        let possible = possible_capabilities();
        if self.privileged {
            return Ok(possible);
        }
        let listed = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let (add, drop) = (
            listed(&self.capabilities.add),
            listed(&self.capabilities.drop),
        );
        let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
        let mut set: HashSet<Capability> = if add.iter().any(is_all) {
            possible.clone()
        } else {
            let names = DEFAULT_CAPABILITIES.into_iter();
            names.map(capability).collect::<Result<_, _>>()?
        };
        if drop.iter().any(is_all) {
            set.clear();
        }
        for name in drop.iter().filter(|name| !is_all(name)) {
            set.remove(&capability(name)?);
        }
        for name in add.iter().filter(|name| !is_all(name)) {
            set.insert(capability(name)?);
        }
        set.retain(|capability| possible.contains(capability));
        Ok(set)
    }

    /// The runtime's default unless the pod says otherwise (as a kubelet with `seccompDefault`);
    /// none for privileged containers.
    pub(super) fn seccomp(&self) -> Result<Option<LinuxSeccomp>, RuntimeError> {
        if self.privileged {
            return Ok(None);
        }
        let Some(profile) = &self.seccomp else {
            return self.default_seccomp();
        };
        match profile.type_.as_str() {
            "Unconfined" => Ok(None),
            "Localhost" => {
                let name = profile.localhost_profile.as_deref().unwrap_or_default();
                localhost_profile(name).map(Some)
            }
            _ => self.default_seccomp(),
        }
    }

    fn default_seccomp(&self) -> Result<Option<LinuxSeccomp>, RuntimeError> {
        let profile = seccomp::default_profile(&self.capabilities()?);
        profile.map(Some).map_err(super::invalid)
    }
}

/// A profile from the node's directory; the name can't lead out of it.
fn localhost_profile(name: &str) -> Result<LinuxSeccomp, RuntimeError> {
    let refused =
        |why: String| RuntimeError::Create(format!("cannot load seccomp profile {name:?}: {why}"));
    let is_plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
    if name.is_empty() || !Path::new(name).components().all(is_plain) {
        return Err(refused("not a relative path".to_owned()));
    }
    let path = Path::new(SECCOMP_ROOT).join(name);
    let bytes = std::fs::read(&path).map_err(|error| refused(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| refused(error.to_string()))
}

/// A capability by name, with or without `CAP_`.
fn capability(name: &str) -> Result<Capability, RuntimeError> {
    let upper = name.to_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    short
        .parse()
        .map_err(|_| RuntimeError::Create(format!("unknown capability: \"CAP_{short}\"")))
}

/// What this process has in its bounding set.
fn possible_capabilities() -> HashSet<Capability> {
    let bounding = caps::read(None, caps::CapSet::Bounding).unwrap_or_default();
    let names = bounding.iter().map(ToString::to_string);
    names.filter_map(|name| capability(&name).ok()).collect()
}
