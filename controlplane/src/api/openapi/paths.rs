//! The paths of an OpenAPI document: what each resource takes and gives.

use serde_json::{Map, Value, json};

use super::Flavor;
use super::components::Components;
use crate::api::discovery;
use crate::resources::Resource;

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";

const JSON: &str = "application/json";
const WATCH: &str = "application/json;stream=watch";
const PATCHES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

const LISTING: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITING: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("fieldManager", "string"),
    ("fieldValidation", "string"),
];
const PATCHING: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("fieldManager", "string"),
    ("fieldValidation", "string"),
    ("force", "boolean"),
];
const DELETING: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

/// `/api/v1` or `/apis/<group>/<version>`.
pub(super) fn root(resource: &Resource) -> String {
    match resource.group {
        "" => format!("/api/{}", resource.version),
        group => format!("/apis/{group}/{}", resource.version),
    }
}

/// Adds a resource's paths.
pub(super) fn add(
    paths: &mut Map<String, Value>,
    resource: &Resource,
    components: &mut Components,
) {
    let base = root(resource);
    let collection = match resource.namespaced {
        true => format!("{base}/namespaces/{{namespace}}/{}", resource.plural),
        false => format!("{base}/{}", resource.plural),
    };
    let one = format!("{collection}/{{name}}");
    let mut writer = Writer {
        resource,
        components,
    };
    paths.insert(collection, writer.collection());
    if resource.question {
        return;
    }
    paths.insert(one.clone(), writer.item(resource.schema, "", true));
    if resource.has_approval {
        paths.insert(
            format!("{one}/approval"),
            writer.item(resource.schema, "Approval", false),
        );
    }
    if resource.has_status {
        paths.insert(
            format!("{one}/status"),
            writer.item(resource.schema, "Status", false),
        );
    }
    if resource.scale.is_some() {
        paths.insert(format!("{one}/scale"), writer.item(SCALE, "Scale", false));
    }
    if resource.namespaced {
        paths.insert(format!("{base}/{}", resource.plural), writer.everywhere());
    }
}

struct Writer<'a> {
    resource: &'a Resource,
    components: &'a mut Components,
}

/// One operation, before it takes its flavor's form.
struct Operation {
    verb: &'static str,
    action: &'static str,
    /// What stands behind the kind in the operation's id.
    suffix: &'static str,
    /// Whether it has no namespace although its resource does.
    everywhere: bool,
    parameters: &'static [(&'static str, &'static str)],
    body: Option<String>,
    answer: String,
}

impl Writer<'_> {
    fn collection(&mut self) -> Value {
        let mut path = self.with_path_parameters(&["namespace"]);
        if !self.resource.question {
            let list = format!("{}List", self.resource.schema);
            path["get"] = self.operation(&Operation {
                parameters: LISTING,
                ..self.plain("list", "list", list)
            });
        }
        let create = self.plain("create", "post", self.resource.schema.into());
        path["post"] = self.operation(&Operation {
            parameters: WRITING,
            body: Some(self.resource.schema.into()),
            ..create
        });
        if discovery::verbs(self.resource).contains(&"deletecollection") {
            let delete = self.plain("deleteCollection", "deletecollection", STATUS.into());
            path["delete"] = self.operation(&Operation {
                parameters: DELETING,
                body: Some(DELETE_OPTIONS.into()),
                ..delete
            });
        }
        path
    }

    fn everywhere(&mut self) -> Value {
        let list = format!("{}List", self.resource.schema);
        let operation = self.plain("list", "list", list);
        let get = self.operation(&Operation {
            parameters: LISTING,
            suffix: "ForAllNamespaces",
            everywhere: true,
            ..operation
        });
        json!({ "get": get })
    }

    fn item(&mut self, schema: &str, suffix: &'static str, whole: bool) -> Value {
        let mut path = self.with_path_parameters(&["name", "namespace"]);
        let schema = schema.to_string();
        path["get"] = self.operation(&Operation {
            suffix,
            ..self.plain("read", "get", schema.clone())
        });
        path["put"] = self.operation(&Operation {
            suffix,
            parameters: WRITING,
            body: Some(schema.clone()),
            ..self.plain("replace", "put", schema.clone())
        });
        path["patch"] = self.operation(&Operation {
            suffix,
            parameters: PATCHING,
            ..self.plain("patch", "patch", schema)
        });
        if whole {
            path["delete"] = self.operation(&Operation {
                parameters: DELETING,
                body: Some(DELETE_OPTIONS.into()),
                ..self.plain("delete", "delete", STATUS.into())
            });
        }
        path
    }

    fn plain(&self, verb: &'static str, action: &'static str, answer: String) -> Operation {
        Operation {
            verb,
            action,
            suffix: "",
            everywhere: false,
            parameters: &[],
            body: None,
            answer,
        }
    }

    fn with_path_parameters(&self, names: &[&str]) -> Value {
        let present = names
            .iter()
            .filter(|name| **name != "namespace" || self.resource.namespaced);
        let parameters: Vec<Value> = present
            .map(|name| {
                let mut parameter = self.parameter(name, "string");
                parameter["in"] = json!("path");
                parameter["required"] = json!(true);
                parameter
            })
            .collect();
        json!({ "parameters": parameters })
    }

    fn operation(&mut self, operation: &Operation) -> Value {
        let resource = self.resource;
        let mut parameters: Vec<Value> = operation
            .parameters
            .iter()
            .map(|(name, kind)| self.parameter(name, kind))
            .collect();
        let answer = self.components.reference(&operation.answer);
        let mut described = json!({
            "operationId": operation_id(resource, operation),
            "x-kubernetes-action": operation.action,
            "x-kubernetes-group-version-kind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        });
        let patch = json!({"type": "object"});
        let body = match &operation.body {
            Some(name) => Some((self.components.reference(name), &[JSON][..])),
            None if operation.action == "patch" => Some((patch, &PATCHES[..])),
            None => None,
        };
        match self.components.flavor() {
            Flavor::V2 => {
                if let Some((schema, types)) = body {
                    parameters.push(
                        json!({"name": "body", "in": "body", "required": true, "schema": schema}),
                    );
                    described["consumes"] = json!(types);
                }
                described["produces"] = json!([JSON, WATCH]);
                described["responses"] = json!({"200": {"description": "OK", "schema": answer}});
            }
            Flavor::V3 => {
                if let Some((schema, types)) = body {
                    let content: Map<String, Value> = types
                        .iter()
                        .map(|ty| ((*ty).to_string(), json!({"schema": schema})))
                        .collect();
                    described["requestBody"] = json!({"content": content, "required": true});
                }
                let content = json!({JSON: {"schema": answer}});
                described["responses"] = json!({"200": {"description": "OK", "content": content}});
            }
        }
        described["parameters"] = json!(parameters);
        described
    }

    fn parameter(&self, name: &str, kind: &str) -> Value {
        match self.components.flavor() {
            Flavor::V2 => json!({"name": name, "in": "query", "type": kind, "uniqueItems": true}),
            Flavor::V3 => {
                json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
            }
        }
    }
}

/// As `patchAppsV1NamespacedDeploymentStatus`.
fn operation_id(resource: &Resource, operation: &Operation) -> String {
    let group = match resource.group {
        "" => "core",
        group => group.split('.').next().unwrap_or(group),
    };
    let scope = if resource.namespaced && !operation.everywhere {
        "Namespaced"
    } else {
        ""
    };
    let collection = if operation.verb == "deleteCollection" {
        "Collection"
    } else {
        ""
    };
    let verb = operation.verb.trim_end_matches("Collection");
    format!(
        "{verb}{}{}{collection}{scope}{}{}",
        capitalized(group),
        capitalized(resource.version),
        resource.kind,
        operation.suffix
    )
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}
