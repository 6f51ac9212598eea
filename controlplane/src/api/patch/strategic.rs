//! Strategic merge patch: a merge patch that knows the lists' merge keys.
//!
//! Lists with the strategy `merge` are matched by their key; other lists are replaced. Beside
//! plain values, a patch carries directives: `$patch: delete | replace | merge` in a map or a
//! list's item, `$retainKeys`, `$deleteFromPrimitiveList/<field>` and
//! `$setElementOrder/<field>`, all of which `kubectl apply` writes.
//! Source: Kubernetes' "Strategic Merge Patch" contributor document.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::api::status::ApiError;
use crate::schema::{Definition, Field, Schema, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Merges `patch` into `live`, an object of type `ty`.
///
/// # Errors
/// 400 for a malformed directive, 422 when a list's item lacks its key.
pub(super) fn apply(
    schema: &Schema,
    ty: &Type,
    live: Value,
    patch: Value,
) -> Result<Value, ApiError> {
    let (Value::Object(live), Value::Object(patch)) = (live, patch) else {
        return Err(ApiError::bad_request(
            "a strategic merge patch must be a JSON object",
        ));
    };
    let merge = Merge { schema };
    Ok(Value::Object(merge.map(live, patch, ty)?))
}

struct Merge<'s> {
    schema: &'s Schema,
}

impl<'s> Merge<'s> {
    fn map(
        &self,
        mut live: Map<String, Value>,
        mut patch: Map<String, Value>,
        ty: &Type,
    ) -> Result<Map<String, Value>, ApiError> {
        match patch.remove(DIRECTIVE) {
            None => {}
            Some(Value::String(directive)) => match directive.as_str() {
                "replace" => return Ok(without_directives_in(patch)),
                "delete" => return Ok(Map::new()),
                "merge" => {}
                other => return Err(unknown_directive(other)),
            },
            Some(other) => return Err(unknown_directive(&other.to_string())),
        }
        retain_keys(&mut live, &mut patch)?;

        let mut orders = BTreeMap::new();
        let mut plain = Vec::new();
        for (key, value) in patch {
            if let Some(field) = key.strip_prefix(ELEMENT_ORDER) {
                let Value::Array(order) = value else {
                    return Err(bad_list(&key));
                };
                orders.insert(field.to_string(), order);
            } else if let Some(field) = key.strip_prefix(DELETE_FROM) {
                let Value::Array(values) = value else {
                    return Err(bad_list(&key));
                };
                if let Some(Value::Array(items)) = live.get_mut(field) {
                    items.retain(|item| !values.contains(item));
                }
            } else {
                plain.push((key, value));
            }
        }
        let before: BTreeMap<&String, Vec<Value>> = orders
            .keys()
            .filter_map(|field| Some((field, live.get(field)?.as_array()?.clone())))
            .collect();

        for (key, change) in plain {
            let field = self.definition(ty).and_then(|d| d.field(&key));
            self.field(&mut live, key, change, field, ty)?;
        }

        for (field, order) in &orders {
            let key = self
                .definition(ty)
                .and_then(|d| d.field(field))
                .and_then(|f| f.patch.merge_key);
            if let Some(Value::Array(items)) = live.get_mut(field) {
                let before = before.get(field).map_or(&[][..], Vec::as_slice);
                *items = in_order(std::mem::take(items), order, before, key);
            }
        }
        Ok(live)
    }

    fn field(
        &self,
        live: &mut Map<String, Value>,
        key: String,
        change: Value,
        field: Option<&'s Field>,
        parent: &Type,
    ) -> Result<(), ApiError> {
        let ty = match parent {
            Type::Map(item) => item,
            _ => field.map_or(&Type::Any, |f| &f.ty),
        };
        let strategy = field.map(|f| f.patch).unwrap_or_default();
        match (live.remove(&key), change) {
            (_, Value::Null) => {}
            (Some(Value::Object(old)), Value::Object(new)) if !strategy.replace => {
                live.insert(key, Value::Object(self.map(old, new, ty)?));
            }
            (Some(Value::Array(old)), Value::Array(new)) if strategy.merge => {
                let merged = match strategy.merge_key {
                    Some(merge_key) => self.keyed_list(old, new, merge_key, ty)?,
                    None => union(old, new),
                };
                live.insert(key, Value::Array(merged));
            }
            (_, new) => {
                if let Some(new) = without_directives(new) {
                    live.insert(key, new);
                }
            }
        }
        Ok(())
    }

    fn keyed_list(
        &self,
        mut live: Vec<Value>,
        patch: Vec<Value>,
        key: &str,
        ty: &Type,
    ) -> Result<Vec<Value>, ApiError> {
        let item_type = match ty {
            Type::List(item) => item,
            _ => &Type::Any,
        };
        let before = live.clone();
        let mut changes = Vec::new();
        let mut replace = false;
        for item in patch {
            let Value::Object(mut item) = item else {
                return Err(ApiError::unprocessable(&format!(
                    "expected an object in a list merged by {key:?}"
                )));
            };
            match item.get(DIRECTIVE).and_then(Value::as_str) {
                None => changes.push(item),
                Some("merge") => {
                    item.remove(DIRECTIVE);
                    changes.push(item);
                }
                Some("delete") => {
                    let value = key_of(&item, key)?;
                    live.retain(|old| old.get(key) != Some(value));
                }
                Some("replace") => replace = true,
                Some(other) => return Err(unknown_directive(other)),
            }
        }
        if replace {
            return Ok(changes
                .into_iter()
                .map(|item| Value::Object(without_directives_in(item)))
                .collect());
        }

        let order: Vec<Value> = changes.iter().cloned().map(Value::Object).collect();
        for change in changes {
            let value = key_of(&change, key)?;
            let at = live.iter().position(|old| old.get(key) == Some(value));
            match at.map(|at| (at, live[at].take())) {
                Some((at, Value::Object(old))) => {
                    live[at] = Value::Object(self.map(old, change, item_type)?)
                }
                Some((at, _)) => live[at] = Value::Object(without_directives_in(change)),
                None => live.push(Value::Object(without_directives_in(change))),
            }
        }
        Ok(in_order(live, &order, &before, Some(key)))
    }

    fn definition(&self, ty: &Type) -> Option<&'s Definition> {
        match ty {
            Type::Struct(at) => Some(self.schema.at(*at)),
            _ => None,
        }
    }
}

/// Drops the live keys that `$retainKeys` does not name.
fn retain_keys(
    live: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(keys) = keys else {
        return Err(bad_list(RETAIN_KEYS));
    };
    let kept = |name: &String| keys.iter().any(|k| k.as_str() == Some(name));
    let stray =
        |(key, value): (&String, &Value)| !value.is_null() && !key.starts_with('$') && !kept(key);
    if patch.iter().any(stray) {
        return Err(ApiError::bad_request("invalid patch format of retainKeys"));
    }
    live.retain(|key, _| kept(key));
    Ok(())
}

/// Appends what is new; the first of equal values stays.
fn union(live: Vec<Value>, patch: Vec<Value>) -> Vec<Value> {
    let order = patch.clone();
    let before = live.clone();
    let mut merged: Vec<Value> = Vec::with_capacity(live.len() + patch.len());
    for item in live.into_iter().chain(patch) {
        if !merged.contains(&item) {
            merged.push(item);
        }
    }
    in_order(merged, &order, &before, None)
}

/// Puts the items that `order` names into its order, and the others where they stood among them
/// `before`: an item of the server's stays in front of a named one that it preceded.
fn in_order(items: Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let place = |item: &Value, list: &[Value]| list.iter().position(|other| same(item, other, key));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|i| place(i, order).is_some());
    named.sort_by_key(|item| place(item, order));
    others.sort_by_key(|item| place(item, before).unwrap_or(usize::MAX));

    let mut sorted = Vec::with_capacity(named.len() + others.len());
    let mut named = named.into_iter().peekable();
    for other in others {
        while let Some(next) = named.peek() {
            let other_first =
                matches!((place(&other, before), place(next, before)), (Some(o), Some(n)) if o < n);
            if other_first {
                break;
            }
            sorted.extend(named.next());
        }
        sorted.push(other);
    }
    sorted.extend(named);
    sorted
}

fn same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    }
}

fn key_of<'i>(item: &'i Map<String, Value>, key: &str) -> Result<&'i Value, ApiError> {
    item.get(key).ok_or_else(|| {
        let item = Value::Object(item.clone());
        ApiError::unprocessable(&format!(
            "map: {item} does not contain declared merge key: {key}"
        ))
    })
}

/// What remains of a value that the live object did not have: no directives, no nulls.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => Some(Value::Object(without_directives_in(map))),
        Value::Array(items) => Some(Value::Array(
            items.into_iter().filter_map(without_directives).collect(),
        )),
        other => Some(other),
    }
}

fn without_directives_in(map: Map<String, Value>) -> Map<String, Value> {
    let is_directive = |key: &str| {
        key == DIRECTIVE
            || key == RETAIN_KEYS
            || key.starts_with(DELETE_FROM)
            || key.starts_with(ELEMENT_ORDER)
    };
    map.into_iter()
        .filter(|(key, value)| !value.is_null() && !is_directive(key))
        .filter_map(|(key, value)| Some((key, without_directives(value)?)))
        .collect()
}

fn unknown_directive(given: &str) -> ApiError {
    ApiError::bad_request(format!("Unknown patch type found: {given}"))
}

fn bad_list(key: &str) -> ApiError {
    ApiError::bad_request(format!(
        "the value of {key:?} in a strategic merge patch must be a list"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::apply;
    use crate::schema::schema;

    fn deployment(live: Value, patch: Value) -> Value {
        let schema = schema();
        apply(
            schema,
            &schema.type_of("io.k8s.api.apps.v1.Deployment"),
            live,
            patch,
        )
        .unwrap()
    }

    /// Wraps a pod spec as a Deployment's template.
    fn template(spec: Value) -> Value {
        json!({"spec": {"template": {"spec": spec}}})
    }

    #[test]
    fn edits_one_containers_image() {
        let live = template(
            json!({"containers": [{"name": "a", "image": "1", "tty": true}, {"name": "b", "image": "1"}]}),
        );
        let patch = template(
            json!({"$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
            "containers": [{"name": "a", "image": "2"}]}),
        );
        let want = template(
            json!({"containers": [{"name": "a", "image": "2", "tty": true}, {"name": "b", "image": "1"}]}),
        );
        assert_eq!(deployment(live, patch), want);
    }

    #[test]
    fn removes_one_variable_and_keeps_the_order() {
        let env = |names: &[&str]| {
            names
                .iter()
                .map(|n| json!({"name": n, "value": "x"}))
                .collect::<Vec<_>>()
        };
        let live = template(json!({"containers": [{"name": "a", "env": env(&["A", "B", "C"])}]}));
        let patch = template(json!({"containers": [{"name": "a",
            "$setElementOrder/env": [{"name": "C"}, {"name": "A"}],
            "env": [{"name": "B", "$patch": "delete"}]}]}));
        assert_eq!(
            deployment(live, patch),
            template(json!({"containers": [{"name": "a", "env": env(&["C", "A"])}]}))
        );
    }

    #[test]
    fn adds_a_container_before_an_injected_one() {
        let live = template(json!({"containers": [{"name": "a"}, {"name": "sidecar"}]}));
        let patch = template(
            json!({"$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
            "containers": [{"name": "b", "image": "b", "env": null}]}),
        );
        let want = template(
            json!({"containers": [{"name": "a"}, {"name": "b", "image": "b"}, {"name": "sidecar"}]}),
        );
        assert_eq!(deployment(live, patch), want);
    }

    #[test]
    fn removes_a_container() {
        let live = template(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
        let patch = template(json!({"$setElementOrder/containers": [{"name": "b"}],
            "containers": [{"$patch": "delete", "name": "a"}]}));
        assert_eq!(
            deployment(live, patch),
            template(json!({"containers": [{"name": "b"}]}))
        );
    }

    #[test]
    fn changes_a_port() {
        let live = template(
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}),
        );
        let patch = template(json!({"containers": [{"name": "a",
            "$setElementOrder/ports": [{"containerPort": 8080}],
            "ports": [{"containerPort": 8080}, {"$patch": "delete", "containerPort": 80}]}]}));
        assert_eq!(
            deployment(live, patch),
            template(json!({"containers": [{"name": "a", "ports": [{"containerPort": 8080}]}]}))
        );
    }

    #[test]
    fn removes_a_label_and_drops_unmatched_nulls() {
        let live = json!({"metadata": {"labels": {"a": "1", "b": "2"}}});
        let patch =
            json!({"metadata": {"labels": {"b": null}, "annotations": {"x": null, "y": "1"}}});
        assert_eq!(
            deployment(live, patch),
            json!({"metadata": {"labels": {"a": "1"}, "annotations": {"y": "1"}}})
        );
    }

    #[test]
    fn retain_keys_clears_the_other_strategy() {
        let live = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(
            deployment(live, patch),
            json!({"spec": {"strategy": {"type": "Recreate"}}})
        );
    }

    #[test]
    fn changes_a_volumes_source() {
        let live = template(json!({"volumes": [{"name": "v", "emptyDir": {}}]}));
        let patch = template(
            json!({"volumes": [{"$retainKeys": ["name", "configMap"], "name": "v", "configMap": {"name": "c"}}]}),
        );
        assert_eq!(
            deployment(live, patch),
            template(json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]}))
        );
    }

    #[test]
    fn primitive_lists_merge_and_lose_items() {
        let live = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"],
            "$setElementOrder/finalizers": ["d", "a"], "finalizers": ["d"]}});
        assert_eq!(
            deployment(live, patch),
            json!({"metadata": {"finalizers": ["d", "a", "c"]}})
        );
    }

    #[test]
    fn lists_without_a_strategy_are_replaced() {
        let live = template(json!({"containers": [{"name": "a", "args": ["1", "2"]}]}));
        let patch = template(json!({"containers": [{"name": "a", "args": ["3"]}]}));
        assert_eq!(
            deployment(live, patch),
            template(json!({"containers": [{"name": "a", "args": ["3"]}]}))
        );
    }

    #[test]
    fn maps_and_lists_are_replaced_when_told() {
        let live = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"template": {"spec": {"containers": [{"name": "a"}]}}}});
        let patch = json!({"metadata": {"labels": {"$patch": "replace", "b": "2"}},
            "spec": {"template": {"spec": {"containers": [{"name": "b"}, {"$patch": "replace"}]}}}});
        assert_eq!(
            deployment(live, patch),
            json!({"metadata": {"labels": {"b": "2"}}, "spec": {"template": {"spec": {"containers": [{"name": "b"}]}}}})
        );
    }

    #[test]
    fn an_item_without_its_key_is_refused() {
        let schema = schema();
        let live = template(json!({"containers": [{"name": "a"}]}));
        let patch = template(json!({"containers": [{"image": "b"}]}));
        let result = apply(
            schema,
            &schema.type_of("io.k8s.api.apps.v1.Deployment"),
            live,
            patch,
        );
        let error = result.unwrap_err();
        assert_eq!(error.code, 422);
        assert!(
            error
                .message
                .ends_with("does not contain declared merge key: name")
        );
    }
}
