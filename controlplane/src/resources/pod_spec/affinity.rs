//! Where a pod wants to be: node affinity, pod affinity and anti-affinity, topology spread.
//!
//! The rules are those of `pkg/apis/core/validation`. The label keys that a pod names
//! (`matchLabelKeys`) become part of its selectors when it is created.

use serde_json::{Value, json};

use super::super::error::{duplicate, forbidden, invalid, not_supported, required};
use super::super::object::{at, default, entries, integer, is_set, items_mut, list, text};
use super::super::{FieldError, metadata, syntax};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const NOT_POSITIVE: &str = "must be greater than zero";

/// Everything of this in a pod's specification at `path`.
pub(super) fn validate(spec: &Value, path: &str) -> Vec<FieldError> {
    let affinity = at(spec, "affinity");
    let mut errors = node_affinity(
        at(affinity, "nodeAffinity"),
        &format!("{path}.affinity.nodeAffinity"),
    );
    for kind in ["podAffinity", "podAntiAffinity"] {
        let path = format!("{path}.affinity.{kind}");
        errors.extend(pod_affinity(at(affinity, kind), &path));
    }
    errors.extend(spread(spec, path));
    errors
}

fn node_affinity(affinity: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if is_set(affinity, REQUIRED) {
        let terms = list(&affinity[REQUIRED], "nodeSelectorTerms");
        let path = format!("{path}.{REQUIRED}.nodeSelectorTerms");
        if terms.is_empty() {
            let why = "must have at least one node selector term";
            errors.push(required(&path, why));
        }
        for (index, term) in terms.iter().enumerate() {
            errors.extend(node_selector_term(term, &format!("{path}[{index}]")));
        }
    }
    for (index, term) in list(affinity, PREFERRED).iter().enumerate() {
        let path = format!("{path}.{PREFERRED}[{index}]");
        errors.extend(weight(term, &path));
        let preference = at(term, "preference");
        errors.extend(node_selector_term(
            preference,
            &format!("{path}.preference"),
        ));
    }
    errors
}

fn weight(term: &Value, path: &str) -> Option<FieldError> {
    let why = "must be in the range 1-100";
    (!(1..=100).contains(&integer(term, "weight"))).then(|| {
        invalid(
            &format!("{path}.weight"),
            &json!(integer(term, "weight")),
            why,
        )
    })
}

fn node_selector_term(term: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, one) in list(term, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        errors.extend(node_expression(one, &path));
    }
    for (index, one) in list(term, "matchFields").iter().enumerate() {
        let path = format!("{path}.matchFields[{index}]");
        errors.extend(node_field(one, &path));
    }
    errors
}

fn node_expression(expression: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let values = list(expression, "values").len();
    let path_of_values = format!("{path}.values");
    match text(expression, "operator") {
        "In" | "NotIn" if values == 0 => {
            let why = "must be specified when `operator` is 'In' or 'NotIn'";
            errors.push(required(&path_of_values, why));
        }
        "Exists" | "DoesNotExist" if values > 0 => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(forbidden(&path_of_values, why));
        }
        "Gt" | "Lt" if values != 1 => {
            let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            errors.push(required(&path_of_values, why));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.push(not_an_operator(other, path)),
    }
    errors.extend(label_name(text(expression, "key"), &format!("{path}.key")));
    errors
}

fn node_field(field: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match text(field, "operator") {
        "In" | "NotIn" => {
            if list(field, "values").len() != 1 {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.push(required(&format!("{path}.values"), why));
            }
        }
        other => errors.push(not_an_operator(other, path)),
    }
    let key = text(field, "key");
    if key == "metadata.name" {
        for (index, value) in list(field, "values").iter().enumerate() {
            let faults = syntax::dns_subdomain(value.as_str().unwrap_or_default());
            let path = format!("{path}.values[{index}]");
            errors.extend(faults.iter().map(|why| invalid(&path, value, why)));
        }
    } else {
        let why = "not a valid field selector key";
        errors.push(invalid(&format!("{path}.key"), &json!(key), why));
    }
    errors
}

fn not_an_operator(operator: &str, path: &str) -> FieldError {
    let why = "not a valid selector operator";
    invalid(&format!("{path}.operator"), &json!(operator), why)
}

fn pod_affinity(affinity: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, term) in list(affinity, REQUIRED).iter().enumerate() {
        errors.extend(pod_term(term, &format!("{path}.{REQUIRED}[{index}]")));
    }
    for (index, term) in list(affinity, PREFERRED).iter().enumerate() {
        let path = format!("{path}.{PREFERRED}[{index}]");
        errors.extend(weight(term, &path));
        let term = at(term, "podAffinityTerm");
        errors.extend(pod_term(term, &format!("{path}.podAffinityTerm")));
    }
    errors
}

fn pod_term(term: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["labelSelector", "namespaceSelector"] {
        let path = format!("{path}.{field}");
        errors.extend(metadata::label_selector(at(term, field), &path));
    }
    for name in list(term, "namespaces") {
        let faults = syntax::dns_label(name.as_str().unwrap_or_default());
        let path = format!("{path}.namespace");
        errors.extend(faults.iter().map(|why| invalid(&path, name, why)));
    }
    errors.extend(label_keys(
        term,
        path,
        &["matchLabelKeys", "mismatchLabelKeys"],
    ));
    let both = list(term, "matchLabelKeys").iter();
    for (index, key) in both.enumerate() {
        if list(term, "mismatchLabelKeys").contains(key) {
            let why = "exists in both matchLabelKeys and mismatchLabelKeys";
            errors.push(invalid(
                &format!("{path}.matchLabelKeys[{index}]"),
                key,
                why,
            ));
        }
    }
    errors.extend(topology_key(term, path));
    errors
}

fn topology_key(value: &Value, path: &str) -> Vec<FieldError> {
    let path = format!("{path}.topologyKey");
    match text(value, "topologyKey") {
        "" => vec![required(&path, "can not be empty")],
        key => label_name(key, &path),
    }
}

/// Keys of labels whose values the pod's own have to be, or not.
fn label_keys(value: &Value, path: &str, fields: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let selector = at(value, "labelSelector");
    for field in fields {
        let keys = list(value, field);
        let path = format!("{path}.{field}");
        if !keys.is_empty() && selector.is_null() {
            let why = "must not be specified when labelSelector is not set";
            errors.push(forbidden(&path, why));
        }
        for (index, key) in keys.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let name = key.as_str().unwrap_or_default();
            errors.extend(label_name(name, &path));
            if is_selected_by(selector, name) {
                let why = format!("exists in both {field} and labelSelector");
                errors.push(invalid(&path, key, &why));
            }
        }
    }
    errors
}

/// Whether a selector asks for a label by itself, beside what [`merge_label_keys`] added.
fn is_selected_by(selector: &Value, key: &str) -> bool {
    let merged = |expression: &Value| {
        matches!(text(expression, "operator"), "In" | "NotIn")
            && list(expression, "values").len() == 1
    };
    let expressions = list(selector, "matchExpressions").iter();
    entries(selector, "matchLabels").any(|(known, _)| known == key)
        || expressions
            .filter(|expression| text(expression, "key") == key && !merged(expression))
            .count()
            > 0
}

fn spread(spec: &Value, path: &str) -> Vec<FieldError> {
    const FIELD: &str = "topologySpreadConstraints";
    let constraints = list(spec, FIELD);
    let mut errors = Vec::new();
    for (index, constraint) in constraints.iter().enumerate() {
        let path = format!("{path}.{FIELD}[{index}]");
        errors.extend(spread_constraint(constraint, &path));
        let place = |one: &Value| {
            let (key, action) = (text(one, "topologyKey"), text(one, "whenUnsatisfiable"));
            format!("{{{key}, {action}}}")
        };
        let mut later = constraints[index + 1..].iter();
        if later.any(|other| place(other) == place(constraint)) {
            let path = format!("{path}.{{topologyKey, whenUnsatisfiable}}");
            errors.push(duplicate(&path, &json!(place(constraint))));
        }
    }
    errors
}

fn spread_constraint(constraint: &Value, path: &str) -> Vec<FieldError> {
    const ACTIONS: [&str; 2] = ["DoNotSchedule", "ScheduleAnyway"];
    const POLICIES: [&str; 2] = ["Honor", "Ignore"];
    let mut errors = Vec::new();
    let skew = integer(constraint, "maxSkew");
    if skew <= 0 {
        errors.push(invalid(
            &format!("{path}.maxSkew"),
            &json!(skew),
            NOT_POSITIVE,
        ));
    }
    errors.extend(topology_key(constraint, path));
    let action = text(constraint, "whenUnsatisfiable");
    if !ACTIONS.contains(&action) {
        let path = format!("{path}.whenUnsatisfiable");
        errors.push(not_supported(&path, action, &ACTIONS));
    }
    let least = at(constraint, "minDomains");
    if !least.is_null() {
        let path = format!("{path}.minDomains");
        if integer(constraint, "minDomains") <= 0 {
            errors.push(invalid(&path, least, NOT_POSITIVE));
        }
        if action != "DoNotSchedule" {
            let why =
                format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
            errors.push(invalid(&path, least, &why));
        }
    }
    for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
        let policy = text(constraint, field);
        if is_set(constraint, field) && !POLICIES.contains(&policy) {
            errors.push(not_supported(&format!("{path}.{field}"), policy, &POLICIES));
        }
    }
    errors.extend(label_keys(constraint, path, &["matchLabelKeys"]));
    let selector = at(constraint, "labelSelector");
    errors.extend(metadata::label_selector(
        selector,
        &format!("{path}.labelSelector"),
    ));
    errors
}

fn label_name(name: &str, path: &str) -> Vec<FieldError> {
    let faults = syntax::qualified_name(name);
    let value = json!(name);
    faults
        .iter()
        .map(|why| invalid(path, &value, why))
        .collect()
}

/// Writes what `matchLabelKeys` and `mismatchLabelKeys` of a new pod stand for into its
/// selectors.
pub(crate) fn merge_label_keys(pod: &mut Value) {
    let labels = at(pod, "metadata.labels").clone();
    let Some(spec) = pod.get_mut("spec") else {
        return;
    };
    for constraint in items_mut(spec, "topologySpreadConstraints") {
        merge(constraint, &labels);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = spec.pointer_mut(&format!("/affinity/{kind}")) else {
            continue;
        };
        items_mut(affinity, REQUIRED).for_each(|term| merge(term, &labels));
        for term in items_mut(affinity, PREFERRED) {
            if let Some(term) = term.get_mut("podAffinityTerm") {
                merge(term, &labels);
            }
        }
    }
}

fn merge(term: &mut Value, labels: &Value) {
    if !is_set(term, "labelSelector") {
        return;
    }
    for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        let keys: Vec<String> = list(term, field)
            .iter()
            .filter_map(|key| key.as_str().map(str::to_string))
            .collect();
        for key in keys {
            let Some(value) = labels.get(&key) else {
                continue;
            };
            let expression = json!({"key": key, "operator": operator, "values": [value]});
            let selector = &mut term["labelSelector"];
            default(selector, "matchExpressions", Value::Array(Vec::new()));
            if let Some(expressions) = selector["matchExpressions"].as_array_mut() {
                expressions.push(expression);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        let errors = validate(&spec, "spec");
        errors
            .iter()
            .map(|e| format!("{}: {}", e.field, e.message))
            .collect()
    }

    #[test]
    fn right_ones_pass() {
        let selector = json!({"matchLabels": {"app": "web"}});
        let term = json!({"topologyKey": "zone", "labelSelector": selector,
            "matchLabelKeys": ["pod-template-hash"]});
        let spec = json!({
            "affinity": {
                "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{
                    "matchExpressions": [{"key": "cpus", "operator": "Gt", "values": ["4"]}],
                    "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}],
                }]}},
                "podAffinity": {REQUIRED: [term]},
                "podAntiAffinity": {PREFERRED: [{"weight": 100, "podAffinityTerm": term}]},
            },
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
                "whenUnsatisfiable": "DoNotSchedule", "minDomains": 2, "labelSelector": selector,
                "matchLabelKeys": ["pod-template-hash"], "nodeTaintsPolicy": "Honor"}],
        });
        assert_eq!(faults(spec.clone()), Vec::<String>::new());
        let mut pod = json!({"metadata": {"labels": {"pod-template-hash": "1"}}, "spec": spec});
        merge_label_keys(&mut pod);
        assert_eq!(faults(pod["spec"].clone()), Vec::<String>::new());
    }

    #[test]
    fn wrong_affinities_are_refused() {
        let spec = json!({"affinity": {
            "nodeAffinity": {
                REQUIRED: {"nodeSelectorTerms": []},
                PREFERRED: [{"weight": 0, "preference": {
                    "matchExpressions": [{"key": "a", "operator": "Near"}],
                    "matchFields": [{"key": "spec.x", "operator": "In", "values": ["a"]}],
                }}],
            },
            "podAffinity": {REQUIRED: [{"labelSelector": {}, "matchLabelKeys": ["a"],
                "mismatchLabelKeys": ["a"]}]},
            "podAntiAffinity": {PREFERRED: [
                {"weight": 101, "podAffinityTerm": {"topologyKey": "a b", "matchLabelKeys": ["k"]}},
            ]},
        }});
        let name = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
        let (required, preferred) = (REQUIRED, PREFERRED);
        let node = "spec.affinity.nodeAffinity";
        let anti = format!("spec.affinity.podAntiAffinity.{preferred}[0]");
        assert_eq!(
            faults(spec),
            [
                format!(
                    "{node}.{required}.nodeSelectorTerms: Required value: must have at least one node selector term"
                ),
                format!(
                    "{node}.{preferred}[0].weight: Invalid value: 0: must be in the range 1-100"
                ),
                format!(
                    "{node}.{preferred}[0].preference.matchExpressions[0].operator: Invalid value: \"Near\": not a valid selector operator"
                ),
                format!(
                    "{node}.{preferred}[0].preference.matchFields[0].key: Invalid value: \"spec.x\": not a valid field selector key"
                ),
                format!(
                    "spec.affinity.podAffinity.{required}[0].matchLabelKeys[0]: Invalid value: \"a\": exists in both matchLabelKeys and mismatchLabelKeys"
                ),
                format!(
                    "spec.affinity.podAffinity.{required}[0].topologyKey: Required value: can not be empty"
                ),
                format!("{anti}.weight: Invalid value: 101: must be in the range 1-100"),
                format!(
                    "{anti}.podAffinityTerm.matchLabelKeys: Forbidden: must not be specified when labelSelector is not set"
                ),
                format!("{anti}.podAffinityTerm.topologyKey: Invalid value: \"a b\": {name}"),
            ]
        );
    }

    #[test]
    fn wrong_constraints_are_refused() {
        let wrong = json!({"maxSkew": 0, "topologyKey": "", "whenUnsatisfiable": "Sometimes",
            "minDomains": 0, "nodeAffinityPolicy": "Maybe"});
        let selector = json!({"matchLabels": {"app": "web"}});
        let twice = json!({"maxSkew": 1, "topologyKey": "zone", "labelSelector": selector,
            "whenUnsatisfiable": "ScheduleAnyway", "matchLabelKeys": ["app"]});
        let path = "spec.topologySpreadConstraints";
        let both = "matchLabelKeys[0]: Invalid value: \"app\": exists in both matchLabelKeys and labelSelector";
        assert_eq!(
            faults(json!({"topologySpreadConstraints": [wrong, twice, twice]})),
            [
                format!("{path}[0].maxSkew: Invalid value: 0: must be greater than zero"),
                format!("{path}[0].topologyKey: Required value: can not be empty"),
                format!(
                    "{path}[0].whenUnsatisfiable: Unsupported value: \"Sometimes\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\""
                ),
                format!("{path}[0].minDomains: Invalid value: 0: must be greater than zero"),
                format!(
                    "{path}[0].minDomains: Invalid value: 0: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not Sometimes"
                ),
                format!(
                    "{path}[0].nodeAffinityPolicy: Unsupported value: \"Maybe\": supported values: \"Honor\", \"Ignore\""
                ),
                format!("{path}[1].{both}"),
                format!(
                    "{path}[1].{{topologyKey, whenUnsatisfiable}}: Duplicate value: \"{{zone, ScheduleAnyway}}\""
                ),
                format!("{path}[2].{both}"),
            ]
        );
    }

    #[test]
    fn label_keys_become_part_of_the_selectors() {
        let mut pod = json!({
            "metadata": {"labels": {"hash": "1", "tenant": "t"}},
            "spec": {
                "affinity": {"podAffinity": {REQUIRED: [{"topologyKey": "z", "labelSelector": {},
                    "matchLabelKeys": ["hash", "absent"], "mismatchLabelKeys": ["tenant"]}]}},
                "topologySpreadConstraints": [{"matchLabelKeys": ["hash"]}],
            },
        });
        merge_label_keys(&mut pod);
        let term = &pod["spec"]["affinity"]["podAffinity"][REQUIRED][0];
        assert_eq!(
            term["labelSelector"]["matchExpressions"],
            json!([{"key": "hash", "operator": "In", "values": ["1"]},
                {"key": "tenant", "operator": "NotIn", "values": ["t"]}])
        );
        let constraint = &pod["spec"]["topologySpreadConstraints"][0];
        assert!(constraint.get("labelSelector").is_none());
    }
}
