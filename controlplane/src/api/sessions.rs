//! What only a pod's node can serve: logs, commands, attachments, port forwarding.

use axum::body::Body;
use http::{Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::Api;
use super::answer::Answer;
use super::call::{Call, object_of};
use super::object::{self, Object};
use super::query;
use super::status::ApiError;
use crate::resources::FieldError;

/// The options of a log that the node understands, named as in the API.
const LOG_OPTIONS: [&str; 8] = [
    "follow",
    "previous",
    "sinceSeconds",
    "sinceTime",
    "timestamps",
    "tailLines",
    "limitBytes",
    "stream",
];
/// The API's names of the streams of a session, and the node's.
const STREAMS: [(&str, &str); 4] = [
    ("stdin", "input"),
    ("stdout", "output"),
    ("stderr", "error"),
    ("tty", "tty"),
];

impl Api {
    /// `GET pods/<name>/log`
    pub(super) async fn pod_log(&self, call: &Call) -> Result<Response<Body>, ApiError> {
        check_log_options(call)?;
        let pod = self.pod(call)?;
        let container = container(call, &pod)?;
        let node = node_of(&pod);
        if node.is_empty() {
            // A pod that runs nowhere has said nothing.
            return Ok(Answer::text(StatusCode::OK, "").into_response());
        }
        let options = LOG_OPTIONS
            .iter()
            .filter_map(|option| Some((*option, call.query.get(option)?)));
        let query = query::encode(options);
        let path = path("containerLogs", call, Some(&container)) + &query;
        let mut response = self.ask_node(&self.endpoint(node)?, &path).await?;
        let plain = http::HeaderValue::from_static("text/plain");
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, plain);
        Ok(response)
    }

    /// `pods/<name>/exec` and `pods/<name>/attach`
    pub(super) async fn pod_session(
        &self,
        call: &Call,
        client: Option<OnUpgrade>,
    ) -> Result<Response<Body>, ApiError> {
        let pod = self.pod(call)?;
        let container = container(call, &pod)?;
        let commands = call.query.all("command");
        if call.subresource == "exec" && commands.is_empty() {
            return Err(ApiError::bad_request("you must specify at least 1 command"));
        }
        let streams = STREAMS.iter().filter(|(ours, _)| call.query.flag(ours));
        let query = query::encode(
            streams
                .map(|(_, theirs)| (*theirs, "1"))
                .chain(commands.iter().map(|command| ("command", *command))),
        );
        let path = path(&call.subresource, call, Some(&container)) + &query;
        let endpoint = self.assigned(call, &pod)?;
        self.tunnel(&endpoint, &path, &call.headers, client).await
    }

    /// `pods/<name>/portforward`
    pub(super) async fn pod_ports(
        &self,
        call: &Call,
        client: Option<OnUpgrade>,
    ) -> Result<Response<Body>, ApiError> {
        let pod = self.pod(call)?;
        let ports = call.query.all("ports");
        let query = query::encode(ports.iter().map(|ports| ("ports", *ports)));
        let path = path("portForward", call, None) + &query;
        let endpoint = self.assigned(call, &pod)?;
        self.tunnel(&endpoint, &path, &call.headers, client).await
    }

    /// `GET nodes/<name>/proxy/...`
    pub(super) async fn node_proxy(&self, call: &Call) -> Result<Response<Body>, ApiError> {
        if self.cache.get(&call.key(&call.name)).is_none() {
            return Err(call.not_found());
        }
        let query = call.query.encode();
        let path = format!("/{}{query}", call.rest);
        self.ask_node(&self.endpoint(&call.name)?, &path).await
    }

    fn pod(&self, call: &Call) -> Result<Value, ApiError> {
        let entry = self.cache.get(&call.key(&call.name));
        object_of(&*entry.ok_or_else(|| call.not_found())?)
    }

    fn assigned(&self, call: &Call, pod: &Value) -> Result<super::node::Endpoint, ApiError> {
        match node_of(pod) {
            "" => Err(ApiError::bad_request(format!(
                "pod {} does not have a host assigned",
                call.name
            ))),
            node => self.endpoint(node),
        }
    }
}

/// `/exec/<namespace>/<pod>/<container>`
fn path(what: &str, call: &Call, container: Option<&str>) -> String {
    let encode = |part| utf8_percent_encode(part, SEGMENT).to_string();
    let mut path = format!(
        "/{what}/{}/{}",
        encode(call.namespace()),
        encode(&call.name)
    );
    if let Some(container) = container {
        path.push('/');
        path.push_str(&encode(container));
    }
    path
}

/// Names have letters, digits, `-` and `.`; everything else is encoded.
const SEGMENT: &percent_encoding::AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.');

fn node_of(pod: &Value) -> &str {
    object::at(pod, "spec.nodeName")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The container that is meant: the named one, or the only one.
fn container(call: &Call, pod: &Value) -> Result<String, ApiError> {
    let names = |field: &str| -> Vec<&str> {
        let list = pod["spec"].get(field).and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .filter_map(|container| container["name"].as_str())
            .collect()
    };
    let (containers, init, ephemeral) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    let pod = pod.name();
    if let Some(wanted) = call.query.get("container") {
        if [&containers, &init, &ephemeral]
            .iter()
            .any(|list| list.contains(&wanted))
        {
            return Ok(wanted.to_string());
        }
        return Err(ApiError::bad_request(format!(
            "container {wanted} is not valid for pod {pod}"
        )));
    }
    if let [only] = containers.as_slice() {
        return Ok((*only).to_string());
    }
    let mut message = format!(
        "a container name must be specified for pod {pod}, choose one of: [{}]",
        containers.join(" ")
    );
    for (kind, names) in [("init", &init), ("ephemeral", &ephemeral)] {
        if !names.is_empty() {
            message.push_str(&format!(
                " or one of the {kind} containers: [{}]",
                names.join(" ")
            ));
        }
    }
    Err(ApiError::bad_request(message))
}

fn check_log_options(call: &Call) -> Result<(), ApiError> {
    let mut errors = Vec::new();
    let mut refuse = |field: &str, value: i64, why: &str| {
        errors.push(FieldError {
            reason: "FieldValueInvalid",
            field: field.to_string(),
            message: format!("Invalid value: {value}: {why}"),
        });
    };
    for (field, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        match call.query.number(field)? {
            Some(value) if value < least && least == 0 => {
                refuse(field, value, "must be greater than or equal to 0");
            }
            Some(value) if value < least => refuse(field, value, "must be greater than 0"),
            _ => {}
        }
    }
    if call.query.get("sinceSeconds").is_some() && call.query.get("sinceTime").is_some() {
        errors.push(FieldError {
            reason: "FieldValueForbidden",
            field: String::new(),
            message: "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified"
                .to_string(),
        });
    }
    if errors.is_empty() {
        return Ok(());
    }
    let mut invalid = call.invalid(&call.name, &errors);
    invalid.message = invalid.message.replacen("Pod ", "PodLogOptions ", 1);
    Err(invalid)
}
