//! Docker's configuration file, as far as it is about accounts.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use super::{Credentials, helper};
use crate::Reference;

/// How Docker Hub is called in Docker's own configuration.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Why accounts could not be read. Never repeats what is in the file.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{what} is not valid: {reason}")]
    Invalid { what: String, reason: String },
    #[error("credential helper {program} failed for {server}: {reason}")]
    Helper {
        program: String,
        server: String,
        reason: String,
    },
}

/// Accounts by server: `~/.docker/config.json`, or what a pull secret holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DockerConfig {
    /// By the names in the file, as they are.
    pub(super) accounts: BTreeMap<String, Credentials>,
    helpers: BTreeMap<String, String>,
    default_helper: Option<String>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    default_helper: String,
}

#[derive(Deserialize, Default)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// Base64 of `name:password`; comes before the two.
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

impl DockerConfig {
    /// Reads the command line's configuration: `$DOCKER_CONFIG/config.json`, or
    /// `~/.docker/config.json`. None is the same as an empty one. Reads files: not for a
    /// runtime's thread.
    pub fn load() -> Result<Self, CredentialsError> {
        match folder(std::env::var_os("DOCKER_CONFIG"), std::env::var_os("HOME")) {
            Some(folder) => Self::read(&folder.join("config.json")),
            None => Ok(Self::default()),
        }
    }

    /// Reads a configuration file; one that is not there is empty.
    pub fn read(path: &Path) -> Result<Self, CredentialsError> {
        match fs::read(path) {
            Ok(bytes) => Self::parse(&bytes, &path.display().to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(CredentialsError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Reads the content of a `config.json` or a `.dockerconfigjson`; `what` names it in errors.
    pub fn parse(bytes: &[u8], what: &str) -> Result<Self, CredentialsError> {
        let file: File = parse_json(bytes, what)?;
        Ok(Self {
            accounts: accounts(file.auths, what)?,
            helpers: file.helpers,
            default_helper: Some(file.default_helper).filter(|name| !name.is_empty()),
        })
    }

    /// Reads the older format: the accounts alone, as `.dockercfg` has them.
    pub fn parse_legacy(bytes: &[u8], what: &str) -> Result<Self, CredentialsError> {
        Ok(Self {
            accounts: accounts(parse_json(bytes, what)?, what)?,
            ..Self::default()
        })
    }

    /// The account for an image by Docker's rules: the server's helper program, the default
    /// helper, then the file. Runs programs.
    pub async fn lookup(
        &self,
        reference: &Reference,
    ) -> Result<Option<Credentials>, CredentialsError> {
        let server = match reference.registry() {
            "docker.io" => DOCKER_HUB,
            registry => registry,
        };
        let helper = self.helpers.get(server).or(self.default_helper.as_ref());
        if let Some(helper) = helper
            && let Some(found) = helper::get(helper, server).await?
        {
            return Ok(Some(found));
        }
        Ok(self.account(server).cloned())
    }

    /// The account filed under a server, under its URL or under a path on it.
    fn account(&self, server: &str) -> Option<&Credentials> {
        if let Some(exact) = self.accounts.get(server) {
            return Some(exact);
        }
        let wanted = host_of(server);
        let mut found = self
            .accounts
            .iter()
            .filter(|(name, _)| host_of(name) == wanted);
        found.next().map(|(_, account)| account)
    }
}

fn folder(docker_config: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    match docker_config.filter(|folder| !folder.is_empty()) {
        Some(folder) => Some(folder.into()),
        None => Some(Path::new(&home?).join(".docker")),
    }
}

fn parse_json<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, CredentialsError> {
    serde_json::from_slice(bytes).map_err(|error| CredentialsError::Invalid {
        what: what.to_owned(),
        // Serde's own words may quote the file.
        reason: match error.classify() {
            serde_json::error::Category::Data => format!(
                "line {}: something is not as Docker writes it",
                error.line()
            ),
            _ => format!("line {}: it is not JSON", error.line()),
        },
    })
}

fn accounts(
    entries: BTreeMap<String, Entry>,
    what: &str,
) -> Result<BTreeMap<String, Credentials>, CredentialsError> {
    let mut accounts = BTreeMap::new();
    for (server, entry) in entries {
        let account = entry
            .account()
            .map_err(|reason| CredentialsError::Invalid {
                what: what.to_owned(),
                reason: format!("auths[\"{server}\"]: {reason}"),
            })?;
        // Docker leaves an empty entry where a helper has the account.
        if let Some(account) = account {
            accounts.insert(server, account);
        }
    }
    Ok(accounts)
}

impl Entry {
    fn account(self) -> Result<Option<Credentials>, &'static str> {
        if !self.identity_token.is_empty() {
            return Ok(Some(Credentials::IdentityToken(self.identity_token)));
        }
        if self.auth.is_empty() {
            let empty = self.username.is_empty() && self.password.is_empty();
            return Ok((!empty).then(|| Credentials::basic(self.username, self.password)));
        }
        let wrong = "auth must be base64 of name:password";
        let auth = self.auth.trim();
        let decoded = match auth.ends_with('=') {
            true => STANDARD.decode(auth),
            false => STANDARD_NO_PAD.decode(auth),
        };
        let decoded = String::from_utf8(decoded.map_err(|_| wrong)?).map_err(|_| wrong)?;
        let (username, password) = decoded.split_once(':').ok_or(wrong)?;
        // Docker pads what it writes.
        let password = password.trim_end_matches('\0');
        Ok(Some(Credentials::basic(username, password)))
    }
}

/// `https://host:5000/v1/` and `host:5000` are the same server.
fn host_of(server: &str) -> &str {
    let server = server
        .strip_prefix("https://")
        .or_else(|| server.strip_prefix("http://"))
        .unwrap_or(server);
    match server.split('/').next().unwrap_or_default() {
        "docker.io" | "registry-1.docker.io" => "index.docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(value: serde_json::Value) -> DockerConfig {
        DockerConfig::parse(value.to_string().as_bytes(), "config.json").unwrap()
    }

    fn account(config: &DockerConfig, image: &str) -> Option<Credentials> {
        let reference: Reference = image.parse().unwrap();
        let looked_up = config.lookup(&reference);
        futures::executor::block_on(looked_up).unwrap()
    }

    #[test]
    fn accounts_are_read_in_every_form() {
        let config = config(json!({"auths": {
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("me:pa:ss")},
            "ghcr.io": {"username": "you", "password": "word"},
            "both.io": {"username": "x", "password": "x", "auth": STANDARD.encode("a:b")},
            "raw.io": {"auth": STANDARD_NO_PAD.encode("ab:cde")},
            "token.io": {"identitytoken": "t", "auth": STANDARD.encode("0:")},
            "helped.io": {},
        }}));
        assert_eq!(
            account(&config, "nginx"),
            Some(Credentials::basic("me", "pa:ss"))
        );
        assert_eq!(
            account(&config, "ghcr.io/a/b"),
            Some(Credentials::basic("you", "word"))
        );
        assert_eq!(
            account(&config, "both.io/a"),
            Some(Credentials::basic("a", "b"))
        );
        assert_eq!(
            account(&config, "raw.io/a"),
            Some(Credentials::basic("ab", "cde"))
        );
        assert_eq!(
            account(&config, "token.io/a"),
            Some(Credentials::IdentityToken("t".to_owned()))
        );
        assert_eq!(account(&config, "helped.io/a"), None);
        assert_eq!(account(&config, "quay.io/a"), None);
    }

    #[test]
    fn errors_do_not_quote_secrets() {
        for text in [
            "{\"auths\": {\"r.io\": {\"auth\": \"geheim\"}}}",
            "{\"auths\": {\"r.io\": {\"auth\": [\"geheim\"]}}}",
            "{\"auths\": \"geheim\"}",
            "geheim",
            "{\"auths\": {\"r.io\": {\"auth\": \"Z2VoZWlt\"}}}",
        ] {
            let error = DockerConfig::parse(text.as_bytes(), "config.json").unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("config.json is not valid"), "{text}");
            assert!(!text.contains("geheim"), "{text}");
        }
    }

    #[test]
    fn dockers_own_folder_is_read() {
        let text = |text: &str| Some(OsString::from(text));
        let home = || text("/root");
        assert_eq!(folder(None, home()), Some("/root/.docker".into()));
        assert_eq!(folder(text(""), home()), Some("/root/.docker".into()));
        assert_eq!(folder(text("/x"), home()), Some("/x".into()));
        assert_eq!(folder(None, None), None);
    }

    #[test]
    fn no_file_is_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let config = DockerConfig::read(&dir.path().join("config.json")).unwrap();
        assert_eq!(config, DockerConfig::default());
        assert!(DockerConfig::read(dir.path()).is_err());
    }
}
