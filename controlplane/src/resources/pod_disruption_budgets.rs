//! PodDisruptionBudgets: how many pods of an application may be away at once.

use serde_json::Value;

use super::error::{invalid, not_supported};
use super::object::{at, carry_over, integer, is_set, text};
use super::print::{AGE, NAME, age, column, name};
use super::{Column, FieldError, Hooks, Resource, metadata};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Min Available",
        "string",
        "How many pods must be available.",
    ),
    column(
        "Max Unavailable",
        "string",
        "How many pods may be unavailable.",
    ),
    column(
        "Allowed Disruptions",
        "integer",
        "How many pods may be evicted now.",
    ),
    AGE,
];

pub(super) fn resource() -> Resource {
    Resource {
        singular: "poddisruptionbudget",
        short_names: &["pdb"],
        has_status: true,
        has_generation: true,
        hooks: Hooks {
            prepare_create: |budget| {
                if let Some(fields) = budget.as_object_mut() {
                    fields.remove("status");
                }
            },
            prepare_update: |new, old| carry_over(new, old, "status"),
            validate,
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row: |budget, now| {
            vec![
                name(budget),
                bound(budget, "spec.minAvailable"),
                bound(budget, "spec.maxUnavailable"),
                integer(budget, "status.disruptionsAllowed").into(),
                age(budget, now),
            ]
        },
        ..Resource::namespaced(
            "policy",
            "v1",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            "io.k8s.api.policy.v1.PodDisruptionBudget",
        )
    }
}

fn bound(budget: &Value, path: &str) -> Value {
    match at(budget, path) {
        Value::Number(number) => number.to_string().into(),
        Value::String(text) => text.as_str().into(),
        _ => "N/A".into(),
    }
}

fn validate(budget: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(budget);
    if is_set(budget, "spec.minAvailable") && is_set(budget, "spec.maxUnavailable") {
        errors.push(invalid(
            "spec",
            at(budget, "spec"),
            "minAvailable and maxUnavailable cannot be both set",
        ));
    }
    for field in ["spec.minAvailable", "spec.maxUnavailable"] {
        let value = at(budget, field);
        if let Some(why) = wrong_bound(value) {
            errors.push(invalid(field, value, why));
        }
    }
    let policy = text(budget, "spec.unhealthyPodEvictionPolicy");
    const POLICIES: [&str; 2] = ["AlwaysAllow", "IfHealthyBudget"];
    if !policy.is_empty() && !POLICIES.contains(&policy) {
        let field = "spec.unhealthyPodEvictionPolicy";
        errors.push(not_supported(field, policy, &POLICIES));
    }
    errors
}

fn wrong_bound(value: &Value) -> Option<&'static str> {
    match value {
        Value::Number(number) if number.as_i64().is_some_and(|n| n < 0) => {
            Some("must be greater than or equal to 0")
        }
        Value::String(text) => {
            let number = text.strip_suffix('%').map(str::parse::<u32>);
            match number {
                Some(Ok(0..=100)) => None,
                Some(Ok(_)) => Some("must not be greater than 100%"),
                _ => Some(
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                ),
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn budgets_are_numbers_or_percentages() {
        let wrong = |spec: Value| {
            let budget = json!({"metadata": {"name": "b"}, "spec": spec});
            validate(&budget).len()
        };
        assert_eq!(wrong(json!({"minAvailable": 1})), 0);
        assert_eq!(wrong(json!({"maxUnavailable": "30%"})), 0);
        assert_eq!(wrong(json!({"maxUnavailable": "130%"})), 1);
        assert_eq!(wrong(json!({"minAvailable": "some"})), 1);
        assert_eq!(wrong(json!({"minAvailable": -1, "maxUnavailable": 1})), 2);
        assert_eq!(wrong(json!({"unhealthyPodEvictionPolicy": "Never"})), 1);
    }
}
