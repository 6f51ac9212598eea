//! The definitions of an OpenAPI document: the schema table's, and what they reach.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Flavor;
use crate::schema::{Definition, Field, ListKind, Type, describe, schema};

const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";

/// Collects the definitions that a document refers to.
pub(super) struct Components {
    flavor: Flavor,
    found: BTreeMap<String, Value>,
}

impl Components {
    pub(super) fn new(flavor: Flavor) -> Self {
        Self {
            flavor,
            found: BTreeMap::new(),
        }
    }

    pub(super) fn flavor(&self) -> Flavor {
        self.flavor
    }

    pub(super) fn finish(self) -> Map<String, Value> {
        self.found.into_iter().collect()
    }

    /// A reference to a definition of the table, as `io.k8s.api.core.v1.Pod`, which is added
    /// with all that it reaches; any object where the table has none.
    pub(super) fn reference(&mut self, full_name: &str) -> Value {
        match schema().get(full_name) {
            Some(definition) => {
                self.add(definition);
                self.link(full_name)
            }
            None => json!({"type": "object"}),
        }
    }

    fn link(&self, name: &str) -> Value {
        match self.flavor {
            Flavor::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Flavor::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }

    fn add(&mut self, definition: &'static Definition) {
        let name = definition.full_name();
        if self.found.contains_key(&name) {
            return;
        }
        // Definitions may be recursive: the name is taken before its fields are walked.
        self.found.insert(name.clone(), Value::Null);
        let properties: Map<String, Value> = definition
            .fields
            .iter()
            .map(|field| {
                let mut property = self.property(field);
                self.say(&mut property, describe(definition, Some(field.name)));
                (field.name.to_string(), property)
            })
            .collect();
        let required: Vec<&str> = definition
            .fields
            .iter()
            .filter(|f| f.required)
            .map(|f| f.name)
            .collect();

        let mut described = json!({"type": "object", "properties": properties});
        self.say(&mut described, describe(definition, None));
        if !required.is_empty() {
            described["required"] = json!(required);
        }
        if let Some((group, version, kind)) = definition.gvk {
            let gvk = json!([{"group": group, "version": version, "kind": kind}]);
            described["x-kubernetes-group-version-kind"] = gvk;
        }
        if definition.atomic {
            described["x-kubernetes-map-type"] = json!("atomic");
        }
        self.found.insert(name, described);
    }

    fn say(&self, described: &mut Value, prose: Option<&str>) {
        let Some(prose) = prose else { return };
        // Beside a plain reference nothing else may stand.
        if described.get("$ref").is_none() {
            described["description"] = json!(prose);
        }
    }

    fn property(&mut self, field: &Field) -> Value {
        let mut described = self.of_type(&field.ty);
        let mut strategies = Vec::new();
        for (strategy, set) in [
            ("merge", field.patch.merge),
            ("replace", field.patch.replace),
            ("retainKeys", field.patch.retain_keys),
        ] {
            strategies.extend(set.then_some(strategy));
        }
        if !strategies.is_empty() {
            described["x-kubernetes-patch-strategy"] = json!(strategies.join(","));
        }
        if let Some(key) = field.patch.merge_key {
            described["x-kubernetes-patch-merge-key"] = json!(key);
        }
        if matches!(field.ty, Type::List(_)) {
            let (kind, keys) = match &field.list {
                ListKind::Atomic => ("atomic", None),
                ListKind::Set => ("set", None),
                ListKind::Map(keys) => ("map", Some(keys)),
            };
            described["x-kubernetes-list-type"] = json!(kind);
            if let Some(keys) = keys {
                described["x-kubernetes-list-map-keys"] = json!(keys);
            }
        }
        if field.atomic {
            described["x-kubernetes-map-type"] = json!("atomic");
        }
        described
    }

    fn of_type(&mut self, ty: &Type) -> Value {
        match ty {
            Type::Any => json!({"type": "object"}),
            Type::String => json!({"type": "string"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::Bool => json!({"type": "boolean"}),
            Type::Int32 => json!({"type": "integer", "format": "int32"}),
            Type::Int64 => json!({"type": "integer", "format": "int64"}),
            Type::Double => json!({"type": "number", "format": "double"}),
            Type::Time => self.value(TIME, json!({"type": "string", "format": "date-time"})),
            Type::MicroTime => {
                self.value(MICRO_TIME, json!({"type": "string", "format": "date-time"}))
            }
            Type::Quantity => {
                let described = match self.flavor {
                    Flavor::V2 => json!({"type": "string"}),
                    Flavor::V3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
                };
                self.value(QUANTITY, described)
            }
            Type::IntOrString => {
                let described = match self.flavor {
                    Flavor::V2 => json!({"type": "string", "format": "int-or-string"}),
                    Flavor::V3 => {
                        json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
                    }
                };
                self.value(INT_OR_STRING, described)
            }
            Type::List(item) => json!({"type": "array", "items": self.of_type(item)}),
            Type::Map(item) => {
                json!({"type": "object", "additionalProperties": self.of_type(item)})
            }
            Type::Struct(at) => {
                let definition = schema().at(*at);
                self.add(definition);
                self.nested(&definition.full_name())
            }
        }
    }

    fn value(&mut self, name: &str, described: Value) -> Value {
        self.found.entry(name.to_string()).or_insert(described);
        self.nested(name)
    }

    /// A reference beside which other keywords may stand.
    fn nested(&self, name: &str) -> Value {
        match self.flavor {
            Flavor::V2 => self.link(name),
            Flavor::V3 => json!({"allOf": [self.link(name)], "default": {}}),
        }
    }
}
