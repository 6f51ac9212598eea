//! Image references: how people name images, and the full form that everything else uses.
//!
//! The grammar and the expansion of short names are those of Docker (the `distribution`
//! project's reference package), which Kubernetes follows: `nginx` is
//! `docker.io/library/nginx:latest`. The messages of errors are the same too, because they show
//! in a pod's status.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Digest;

const DEFAULT_REGISTRY: &str = "docker.io";
const OFFICIAL_NAMESPACE: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// The longest repository path, in bytes.
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// The full name of an image: registry, repository, and a tag, a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("repository name must have at least one component")]
    Empty,
    #[error("invalid reference format")]
    Format,
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    BareDigest(String),
    #[error("repository name must not be more than {NAME_MAX} characters")]
    TooLong,
    #[error("unsupported digest '{0}': sha256: and 64 hexadecimal digits are supported")]
    Digest(String),
}

impl Reference {
    /// The registry's host name and port, such as `docker.io` or `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path on the registry, such as `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Registry and repository: `docker.io/library/nginx`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Absent only when there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same repository at a digest, without a tag.
    pub fn at_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// Registry and repository as people write them: `nginx`, `user/app`, `quay.io/org/app`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.name();
        }
        match self.repository.strip_prefix(OFFICIAL_NAMESPACE) {
            // `docker.io/library/a/b` is not what `a/b` stands for.
            Some(official) if !official.contains('/') => official.to_owned(),
            _ => self.repository.clone(),
        }
    }

    /// The shortest form that means the same, with its tag or digest: `nginx:latest`.
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_name(), Suffix(self))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() == 64 && Digest::from_hex(text).is_ok() {
            return Err(ReferenceError::BareDigest(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
            None => (text, None),
        };
        let (registry, rest) = split_registry(rest);
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(parse_tag(tag)?)),
            None => (rest, None),
        };
        let official = registry == DEFAULT_REGISTRY && !path.contains('/');
        let repository = match official {
            true => format!("{OFFICIAL_NAMESPACE}{path}"),
            false => path.to_owned(),
        };
        check_registry(registry)?;
        check_repository(&repository)?;
        let tag = match (tag, digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag,
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }
}

/// Splits the registry off. The first component is one only if it could not be a repository's:
/// it has a dot, a port or an upper-case letter, or it is `localhost`.
fn split_registry(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':', '['])
                || first == "localhost"
                || first.contains(|c: char| c.is_ascii_uppercase()) =>
        {
            match first {
                "index.docker.io" => (DEFAULT_REGISTRY, rest),
                _ => (first, rest),
            }
        }
        _ => (DEFAULT_REGISTRY, text),
    }
}

fn check_registry(registry: &str) -> Result<(), ReferenceError> {
    let (host, port) = split_port(registry);
    let port_ok =
        port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    let host_ok = match host.strip_prefix('[') {
        Some(inner) => inner
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()),
        None => host.split('.').all(is_domain_component),
    };
    match host_ok && port_ok {
        true => Ok(()),
        false => Err(ReferenceError::Format),
    }
}

fn split_port(registry: &str) -> (&str, Option<&str>) {
    let after_address = registry.rfind(']').map_or(0, |end| end + 1);
    match registry[after_address..].find(':') {
        Some(colon) => {
            let (host, port) = registry.split_at(after_address + colon);
            (host, Some(&port[1..]))
        }
        None => (registry, None),
    }
}

fn is_domain_component(component: &str) -> bool {
    !component.is_empty()
        && !component.starts_with('-')
        && !component.ends_with('-')
        && component
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn check_repository(repository: &str) -> Result<(), ReferenceError> {
    if repository.len() > NAME_MAX {
        return Err(ReferenceError::TooLong);
    }
    if repository.split('/').all(is_path_component) {
        return Ok(());
    }
    let lower = repository.to_ascii_lowercase();
    match lower != repository && lower.split('/').all(is_path_component) {
        true => Err(ReferenceError::Uppercase(repository.to_owned())),
        false => Err(ReferenceError::Format),
    }
}

/// Alphanumeric runs, joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = component.split(alphanumeric).filter(|run| !run.is_empty());
    component.starts_with(alphanumeric)
        && component.ends_with(alphanumeric)
        && separators
            .into_iter()
            .all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|byte| byte == b'-'))
}

fn parse_tag(tag: &str) -> Result<String, ReferenceError> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let valid = tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(word)
        && tag
            .bytes()
            .all(|byte| word(byte) || matches!(byte, b'.' | b'-'));
    match valid {
        true => Ok(tag.to_owned()),
        false => Err(ReferenceError::Format),
    }
}

fn parse_digest(digest: &str) -> Result<Digest, ReferenceError> {
    match digest.split_once(':') {
        Some(("sha256", _)) => digest.parse().map_err(|_| ReferenceError::Format),
        Some((algorithm, _)) if !algorithm.is_empty() => {
            Err(ReferenceError::Digest(digest.to_owned()))
        }
        _ => Err(ReferenceError::Format),
    }
}

/// `:tag`, `@digest` or both.
struct Suffix<'a>(&'a Reference);

impl fmt::Display for Suffix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tag) = &self.0.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.0.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// The full form: `docker.io/library/nginx:latest`.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.registry, self.repository, Suffix(self))
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Reference {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn short_names_expand_as_docker_expands_them() {
        for (text, full, familiar) in [
            ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27", "nginx:1.27"),
            ("user/app", "docker.io/user/app:latest", "user/app:latest"),
            (
                "docker.io/nginx",
                "docker.io/library/nginx:latest",
                "nginx:latest",
            ),
            (
                "index.docker.io/library/nginx",
                "docker.io/library/nginx:latest",
                "nginx:latest",
            ),
            (
                "localhost/app",
                "localhost/app:latest",
                "localhost/app:latest",
            ),
            (
                "localhost:5000/app:v1",
                "localhost:5000/app:v1",
                "localhost:5000/app:v1",
            ),
            (
                "127.0.0.1:5000/a/b/c",
                "127.0.0.1:5000/a/b/c:latest",
                "127.0.0.1:5000/a/b/c:latest",
            ),
            (
                "[::1]:5000/app",
                "[::1]:5000/app:latest",
                "[::1]:5000/app:latest",
            ),
            ("Registry/app", "Registry/app:latest", "Registry/app:latest"),
            (
                "localhost",
                "docker.io/library/localhost:latest",
                "localhost:latest",
            ),
            (
                "a__b/c---d.e_f",
                "docker.io/a__b/c---d.e_f:latest",
                "a__b/c---d.e_f:latest",
            ),
            (
                "docker.io/library/a/b",
                "docker.io/library/a/b:latest",
                "library/a/b:latest",
            ),
        ] {
            let reference = parse(text);
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.familiar(), familiar);
            assert_eq!(parse(full), reference);
            assert_eq!(parse(familiar), reference);
        }
    }

    #[test]
    fn a_digest_stands_without_a_tag_and_beside_one() {
        let reference = parse(&format!("nginx@sha256:{HEX}"));
        assert_eq!(reference.tag(), None);
        assert_eq!(
            reference.to_string(),
            format!("docker.io/library/nginx@sha256:{HEX}")
        );
        let both = parse(&format!("host:5000/nginx:1@sha256:{HEX}"));
        assert_eq!(both.tag(), Some("1"));
        assert_eq!(both.digest(), reference.digest());
        assert_eq!(both.to_string(), format!("host:5000/nginx:1@sha256:{HEX}"));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a".repeat(256);
        let long_tag = format!("a:{}", "t".repeat(129));
        let short_digest = format!("a@sha256:{}", &HEX[1..]);
        for text in [
            "a:",
            ":a",
            "/a",
            "a/",
            "a//b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a._b",
            "a b",
            "a:t ag",
            "a:.t",
            "a@",
            "a@sha256:",
            "https://host/a",
            "host:port/a",
            "[::g]/a",
            "host-.x/a",
            "a\n",
            "é",
            "..",
            "../a",
            &long_tag,
            &short_digest,
        ] {
            assert_eq!(
                text.parse::<Reference>(),
                Err(ReferenceError::Format),
                "{text}"
            );
        }
        assert_eq!("".parse::<Reference>(), Err(ReferenceError::Empty));
        assert_eq!(long.parse::<Reference>(), Err(ReferenceError::TooLong));
        assert_eq!(
            HEX.parse::<Reference>(),
            Err(ReferenceError::BareDigest(HEX.to_owned()))
        );
        assert_eq!(
            "NGINX".parse::<Reference>().unwrap_err().to_string(),
            "invalid reference format: repository name (library/NGINX) must be lowercase"
        );
    }
}
