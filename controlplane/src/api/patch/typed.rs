//! Values walked along their types: what fields a value has, how two values merge, how they
//! differ, what goes when fields are given up.
//!
//! The rules are those of structured-merge-diff: structures and maps merge field by field, lists
//! by key or by value where their type says so, and everything atomic is one field.

use serde_json::{Map, Value, json};

use super::field_set::{FieldSet, field_step};
use crate::api::status::ApiError;
use crate::schema::{Field, ListKind, Schema, Type};

/// A place in the types: a type, and what the field that has it says of lists and maps.
#[derive(Clone, Copy)]
pub(super) struct Place<'s> {
    schema: &'s Schema,
    ty: &'s Type,
    field: Option<&'s Field>,
}

/// How a place's value falls into fields.
enum Shape<'s> {
    /// One field, whatever is in it.
    Atomic,
    /// Fields by name. Those of a map are members themselves, those of a structure lead to members.
    Fields {
        named: bool,
    },
    Set,
    Keyed(&'s [&'static str]),
}

/// What changed between two values.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// Fields that are new or have another value.
    pub(super) changed: FieldSet,
    pub(super) removed: FieldSet,
}

impl<'s> Place<'s> {
    pub(super) fn root(schema: &'s Schema, ty: &'s Type) -> Self {
        Self {
            schema,
            ty,
            field: None,
        }
    }

    fn shape(&self) -> Shape<'s> {
        match (self.ty, self.field) {
            (_, Some(field)) if field.atomic => Shape::Atomic,
            (Type::Struct(at), _) if self.schema.at(*at).atomic => Shape::Atomic,
            (Type::Struct(_), _) => Shape::Fields { named: true },
            (Type::Map(_) | Type::Any, _) => Shape::Fields { named: false },
            (
                Type::List(_),
                Some(Field {
                    list: ListKind::Set,
                    ..
                }),
            ) => Shape::Set,
            (
                Type::List(_),
                Some(Field {
                    list: ListKind::Map(keys),
                    ..
                }),
            ) => Shape::Keyed(keys),
            _ => Shape::Atomic,
        }
    }

    fn member(&self, name: &str) -> Self {
        static ANY: Type = Type::Any;
        let (ty, field) = match self.ty {
            Type::Struct(at) => match self.schema.at(*at).field(name) {
                Some(field) => (&field.ty, Some(field)),
                None => (&ANY, None),
            },
            Type::Map(item) => (&**item, None),
            _ => (&ANY, None),
        };
        Self { ty, field, ..*self }
    }

    fn item(&self) -> Self {
        static ANY: Type = Type::Any;
        let ty = match self.ty {
            Type::List(item) => &**item,
            _ => &ANY,
        };
        Self {
            ty,
            field: None,
            ..*self
        }
    }
}

/// The fields that a value has.
///
/// # Errors
/// When an item of a keyed list lacks a key.
pub(super) fn fields_of(place: Place<'_>, value: &Value) -> Result<FieldSet, ApiError> {
    let mut set = FieldSet::default();
    match (place.shape(), value) {
        (Shape::Fields { named }, Value::Object(entries)) => {
            for (name, value) in entries {
                let mut below = fields_of(place.member(name), value)?;
                let empty = value.as_object().is_some_and(Map::is_empty);
                below.member |= empty || !named;
                set.put(field_step(name), below);
            }
        }
        (Shape::Set, Value::Array(items)) => {
            for item in items {
                set.put(format!("v:{item}"), FieldSet::leaf());
            }
        }
        (Shape::Keyed(keys), Value::Array(items)) => {
            for item in items {
                let mut below = fields_of(place.item(), item)?;
                below.member = true;
                set.put(key_step(keys, item)?, below);
            }
        }
        _ => set.member = true,
    }
    Ok(set)
}

/// `applied` over `live`: where both have a field, `applied` wins; items of lists come in its
/// order, with the live ones where they stood.
///
/// # Errors
/// When an item of a keyed list lacks a key.
pub(super) fn merge(place: Place<'_>, live: &Value, applied: &Value) -> Result<Value, ApiError> {
    match (place.shape(), live, applied) {
        (Shape::Fields { .. }, Value::Object(live), Value::Object(applied)) => {
            let mut merged = live.clone();
            for (name, value) in applied {
                let value = match live.get(name) {
                    Some(old) => merge(place.member(name), old, value)?,
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Ok(Value::Object(merged))
        }
        (Shape::Set, Value::Array(live), Value::Array(applied)) => {
            let steps = |items: &[Value]| {
                items
                    .iter()
                    .map(|item| format!("v:{item}"))
                    .collect::<Vec<_>>()
            };
            let order = merged_order(&steps(live), &steps(applied));
            let found = |step: &str| {
                applied
                    .iter()
                    .chain(live)
                    .find(|item| format!("v:{item}") == step)
                    .cloned()
            };
            Ok(order.iter().filter_map(|step| found(step)).collect())
        }
        (Shape::Keyed(keys), Value::Array(live), Value::Array(applied)) => {
            let steps = |items: &[Value]| {
                items
                    .iter()
                    .map(|item| key_step(keys, item))
                    .collect::<Result<Vec<_>, _>>()
            };
            let (old, new) = (steps(live)?, steps(applied)?);
            let mut items = Vec::new();
            for step in merged_order(&old, &new) {
                let find = |steps: &[String], list: &'_ [Value]| {
                    steps
                        .iter()
                        .position(|s| *s == step)
                        .map(|at| list[at].clone())
                };
                items.extend(match (find(&old, live), find(&new, applied)) {
                    (Some(old), Some(new)) => Some(merge(place.item(), &old, &new)?),
                    (old, new) => new.or(old),
                });
            }
            Ok(Value::Array(items))
        }
        _ => Ok(applied.clone()),
    }
}

/// The steps of both lists: those of `new` in its order, the others of `old` in front of what
/// they preceded.
fn merged_order(old: &[String], new: &[String]) -> Vec<String> {
    let mut order: Vec<String> = Vec::with_capacity(old.len() + new.len());
    let mut rest = new.iter();
    for step in old {
        if order.contains(step) {
            continue;
        }
        if !new.contains(step) {
            order.push(step.clone());
            continue;
        }
        for next in rest.by_ref() {
            order.push(next.clone());
            if next == step {
                break;
            }
        }
    }
    order.extend(rest.cloned());
    order
}

/// Takes out of `value` what is in `given_up` and nobody owns any more.
///
/// # Errors
/// When an item of a keyed list lacks a key.
pub(super) fn prune(
    place: Place<'_>,
    value: &mut Value,
    given_up: &FieldSet,
    owned: &FieldSet,
) -> Result<(), ApiError> {
    match (place.shape(), value) {
        (Shape::Fields { .. }, Value::Object(entries)) => {
            for (step, below) in &given_up.children {
                let Some(name) = step.strip_prefix("f:") else {
                    continue;
                };
                match (owned.children.get(step), entries.get_mut(name)) {
                    (None, _) => {
                        entries.remove(name);
                    }
                    (Some(owned), Some(value)) => prune(place.member(name), value, below, owned)?,
                    _ => {}
                }
            }
        }
        (Shape::Set, Value::Array(items)) => {
            let gone = |item: &Value| {
                let step = format!("v:{item}");
                given_up.children.contains_key(&step) && !owned.children.contains_key(&step)
            };
            items.retain(|item| !gone(item));
        }
        (Shape::Keyed(keys), Value::Array(items)) => {
            let mut kept = Vec::with_capacity(items.len());
            for mut item in std::mem::take(items) {
                let step = key_step(keys, &item)?;
                match (given_up.children.get(&step), owned.children.get(&step)) {
                    (Some(_), None) => continue,
                    (Some(below), Some(owned)) => prune(place.item(), &mut item, below, owned)?,
                    _ => {}
                }
                kept.push(item);
            }
            *items = kept;
        }
        _ => {}
    }
    Ok(())
}

/// What is new, other or gone in `new`.
///
/// # Errors
/// When an item of a keyed list lacks a key.
pub(super) fn compare(place: Place<'_>, old: &Value, new: &Value) -> Result<Difference, ApiError> {
    let mut found = Difference::default();
    if old == new {
        return Ok(found);
    }
    match (place.shape(), old, new) {
        (Shape::Fields { .. }, Value::Object(old), Value::Object(new)) => {
            for (name, value) in new {
                let below = match old.get(name) {
                    Some(old) => compare(place.member(name), old, value)?,
                    None => Difference {
                        changed: whole(place.member(name), value)?,
                        removed: FieldSet::default(),
                    },
                };
                found.put(field_step(name), below);
            }
            for (name, value) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
                let removed = whole(place.member(name), value)?;
                found.put(
                    field_step(name),
                    Difference {
                        changed: FieldSet::default(),
                        removed,
                    },
                );
            }
        }
        (Shape::Set | Shape::Keyed(_), Value::Array(old), Value::Array(new)) => {
            let (old, new) = (by_step(place, old)?, by_step(place, new)?);
            for (step, item) in &new {
                let below = match old.iter().find(|(s, _)| s == step) {
                    Some((_, old)) => compare(place.item(), old, item)?,
                    None => Difference {
                        changed: whole(place.item(), item)?,
                        removed: FieldSet::default(),
                    },
                };
                found.put(step.clone(), below);
            }
            for (step, item) in old
                .iter()
                .filter(|(step, _)| !new.iter().any(|(s, _)| s == step))
            {
                let removed = whole(place.item(), item)?;
                found.put(
                    step.clone(),
                    Difference {
                        changed: FieldSet::default(),
                        removed,
                    },
                );
            }
        }
        _ => found.changed.member = true,
    }
    Ok(found)
}

impl Difference {
    fn put(&mut self, step: String, below: Self) {
        self.changed.put(step.clone(), below.changed);
        self.removed.put(step, below.removed);
    }
}

/// A value's fields and the value itself.
fn whole(place: Place<'_>, value: &Value) -> Result<FieldSet, ApiError> {
    let mut set = fields_of(place, value)?;
    set.member = true;
    Ok(set)
}

fn by_step<'v>(place: Place<'_>, items: &'v [Value]) -> Result<Vec<(String, &'v Value)>, ApiError> {
    let step = |item: &Value| match place.shape() {
        Shape::Keyed(keys) => key_step(keys, item),
        _ => Ok(format!("v:{item}")),
    };
    items.iter().map(|item| Ok((step(item)?, item))).collect()
}

/// The step to an item of a keyed list. `protocol` is the one key that has a default.
fn key_step(keys: &[&str], item: &Value) -> Result<String, ApiError> {
    let mut found = Map::new();
    for key in keys {
        let value = match item.get(*key) {
            Some(value) => value.clone(),
            None if *key == "protocol" => json!("TCP"),
            None if keys.len() > 1 => continue,
            None => {
                return Err(ApiError::bad_request(format!(
                    "associative list with keys has an element that omits key field {key:?} (and doesn't have default value)"
                )));
            }
        };
        found.insert((*key).to_string(), value);
    }
    Ok(format!("k:{}", Value::Object(found)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::schema;

    fn pod_place(ty: &Type) -> Place<'_> {
        Place::root(schema(), ty)
    }

    #[test]
    fn fields_follow_the_types() {
        let ty = schema().type_of("io.k8s.api.core.v1.Pod");
        let pod = json!({"metadata": {"labels": {"a": "1"}, "finalizers": ["x/y"]},
            "spec": {"nodeSelector": {"k": "v"}, "containers": [{"name": "a", "args": ["1"], "ports": [{"containerPort": 80}],
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}], "volumes": [{"name": "v", "emptyDir": {}}]}});
        let want = json!({
            "f:metadata": {"f:labels": {"f:a": {}}, "f:finalizers": {"v:\"x/y\"": {}}},
            "f:spec": {
                "f:nodeSelector": {},
                "f:containers": {r#"k:{"name":"a"}"#: {".": {}, "f:name": {}, "f:args": {},
                    "f:ports": {r#"k:{"containerPort":80,"protocol":"TCP"}"#: {".": {}, "f:containerPort": {}}},
                    "f:env": {r#"k:{"name":"E"}"#: {".": {}, "f:name": {}, "f:valueFrom": {"f:secretKeyRef": {}}}}}},
                "f:volumes": {r#"k:{"name":"v"}"#: {".": {}, "f:name": {}, "f:emptyDir": {}}},
            },
        });
        assert_eq!(fields_of(pod_place(&ty), &pod).unwrap().to_json(), want);
    }

    #[test]
    fn order_keeps_what_stood_in_front() {
        let steps = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
        assert_eq!(merged_order(&steps("axb"), &steps("ab")).concat(), "axb");
        assert_eq!(merged_order(&steps("ab"), &steps("ba")).concat(), "ba");
        assert_eq!(merged_order(&steps("x"), &steps("ab")).concat(), "xab");
    }
}
