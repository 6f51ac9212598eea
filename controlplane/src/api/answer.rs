//! Answers: objects and lists in the shape that the client asked for.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::call::Call;
use super::negotiate::{Shape, Syntax, Wanted};
use super::status::ApiError;
use super::table;

/// A response's status and body, before it becomes HTTP.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
    pub content_type: &'static str,
    pub warnings: Vec<String>,
    /// Whether what stands behind this URL never changes, so that clients may keep it.
    pub immutable: bool,
}

impl Answer {
    pub fn json(status: StatusCode, value: &Value) -> Self {
        Self::bytes(status, value.to_string().into())
    }

    pub fn bytes(status: StatusCode, body: Bytes) -> Self {
        Self {
            status,
            body,
            content_type: "application/json",
            warnings: Vec::new(),
            immutable: false,
        }
    }

    pub fn text(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            body: text.into().into(),
            content_type: "text/plain; charset=utf-8",
            warnings: Vec::new(),
            immutable: false,
        }
    }

    /// One object, given as it is stored.
    ///
    /// # Errors
    /// 500 when what is stored is no JSON.
    pub fn object(call: &Call, status: StatusCode, stored: &Bytes) -> Result<Self, ApiError> {
        let bytes = call.outward(stored)?;
        if call.wants_plain_objects() {
            return Ok(Self::bytes(status, bytes));
        }
        let object = super::call::parse(&bytes)?;
        Self::shaped(call, status, &object)
    }

    /// An object that was written, with warnings about the request and about the object.
    ///
    /// # Errors
    /// 500 when what is stored is no JSON.
    pub fn written(
        call: &Call,
        status: StatusCode,
        stored: &Bytes,
        mut warnings: Vec<String>,
    ) -> Result<Self, ApiError> {
        if let (Some(warn), "") = (call.resource.hooks.warnings, call.subresource.as_str()) {
            warnings.extend(warn(&call.outward_value(stored)?));
        }
        Ok(Self::object(call, status, stored)?.warn(warnings))
    }

    /// One object of the call's resource.
    ///
    /// # Errors
    /// 500 when it can't be written as YAML.
    pub fn shaped(call: &Call, status: StatusCode, object: &Value) -> Result<Self, ApiError> {
        let value = match call.wanted.shape {
            Shape::Object => object.clone(),
            Shape::Metadata => partial(object),
            Shape::Table(include) => {
                let version = object.pointer("/metadata/resourceVersion");
                let metadata = json!({"resourceVersion": version.unwrap_or(&json!(""))});
                let objects = std::slice::from_ref(object);
                table::table(&call.resource, objects, metadata, include, true)
            }
        };
        Self::value(status, &value, call.wanted)
    }

    /// A value in JSON or YAML.
    ///
    /// # Errors
    /// 500 when it can't be written as YAML.
    pub fn value(status: StatusCode, value: &Value, wanted: Wanted) -> Result<Self, ApiError> {
        match wanted.syntax {
            Syntax::Json => Ok(Self::json(status, value)),
            Syntax::Yaml => {
                let text = serde_yaml_ng::to_string(value).map_err(ApiError::internal)?;
                Ok(Self {
                    content_type: "application/yaml",
                    ..Self::text(status, text)
                })
            }
        }
    }

    #[must_use]
    pub fn warn(mut self, warnings: Vec<String>) -> Self {
        self.warnings.extend(warnings);
        self
    }

    pub fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(self.content_type),
        );
        let caching = match self.immutable {
            true => "public, immutable, max-age=31536000",
            false => "no-cache, private",
        };
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
        for warning in self.warnings {
            warn(headers, &warning);
        }
        response
    }
}

impl From<ApiError> for Answer {
    fn from(error: ApiError) -> Self {
        let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::json(status, &error.to_value())
    }
}

/// Adds a warning for whoever made the request, as `kubectl` shows it.
pub fn warn(headers: &mut HeaderMap, warning: &str) {
    let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"");
    if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{escaped}\"")) {
        headers.append(header::WARNING, value);
    }
}

/// The object's metadata alone.
pub fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").unwrap_or(&Value::Null),
    })
}
