//! One request to a resource, with everything that the verbs need of it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, header};
use serde_json::Value;

use super::negotiate::{Shape, Wanted};
use super::object;
use super::patch::FieldManager;
use super::path::ResourcePath;
use super::query::{FieldValidation, Query};
use super::status::ApiError;
use super::table::IncludeObject;
use crate::auth::UserInfo;
use crate::cache::{Entry, Scope};
use crate::resources::{FieldError, Resource};
use crate::store::Key;

/// A request to a resource.
pub struct Call {
    pub user: UserInfo,
    /// The resource as the client addresses it.
    pub resource: Arc<Resource>,
    /// The resource that stores its objects: another one when `resource` is a view.
    pub stored: Arc<Resource>,
    pub namespace: Option<String>,
    /// Empty when the request is for the collection.
    pub name: String,
    pub subresource: String,
    /// What follows the subresource in the path.
    pub rest: String,
    pub query: Query,
    pub headers: HeaderMap,
    pub wanted: Wanted,
}

impl Call {
    pub fn new(
        user: UserInfo,
        resource: Arc<Resource>,
        stored: Arc<Resource>,
        path: ResourcePath,
        query: Query,
        headers: HeaderMap,
    ) -> Result<Self, ApiError> {
        let include = match query.text("includeObject") {
            "None" => IncludeObject::None,
            "Object" => IncludeObject::Object,
            _ => IncludeObject::Metadata,
        };
        let wanted = Wanted::of(text_header(&headers, header::ACCEPT), include)?;
        Ok(Self {
            user,
            resource,
            stored,
            namespace: path.namespace,
            name: path.name.unwrap_or_default(),
            subresource: path.subresource.unwrap_or_default(),
            rest: path.rest.unwrap_or_default(),
            query,
            headers,
            wanted,
        })
    }

    pub fn content_type(&self) -> &str {
        text_header(&self.headers, header::CONTENT_TYPE)
    }

    /// Empty for cluster-scoped resources.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }

    pub fn scope(&self) -> Scope {
        match &self.namespace {
            Some(namespace) => Scope::namespace(namespace),
            None => Scope::everything(),
        }
    }

    /// Where the object of this name is stored.
    pub fn key(&self, name: &str) -> Key {
        Key::new(
            self.stored.group,
            self.stored.plural,
            self.namespace(),
            name,
        )
    }

    pub fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.resource, &self.name)
    }

    pub fn invalid(&self, name: &str, errors: &[FieldError]) -> ApiError {
        ApiError::invalid(&self.resource, name, errors)
    }

    /// # Errors
    /// 422 when `dryRun` is malformed.
    pub fn dry_run(&self) -> Result<bool, ApiError> {
        self.query.dry_run().map_err(|e| self.bad_option(e))
    }

    /// # Errors
    /// 422 when `fieldValidation` is malformed.
    pub fn field_validation(&self) -> Result<FieldValidation, ApiError> {
        self.query
            .field_validation()
            .map_err(|e| self.bad_option(e))
    }

    fn bad_option(&self, error: FieldError) -> ApiError {
        let mut invalid = ApiError::invalid(&self.resource, "", &[error]);
        let said = invalid.message.split_once(" is invalid: ");
        let said = said.map(|(_, said)| said.to_string()).unwrap_or_default();
        invalid.message = format!("Options.meta.k8s.io \"\" is invalid: {said}");
        invalid
    }

    /// Who writes, for `managedFields`.
    pub fn field_manager(&self) -> FieldManager {
        let agent = text_header(&self.headers, header::USER_AGENT);
        let agent = agent.split('/').next().unwrap_or_default();
        let name = match (self.query.text("fieldManager"), agent) {
            ("", "") => "unknown",
            ("", agent) => agent,
            (manager, _) => manager,
        };
        FieldManager {
            name: name.chars().take(128).collect(),
            subresource: match self.subresource.as_str() {
                "status" => "status",
                "scale" => "scale",
                _ => "",
            },
            now: jiff::Timestamp::now(),
        }
    }

    /// An object as this call's resource shows it.
    ///
    /// # Errors
    /// 500 when what is stored is no JSON.
    pub fn outward(&self, stored: &Bytes) -> Result<Bytes, ApiError> {
        if self.resource.stored_as.is_none() {
            return Ok(stored.clone());
        }
        let value = self.outward_value(stored)?;
        serde_json::to_vec(&value)
            .map(Bytes::from)
            .map_err(ApiError::internal)
    }

    /// As [`Call::outward`], parsed.
    ///
    /// # Errors
    /// 500 when what is stored is no JSON.
    pub fn outward_value(&self, stored: &Bytes) -> Result<Value, ApiError> {
        let mut value = parse(stored)?;
        if let Some(view) = &self.resource.stored_as {
            (view.from_stored)(&mut value);
        }
        Ok(value)
    }

    /// An object that a client sent, as it is stored.
    pub fn inward(&self, object: &mut Value) {
        if let Some(view) = &self.resource.stored_as {
            (view.to_stored)(object);
        }
    }

    /// Whether answers are the objects' own bytes.
    pub fn wants_plain_objects(&self) -> bool {
        self.wanted == Wanted::JSON
    }

    pub fn wants_table(&self) -> Option<IncludeObject> {
        match self.wanted.shape {
            Shape::Table(include) => Some(include),
            _ => None,
        }
    }
}

/// # Errors
/// 500 when what is stored is no JSON.
pub fn parse(stored: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(stored).map_err(|e| ApiError::internal(format!("stored object: {e}")))
}

/// An entry's object.
///
/// # Errors
/// 500 when what is stored is no JSON.
pub fn object_of(entry: &Entry) -> Result<Value, ApiError> {
    parse(&entry.bytes)
}

pub fn text_header(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// The object with the resource version that the store gave it.
pub fn stored_bytes(object: &Value, revision: u64) -> Bytes {
    crate::cache::entry::with_revision(&object::encode(object), revision)
}
