//! The accounts of a pod's `imagePullSecrets`, and which of them fit an image: the kubelet's
//! rules, from `pkg/credentialprovider/keyring.go`.
//!
//! A secret's server may be a host with wildcards (`*.example.com`), and may have a path that
//! the image's has to begin with (`registry.example.com/team`). All that fit are tried, the more
//! specific ones (which sort later) first.

use std::collections::BTreeMap;

use super::{Credentials, CredentialsError, DockerConfig};
use crate::Reference;

const DOCKER_HUB: &str = "index.docker.io";

/// The accounts of several secrets.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    /// By host and path, in the order in which they were added.
    accounts: BTreeMap<String, Vec<Credentials>>,
}

impl Keyring {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the accounts of a file.
    pub fn add(&mut self, config: DockerConfig) {
        for (server, account) in config.accounts {
            self.accounts.entry(key(&server)).or_default().push(account);
        }
    }

    /// Adds what a secret holds under `.dockerconfigjson`; `what` names the secret in errors.
    pub fn add_docker_config_json(
        &mut self,
        bytes: &[u8],
        what: &str,
    ) -> Result<(), CredentialsError> {
        self.add(DockerConfig::parse(bytes, what)?);
        Ok(())
    }

    /// Adds what a secret holds under `.dockercfg`, the older format.
    pub fn add_docker_cfg(&mut self, bytes: &[u8], what: &str) -> Result<(), CredentialsError> {
        self.add(DockerConfig::parse_legacy(bytes, what)?);
        Ok(())
    }

    /// The accounts to try for an image, in order.
    pub fn lookup(&self, reference: &Reference) -> Vec<Credentials> {
        let image = reference.name();
        let fitting = self
            .accounts
            .iter()
            .rev()
            .filter(|(key, _)| fits(key, &image));
        let mut found: Vec<Credentials> = fitting.flat_map(|(_, a)| a.iter().cloned()).collect();
        if found.is_empty() && reference.registry() == "docker.io" {
            found.extend(self.accounts.get(DOCKER_HUB).into_iter().flatten().cloned());
        }
        // Secrets often repeat each other; trying one twice is of no use.
        let mut seen = std::collections::HashSet::new();
        found.retain(|account| seen.insert(account.fingerprint()));
        found
    }
}

/// Host and path of a secret's server: without the scheme, and without Docker's `/v1/` or `/v2/`.
fn key(server: &str) -> String {
    let server = server
        .strip_prefix("https://")
        .or_else(|| server.strip_prefix("http://"))
        .unwrap_or(server);
    // What no server's name has.
    let server = server.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = split_path(server);
    let versioned = path.starts_with("/v1/") || path.starts_with("/v2/");
    let path = if versioned { &path[3..] } else { path };
    match path {
        "/" => host.to_owned(),
        path => format!("{host}{path}"),
    }
}

/// Host, and the path with its slash.
fn split_path(text: &str) -> (&str, &str) {
    text.split_at(text.find('/').unwrap_or(text.len()))
}

/// Whether a key fits an image's full name, without tag and digest.
fn fits(key: &str, image: &str) -> bool {
    let (key_host, key_path) = split_path(key);
    let (host, path) = split_path(image);
    let ((key_host, key_port), (host, port)) = (split_port(key_host), split_port(host));
    let labels = || key_host.split('.').zip(host.split('.'));
    key_port == port
        && path.starts_with(key_path)
        && key_host.split('.').count() == host.split('.').count()
        && labels().all(|(pattern, label)| glob(pattern.as_bytes(), label.as_bytes()))
}

fn split_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        _ => (host, ""),
    }
}

/// Go's `filepath.Match` on a label: `*`, `?`, `[a-z]`, `[^a-z]`, and a backslash for themselves.
/// A pattern that is none matches nothing. Patterns are strangers' work: time is bounded by the
/// product of both lengths, since only the last `*` is ever tried again.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    // What follows the last `*`, and what it was matched from last.
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        if let Some((b'*', rest)) = pattern.split_first() {
            star = Some((rest, text));
            pattern = rest;
            continue;
        }
        if pattern.is_empty() && text.is_empty() {
            return true;
        }
        if let Some((byte, rest)) = text.split_first()
            && let Some(pattern_rest) = one(pattern, *byte)
        {
            (pattern, text) = (pattern_rest, rest);
            continue;
        }
        // Let the last `*` take one byte more.
        match star {
            Some((after, [_, from @ ..])) => {
                star = Some((after, from));
                (pattern, text) = (after, from);
            }
            _ => return false,
        }
    }
}

/// The rest of a pattern whose beginning, which is not `*`, matches a byte.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern.split_first()? {
        (b'?', rest) => Some(rest),
        (b'[', rest) => class(rest, byte).and_then(|(found, rest)| found.then_some(rest)),
        (b'\\', rest) => rest
            .split_first()
            .and_then(|(c, rest)| (*c == byte).then_some(rest)),
        (literal, rest) => (*literal == byte).then_some(rest),
    }
}

/// Whether a byte is in the class that begins here, and what follows the class.
fn class(pattern: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let (negated, mut rest) = match pattern.split_first()? {
        (b'^', rest) => (true, rest),
        _ => (false, pattern),
    };
    let mut found = false;
    let mut first = true;
    loop {
        if rest.first()? == &b']' && !first {
            return Some((found != negated, &rest[1..]));
        }
        first = false;
        let low;
        (low, rest) = member(rest)?;
        let mut high = low;
        if rest.first() == Some(&b'-') {
            (high, rest) = member(&rest[1..])?;
        }
        found |= (low..=high).contains(&byte);
    }
}

fn member(pattern: &[u8]) -> Option<(u8, &[u8])> {
    match pattern.split_first()? {
        (b'\\', rest) => rest.split_first().map(|(byte, rest)| (*byte, rest)),
        (b'-' | b']', _) => None,
        (byte, rest) => Some((*byte, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits_image(server: &str, image: &str) -> bool {
        let reference: Reference = image.parse().unwrap();
        fits(&key(server), &reference.name())
    }

    #[test]
    fn servers_fit_images_as_the_kubelet_has_it() {
        for (server, image, expected) in [
            ("r.io", "r.io/a/b", true),
            ("https://r.io", "r.io/a", true),
            ("https://r.io/v1/", "r.io/a", true),
            ("http://r.io/v2/", "r.io/a", true),
            ("https://r.io/", "r.io/a", true),
            ("https://r.io/v2/team", "r.io/team/a", true),
            ("r.io", "other.io/a", false),
            ("r.io", "r.io:5000/a", false),
            ("r.io:5000", "r.io:5000/a", true),
            ("r.io:5000", "r.io/a", false),
            ("r.io/team", "r.io/team/a", true),
            ("r.io/team", "r.io/teamwork", true),
            ("r.io/team", "r.io/other/a", false),
            ("*.example.com", "a.example.com/x", true),
            ("*.example.com", "example.com/x", false),
            ("*.example.com", "a.b.example.com/x", false),
            ("*.*.example.com", "a.b.example.com/x", true),
            ("pre*.example.com", "prefix.example.com/x", true),
            ("*fix.example.com", "prefix.example.com/x", true),
            ("*.example.com/team", "a.example.com/team/x", true),
            ("*.example.com", "a.example.com.evil.io/x", false),
            ("r[0-9].io", "r7.io/x", true),
            ("r[^0-9].io", "r7.io/x", false),
            ("r[.io", "r7.io/x", false),
            ("r?.io", "r7.io/x", false),
            ("docker.io", "nginx", true),
            ("[::1]:5000", "[::1]:5000/x", false),
        ] {
            assert_eq!(fits_image(server, image), expected, "{server} {image}");
        }
    }

    #[test]
    fn patterns_are_matched_as_go_matches_them_and_quickly() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("**", "abc", true),
            ("a*c", "abcbc", true),
            ("a*c", "abcb", false),
            ("*a*b*", "xxaxxbxx", true),
            ("?", "", false),
            ("[a-c]*", "bx", true),
            ("[]a]", "]", false),
            ("[a", "a", false),
            ("[a-", "a", false),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("\\", "", false),
        ] {
            let matched = glob(pattern.as_bytes(), text.as_bytes());
            assert_eq!(matched, expected, "{pattern} {text}");
        }
        let (pattern, text) = ("*a".repeat(1000), "a".repeat(5000) + "b");
        assert!(!glob(pattern.as_bytes(), text.as_bytes()));
    }

    fn keyring(configs: &[&str]) -> Keyring {
        let mut keyring = Keyring::new();
        for config in configs {
            let added = keyring.add_docker_config_json(config.as_bytes(), "secret");
            added.unwrap();
        }
        keyring
    }

    fn users(keyring: &Keyring, image: &str) -> Vec<String> {
        let found = keyring.lookup(&image.parse().unwrap()).into_iter();
        let name = |account| match account {
            Credentials::Basic { username, .. } => username,
            Credentials::IdentityToken(token) => token,
        };
        found.map(name).collect()
    }

    #[test]
    fn all_that_fit_are_tried_the_specific_ones_first() {
        let keyring = keyring(&[
            r#"{"auths": {"r.io": {"username": "host", "password": "p"},
                          "r.io/team": {"username": "team", "password": "p"},
                          "*.io": {"username": "glob", "password": "p"}}}"#,
            r#"{"auths": {"r.io": {"username": "second", "password": "p"},
                          "https://r.io/v1/": {"username": "host", "password": "p"}}}"#,
        ]);
        assert_eq!(
            users(&keyring, "r.io/team/a"),
            ["team", "host", "second", "glob"]
        );
        assert_eq!(users(&keyring, "r.io/a"), ["host", "second", "glob"]);
        assert!(users(&keyring, "r.com/a").is_empty());
    }

    #[test]
    fn docker_hub_has_many_names() {
        for server in [
            "https://index.docker.io/v1/",
            "index.docker.io",
            "docker.io",
            "https://docker.io",
        ] {
            let config = format!(r#"{{"auths": {{"{server}": {{"auth": "bWU6cHc="}}}}}}"#);
            assert_eq!(users(&keyring(&[&config]), "nginx"), ["me"], "{server}");
        }
    }

    #[test]
    fn the_older_format_is_the_accounts_alone() {
        let mut keyring = Keyring::new();
        let config = br#"{"r.io": {"username": "me", "password": "p", "email": "e"}}"#;
        keyring.add_docker_cfg(config, "secret").unwrap();
        assert_eq!(users(&keyring, "r.io/a"), ["me"]);
        assert!(keyring.add_docker_cfg(b"{\"r.io\": 3}", "secret").is_err());
    }
}
