//! How registries are reached: what an operator sets, and the defaults.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the machine's own registry configuration is kept.
const SYSTEM_HOSTS_DIR: &str = "/etc/skiff/registries.d";

/// What the operator says about registries. The default is: none but what their names say.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// Folders in the layout of containerd's `certs.d`: `<folder>/<host>/hosts.toml`. A host's own
    /// entry in any of them comes before `_default` in any of them, then the first folder wins.
    /// They are read for each pull, so changes need no restart; absent ones are passed over.
    pub hosts_dirs: Vec<PathBuf>,
    /// Registries that are spoken to without TLS, as references name them: `host` or `host:port`.
    pub plain_http: Vec<String>,
    /// Files of PEM certificates that every registry may be signed by, beside the system's.
    pub extra_cas: Vec<PathBuf>,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// How often to try again, and when.
    pub retry: RetryPolicy,
}

impl RegistryConfig {
    /// The configuration of a node or a command: an operator's own folder (`extra`) before
    /// `<data-dir>/registries.d` and `/etc/skiff/registries.d`.
    pub fn for_data_dir(data_dir: &Path, extra: Option<PathBuf>) -> Self {
        let own = [
            data_dir.join("registries.d"),
            PathBuf::from(SYSTEM_HOSTS_DIR),
        ];
        Self {
            hosts_dirs: extra.into_iter().chain(own).collect(),
            ..Self::default()
        }
    }
}

/// Bounds on waiting. None of them bounds a whole download: that takes as long as it takes.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For a connection: name, TCP and TLS. `dial_timeout` in `hosts.toml` replaces it.
    pub connect: Duration,
    /// From a request to the head of its answer.
    pub headers: Duration,
    /// Between two pieces of a body.
    pub body: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            headers: Duration::from_secs(60),
            body: Duration::from_secs(60),
        }
    }
}

/// How a request is tried again after 429, 5xx and broken connections: exponential backoff with
/// full jitter, or what the registry asks for with `Retry-After`.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Rounds in all; each asks every endpoint at most once. 1 means no second try.
    pub attempts: u32,
    /// The longest first wait; each further one may be twice as long.
    pub base: Duration,
    /// The longest wait by backoff.
    pub max: Duration,
    /// The longest `Retry-After` that is waited for. A registry that asks for more is believed,
    /// and the request fails at once: the caller has its own, longer backoff.
    pub max_retry_after: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 5,
            base: Duration::from_millis(500),
            max: Duration::from_secs(10),
            max_retry_after: Duration::from_secs(60),
        }
    }
}

impl RetryPolicy {
    /// How long to wait after a failed round (the first is 0), or `None` to give up.
    pub(super) fn wait(&self, round: u32, retry_after: Option<Duration>) -> Option<Duration> {
        if round + 1 >= self.attempts {
            return None;
        }
        if let Some(asked) = retry_after {
            return (asked <= self.max_retry_after).then_some(asked);
        }
        let ceiling = self.base.saturating_mul(1 << round.min(16)).min(self.max);
        // Full jitter, but never nothing: a registry that restarts needs a moment.
        Some(ceiling.mul_f64(rand::random_range(0.25..=1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_a_limit_and_end() {
        let policy = RetryPolicy::default();
        for _ in 0..100 {
            let first = policy.wait(0, None).unwrap();
            assert!(first >= policy.base / 4 && first <= policy.base);
            assert!(policy.wait(3, None).unwrap() <= policy.base * 8);
        }
        assert_eq!(policy.wait(4, None), None);
        let long = RetryPolicy {
            attempts: 100,
            ..policy
        };
        assert!(long.wait(90, None).unwrap() <= policy.max);
    }

    #[test]
    fn a_registry_that_asks_for_time_gets_it_within_bounds() {
        let policy = RetryPolicy::default();
        let asked = Duration::from_secs(7);
        assert_eq!(policy.wait(0, Some(asked)), Some(asked));
        assert_eq!(policy.wait(0, Some(Duration::from_secs(3600))), None);
        assert_eq!(policy.wait(4, Some(asked)), None);
    }

    #[test]
    fn an_operators_folder_comes_first() {
        let config = RegistryConfig::for_data_dir(Path::new("/d"), Some("/x".into()));
        let dirs: Vec<_> = config.hosts_dirs.iter().map(|d| d.to_str()).collect();
        assert_eq!(
            dirs,
            [Some("/x"), Some("/d/registries.d"), Some(SYSTEM_HOSTS_DIR)]
        );
    }
}
