//! Errors as clients see them: Kubernetes `Status` objects.
//!
//! Each constructor stands for one of the reasons of `k8s.io/apimachinery/pkg/api/errors` and
//! words its message as that package does, because clients and people match on both.

use serde_json::{Map, Value, json};

use crate::resources::{FieldError, Resource};

/// A request that failed, with everything that its `Status` object says.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status code.
    pub code: u16,
    /// A `StatusReason`, as `NotFound`.
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Box<Details>>,
    /// List metadata of the status: a continue token that still works, with `Expired`.
    pub continue_token: Option<String>,
}

/// What the error is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    pub name: String,
    pub group: String,
    /// The resource's plural name, or its kind with `Invalid`, as Kubernetes has it.
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    /// Seconds after which a retry makes sense; 0 when it says nothing.
    pub retry_after_seconds: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
            continue_token: None,
        }
    }

    /// Says which object the error is about.
    #[must_use]
    pub fn about(mut self, resource: &Resource, name: &str) -> Self {
        let details = self.details.get_or_insert_default();
        details.name = name.to_string();
        details.group = resource.group.to_string();
        details.kind = resource.plural.to_string();
        self
    }

    #[must_use]
    pub fn with_cause(mut self, reason: &str, message: &str, field: &str) -> Self {
        self.details.get_or_insert_default().causes.push(Cause {
            reason: reason.to_string(),
            message: message.to_string(),
            field: field.to_string(),
        });
        self
    }

    /// 400: the request can't be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: no credentials, or wrong ones.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 about an object that a rule of the server protects.
    pub fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", resource.qualified())
        } else {
            format!("{} {name:?} is forbidden: {why}", resource.qualified())
        };
        Self::new(403, "Forbidden", message).about(resource, name)
    }

    /// 403 with a message of its own.
    pub fn forbidden_message(message: impl Into<String>) -> Self {
        Self::new(403, "Forbidden", message)
    }

    /// 404: there is no such object.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        Self::new(
            404,
            "NotFound",
            format!("{} {name:?} not found", resource.qualified()),
        )
        .about(resource, name)
    }

    /// 404: there is no such path.
    pub fn no_such_path() -> Self {
        Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    /// 405: the resource does not know the verb.
    pub fn method_not_allowed(resource: &Resource, verb: &str) -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            format!(
                "{verb} is not supported on resources of kind {:?}",
                resource.qualified()
            ),
        )
        .about(resource, "")
    }

    /// 405 where there is no resource to name.
    pub fn method_not_allowed_here() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 406: none of the media types that the client accepts can be made.
    pub fn not_acceptable(supported: &[&str]) -> Self {
        Self::new(
            406,
            "NotAcceptable",
            format!(
                "only the following media types are accepted: {}",
                supported.join(", ")
            ),
        )
    }

    /// 409: a create met an object of that name.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        Self::new(
            409,
            "AlreadyExists",
            format!("{} {name:?} already exists", resource.qualified()),
        )
        .about(resource, name)
    }

    /// 409: the object is not what the writer believed it to be.
    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        Self::new(
            409,
            "Conflict",
            format!(
                "Operation cannot be fulfilled on {} {name:?}: {why}",
                resource.qualified()
            ),
        )
        .about(resource, name)
    }

    /// 409 about a subresource, as `pods/binding`.
    pub fn conflict_on(subject: &str, resource: &Resource, name: &str, why: &str) -> Self {
        Self::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {subject} {name:?}: {why}"),
        )
        .about(resource, name)
    }

    /// 409 of optimistic concurrency.
    pub fn modified(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409 of server-side apply: other managers own fields that the patch sets. `causes` has a
    /// message (`conflict with "kubectl"`) and a field for each.
    pub fn apply_conflict(causes: Vec<Cause>, message: String) -> Self {
        let mut error = Self::new(409, "Conflict", message);
        error.details.get_or_insert_default().causes = causes;
        error
    }

    /// 410: the revision asked for is no longer known.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413: the body is larger than the server reads.
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit}"),
        )
    }

    /// 415: the body's media type is none that the request takes.
    pub fn unsupported_media_type(supported: &[&str]) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                supported.join(", ")
            ),
        )
    }

    /// 422: the object breaks rules of its kind.
    pub fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> Self {
        let said: Vec<String> = errors
            .iter()
            .map(|e| {
                if e.field.is_empty() {
                    e.message.clone()
                } else {
                    format!("{}: {}", e.field, e.message)
                }
            })
            .collect();
        let list = match said.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let subject = if resource.group.is_empty() {
            resource.kind.to_string()
        } else {
            format!("{}.{}", resource.kind, resource.group)
        };
        let mut error = Self::new(
            422,
            "Invalid",
            format!("{subject} {name:?} is invalid: {list}"),
        );
        error.details = Some(Box::new(Details {
            name: name.to_string(),
            group: resource.group.to_string(),
            kind: resource.kind.to_string(),
            causes: errors
                .iter()
                .map(|e| Cause {
                    reason: e.reason.to_string(),
                    message: e.message.clone(),
                    field: e.field.clone(),
                })
                .collect(),
            ..Details::default()
        }));
        error
    }

    /// 422 of a patch that is well-formed but does not fit the object.
    pub fn unprocessable(why: &str) -> Self {
        let message = "the server rejected our request due to an error in our request";
        Self::new(422, "Invalid", format!("{message}: {why}"))
    }

    /// 429: try again after `seconds`.
    pub fn too_many_requests(message: impl Into<String>, seconds: u32) -> Self {
        let mut error = Self::new(429, "TooManyRequests", message);
        error.details.get_or_insert_default().retry_after_seconds = seconds;
        error
    }

    /// 500: the server's own fault.
    pub fn internal(what: impl std::fmt::Display) -> Self {
        let what = what.to_string();
        Self::new(
            500,
            "InternalError",
            format!("Internal error occurred: {what}"),
        )
        .with_cause("", &what, "")
    }

    /// 500 with a message of its own.
    pub fn internal_message(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", message)
    }

    /// An error by its HTTP status, with a message of its own.
    pub fn with_code(code: u16, message: &str) -> Self {
        let reason = match code {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            405 => "MethodNotAllowed",
            409 => "Conflict",
            422 => "Invalid",
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            _ => "InternalError",
        };
        Self::new(code, reason, message)
    }

    /// 503: not able to serve this now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504: it did not come to pass in time.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", message)
    }

    /// The `Status` object.
    pub fn to_value(&self) -> Value {
        let mut metadata = Map::new();
        if let Some(token) = &self.continue_token {
            metadata.insert("continue".into(), json!(token));
        }
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = details.to_value();
        }
        status
    }
}

impl Details {
    fn to_value(&self) -> Value {
        let mut details = Map::new();
        for (key, text) in [
            ("name", &self.name),
            ("group", &self.group),
            ("kind", &self.kind),
            ("uid", &self.uid),
        ] {
            if !text.is_empty() {
                details.insert(key.into(), json!(text));
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(Cause::to_value).collect();
            details.insert("causes".into(), Value::Array(causes));
        }
        if self.retry_after_seconds > 0 {
            details.insert("retryAfterSeconds".into(), json!(self.retry_after_seconds));
        }
        Value::Object(details)
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut cause = Map::new();
        for (key, text) in [
            ("reason", &self.reason),
            ("message", &self.message),
            ("field", &self.field),
        ] {
            if !text.is_empty() {
                cause.insert(key.into(), json!(text));
            }
        }
        Value::Object(cause)
    }
}

/// The `Status` object of a request that succeeded and has no other answer.
pub fn success(resource: &Resource, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": resource.plural});
    if !resource.group.is_empty() {
        details["group"] = json!(resource.group);
    }
    if !uid.is_empty() {
        details["uid"] = json!(uid);
    }
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    })
}
