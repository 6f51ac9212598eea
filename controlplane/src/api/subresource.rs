//! Subresources that are not just a part of their object: scale, binding, finalize.

use http::StatusCode;
use serde_json::{Value, json};

use super::Api;
use super::answer::Answer;
use super::call::{Call, object_of, parse};
use super::decode;
use super::negotiate::media_type;
use super::object::{self, Object};
use super::patch::{self, Patch};
use super::status::ApiError;
use super::update::{Proposal, Surface, check_addressed};
use crate::resources::Scale;

impl Api {
    pub(super) fn get_scale(&self, call: &Call, scale: &Scale) -> Result<Answer, ApiError> {
        let entry = self
            .cache
            .get(&call.key(&call.name))
            .ok_or_else(|| call.not_found())?;
        let shown = scale_of(&object_of(&entry)?, scale);
        Answer::shaped(call, StatusCode::OK, &shown)
    }

    pub(super) async fn update_scale(
        &self,
        call: &Call,
        scale: &Scale,
        body: &[u8],
    ) -> Result<Answer, ApiError> {
        let wanted = decode::any(call.content_type(), body)?;
        self.set_scale(call, scale, |_| Ok(wanted.clone())).await
    }

    pub(super) async fn patch_scale(
        &self,
        call: &Call,
        scale: &Scale,
        body: &[u8],
    ) -> Result<Answer, ApiError> {
        let patch = match Patch::read(media_type(call.content_type()), body)? {
            // A scale has no lists, so that the other kinds come to the same.
            Patch::Strategic(document) | Patch::Apply(document) => Patch::Merge(document),
            patch => patch,
        };
        self.set_scale(call, scale, |shown| {
            patch::apply(&patch, &call.resource, shown)
        })
        .await
    }

    async fn set_scale(
        &self,
        call: &Call,
        scale: &Scale,
        change: impl Fn(&Value) -> Result<Value, ApiError> + Send + Sync,
    ) -> Result<Answer, ApiError> {
        let stored = self
            .write(call, Surface::Object, |current| {
                let wanted = change(&scale_of(current, scale))?;
                let replicas = object::at(&wanted, "spec.replicas").and_then(Value::as_i64);
                let mut object = current.clone();
                object.set_meta("resourceVersion", wanted.resource_version());
                object.set_meta("uid", wanted.uid());
                let replicas = json!(replicas.unwrap_or_default());
                object::set_at(&mut object, scale.replicas, replicas);
                Ok(Proposal {
                    object,
                    managed: false,
                })
            })
            .await?;
        Answer::shaped(call, StatusCode::OK, &scale_of(&parse(&stored)?, scale))
    }

    /// Gives a pod its node.
    pub(super) async fn bind(&self, call: &Call, body: &[u8]) -> Result<Answer, ApiError> {
        let binding = decode::any(call.content_type(), body)?;
        let node = object::at(&binding, "target.name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if node.is_empty() {
            return Err(ApiError::bad_request("target.name: Required value"));
        }
        let refuse =
            |why: String| ApiError::conflict_on("pods/binding", &call.resource, &call.name, &why);
        self.write(call, Surface::Internal, |current| {
            let name = current.name();
            if !binding.uid().is_empty() && binding.uid() != current.uid() {
                return Err(refuse(format!(
                    "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                    binding.uid(),
                    current.uid()
                )));
            }
            if current.is_terminating() {
                return Err(refuse(format!(
                    "pod {name} is being deleted, cannot be assigned to a host"
                )));
            }
            match object::at(current, "spec.nodeName").and_then(Value::as_str) {
                None | Some("") => {}
                Some(taken) => {
                    return Err(refuse(format!(
                        "pod {name} is already assigned to node {taken:?}"
                    )));
                }
            }
            if object::at(current, "spec.schedulingGates")
                .and_then(Value::as_array)
                .is_some_and(|gates| !gates.is_empty())
            {
                return Err(refuse(format!(
                    "pod {name} has non-empty .spec.schedulingGates"
                )));
            }
            Ok(Proposal {
                object: bound(current, &binding, node),
                managed: true,
            })
        })
        .await?;
        Ok(created())
    }

    /// Sets a namespace's `spec.finalizers`; without any it goes.
    pub(super) async fn finalize(&self, call: &Call, body: &[u8]) -> Result<Answer, ApiError> {
        let mut wanted = decode::any(call.content_type(), body)?;
        check_addressed(call, &mut wanted)?;
        let finalizers = object::at(&wanted, "spec.finalizers").cloned();
        let stored = self
            .write(call, Surface::Internal, |current| {
                let version = wanted.resource_version();
                if !version.is_empty() && version != current.resource_version() {
                    return Err(ApiError::modified(&call.resource, &call.name));
                }
                let mut object = current.clone();
                let finalizers = finalizers.clone().unwrap_or_else(|| json!([]));
                object::set_at(&mut object, "spec.finalizers", finalizers);
                Ok(Proposal {
                    object,
                    managed: true,
                })
            })
            .await?;
        Answer::object(call, StatusCode::OK, &stored)
    }
}

/// A binding's effect: the node's name, the binding's annotations, and the condition.
fn bound(current: &Value, binding: &Value, node: &str) -> Value {
    let mut pod = current.clone();
    object::set_at(&mut pod, "spec.nodeName", json!(node));
    if let Some(status) = pod.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("nominatedNodeName");
    }
    for field in ["annotations", "labels"] {
        let given = binding.metadata().and_then(|m| m.get(field));
        for (key, value) in given.and_then(Value::as_object).into_iter().flatten() {
            pod["metadata"][field][key] = value.clone();
        }
    }
    let scheduled = json!({
        "type": "PodScheduled",
        "status": "True",
        "lastProbeTime": null,
        "lastTransitionTime": object::timestamp(jiff::Timestamp::now()),
        "observedGeneration": current.generation(),
    });
    let conditions = &mut pod["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    if let Some(conditions) = conditions.as_array_mut() {
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(scheduled);
    }
    pod
}

pub(super) fn created() -> Answer {
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "code": 201,
    });
    Answer::json(StatusCode::CREATED, &status)
}

/// An object as its `autoscaling/v1` Scale.
fn scale_of(object: &Value, scale: &Scale) -> Value {
    let number = |path: &str| object::at(object, path).and_then(Value::as_i64);
    let mut metadata = serde_json::Map::new();
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = object.metadata().and_then(|m| m.get(field)) {
            metadata.insert(field.to_string(), value.clone());
        }
    }
    let mut status = json!({"replicas": number(scale.status_replicas).unwrap_or_default()});
    let selector = object::at(object, scale.selector).map(selector_text);
    if let Some(selector) = selector.filter(|text| !text.is_empty()) {
        status["selector"] = json!(selector);
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": number(scale.replicas).unwrap_or_default()},
        "status": status,
    })
}

/// A label selector as query strings write it: a LabelSelector, or a plain map of labels.
pub(super) fn selector_text(selector: &Value) -> String {
    if let Some(text) = selector.as_str() {
        return text.to_string();
    }
    let structured = selector
        .get("matchLabels")
        .or(selector.get("matchExpressions"));
    let labels = match structured {
        Some(_) => selector.get("matchLabels"),
        None => Some(selector),
    };
    let mut terms: Vec<(String, String)> = labels
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| {
            let value = value.as_str().unwrap_or_default();
            (key.clone(), format!("{key}={value}"))
        })
        .collect();
    let expressions = selector.get("matchExpressions").and_then(Value::as_array);
    for expression in expressions.into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> = expression["values"]
            .as_array()
            .map(|values| values.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let values = values.join(",");
        let term = match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_string(),
        };
        terms.push((key.to_string(), term));
    }
    terms.sort();
    let terms: Vec<String> = terms.into_iter().map(|(_, term)| term).collect();
    terms.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_written_as_queries() {
        for (selector, text) in [
            (json!({"matchLabels": {"b": "1", "a": "2"}}), "a=2,b=1"),
            (json!({"app": "web"}), "app=web"),
            (
                json!({"matchExpressions": [
                    {"key": "t", "operator": "In", "values": ["x", "y"]},
                    {"key": "k", "operator": "DoesNotExist"},
                ]}),
                "!k,t in (x,y)",
            ),
        ] {
            assert_eq!(selector_text(&selector), text);
        }
    }
}
