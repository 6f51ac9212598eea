//! Containers' compute resources: defaults and rules.

use serde_json::Value;

use super::super::error::{invalid, required};
use super::super::object::{at, entries};
use super::super::quantity::Quantity;
use super::super::{FieldError, syntax};

/// A resource that is limited but not requested is requested as much as it is limited.
pub(crate) fn requests_from_limits(container: &mut Value) {
    let Some(resources) = container
        .get_mut("resources")
        .filter(|r| r.get("limits").is_some())
    else {
        return;
    };
    let limits = resources["limits"].clone();
    let requests = super::super::object::ensure(resources, "requests");
    for (name, amount) in limits.as_object().into_iter().flatten() {
        super::super::object::default(requests, name, amount.clone());
    }
}

/// The rules for one container's `resources`, found at `path`.
pub(crate) fn validate(resources: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for kind in ["limits", "requests"] {
        for (name, amount) in entries(resources, kind) {
            let field = format!("{path}.{kind}[{name}]");
            errors.extend(validate_name(name, &format!("{path}.{kind}")));
            errors.extend(validate_amount(name, amount, &field));
        }
    }
    for (name, amount) in entries(resources, "requests") {
        let (Some(request), limit) = (
            parsed(amount),
            parsed(at(resources, "limits").get(name).unwrap_or(&Value::Null)),
        ) else {
            continue;
        };
        match limit {
            Some(limit) if request > limit => {
                let text = amount.as_str().unwrap_or_default();
                let why = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(invalid(
                    &format!("{path}.requests"),
                    &Value::from(text),
                    &why,
                ));
            }
            None if !overcommits(name) => {
                errors.push(required(
                    &format!("{path}.limits"),
                    "Limit must be set for non overcommitable resources",
                ));
            }
            _ => {}
        }
    }
    errors
}

fn validate_name(name: &str, path: &str) -> Vec<FieldError> {
    let known =
        matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if known {
        return Vec::new();
    }
    let value = Value::from(name);
    let mut errors: Vec<FieldError> = syntax::qualified_name(name)
        .iter()
        .map(|why| invalid(path, &value, why))
        .collect();
    if errors.is_empty() && !name.contains('/') {
        errors.push(invalid(
            path,
            &value,
            "must be a standard resource type or fully qualified",
        ));
        errors.push(invalid(
            path,
            &value,
            "must be a standard resource for containers",
        ));
    }
    errors
}

fn validate_amount(name: &str, amount: &Value, field: &str) -> Vec<FieldError> {
    let Some(quantity) = parsed(amount) else {
        return Vec::new();
    };
    let mut errors = Vec::new();
    if quantity.is_negative() {
        errors.push(invalid(field, amount, "must be greater than or equal to 0"));
    }
    let whole =
        name.contains('/') && !name.starts_with("kubernetes.io/") || name.starts_with("hugepages-");
    if whole && !quantity.is_whole() {
        errors.push(invalid(field, amount, "must be an integer"));
    }
    errors
}

fn overcommits(name: &str) -> bool {
    !name.contains('/') && !name.starts_with("hugepages-")
}

fn parsed(amount: &Value) -> Option<Quantity> {
    Quantity::parse(amount.as_str()?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::validate;

    #[test]
    fn a_request_above_its_limit() {
        let resources = json!({"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}});
        let errors = validate(&resources, "spec.containers[0].resources");
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].field, "spec.containers[0].resources.requests");
        assert_eq!(
            errors[0].message,
            "Invalid value: \"2\": must be less than or equal to cpu limit of 1"
        );
    }

    #[test]
    fn unknown_names_and_negative_amounts() {
        let errors = validate(&json!({"limits": {"foo": "1", "cpu": "-1"}}), "r");
        let said: Vec<String> = errors
            .iter()
            .map(|e| format!("{}: {}", e.field, e.message))
            .collect();
        assert_eq!(
            said,
            [
                "r.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
                "r.limits: Invalid value: \"foo\": must be a standard resource type or fully qualified",
                "r.limits: Invalid value: \"foo\": must be a standard resource for containers",
            ]
        );
    }
}
