//! How much a pod matters: the number that its PriorityClass stands for, and at most one class
//! for pods that name none (the admission plugin `Priority`).

use serde::Deserialize;
use serde_json::{Value, json};

use super::Request;
use crate::api::object::Object;
use crate::api::status::ApiError;
use crate::cache::{Cache, Scope};
use crate::resources::object::{at, ensure, text, truth};
use crate::store::Key;

const GROUP: &str = "scheduling.k8s.io";
const PLURAL: &str = "priorityclasses";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PriorityClass {
    metadata: Metadata,
    #[serde(default)]
    value: i64,
    #[serde(default)]
    global_default: bool,
    preemption_policy: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

/// # Errors
/// 403 when a pod's class does not exist or says otherwise than the pod, and when a second class
/// is to be the default.
pub(super) fn admit(request: &Request<'_>, object: &mut Value) -> Result<(), ApiError> {
    match (request.resource.group, request.resource.plural) {
        ("", "pods") if request.old.is_none() => {
            let completed = complete(object, request.cache);
            completed.map_err(|why| ApiError::forbidden(request.resource, object.name(), &why))
        }
        (GROUP, PLURAL) if truth(object, "globalDefault") => only_default(request, object),
        _ => Ok(()),
    }
}

fn complete(pod: &mut Value, cache: &Cache) -> Result<(), String> {
    let named = text(pod, "spec.priorityClassName").to_string();
    let class = match named.as_str() {
        "" => default_class(cache),
        name => {
            let found = class(cache, name);
            Some(found.ok_or_else(|| format!("no PriorityClass with name {name} was found"))?)
        }
    };
    let priority = class.as_ref().map_or(0, |class| class.value);
    let policy = class.as_ref().and_then(|c| c.preemption_policy.as_deref());
    let policy = policy.unwrap_or("PreemptLowerPriority");
    let stated = at(pod, "spec.priority").as_i64();
    if let Some(stated) = stated.filter(|stated| *stated != priority) {
        return Err(format!(
            "the integer value of priority ({stated}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
        ));
    }
    let stated = text(pod, "spec.preemptionPolicy");
    if !stated.is_empty() && stated != policy {
        return Err(format!(
            "the string value of PreemptionPolicy ({stated}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        ));
    }
    let spec = ensure(pod, "spec");
    if let Some(class) = &class {
        spec["priorityClassName"] = json!(class.metadata.name);
    }
    spec["priority"] = json!(priority);
    spec["preemptionPolicy"] = json!(policy);
    Ok(())
}

fn only_default(request: &Request<'_>, object: &Value) -> Result<(), ApiError> {
    let other = default_class(request.cache);
    let Some(other) = other.filter(|other| other.metadata.name != object.name()) else {
        return Ok(());
    };
    let why = format!(
        "PriorityClass {} is already marked as default. Only one default can exist",
        other.metadata.name
    );
    Err(ApiError::forbidden(request.resource, object.name(), &why))
}

fn class(cache: &Cache, name: &str) -> Option<PriorityClass> {
    let entry = cache.get(&Key::new(GROUP, PLURAL, "", name))?;
    serde_json::from_slice(&entry.bytes).ok()
}

/// Of several, which is only possible for a moment, the one with the lowest value.
fn default_class(cache: &Cache) -> Option<PriorityClass> {
    let shelf = cache.shelf(&format!("{GROUP}/{PLURAL}"));
    let all = shelf.all(&Scope::everything()).into_iter();
    all.filter_map(|entry| serde_json::from_slice::<PriorityClass>(&entry.bytes).ok())
        .filter(|class| class.global_default)
        .min_by_key(|class| class.value)
}
