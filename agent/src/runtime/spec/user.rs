//! Who the container runs as: names are looked up in the image's own files.

use std::ffi::CString;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use super::pod_name;
use super::security::Security;
use crate::runtime::error::RuntimeError;
use crate::runtime::types::ContainerConfig;

/// A numeric identity.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups.
    pub(super) groups: Vec<u32>,
}

pub(super) fn resolve(
    config: &ContainerConfig,
    security: &Security,
) -> Result<Identity, RuntimeError> {
    let image = config.image.config().as_ref();
    let image_user = image
        .and_then(|image| image.user().clone())
        .unwrap_or_default();
    if security.run_as_non_root {
        refuse_root(config, security, &image_user)?;
    }
    let accounts = Accounts::read(&config.layers);
    let (image_name, image_group) = match image_user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (image_user.as_str(), None),
    };
    let (name, group) = match security.run_as_user {
        Some(uid) => (uid.to_string(), None),
        None => (image_name.to_owned(), image_group),
    };
    let account = accounts.user(&name)?;
    let gid = match (security.run_as_group, group) {
        (Some(gid), _) => gid,
        (None, Some(group)) if !group.is_empty() => accounts.group(group)?,
        _ => account.gid,
    };
    let mut groups = vec![gid];
    if security.merge_image_groups {
        groups.extend(accounts.memberships(account.name.as_deref()));
    }
    groups.extend(&security.supplemental_groups);
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|group| seen.insert(*group));
    Ok(Identity {
        uid: account.uid,
        gid,
        groups,
    })
}

/// The kubelet's `verifyRunAsNonRoot`, with its words.
fn refuse_root(
    config: &ContainerConfig,
    security: &Security,
    image_user: &str,
) -> Result<(), RuntimeError> {
    let name = image_user.split(':').next().unwrap_or_default();
    let of = format!(
        "(pod: {:?}, container: {})",
        pod_name(&config.pod),
        config.container.name
    );
    let refusal = match (security.run_as_user, name.parse::<u32>()) {
        (Some(0), _) => format!("container's runAsUser breaks non-root policy {of}"),
        (Some(_), _) => return Ok(()),
        (None, Ok(0)) => format!("container has runAsNonRoot and image will run as root {of}"),
        (None, Ok(_)) => return Ok(()),
        (None, Err(_)) if name.is_empty() => {
            format!("container has runAsNonRoot and image will run as root {of}")
        }
        (None, Err(_)) => format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify \
             user is non-root {of}"
        ),
    };
    Err(RuntimeError::Config(refusal))
}

struct Account {
    name: Option<String>,
    uid: u32,
    gid: u32,
}

/// The contents of an image's `/etc/passwd` and `/etc/group`.
#[derive(Debug, Default)]
struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    fn read(layers: &[PathBuf]) -> Self {
        Self {
            passwd: read_from(layers, "etc/passwd").unwrap_or_default(),
            group: read_from(layers, "etc/group").unwrap_or_default(),
        }
    }

    /// By name or number; a number needs no entry, and has group 0 without one.
    fn user(&self, name: &str) -> Result<Account, RuntimeError> {
        let number = match name {
            "" => Some(0),
            name => name.parse::<u32>().ok(),
        };
        let entry = lines(&self.passwd).find(|fields| {
            let uid = fields.get(2).and_then(|uid| uid.parse::<u32>().ok());
            fields[0] == name || (number.is_some() && uid == number)
        });
        if let Some(fields) = &entry
            && let [account, _, uid, gid, ..] = fields.as_slice()
            && let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse())
        {
            return Ok(Account {
                name: Some((*account).to_owned()),
                uid,
                gid,
            });
        }
        match number {
            Some(uid) => Ok(Account {
                name: None,
                uid,
                gid: 0,
            }),
            None => Err(RuntimeError::Create(format!(
                "failed to generate container spec: unable to find user {name}: no matching \
                 entries in passwd file"
            ))),
        }
    }

    fn group(&self, name: &str) -> Result<u32, RuntimeError> {
        let named = lines(&self.group).find(|fields| fields[0] == name);
        named
            .and_then(|fields| fields.get(2)?.parse().ok())
            .or_else(|| name.parse().ok())
            .ok_or_else(|| {
                RuntimeError::Create(format!(
                    "failed to generate container spec: unable to find group {name}: no matching \
                     entries in group file"
                ))
            })
    }

    /// The groups whose member a user is.
    fn memberships(&self, user: Option<&str>) -> Vec<u32> {
        let Some(user) = user else {
            return Vec::new();
        };
        lines(&self.group)
            .filter(|fields| {
                let members = fields.get(3).copied().unwrap_or_default();
                members.split(',').any(|member| member == user)
            })
            .filter_map(|fields| fields.get(2)?.parse().ok())
            .collect()
    }
}

/// The colon-separated fields of each entry; the first always exists.
fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split(':').collect())
}

/// A file of the image as the overlay of its layers would show it.
fn read_from(layers: &[PathBuf], path: &str) -> Option<String> {
    for layer in layers.iter().rev() {
        let root = open(
            layer,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        );
        if let Some(file) = root.ok().and_then(|root| open_inside(&root, path)) {
            let mut file = std::fs::File::from(file);
            // A whiteout is a device: the file was deleted in this layer.
            if !file.metadata().ok()?.is_file() {
                return None;
            }
            let mut text = String::new();
            file.read_to_string(&mut text).ok()?;
            return Some(text);
        }
        if is_opaque(&layer.join("etc")) {
            return None;
        }
    }
    None
}

/// Opens a path as if the layer were the root directory: links can't lead out of it.
fn open_inside(root: &OwnedFd, path: &str) -> Option<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how).ok()
}

/// Whether overlayfs hides what lower layers have in a directory.
fn is_opaque(directory: &Path) -> bool {
    let Ok(path) = CString::new(directory.as_os_str().as_encoded_bytes()) else {
        return false;
    };
    let mut value = [0u8; 1];
    // SAFETY: both strings end with NUL, and the buffer is as long as is said.
    let length = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            c"trusted.overlay.opaque".as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    length == 1 && value[0] == b'y'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:/bin/false\n".to_owned(),
            group: "root:x:0:\nwww:x:34:\nssl:x:50:other,web\n".to_owned(),
        }
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        let accounts = accounts();
        let ids = |name| accounts.user(name).map(|a| (a.uid, a.gid)).ok();
        assert_eq!(ids("web"), Some((33, 34)));
        assert_eq!(ids("33"), Some((33, 34)));
        assert_eq!(ids("1000"), Some((1000, 0)));
        assert_eq!(ids(""), Some((0, 0)));
        assert_eq!(ids("nobody"), None);
    }

    #[test]
    fn memberships_are_supplementary_groups() {
        assert_eq!(accounts().memberships(Some("web")), [50]);
        assert_eq!(accounts().group("www").unwrap(), 34);
        assert_eq!(accounts().group("77").unwrap(), 77);
        assert!(accounts().group("none").is_err());
    }
}
