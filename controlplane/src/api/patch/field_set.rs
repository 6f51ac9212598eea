//! Sets of field paths, as `managedFields` keeps them (`fieldsV1`).
//!
//! A set is a tree. An edge is one step of a path in its written form: `f:name` for a field or a
//! map's key, `k:{"name":"a"}` for an item of a keyed list, `v:"a"` for a value of a set. A node
//! is a member of the set, or only leads to members. Written down, a leaf is `{}` and a member
//! with descendants has an entry `.`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FieldSet {
    pub(super) member: bool,
    pub(super) children: BTreeMap<String, FieldSet>,
}

/// The step to a struct's field or a map's key.
pub(super) fn field_step(name: &str) -> String {
    format!("f:{name}")
}

impl FieldSet {
    pub(super) fn leaf() -> Self {
        Self {
            member: true,
            children: BTreeMap::new(),
        }
    }

    pub(super) fn from_json(json: &Value) -> Self {
        let Value::Object(entries) = json else {
            return Self::default();
        };
        let mut set = Self {
            member: entries.is_empty() || entries.contains_key("."),
            children: BTreeMap::new(),
        };
        for (step, below) in entries.iter().filter(|(step, _)| *step != ".") {
            set.children.insert(step.clone(), Self::from_json(below));
        }
        set
    }

    pub(super) fn to_json(&self) -> Value {
        let mut entries: Map<String, Value> = self
            .children
            .iter()
            .map(|(step, below)| (step.clone(), below.to_json()))
            .collect();
        if self.member && !entries.is_empty() {
            entries.insert(".".into(), Value::Object(Map::new()));
        }
        Value::Object(entries)
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// Adds a child, unless there is nothing in it.
    pub(super) fn put(&mut self, step: String, below: Self) {
        if !below.is_empty() {
            self.children.insert(step, below);
        }
    }

    pub(super) fn union(&mut self, other: &Self) {
        self.member |= other.member;
        for (step, below) in &other.children {
            self.children.entry(step.clone()).or_default().union(below);
        }
    }

    /// Takes out the members of `other`.
    pub(super) fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        self.children.retain(|step, below| {
            if let Some(taken) = other.children.get(step) {
                below.subtract(taken);
            }
            !below.is_empty()
        });
    }

    /// The members of both.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let mut common = Self {
            member: self.member && other.member,
            children: BTreeMap::new(),
        };
        for (step, below) in &self.children {
            if let Some(there) = other.children.get(step) {
                common.put(step.clone(), below.intersection(there));
            }
        }
        common
    }

    /// Takes out a path's member, and what is below it when `below` says so.
    pub(super) fn remove(&mut self, path: &[&str], below: Below) {
        let Some((name, rest)) = path.split_first() else {
            self.member = false;
            if below == Below::Too {
                self.children.clear();
            }
            return;
        };
        let step = field_step(name);
        if let Some(child) = self.children.get_mut(&step) {
            child.remove(rest, below);
            if child.is_empty() {
                self.children.remove(&step);
            }
        }
    }

    /// Each member's path in the words of conflicts: `.spec.containers[name="a"].image`.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.collect(&mut String::new(), &mut found);
        found
    }

    fn collect(&self, path: &mut String, found: &mut Vec<String>) {
        if self.member {
            found.push(path.clone());
        }
        for (step, below) in &self.children {
            let length = path.len();
            path.push_str(&readable(step));
            below.collect(path, found);
            path.truncate(length);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Below {
    Kept,
    Too,
}

fn readable(step: &str) -> String {
    match step.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", keys)) => match serde_json::from_str::<Map<String, Value>>(keys) {
            Ok(keys) => {
                let keys: Vec<String> = keys
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                format!("[{}]", keys.join(","))
            }
            Err(_) => format!("[{keys}]"),
        },
        Some(("v", value)) => format!("[={value}]"),
        _ => format!("[{step}]"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(json: Value) -> FieldSet {
        FieldSet::from_json(&json)
    }

    #[test]
    fn written_and_read() {
        let json = json!({"f:spec": {"f:replicas": {}, "f:containers": {r#"k:{"name":"a"}"#: {".": {}, "f:image": {}}}}});
        let read = set(json.clone());
        assert_eq!(read.to_json(), json);
        assert_eq!(
            read.paths(),
            [
                r#".spec.containers[name="a"]"#,
                r#".spec.containers[name="a"].image"#,
                ".spec.replicas"
            ]
        );
    }

    #[test]
    fn algebra() {
        let a = set(json!({"f:a": {}, "f:b": {".": {}, "f:c": {}}}));
        let b = set(json!({"f:b": {"f:c": {}, "f:d": {}}}));
        assert_eq!(a.intersection(&b), set(json!({"f:b": {"f:c": {}}})));
        let mut rest = a.clone();
        rest.subtract(&b);
        assert_eq!(rest, set(json!({"f:a": {}, "f:b": {}})));
        rest.union(&b);
        assert_eq!(
            rest,
            set(json!({"f:a": {}, "f:b": {".": {}, "f:c": {}, "f:d": {}}}))
        );
        rest.remove(&["b"], Below::Too);
        assert_eq!(rest, set(json!({"f:a": {}})));
    }
}
