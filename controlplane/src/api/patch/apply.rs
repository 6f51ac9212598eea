//! Server-side apply: who owns which field, and what follows from it.
//!
//! A manager applies all that it wants of an object. What it wants is merged into the live
//! object; what it wanted last time, wants no more and nobody else owns, goes; and where it
//! would change a field of another manager, that is a conflict unless it forces its way.
//! Managers are tracked from an object's first apply on: fields that were there before belong to
//! `before-first-apply`. (KEP 555; `k8s.io/apimachinery/pkg/util/managedfields`.)

use serde_json::{Value, json};

use super::FieldManager;
use super::field_set::{Below, FieldSet};
use super::managers::{Manager, read, remove_managed_fields, write};
use super::typed::{Place, compare, fields_of, merge, prune};
use crate::api::status::{ApiError, Cause};
use crate::resources::Resource;
use crate::schema::{Type, schema};

const BEFORE: &str = "before-first-apply";

/// Fields of every object that nobody owns.
const UNOWNED: [&[&str]; 11] = [
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// The object that comes of `live` when the manager applies `applied`.
///
/// # Errors
/// 400 when `applied` has managed fields or is of another version, 409 with a cause for each
/// field that another manager owns, unless `force`.
pub(super) fn apply(
    resource: &Resource,
    live: Option<&Value>,
    applied: &Value,
    manager: &FieldManager,
    force: bool,
) -> Result<Value, ApiError> {
    check(resource, applied)?;
    let ty = schema().type_of(resource.schema);
    let place = Place::root(schema(), &ty);
    let empty = json!({});
    let live = live.unwrap_or(&empty);
    let mut managers = read(live);
    if managers.is_empty() {
        managers.extend(before_first_apply(place, resource, live)?);
    }

    let mut wanted = fields_of(place, applied)?;
    exclude(&mut wanted, manager.subresource);
    let identity = identity(resource, manager, "Apply");
    let others = |m: &&mut Manager| !m.is(&identity);
    let last = managers
        .iter()
        .find(|m| m.is(&identity))
        .map(|m| m.fields.clone());

    let mut base = live.clone();
    remove_managed_fields(&mut base);
    let mut merged = merge(place, &base, applied)?;
    if let Some(last) = &last {
        let mut owned = wanted.clone();
        managers
            .iter()
            .filter(|m| !m.is(&identity))
            .for_each(|m| owned.union(&m.fields));
        prune(place, &mut merged, last, &owned)?;
    }

    let mut difference = compare(place, &base, &merged)?;
    exclude(&mut difference.changed, manager.subresource);
    let conflicts: Vec<(String, FieldSet)> = managers
        .iter_mut()
        .filter(others)
        .map(|m| (m.described(), m.fields.intersection(&difference.changed)))
        .filter(|(_, fields)| !fields.is_empty())
        .collect();
    if !force && !conflicts.is_empty() {
        return Err(conflict(&conflicts));
    }
    for other in managers.iter_mut().filter(others) {
        other.fields.subtract(&difference.changed);
        other.fields.subtract(&difference.removed);
    }

    strip(&mut wanted);
    let time = match managers.iter().find(|m| m.is(&identity)) {
        Some(before) if before.fields == wanted => before.time.clone(),
        _ => identity.time.clone(),
    };
    managers.retain(|m| !m.is(&identity));
    managers.push(Manager {
        fields: wanted,
        time,
        ..identity
    });
    write(&mut merged, managers);
    Ok(merged)
}

/// Records what an update changed, once managers are tracked.
pub(super) fn record_update(
    resource: &Resource,
    old: Option<&Value>,
    new: &mut Value,
    manager: &FieldManager,
) {
    let given = new
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array);
    // A single empty entry asks for the tracking to be forgotten.
    if given.is_some_and(|list| list.len() == 1 && list[0] == json!({})) {
        remove_managed_fields(new);
        return;
    }
    let mut managers = read(new);
    if managers.is_empty() {
        managers = old.map(read).unwrap_or_default();
    }
    if managers.is_empty() {
        remove_managed_fields(new);
        return;
    }
    let before = managers.clone();
    remove_managed_fields(new);
    if let Ok(managers) = updated(resource, old, new, managers, manager) {
        write(new, managers);
    } else {
        // An object that does not fit its type is refused by validation; who owns it stays.
        write(new, before);
    }
}

fn updated(
    resource: &Resource,
    old: Option<&Value>,
    new: &Value,
    mut managers: Vec<Manager>,
    manager: &FieldManager,
) -> Result<Vec<Manager>, ApiError> {
    let ty: Type = schema().type_of(resource.schema);
    let place = Place::root(schema(), &ty);
    let mut base = old.cloned().unwrap_or_else(|| json!({}));
    remove_managed_fields(&mut base);
    let mut difference = compare(place, &base, new)?;
    exclude(&mut difference.changed, manager.subresource);
    strip(&mut difference.changed);

    let identity = identity(resource, manager, "Update");
    for other in managers.iter_mut().filter(|m| !m.is(&identity)) {
        other.fields.subtract(&difference.changed);
        other.fields.subtract(&difference.removed);
    }
    let own = managers.iter_mut().find(|m| m.is(&identity));
    match own {
        Some(own) => {
            let before = own.fields.clone();
            own.fields.subtract(&difference.removed);
            own.fields.union(&difference.changed);
            if own.fields != before {
                own.time = identity.time;
            }
        }
        None => managers.push(Manager {
            fields: difference.changed,
            ..identity
        }),
    }
    Ok(managers)
}

fn check(resource: &Resource, applied: &Value) -> Result<(), ApiError> {
    let version = applied["apiVersion"].as_str().unwrap_or_default();
    if version != resource.api_version() {
        return Err(ApiError::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {}",
            resource.api_version()
        )));
    }
    if applied.pointer("/metadata/managedFields").is_some() {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    Ok(())
}

/// The manager of what existed before anybody applied; none for a new object.
fn before_first_apply(
    place: Place<'_>,
    resource: &Resource,
    live: &Value,
) -> Result<Option<Manager>, ApiError> {
    if live.get("metadata").is_none() {
        return Ok(None);
    }
    let mut existing = live.clone();
    remove_managed_fields(&mut existing);
    let mut fields = fields_of(place, &existing)?;
    exclude(&mut fields, "");
    strip(&mut fields);
    let time = live["metadata"]["creationTimestamp"]
        .as_str()
        .unwrap_or_default()
        .to_string();
    Ok(Some(Manager {
        name: BEFORE.into(),
        operation: "Update".into(),
        api_version: resource.api_version(),
        subresource: String::new(),
        time,
        fields,
    }))
}

fn identity(resource: &Resource, manager: &FieldManager, operation: &str) -> Manager {
    Manager {
        name: manager.name.clone(),
        operation: operation.into(),
        api_version: resource.api_version(),
        subresource: manager.subresource.into(),
        time: manager.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        fields: FieldSet::default(),
    }
}

/// What a surface may not change belongs to nobody who writes through it.
fn exclude(fields: &mut FieldSet, subresource: &str) {
    match subresource {
        "status" => fields.remove(&["spec"], Below::Too),
        _ => fields.remove(&["status"], Below::Too),
    }
}

fn strip(fields: &mut FieldSet) {
    for path in UNOWNED {
        fields.remove(path, Below::Kept);
    }
}

fn conflict(conflicts: &[(String, FieldSet)]) -> ApiError {
    let mut causes = Vec::new();
    for (manager, fields) in conflicts {
        causes.extend(fields.paths().into_iter().map(|field| Cause {
            reason: "FieldManagerConflict".into(),
            message: format!("conflict with {manager}"),
            field,
        }));
    }
    let message = match causes.as_slice() {
        [one] => format!(
            "Apply failed with 1 conflict: {}: {}",
            one.message, one.field
        ),
        many => {
            let mut lines = Vec::new();
            for (manager, fields) in conflicts {
                lines.push(format!("conflicts with {manager}:"));
                lines.extend(fields.paths().iter().map(|path| format!("- {path}")));
            }
            format!(
                "Apply failed with {} conflicts: {}",
                many.len(),
                lines.join("\n")
            )
        }
    };
    ApiError::apply_conflict(causes, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::registry;

    fn manager(name: &str) -> FieldManager {
        FieldManager {
            name: name.into(),
            subresource: "",
            now: "2024-01-01T00:00:00Z".parse().unwrap(),
        }
    }

    fn deployment(spec: Value) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "default"}, "spec": spec})
    }

    fn applied(
        live: Option<&Value>,
        config: &Value,
        name: &str,
        force: bool,
    ) -> Result<Value, ApiError> {
        let registry = registry();
        let resource = registry.get("apps", "v1", "deployments").unwrap();
        apply(resource, live, config, &manager(name), force)
    }

    fn fields(object: &Value, name: &str) -> Value {
        let list = object["metadata"]["managedFields"].as_array().unwrap();
        list.iter()
            .find(|m| m["manager"] == name)
            .map_or(Value::Null, |m| m["fieldsV1"].clone())
    }

    #[test]
    fn the_first_apply_owns_what_it_says() {
        let object = applied(None, &deployment(json!({"replicas": 2})), "a", false).unwrap();
        assert_eq!(
            object["metadata"]["managedFields"],
            json!([{"manager": "a", "operation": "Apply", "apiVersion": "apps/v1", "time": "2024-01-01T00:00:00Z",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}}])
        );
    }

    #[test]
    fn what_is_no_longer_applied_goes() {
        let env = |names: &[&str]| -> Value {
            names
                .iter()
                .map(|n| json!({"name": n, "value": "x"}))
                .collect()
        };
        let config = |names: &[&str]| {
            deployment(
                json!({"template": {"spec": {"containers": [{"name": "c", "image": "i", "env": env(names)}]}}}),
            )
        };
        let first = applied(None, &config(&["A", "B"]), "a", false).unwrap();
        let second = applied(Some(&first), &config(&["B"]), "a", false).unwrap();
        assert_eq!(
            second["spec"]["template"]["spec"]["containers"][0]["env"],
            env(&["B"])
        );
        let none = applied(
            Some(&second),
            &deployment(json!({"replicas": 1})),
            "a",
            false,
        )
        .unwrap();
        assert_eq!(none["spec"], json!({"replicas": 1}));
    }

    #[test]
    fn defaults_of_nobodys_stay() {
        let config = deployment(
            json!({"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}),
        );
        let mut live = applied(None, &config, "a", false).unwrap();
        live["spec"]["replicas"] = json!(1);
        live["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
        let again = applied(Some(&live), &config, "a", false).unwrap();
        assert_eq!(again, live);
    }

    #[test]
    fn another_managers_field_is_a_conflict() {
        let live = applied(
            None,
            &deployment(json!({"replicas": 1, "paused": true})),
            "a",
            false,
        )
        .unwrap();
        let error =
            applied(Some(&live), &deployment(json!({"replicas": 2})), "b", false).unwrap_err();
        assert_eq!((error.code, error.reason), (409, "Conflict"));
        assert_eq!(
            error.message,
            "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas"
        );
        let cause = &error.details.unwrap().causes[0];
        assert_eq!(
            (cause.reason.as_str(), cause.field.as_str()),
            ("FieldManagerConflict", ".spec.replicas")
        );

        let forced = applied(Some(&live), &deployment(json!({"replicas": 2})), "b", true).unwrap();
        assert_eq!(forced["spec"], json!({"replicas": 2, "paused": true}));
        assert_eq!(fields(&forced, "a"), json!({"f:spec": {"f:paused": {}}}));
        assert_eq!(fields(&forced, "b"), json!({"f:spec": {"f:replicas": {}}}));
    }

    #[test]
    fn the_same_value_is_shared() {
        let live = applied(None, &deployment(json!({"replicas": 1})), "a", false).unwrap();
        let shared = applied(Some(&live), &deployment(json!({"replicas": 1})), "b", false).unwrap();
        let left = applied(Some(&shared), &deployment(json!({})), "a", false).unwrap();
        assert_eq!(left["spec"], json!({"replicas": 1}), "b still owns it");
    }

    #[test]
    fn what_was_there_before_belongs_to_nobody_in_particular() {
        let mut live = deployment(json!({"replicas": 1}));
        live["metadata"]["creationTimestamp"] = json!("2023-01-01T00:00:00Z");
        let error =
            applied(Some(&live), &deployment(json!({"replicas": 2})), "a", false).unwrap_err();
        assert_eq!(
            error.message,
            "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1: .spec.replicas"
        );
    }

    #[test]
    fn updates_take_fields_over_once_tracked() {
        let registry = registry();
        let resource = registry.get("apps", "v1", "deployments").unwrap();
        let live = applied(
            None,
            &deployment(json!({"replicas": 1, "paused": true})),
            "a",
            false,
        )
        .unwrap();
        let mut scaled = live.clone();
        scaled["spec"]["replicas"] = json!(5);
        record_update(resource, Some(&live), &mut scaled, &manager("kubectl"));
        assert_eq!(fields(&scaled, "a"), json!({"f:spec": {"f:paused": {}}}));
        assert_eq!(
            fields(&scaled, "kubectl"),
            json!({"f:spec": {"f:replicas": {}}})
        );

        let plain = deployment(json!({"replicas": 1}));
        let mut changed = deployment(json!({"replicas": 2}));
        record_update(resource, Some(&plain), &mut changed, &manager("kubectl"));
        assert_eq!(
            changed["metadata"].get("managedFields"),
            None,
            "nothing is tracked before an apply"
        );
    }
}
