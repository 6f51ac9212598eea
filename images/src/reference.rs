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
    #[error("invalid reference format")]
    Format,
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    BareDigest(String),
    #[error("repository name must not be more than {NAME_MAX} characters")]
    TooLong,
    #[error("invalid checksum digest length")]
    DigestLength,
    #[error("invalid checksum digest format")]
    DigestFormat,
    #[error("unsupported digest algorithm")]
    DigestAlgorithm,
    /// Valid for Docker; no registry names its content so.
    #[error("unsupported digest '{0}': only sha256 is supported")]
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
            // `docker.io/example.org/a` is not what `example.org/a` stands for.
            _ if split_registry(&self.repository).1 != self.repository => self.name(),
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
        if text.len() == 64 && Digest::from_hex(text).is_ok() {
            return Err(ReferenceError::BareDigest(text.to_owned()));
        }
        let (registry, rest) = split_registry(text);
        // Up to the tag, or into the digest: what is complained of first, as Docker does.
        let name = rest.split(':').next().unwrap_or_default();
        if name.to_lowercase() != name {
            let name = official(registry, rest, name);
            return Err(ReferenceError::Uppercase(name));
        }
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (rest, None),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(parse_tag(tag)?)),
            None => (rest, None),
        };
        let repository = official(registry, path, path);
        check_registry(registry)?;
        if !repository.split('/').all(is_path_component) {
            return Err(ReferenceError::Format);
        }
        if !digest.is_none_or(is_digest) {
            return Err(ReferenceError::Format);
        }
        if repository.len() > NAME_MAX {
            return Err(ReferenceError::TooLong);
        }
        let digest = digest.map(parse_digest).transpose()?;
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

/// A name with what Docker Hub's official images leave out, if `path` is one of them.
fn official(registry: &str, path: &str, name: &str) -> String {
    match registry == DEFAULT_REGISTRY && !path.contains('/') {
        true => format!("{OFFICIAL_NAMESPACE}{name}"),
        false => name.to_owned(),
    }
}

/// Splits the registry off. The first component is one only if it could not be a repository's:
/// it has a dot, a port or an upper-case letter, or it is `localhost`.
fn split_registry(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':', '['])
                || first == "localhost"
                || first.to_lowercase() != first =>
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
        // Neither zones nor addresses with an IPv4 part.
        Some(inner) => inner.strip_suffix(']').is_some_and(|address| {
            !address.contains('.') && address.parse::<std::net::Ipv6Addr>().is_ok()
        }),
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

/// Whether a text has the form of a digest: an algorithm's name, and at least 32 hexadecimal
/// digits.
fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return false;
    };
    let word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic())
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(word)
        && hex.len() >= 32
        && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A digest from a text that has the form of one.
fn parse_digest(text: &str) -> Result<Digest, ReferenceError> {
    let (algorithm, hex) = text.split_once(':').ok_or(ReferenceError::Format)?;
    let digits = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(ReferenceError::DigestAlgorithm),
    };
    if hex.len() != digits {
        return Err(ReferenceError::DigestLength);
    }
    if hex.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(ReferenceError::DigestFormat);
    }
    text.parse()
        .map_err(|_| ReferenceError::Digest(text.to_owned()))
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
            (
                "docker.io/example.org/app",
                "docker.io/example.org/app:latest",
                "docker.io/example.org/app:latest",
            ),
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
        let two_digests = format!("a@sha256:{HEX}@sha256:{HEX}");
        for text in [
            "",
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
            "ö",
            "..",
            "../a",
            &long_tag,
            "[::1%eth0]/a",
            "[::ffff:127.0.0.1]/a",
            "[::1/a",
            "a@sha256:0123456789abcdef",
            &two_digests,
            "a@b@c",
            "a:1:2",
            "host:/a",
            "localhost:5000/a:1:2",
        ] {
            assert_eq!(
                text.parse::<Reference>(),
                Err(ReferenceError::Format),
                "{text}"
            );
        }
        assert_eq!(long.parse::<Reference>(), Err(ReferenceError::TooLong));
        assert_eq!(
            HEX.parse::<Reference>(),
            Err(ReferenceError::BareDigest(HEX.to_owned()))
        );
        for (text, name) in [
            ("NGINX", "library/NGINX"),
            ("a/B", "a/B"),
            ("r.io/A..b:Tag", "A..b"),
            ("R.io/a/B@sha256:x", "a/B@sha256"),
            ("docker.io/Nginx", "library/Nginx"),
            ("a@SHA256:x", "library/a@SHA256"),
            ("Ö", "library/Ö"),
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert_eq!(error, ReferenceError::Uppercase(name.to_owned()), "{text}");
        }
        assert_eq!(
            "NGINX".parse::<Reference>().unwrap_err().to_string(),
            "invalid reference format: repository name (library/NGINX) must be lowercase"
        );
    }

    #[test]
    fn digests_are_refused_in_the_right_words() {
        let (hex96, hex128) = ("a".repeat(96), "a".repeat(128));
        for (digest, error) in [
            (
                format!("sha256:{}", &HEX[1..]),
                ReferenceError::DigestLength,
            ),
            (format!("sha512:{HEX}"), ReferenceError::DigestLength),
            (
                format!("sha256:{}", HEX.to_uppercase()),
                ReferenceError::DigestFormat,
            ),
            (
                format!("md5:{}", &HEX[..32]),
                ReferenceError::DigestAlgorithm,
            ),
            (format!("x+y:{HEX}"), ReferenceError::DigestAlgorithm),
            (format!("x+:{HEX}"), ReferenceError::Format),
            (
                format!("sha384:{hex96}"),
                ReferenceError::Digest(format!("sha384:{hex96}")),
            ),
            (
                format!("sha512:{hex128}"),
                ReferenceError::Digest(format!("sha512:{hex128}")),
            ),
        ] {
            assert_eq!(
                format!("a:1@{digest}").parse::<Reference>(),
                Err(error),
                "{digest}"
            );
        }
    }

    #[test]
    fn lengths_are_bounded_as_dockers_are() {
        let path = "a".repeat(255);
        assert_eq!(parse(&format!("r.io/{path}")).repository(), path);
        // `library/` counts.
        assert_eq!(path.parse::<Reference>(), Err(ReferenceError::TooLong));
        let tag = "t".repeat(128);
        assert_eq!(parse(&format!("a:{tag}")).tag(), Some(tag.as_str()));
    }
}
