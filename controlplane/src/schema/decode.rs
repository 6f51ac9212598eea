//! From a request's bytes to a JSON value, noting fields that appear twice.
//!
//! Kubernetes keeps the last of duplicate fields and reports each by its path, as an error
//! or as a warning, as the request's `fieldValidation` asks.

use std::cell::RefCell;
use std::fmt::{self, Write};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// A request's body.
#[derive(Debug)]
pub struct Decoded {
    pub value: Value,
    /// The paths of fields that appear more than once, as `spec.replicas`.
    pub duplicates: Vec<String>,
}

/// Decodes JSON.
///
/// # Errors
/// When the bytes are not exactly one JSON value.
pub fn decode(bytes: &[u8]) -> Result<Decoded, serde_json::Error> {
    let found = RefCell::new(Vec::new());
    let path = RefCell::new(String::new());
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Node {
        path: &path,
        found: &found,
    };
    let value = seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(Decoded {
        value,
        duplicates: found.into_inner(),
    })
}

#[derive(Clone, Copy)]
struct Node<'a> {
    path: &'a RefCell<String>,
    found: &'a RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        let length = self.path.borrow().len();
        loop {
            let index = list.len();
            {
                let mut path = self.path.borrow_mut();
                path.truncate(length);
                let _ = write!(path, "[{index}]");
            }
            match items.next_element_seed(self)? {
                Some(item) => list.push(item),
                None => break,
            }
        }
        self.path.borrow_mut().truncate(length);
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        let length = self.path.borrow().len();
        while let Some(key) = entries.next_key::<String>()? {
            {
                let mut path = self.path.borrow_mut();
                path.truncate(length);
                if length > 0 {
                    path.push('.');
                }
                path.push_str(&key);
            }
            let value = entries.next_value_seed(self)?;
            if map.contains_key(&key) {
                self.found.borrow_mut().push(self.path.borrow().clone());
            }
            map.insert(key, value);
        }
        self.path.borrow_mut().truncate(length);
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::decode;

    #[test]
    fn keeps_the_last_and_reports_the_path() {
        let decoded = decode(br#"{"spec":{"a":[{"x":1,"x":2}],"b":1,"b":2}}"#).unwrap();
        assert_eq!(decoded.value, json!({"spec": {"a": [{"x": 2}], "b": 2}}));
        assert_eq!(decoded.duplicates, ["spec.a[0].x", "spec.b"]);
    }

    #[test]
    fn refuses_what_follows_the_value() {
        assert!(decode(b"{} {}").is_err());
    }
}
