//! An object as the cache keeps it: its bytes, ready to be sent, and what selectors look at.

use std::fmt;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::resources::SelectableField;
use crate::store::{Key, Revision};

/// What follows the place where the resource version goes; see [`with_revision`].
const METADATA: &[u8] = b"\"metadata\":{";

/// One object at one revision. It never changes; a write makes another entry.
#[derive(Debug)]
pub struct Entry {
    pub key: Key,
    pub revision: Revision,
    /// The object in JSON, `metadata.resourceVersion` included.
    pub bytes: Bytes,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// The values of the resource's selectable fields, in their declared order.
    fields: Box<[Box<str>]>,
}

impl Entry {
    /// An entry of a value as the store has it. `selectable` are its fields for selectors.
    pub fn new(
        key: Key,
        revision: Revision,
        stored: &[u8],
        selectable: &[SelectableField],
    ) -> Self {
        let bytes = with_revision(stored, revision);
        let mut attributes = Attributes {
            labels: Vec::new(),
            fields: selectable.iter().map(|field| field.absent.into()).collect(),
        };
        let mut json = serde_json::Deserializer::from_slice(stored);
        let walk = Walk {
            prefix: "",
            selectable,
            attributes: &mut attributes,
        };
        if let Err(error) = walk.deserialize(&mut json) {
            tracing::error!(key = key.as_str(), %error, "a stored object can't be read");
        }
        Self {
            key,
            revision,
            bytes,
            labels: attributes.labels.into(),
            fields: attributes.fields.into(),
        }
    }

    /// The same object as if it had been written at another revision.
    pub fn restamped(&self, revision: Revision) -> Self {
        Self {
            key: self.key.clone(),
            revision,
            bytes: restamp(&self.bytes, revision),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
        }
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(key, _)| &**key == name)
            .map(|(_, value)| &**value)
    }

    /// The value of the selectable field at this place of the declaration.
    pub fn field(&self, index: usize) -> &str {
        self.fields.get(index).map_or("", |value| value)
    }

    pub fn namespace(&self) -> &str {
        self.key.namespace()
    }

    pub fn name(&self) -> &str {
        self.key.name()
    }
}

/// Puts the resource version into an object that was stored without it. Stored objects have
/// `apiVersion`, `kind` and `metadata` first, so the first `"metadata":{` is the right one.
pub fn with_revision(stored: &[u8], revision: Revision) -> Bytes {
    let Some(at) = stored.windows(METADATA.len()).position(|w| w == METADATA) else {
        return Bytes::copy_from_slice(stored);
    };
    let (head, tail) = stored.split_at(at + METADATA.len());
    let mut text = [0; 20];
    let number = decimal(revision, &mut text);
    let mut bytes = Vec::with_capacity(stored.len() + 21 + number.len());
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(b"\"resourceVersion\":\"");
    bytes.extend_from_slice(number);
    bytes.extend_from_slice(b"\"");
    if !tail.starts_with(b"}") {
        bytes.push(b',');
    }
    bytes.extend_from_slice(tail);
    Bytes::from(bytes.into_boxed_slice())
}

/// Replaces the resource version that [`with_revision`] put in.
fn restamp(bytes: &Bytes, revision: Revision) -> Bytes {
    const VERSION: &[u8] = b"\"metadata\":{\"resourceVersion\":\"";
    let Some(at) = bytes.windows(VERSION.len()).position(|w| w == VERSION) else {
        return bytes.clone();
    };
    let (head, tail) = bytes.split_at(at + VERSION.len());
    let digits = tail.iter().take_while(|b| b.is_ascii_digit()).count();
    let mut text = [0; 20];
    Bytes::from([head, decimal(revision, &mut text), &tail[digits..]].concat())
}

fn decimal(mut number: u64, text: &mut [u8; 20]) -> &[u8] {
    let mut at = text.len();
    loop {
        at -= 1;
        text[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &text[at..];
        }
    }
}

struct Attributes {
    labels: Vec<(Box<str>, Box<str>)>,
    fields: Vec<Box<str>>,
}

/// Reads labels and selectable fields, and skips over everything else without building it.
struct Walk<'a> {
    /// The dotted path of this object, empty at the top.
    prefix: &'a str,
    selectable: &'a [SelectableField],
    attributes: &'a mut Attributes,
}

impl Walk<'_> {
    fn below(&self, path: &str) -> bool {
        let inside = |field: &str| {
            field
                .strip_prefix(path)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        path == "metadata" || self.selectable.iter().any(|field| inside(field.path))
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let path = if self.prefix.is_empty() {
                key
            } else {
                format!("{}.{key}", self.prefix)
            };
            if path == "metadata.labels" {
                let labels: Option<Vec<(Box<str>, Box<str>)>> = map.next_value_seed(Pairs)?;
                self.attributes.labels = labels.unwrap_or_default();
            } else if let Some(at) = self.selectable.iter().position(|field| field.path == path) {
                let value = map.next_value::<serde_json::Value>()?;
                if !value.is_null() {
                    self.attributes.fields[at] = text(&value);
                }
            } else if self.below(&path) {
                map.next_value_seed(Walk {
                    prefix: &path,
                    selectable: self.selectable,
                    attributes: &mut *self.attributes,
                })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// A map of strings as pairs.
struct Pairs;

impl<'de> DeserializeSeed<'de> for Pairs {
    type Value = Option<Vec<(Box<str>, Box<str>)>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pairs {
    type Value = Option<Vec<(Box<str>, Box<str>)>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Some(pairs))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

fn text(value: &serde_json::Value) -> Box<str> {
    match value {
        serde_json::Value::String(text) => text.as_str().into(),
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_know_their_revision_labels_and_fields() {
        let stored = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"labels":{"app":"web"},"name":"a"},"spec":{"nodeName":"n1","x":{"metadata":{}}},"status":{"phase":"Running"}}"#;
        let entry = Entry::new(
            Key::new("", "pods", "default", "a"),
            42,
            stored,
            &[
                SelectableField::text("spec.nodeName"),
                SelectableField::text("status.phase"),
                SelectableField::truth("spec.hostNetwork"),
            ],
        );
        assert_eq!(entry.label("app"), Some("web"));
        assert_eq!(entry.label("tier"), None);
        assert_eq!(
            [entry.field(0), entry.field(1), entry.field(2)],
            ["n1", "Running", "false"]
        );
        let value: serde_json::Value = serde_json::from_slice(&entry.bytes).unwrap();
        assert_eq!(value["metadata"]["resourceVersion"], "42");
        assert_eq!(value["metadata"]["name"], "a");
        assert_eq!((entry.namespace(), entry.name()), ("default", "a"));
    }

    #[test]
    fn an_odd_object_is_an_entry_all_the_same() {
        let stored = br#"{"apiVersion":"v1","kind":"Pod","metadata":{},"spec":null,"status":[1]}"#;
        let entry = Entry::new(
            Key::new("", "pods", "d", "a"),
            7,
            stored,
            &[SelectableField::text("spec.nodeName")],
        );
        assert_eq!(entry.field(0), "");
        assert!(serde_json::from_slice::<serde_json::Value>(&entry.bytes).is_ok());
    }
}
