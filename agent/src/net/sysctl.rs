//! Settings of the host's kernel that the pod network can't do without.
//!
//! Those of a pod's own link are set by netlink when it is made ([`super::veth`]); what is left are the host's.

use std::fs;
use std::io;
use std::path::PathBuf;

/// A setting that is off, and that this process may not turn on.
#[derive(Debug, thiserror::Error)]
#[error(
    "{setting} is 0 on this host and can't be set to 1: {source}; pods can't reach anything without it: run `sysctl -w {setting}=1`, and put `{setting} = 1` in /etc/sysctl.d"
)]
pub struct SettingRefused {
    /// As sysctl(8) names it.
    pub setting: String,
    pub source: io::Error,
}

/// Turns a switch on unless it is. `setting` is a name of sysctl(8); a link's name in it may have dots.
///
/// # Errors
/// When it is off and can't be changed.
pub(super) fn turn_on(setting: &str) -> Result<(), SettingRefused> {
    let path = path(setting);
    if fs::read(&path).is_ok_and(|value| value.trim_ascii() != b"0") {
        return Ok(());
    }
    fs::write(&path, "1").map_err(|source| SettingRefused {
        setting: setting.to_owned(),
        source,
    })
}

fn path(setting: &str) -> PathBuf {
    const OF_A_LINK: &str = "net.ipv4.conf.";
    let root = PathBuf::from("/proc/sys");
    let Some((link, switch)) = setting
        .strip_prefix(OF_A_LINK)
        .and_then(|rest| rest.rsplit_once('.'))
    else {
        return root.join(setting.replace('.', "/"));
    };
    root.join("net/ipv4/conf").join(link).join(switch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_files() {
        for (setting, file) in [
            ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            (
                "net.ipv4.conf.eth0.7.forwarding",
                "/proc/sys/net/ipv4/conf/eth0.7/forwarding",
            ),
        ] {
            assert_eq!(path(setting), PathBuf::from(file));
        }
    }
}
