//! Get and list: from the cache's bytes.

use http::StatusCode;
use serde_json::{Value, json};

use super::Api;
use super::answer::{Answer, partial};
use super::call::Call;
use super::negotiate::{Shape, Syntax};
use super::status::ApiError;
use super::table;
use crate::cache::{ListError, Page, PageRequest, Selector};
use crate::resources::FieldError;
use crate::store::Revision;

impl Api {
    pub(super) fn get(&self, call: &Call) -> Result<Answer, ApiError> {
        let entry = self
            .cache
            .get(&call.key(&call.name))
            .ok_or_else(|| call.not_found())?;
        Answer::object(call, StatusCode::OK, &entry.bytes)
    }

    pub(super) fn list(&self, call: &Call) -> Result<Answer, ApiError> {
        let selector = selector(call)?;
        let request = self.page_request(call)?;
        let shelf = self.cache.shelf(&call.resource.storage_id());
        let page = shelf
            .list(&self.cache, &call.scope(), &selector, &request)
            .map_err(list_error)?;
        if call.wants_plain_objects() {
            return plain_list(call, &page);
        }
        shaped_list(call, &page)
    }

    fn page_request(&self, call: &Call) -> Result<PageRequest, ApiError> {
        let version = resource_version(call)?;
        let matching = call.query.text("resourceVersionMatch");
        let continue_token = call.query.get("continue").map(str::to_string);
        check_list_options(call, version, matching, continue_token.is_some())?;
        self.check_not_ahead(version)?;
        let limit = call.query.number("limit")?.unwrap_or_default();
        let limit = usize::try_from(limit).unwrap_or_default();
        let exactly = match (version, matching) {
            (Some(version), "Exact") => Some(version),
            // A limited list at a revision, without a match, is of that very revision.
            (Some(version), "") if limit > 0 && version > 0 && continue_token.is_none() => {
                Some(version)
            }
            _ => None,
        };
        Ok(PageRequest {
            limit,
            continue_token,
            exactly,
        })
    }

    /// Nobody can have seen a revision that there has not been yet.
    pub(super) fn check_not_ahead(&self, version: Option<Revision>) -> Result<(), ApiError> {
        let current = self.cache.revision();
        match version {
            Some(version) if version > current => {
                let mut error = ApiError::timeout(format!(
                    "Too large resource version: {version}, current: {current}"
                ))
                .with_cause(
                    "ResourceVersionTooLarge",
                    "Too large resource version",
                    "",
                );
                error.details.get_or_insert_default().retry_after_seconds = 1;
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

/// The call's label and field selectors.
pub(super) fn selector(call: &Call) -> Result<Selector, ApiError> {
    Selector::parse(
        call.query.text("labelSelector"),
        call.query.text("fieldSelector"),
        call.resource.selectable_fields,
    )
    .map_err(|e| ApiError::bad_request(e.to_string()))
}

/// `resourceVersion`: absent, or a number.
pub(super) fn resource_version(call: &Call) -> Result<Option<Revision>, ApiError> {
    let Some(text) = call.query.get("resourceVersion") else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| {
        ApiError::bad_request(format!(
            "Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

/// What `ListOptions` may not combine.
fn check_list_options(
    call: &Call,
    version: Option<Revision>,
    matching: &str,
    continues: bool,
) -> Result<(), ApiError> {
    let refuse = |reason: &'static str, message: String| {
        let error = FieldError {
            reason,
            field: "resourceVersionMatch".to_string(),
            message,
        };
        let mut invalid = ApiError::invalid(&call.resource, "", std::slice::from_ref(&error));
        invalid.message = format!(
            "ListOptions.meta.k8s.io \"\" is invalid: {}: {}",
            error.field, error.message
        );
        Err(invalid)
    };
    if call.query.optional_flag("sendInitialEvents").is_some() {
        return refuse(
            "FieldValueForbidden",
            "Forbidden: sendInitialEvents is forbidden for list".to_string(),
        );
    }
    let forbidden = |why: &str| refuse("FieldValueForbidden", format!("Forbidden: {why}"));
    match matching {
        "" => Ok(()),
        _ if continues => forbidden("resourceVersionMatch is forbidden when continue is provided"),
        _ if version.is_none() => {
            forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided")
        }
        "Exact" if version == Some(0) => {
            forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
        }
        "Exact" | "NotOlderThan" => Ok(()),
        other => refuse(
            "FieldValueNotSupported",
            format!(
                "Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\", \"\""
            ),
        ),
    }
}

fn list_error(error: ListError) -> ApiError {
    let message = error.to_string();
    match error {
        ListError::BadToken(_) => ApiError::bad_request(message),
        ListError::TokenExpired { restart } => ApiError {
            continue_token: Some(restart),
            ..ApiError::expired(message)
        },
        ListError::RevisionExpired => ApiError::expired(message),
    }
}

/// A list of the objects' own bytes.
fn plain_list(call: &Call, page: &Page) -> Result<Answer, ApiError> {
    let head = format!(
        r#"{{"kind":"{}List","apiVersion":"{}","metadata":{},"items":["#,
        call.resource.kind,
        call.resource.api_version(),
        metadata(page),
    );
    let size: usize = page.entries.iter().map(|e| e.bytes.len() + 1).sum();
    let mut body = Vec::with_capacity(head.len() + size + 2);
    body.extend_from_slice(head.as_bytes());
    for (at, entry) in page.entries.iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        if call.resource.stored_as.is_none() {
            body.extend_from_slice(&entry.bytes);
        } else {
            body.extend_from_slice(&call.outward(&entry.bytes)?);
        }
    }
    body.extend_from_slice(b"]}");
    Ok(Answer::bytes(StatusCode::OK, body.into()))
}

fn shaped_list(call: &Call, page: &Page) -> Result<Answer, ApiError> {
    let objects = page
        .entries
        .iter()
        .map(|entry| call.outward_value(&entry.bytes))
        .collect::<Result<Vec<_>, _>>()?;
    let list = match call.wanted.shape {
        Shape::Table(include) => {
            table::table(&call.resource, &objects, metadata(page), include, true)
        }
        Shape::Metadata => json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata(page),
            "items": objects.iter().map(partial).collect::<Vec<_>>(),
        }),
        Shape::Object => {
            debug_assert_eq!(call.wanted.syntax, Syntax::Yaml);
            list_of(call, objects, metadata(page))
        }
    };
    Answer::value(StatusCode::OK, &list, call.wanted)
}

/// A list object of the call's kind.
pub(super) fn list_of(call: &Call, items: Vec<Value>, metadata: Value) -> Value {
    json!({
        "kind": format!("{}List", call.resource.kind),
        "apiVersion": call.resource.api_version(),
        "metadata": metadata,
        "items": items,
    })
}

fn metadata(page: &Page) -> Value {
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(token) = &page.continue_token {
        metadata["continue"] = json!(token);
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    metadata
}
