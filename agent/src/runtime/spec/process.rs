//! The container's process: arguments, environment, directory, user, privileges.

use std::collections::HashSet;

use oci_spec::image::Config;
use oci_spec::runtime::{
    Capabilities, LinuxCapabilities, Process, ProcessBuilder, User, UserBuilder,
};

use super::security::Security;
use super::user::Identity;
use super::{expand, invalid};
use crate::runtime::error::RuntimeError;
use crate::runtime::types::{ContainerConfig, SandboxConfig};

/// Where commands are looked for when neither image nor pod says (containerd's default).
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn generate(
    config: &ContainerConfig,
    sandbox: &SandboxConfig,
    security: &Security,
    identity: &Identity,
) -> Result<Process, RuntimeError> {
    let image = config.image.config();
    let mut process = ProcessBuilder::default()
        .terminal(config.container.tty.unwrap_or(false))
        .user(user(identity)?)
        .args(arguments(config, image.as_ref())?)
        .env(environment(config, sandbox, image.as_ref()))
        .cwd(working_directory(config, image.as_ref()))
        .capabilities(capabilities(security)?)
        .oom_score_adj(permitted_oom_score(config.oom_score_adj))
        .build()
        .map_err(invalid)?;
    // The builder's defaults are not Kubernetes'. And `noNewPrivileges: false` would make
    // libcontainer load the seccomp profile too late to be allowed to: it is there or it is not.
    process
        .set_rlimits(None)
        .set_no_new_privileges(security.no_new_privileges.then_some(true));
    Ok(process)
}

fn user(identity: &Identity) -> Result<User, RuntimeError> {
    UserBuilder::default()
        .uid(identity.uid)
        .gid(identity.gid)
        .additional_gids(identity.groups.clone())
        .build()
        .map_err(invalid)
}

/// The pod's command replaces the image's entrypoint and its command; the pod's arguments
/// replace the image's command.
fn arguments(
    config: &ContainerConfig,
    image: Option<&Config>,
) -> Result<Vec<String>, RuntimeError> {
    let container = &config.container;
    let declared = |list: &Option<Vec<String>>| {
        let list = list.as_deref().unwrap_or_default();
        list.iter()
            .map(|text| expand(text, |name| declared_env(config, name)))
            .collect::<Vec<_>>()
    };
    let from_image = |get: fn(&Config) -> &Option<Vec<String>>| {
        image
            .and_then(|image| get(image).clone())
            .unwrap_or_default()
    };
    let command = declared(&container.command);
    let args = declared(&container.args);
    let mut all = if command.is_empty() {
        from_image(Config::entrypoint)
    } else {
        command.clone()
    };
    if !args.is_empty() {
        all.extend(args);
    } else if command.is_empty() {
        all.extend(from_image(Config::cmd));
    }
    if all.is_empty() {
        return Err(RuntimeError::Create(
            "failed to generate container spec: no command specified".to_owned(),
        ));
    }
    Ok(all)
}

fn declared_env(config: &ContainerConfig, name: &str) -> Option<String> {
    let mut env = config.env.iter().rev();
    env.find(|(key, _)| key == name)
        .map(|(_, value)| value.clone())
}

/// Image, then what the runtime adds, then the pod: the later wins, in the place of the first.
fn environment(
    config: &ContainerConfig,
    sandbox: &SandboxConfig,
    image: Option<&Config>,
) -> Vec<String> {
    let mut env = vec![DEFAULT_PATH.to_owned()];
    let mut set = |entry: String| {
        let name = entry.split('=').next().unwrap_or_default().len();
        let same = |other: &String| {
            other.split('=').next().map(str::len) == Some(name) && other[..name] == entry[..name]
        };
        match env.iter().position(same) {
            Some(index) => env[index] = entry,
            None => env.push(entry),
        }
    };
    for entry in image
        .iter()
        .filter_map(|image| image.env().as_ref())
        .flatten()
    {
        set(entry.clone());
    }
    if config.container.tty.unwrap_or(false) {
        set("TERM=xterm".to_owned());
    }
    let hostname = sandbox.hostname.clone().or_else(|| {
        let name = nix::unistd::gethostname().ok()?;
        name.into_string().ok()
    });
    if let Some(hostname) = hostname {
        set(format!("HOSTNAME={hostname}"));
    }
    for (name, value) in &config.env {
        set(format!("{name}={value}"));
    }
    env
}

fn working_directory(config: &ContainerConfig, image: Option<&Config>) -> String {
    let declared = config.container.working_dir.clone();
    declared
        .filter(|directory| !directory.is_empty())
        .or_else(|| image.and_then(|image| image.working_dir().clone()))
        .filter(|directory| !directory.is_empty())
        .unwrap_or_else(|| "/".to_owned())
}

fn capabilities(security: &Security) -> Result<LinuxCapabilities, RuntimeError> {
    let set: Capabilities = security.capabilities()?.into_iter().collect::<HashSet<_>>();
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set))
        .set_inheritable(None)
        .set_ambient(None);
    Ok(capabilities)
}

/// Without `CAP_SYS_RESOURCE` nobody may lower their score: the value is raised to our own.
fn permitted_oom_score(wanted: i32) -> i32 {
    let has = caps::has_cap(
        None,
        caps::CapSet::Effective,
        caps::Capability::CAP_SYS_RESOURCE,
    );
    if has.unwrap_or(false) {
        return wanted;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj");
    let own = own.ok().and_then(|text| text.trim().parse().ok());
    wanted.max(own.unwrap_or(0))
}
