//! Which names objects may have, and how the server makes one up.

use rand::Rng;

use crate::resources::{FieldError, Resource};

/// What a generated suffix is made of: no vowels, no digits that look like one.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX: usize = 5;
/// A generated name's base is cut to leave room for the suffix.
const GENERATED: usize = 63;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

/// `base` with five random characters, as `generateName` asks for.
pub fn generate(base: &str) -> String {
    let end = base.floor_char_boundary(GENERATED - SUFFIX);
    let mut name = base[..end].to_string();
    let mut rng = rand::rng();
    name.extend((0..SUFFIX).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])));
    name
}

/// What is wrong with a new object's name.
pub fn check(resource: &Resource, name: &str) -> Vec<FieldError> {
    let why = match (resource.group, resource.plural) {
        ("", "namespaces") => label(name),
        ("", "services") => label_1035(name),
        ("rbac.authorization.k8s.io", _) => path_segment(name),
        _ => subdomain(name),
    };
    why.into_iter()
        .map(|why| FieldError {
            reason: "FieldValueInvalid",
            field: "metadata.name".to_string(),
            message: format!("Invalid value: {name:?}: {why}"),
        })
        .collect()
}

/// What is wrong with a namespace's name.
pub fn label(text: &str) -> Vec<String> {
    let mut why = too_long(text, 63);
    if !is_label(text) {
        why.push(LABEL.to_string());
    }
    why
}

fn label_1035(text: &str) -> Vec<String> {
    let mut why = too_long(text, 63);
    if !is_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        why.push(LABEL_1035.to_string());
    }
    why
}

pub fn subdomain(text: &str) -> Vec<String> {
    let mut why = too_long(text, 253);
    if !text.split('.').all(is_label) {
        why.push(SUBDOMAIN.to_string());
    }
    why
}

fn path_segment(text: &str) -> Vec<String> {
    match text {
        "." | ".." => vec![format!("may not be '{text}'")],
        _ => ["/", "%"]
            .iter()
            .filter(|part| text.contains(**part))
            .map(|part| format!("may not contain '{part}'"))
            .collect(),
    }
}

fn too_long(text: &str, limit: usize) -> Vec<String> {
    if text.len() <= limit {
        return Vec::new();
    }
    vec![format!("must be no more than {limit} characters")]
}

fn is_label(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.bytes().all(|c| plain(c) || c == b'-')
        && text.bytes().next().is_some_and(plain)
        && text.bytes().next_back().is_some_and(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_have_five_characters_more() {
        let name = generate("web-");
        assert_eq!(name.len(), 9);
        assert!(name[4..].bytes().all(|c| ALPHABET.contains(&c)));
        assert_eq!(generate(&"x".repeat(80)).len(), GENERATED);
    }

    #[test]
    fn names_follow_their_rule() {
        for good in ["a", "a.b", "a-1.b", "1a"] {
            assert!(subdomain(good).is_empty(), "{good}");
        }
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", ".a"] {
            assert_eq!(subdomain(bad), [SUBDOMAIN], "{bad}");
        }
        assert_eq!(label("a.b"), [LABEL]);
        assert_eq!(label_1035("1a"), [LABEL_1035]);
        assert_eq!(
            label(&"a".repeat(64)),
            ["must be no more than 63 characters"]
        );
        assert_eq!(path_segment("a/b"), ["may not contain '/'"]);
        assert!(path_segment("system:node").is_empty());
    }
}
