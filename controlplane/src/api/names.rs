//! Which names objects may have, and how the server makes one up.

use rand::Rng;

use crate::resources::{FieldError, Resource, syntax};

/// What a generated suffix is made of: no vowels, no digits that look like one.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX: usize = 5;
/// A generated name's base is cut to leave room for the suffix.
const GENERATED: usize = 63;

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
        ("", "namespaces") => syntax::dns_label(name),
        ("", "services") => syntax::dns_1035_label(name),
        ("rbac.authorization.k8s.io", _) => syntax::path_segment(name),
        _ => syntax::dns_subdomain(name),
    };
    why.into_iter()
        .map(|why| FieldError {
            reason: "FieldValueInvalid",
            field: "metadata.name".to_string(),
            message: format!("Invalid value: {name:?}: {why}"),
        })
        .collect()
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
}
