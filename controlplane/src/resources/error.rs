//! Makes [`FieldError`]s in the API server's words (`pkg/util/validation/field`).

use serde_json::Value;

use super::FieldError;

fn error(reason: &'static str, field: &str, message: String) -> FieldError {
    FieldError {
        reason,
        field: field.to_string(),
        message,
    }
}

fn with_detail(body: String, detail: &str) -> String {
    if detail.is_empty() {
        body
    } else {
        format!("{body}: {detail}")
    }
}

pub(crate) fn required(field: &str, detail: &str) -> FieldError {
    error(
        "FieldValueRequired",
        field,
        with_detail("Required value".into(), detail),
    )
}

pub(crate) fn invalid(field: &str, value: &Value, detail: &str) -> FieldError {
    error(
        "FieldValueInvalid",
        field,
        with_detail(format!("Invalid value: {value}"), detail),
    )
}

pub(crate) fn not_supported(field: &str, value: &str, supported: &[&str]) -> FieldError {
    let supported: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
    let detail = format!("supported values: {}", supported.join(", "));
    error(
        "FieldValueNotSupported",
        field,
        format!("Unsupported value: {value:?}: {detail}"),
    )
}

pub(crate) fn duplicate(field: &str, value: &Value) -> FieldError {
    error(
        "FieldValueDuplicate",
        field,
        format!("Duplicate value: {value}"),
    )
}

pub(crate) fn forbidden(field: &str, detail: &str) -> FieldError {
    error(
        "FieldValueForbidden",
        field,
        with_detail("Forbidden".into(), detail),
    )
}

pub(crate) fn not_found(field: &str, value: &str) -> FieldError {
    error("FieldValueNotFound", field, format!("Not found: {value:?}"))
}

pub(crate) fn too_long(field: &str, bytes: usize) -> FieldError {
    error(
        "FieldValueTooLong",
        field,
        format!("Too long: may not be more than {bytes} bytes"),
    )
}

/// `field` must not change.
pub(crate) fn immutable(field: &str, new: &Value, old: &Value) -> Option<FieldError> {
    (new != old).then(|| invalid(field, new, "field is immutable"))
}

/// A number that may be absent but not negative.
pub(crate) fn non_negative(field: &str, value: &Value) -> Option<FieldError> {
    value
        .as_i64()
        .filter(|n| *n < 0)
        .map(|_| invalid(field, value, "must be greater than or equal to 0"))
}
