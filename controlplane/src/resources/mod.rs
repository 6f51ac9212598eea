//! One declaration for each resource that the API serves.
//!
//! A [`Resource`] says all that the generic request pipeline (`crate::api`) needs to know of
//! a kind: its names, how a new object is completed and checked, what may change, how it
//! prints. The [`Registry`] is a value, so that it can grow at run time. Objects are dynamic
//! JSON here; their structure comes from the generated `schema` table.

pub(crate) mod certificates;
mod configmaps;
mod deployments;
pub(crate) mod drill_tasks;
mod drills;
mod endpoints;
mod endpointslices;
pub(crate) mod error;
mod events;
mod leases;
mod metadata;
mod namespaces;
mod nodes;
pub(crate) mod object;
mod pod_disruption_budgets;
mod pod_spec;
pub(crate) mod pods;
mod print;
pub(crate) mod priorityclasses;
pub mod quantity;
mod rbac;
mod replicasets;
mod reviews;
mod secrets;
mod serviceaccounts;
pub(crate) mod services;
pub(crate) mod syntax;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

/// Everything that the pipeline knows of one served resource.
#[derive(Clone)]
pub struct Resource {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    /// The definition in the schema table, as `io.k8s.api.core.v1.Pod`.
    pub schema: &'static str,
    pub has_status: bool,
    /// Whether its objects are approved or denied, by the subresource `approval`.
    pub has_approval: bool,
    pub scale: Option<Scale>,
    /// Whether `metadata.generation` counts changes of everything but metadata and status.
    pub has_generation: bool,
    pub hooks: Hooks,
    pub columns: &'static [Column],
    /// A row's cells, one for each of `columns`, given the object and the time now.
    pub row: fn(&Value, jiff::Timestamp) -> Vec<Value>,
    /// Fields that a field selector may name, beside `metadata.name` and `metadata.namespace`.
    pub selectable_fields: &'static [SelectableField],
    /// Objects whose loss costs little are still durable, but may be collected by age
    /// (Events: an hour).
    pub time_to_live: Option<std::time::Duration>,
    /// This resource is another way to see the objects that a second one stores.
    pub stored_as: Option<StoredAs>,
    /// Its objects are questions: creating one gives the answer, and nothing is stored.
    pub question: bool,
    /// What every client of it is warned of.
    pub deprecated: Option<&'static str>,
}

/// A resource without storage of its own: its objects are those of another resource, seen
/// in another shape (`events.k8s.io` Events are core Events; a kind's older version).
///
/// Its `selectable_fields` are those of the storing resource, in the same order, by its own
/// names.
#[derive(Clone, Copy)]
pub struct StoredAs {
    /// The group and plural name of the resource that stores.
    pub group: &'static str,
    pub plural: &'static str,
    /// Turns an object of this resource into one of the storing resource, `apiVersion` and
    /// `kind` included.
    pub to_stored: fn(&mut Value),
    /// The other way.
    pub from_stored: fn(&mut Value),
}

/// What a resource adds to the pipeline. Each has a default that does nothing.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// Fills in Kubernetes' defaults, on every write, after decoding.
    pub default: fn(&mut Value),
    /// Clears or sets what a client may not choose when it creates (status, phases).
    pub prepare_create: fn(&mut Value),
    /// Carries over what an update of the main resource may not change (status).
    pub prepare_update: fn(new: &mut Value, old: &Value),
    pub validate: fn(&Value) -> Vec<FieldError>,
    pub validate_update: fn(new: &Value, old: &Value) -> Vec<FieldError>,
    /// What is wrong with what a client wrote through the status subresource.
    pub validate_status: fn(&Value) -> Vec<FieldError>,
    /// What is right in an object that is written, and still unlikely to be what was meant.
    pub warnings: Option<fn(&Value) -> Vec<String>>,
    /// How many seconds a delete waits when the client names none; `None`: at once.
    pub default_grace_period: fn(&Value) -> Option<i64>,
}

/// Where the scale subresource's numbers stand in the object.
#[derive(Clone, Copy)]
pub struct Scale {
    pub replicas: &'static str,
    pub status_replicas: &'static str,
    pub selector: &'static str,
}

/// A column of the server-side table.
#[derive(Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `date` ...
    pub kind: &'static str,
    /// `name` for the object's name, else empty.
    pub format: &'static str,
    pub description: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: i32,
}

/// A field that a field selector may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelectableField {
    /// As selectors name it.
    pub name: &'static str,
    /// Where it stands in the object, dotted.
    pub path: &'static str,
    /// What it reads as when the object does not have it.
    pub absent: &'static str,
}

impl SelectableField {
    pub const fn text(path: &'static str) -> Self {
        Self {
            name: path,
            path,
            absent: "",
        }
    }

    pub const fn truth(path: &'static str) -> Self {
        Self {
            name: path,
            path,
            absent: "false",
        }
    }

    pub const fn number(path: &'static str) -> Self {
        Self {
            name: path,
            path,
            absent: "0",
        }
    }

    /// Selected by a name of its own.
    pub const fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }
}

/// Why a field was refused, in the API server's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// `FieldValueRequired`, `FieldValueInvalid`, `FieldValueNotSupported`,
    /// `FieldValueDuplicate`, `FieldValueForbidden`, `FieldValueTypeInvalid` ...
    pub reason: &'static str,
    /// As `spec.containers[0].image`.
    pub field: String,
    /// As `Required value: must be specified`.
    pub message: String,
}

impl Hooks {
    /// Nothing is completed, everything is right, and a delete does not wait.
    pub const NONE: Self = Self {
        default: |_| {},
        prepare_create: |_| {},
        prepare_update: |_, _| {},
        validate: |_| Vec::new(),
        validate_update: |_, _| Vec::new(),
        validate_status: |_| Vec::new(),
        warnings: None,
        default_grace_period: |_| None,
    };
}

impl Resource {
    /// A resource in namespaces with nothing but its names, which prints name and age.
    const fn namespaced(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        schema: &'static str,
    ) -> Self {
        Self {
            group,
            version,
            kind,
            plural,
            singular: "",
            short_names: &[],
            categories: &[],
            namespaced: true,
            schema,
            has_status: false,
            has_approval: false,
            scale: None,
            has_generation: false,
            hooks: Hooks::NONE,
            columns: &[print::NAME, print::AGE],
            row: |object, now| vec![print::name(object), print::age(object, now)],
            selectable_fields: &[],
            time_to_live: None,
            stored_as: None,
            question: false,
            deprecated: None,
        }
    }

    /// The same outside of namespaces.
    const fn cluster_scoped(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        schema: &'static str,
    ) -> Self {
        Self {
            namespaced: false,
            ..Self::namespaced(group, version, kind, plural, schema)
        }
    }

    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `apps/deployments`, or `core/pods`: where its objects are stored.
    pub fn storage_id(&self) -> String {
        let (group, plural) = match &self.stored_as {
            Some(view) => (view.group, view.plural),
            None => (self.group, self.plural),
        };
        let group = if group.is_empty() { "core" } else { group };
        format!("{group}/{plural}")
    }

    /// `deployments.apps`, or `pods`: how `Status` messages name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_string()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }
}

/// The resources that are served, by group, version and plural name.
#[derive(Clone, Default)]
pub struct Registry {
    by_path: BTreeMap<(String, String, String), Arc<Resource>>,
}

impl Registry {
    pub fn add(&mut self, resource: Resource) {
        let key = (
            resource.group.to_string(),
            resource.version.to_string(),
            resource.plural.to_string(),
        );
        self.by_path.insert(key, Arc::new(resource));
    }

    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.by_path
            .get(&(group.to_string(), version.to_string(), plural.to_string()))
    }

    /// The resource that stores the objects of this one: itself, unless it is a view.
    pub fn storing(&self, resource: &Arc<Resource>) -> Option<Arc<Resource>> {
        let Some(view) = &resource.stored_as else {
            return Some(resource.clone());
        };
        self.iter()
            .find(|r| r.group == view.group && r.plural == view.plural && r.stored_as.is_none())
            .cloned()
    }

    /// In the order of group, version and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_path.values()
    }
}

/// Every built-in resource.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    for resource in [
        certificates::resource(),
        configmaps::resource(),
        deployments::resource(),
        drill_tasks::resource(),
        drills::resource(),
        endpoints::resource(),
        endpointslices::resource(),
        leases::resource(),
        namespaces::resource(),
        nodes::resource(),
        pod_disruption_budgets::resource(),
        pods::resource(),
        priorityclasses::resource(),
        replicasets::resource(),
        secrets::resource(),
        serviceaccounts::resource(),
        services::resource(),
    ] {
        registry.add(resource);
    }
    let more = events::resources().into_iter().chain(rbac::resources());
    for resource in more.chain(reviews::resources()) {
        registry.add(resource);
    }
    registry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::schema;

    #[test]
    fn declarations_agree_with_the_schema() {
        let now = jiff::Timestamp::now();
        for resource in registry().iter() {
            let definition = schema().get(resource.schema).expect(resource.schema);
            let named = (resource.group, resource.version, resource.kind);
            assert_eq!(definition.gvk, Some(named));
            assert_eq!(resource.singular, resource.kind.to_lowercase());
            assert_eq!(
                (resource.row)(&Value::Null, now).len(),
                resource.columns.len(),
                "{}",
                resource.plural
            );
        }
    }
}
