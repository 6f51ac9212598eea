//! The rules for a pod's specification, with the API server's words
//! (`pkg/apis/core/validation`). Runs after defaulting.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::error::{duplicate, forbidden, invalid, non_negative, not_supported, required};
use super::super::object::{at, integer, is_set, list, text, truth};
use super::super::priorityclasses::POLICIES;
use super::super::{FieldError, metadata, syntax};
use super::affinity;
use super::container::container;
use super::volumes;

/// A pod template at `path` (`spec.template`).
pub(crate) fn template(template: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = metadata::labels(at(template, "metadata.labels"), &format!("{path}.labels"));
    errors.extend(metadata::annotations(
        at(template, "metadata.annotations"),
        &format!("{path}.annotations"),
    ));
    errors.extend(pod_spec(at(template, "spec"), &format!("{path}.spec")));
    errors
}

/// A pod's specification at `path`.
pub(crate) fn pod_spec(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = volumes::validate(spec, path);
    errors.extend(containers(spec, path));
    errors.extend(init_containers(spec, path));
    errors.extend(one_of(
        spec,
        path,
        "restartPolicy",
        &["Always", "OnFailure", "Never"],
    ));
    errors.extend(one_of(
        spec,
        path,
        "dnsPolicy",
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    ));
    errors.extend(metadata::labels(
        at(spec, "nodeSelector"),
        &format!("{path}.nodeSelector"),
    ));
    let field = format!("{path}.terminationGracePeriodSeconds");
    errors.extend(non_negative(
        &field,
        at(spec, "terminationGracePeriodSeconds"),
    ));
    if is_set(spec, "activeDeadlineSeconds") && integer(spec, "activeDeadlineSeconds") < 1 {
        let why = "must be between 1 and 2147483647, inclusive";
        errors.push(invalid(
            &format!("{path}.activeDeadlineSeconds"),
            &spec["activeDeadlineSeconds"],
            why,
        ));
    }
    for field in ["hostname", "subdomain"] {
        if !text(spec, field).is_empty() {
            let faults = syntax::dns_label(text(spec, field));
            errors.extend(
                faults
                    .iter()
                    .map(|why| invalid(&format!("{path}.{field}"), &spec[field], why)),
            );
        }
    }
    for field in ["serviceAccountName", "nodeName"] {
        if !text(spec, field).is_empty() {
            let faults = syntax::dns_subdomain(text(spec, field));
            errors.extend(
                faults
                    .iter()
                    .map(|why| invalid(&format!("{path}.{field}"), &spec[field], why)),
            );
        }
    }
    errors.extend(pod_security(spec, path));
    errors.extend(tolerations(spec, path));
    errors.extend(affinity::validate(spec, path));
    errors.extend(preemption_policy(spec, path));
    errors.extend(host_port_conflicts(spec, path));
    errors
}

fn preemption_policy(spec: &Value, path: &str) -> Option<FieldError> {
    let policy = text(spec, "preemptionPolicy");
    let path = format!("{path}.preemptionPolicy");
    (!policy.is_empty() && !POLICIES.contains(&policy))
        .then(|| not_supported(&path, policy, &POLICIES))
}

fn containers(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = format!("{path}.containers");
    if list(spec, "containers").is_empty() {
        errors.push(required(&path, ""));
    }
    let mut seen = BTreeSet::new();
    for (index, one) in list(spec, "containers").iter().enumerate() {
        let path = format!("{path}[{index}]");
        errors.extend(container(one, spec, &path));
        let name = text(one, "name");
        if !name.is_empty() && !seen.insert(name) {
            errors.push(duplicate(&format!("{path}.name"), &one["name"]));
        }
        for kind in ["livenessProbe", "startupProbe"] {
            if is_set(one, kind) && integer(&one[kind], "successThreshold") != 1 {
                errors.push(invalid(
                    &format!("{path}.{kind}.successThreshold"),
                    &one[kind]["successThreshold"],
                    "must be 1",
                ));
            }
        }
    }
    errors
}

fn init_containers(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen: BTreeSet<&str> = list(spec, "containers")
        .iter()
        .map(|c| text(c, "name"))
        .collect();
    for (index, one) in list(spec, "initContainers").iter().enumerate() {
        let path = format!("{path}.initContainers[{index}]");
        errors.extend(container(one, spec, &path));
        let name = text(one, "name");
        if !name.is_empty() && !seen.insert(name) {
            errors.push(duplicate(&format!("{path}.name"), &one["name"]));
        }
        if text(one, "restartPolicy") == "Always" {
            continue;
        }
        for kind in [
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
        ] {
            if is_set(one, kind) {
                let why = "may not be set for init containers without restartPolicy=Always";
                errors.push(forbidden(&format!("{path}.{kind}"), why));
            }
        }
    }
    errors
}

fn host_port_conflicts(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut taken = BTreeSet::new();
    for (at_container, container) in list(spec, "containers").iter().enumerate() {
        for (at_port, port) in list(container, "ports").iter().enumerate() {
            let number = integer(port, "hostPort");
            if number == 0 {
                continue;
            }
            let key = format!(
                "{}/{}/{number}",
                text(port, "protocol"),
                text(port, "hostIP")
            );
            if !taken.insert(key.clone()) {
                let field = format!("{path}.containers[{at_container}].ports[{at_port}].hostPort");
                errors.push(duplicate(&field, &Value::from(key)));
            }
        }
    }
    if truth(spec, "hostNetwork") {
        for (at_container, container) in list(spec, "containers").iter().enumerate() {
            for (at_port, port) in list(container, "ports").iter().enumerate() {
                if is_set(port, "hostPort")
                    && integer(port, "hostPort") != integer(port, "containerPort")
                {
                    let field =
                        format!("{path}.containers[{at_container}].ports[{at_port}].containerPort");
                    errors.push(invalid(
                        &field,
                        &port["containerPort"],
                        "must match `hostPort` when `hostNetwork` is true",
                    ));
                }
            }
        }
    }
    errors
}

fn pod_security(spec: &Value, path: &str) -> Vec<FieldError> {
    let context = at(spec, "securityContext");
    let path = format!("{path}.securityContext");
    let mut errors = ids(context, &path, &["fsGroup", "runAsGroup", "runAsUser"]);
    if truth(spec, "shareProcessNamespace") && truth(spec, "hostPID") {
        errors.push(invalid(
            &format!("{path}.shareProcessNamespace"),
            &Value::Bool(true),
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    errors
}

pub(super) fn ids(context: &Value, path: &str, fields: &[&str]) -> Vec<FieldError> {
    let wrong = fields.iter().filter(|f| {
        is_set(context, f) && !(0..=i64::from(i32::MAX)).contains(&integer(context, f))
    });
    wrong
        .map(|f| {
            invalid(
                &format!("{path}.{f}"),
                &context[*f],
                "must be between 0 and 2147483647, inclusive",
            )
        })
        .collect()
}

fn tolerations(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, toleration) in list(spec, "tolerations").iter().enumerate() {
        let path = format!("{path}.tolerations[{index}]");
        let operator = text(toleration, "operator");
        let key = text(toleration, "key");
        if !key.is_empty() {
            let faults = syntax::qualified_name(key);
            errors.extend(
                faults
                    .iter()
                    .map(|why| invalid(&format!("{path}.key"), &toleration["key"], why)),
            );
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(invalid(
                &format!("{path}.operator"),
                &Value::from(operator),
                why,
            ));
        }
        if is_set(toleration, "tolerationSeconds") && text(toleration, "effect") != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(invalid(
                &format!("{path}.effect"),
                &Value::from(text(toleration, "effect")),
                why,
            ));
        }
        match operator {
            "" | "Equal" => {
                let faults = syntax::label_value(text(toleration, "value"));
                let field = format!("{path}.operator");
                errors.extend(
                    faults
                        .iter()
                        .map(|why| invalid(&field, &toleration["value"], why)),
                );
            }
            "Exists" if !text(toleration, "value").is_empty() => {
                let why = "value must be empty when `operator` is 'Exists'";
                errors.push(invalid(&format!("{path}.operator"), toleration, why));
            }
            "Exists" => {}
            other => errors.push(not_supported(
                &format!("{path}.operator"),
                other,
                &["Equal", "Exists"],
            )),
        }
        if !text(toleration, "effect").is_empty() {
            errors.extend(one_of(
                toleration,
                &path,
                "effect",
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            ));
        }
    }
    errors
}

/// An enumerated field; empty is `Required`, anything strange `Unsupported`.
pub(super) fn one_of(
    value: &Value,
    path: &str,
    field: &str,
    allowed: &[&str],
) -> Option<FieldError> {
    let given = text(value, field);
    let path = format!("{path}.{field}");
    if given.is_empty() {
        return Some(required(&path, ""));
    }
    (!allowed.contains(&given)).then(|| not_supported(&path, given, allowed))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::defaults;
    use super::pod_spec;

    fn faults(mut pod: Value) -> Vec<String> {
        defaults::default_pod(&mut pod);
        pod_spec(&pod["spec"], "spec")
            .iter()
            .map(|e| format!("{}: {}", e.field, e.message))
            .collect()
    }

    fn with_container(container: Value) -> Value {
        json!({"spec": {"containers": [container]}})
    }

    #[test]
    fn a_plain_pod_is_fine() {
        let mut pod = with_container(
            json!({"name": "a", "image": "nginx", "ports": [{"containerPort": 80, "name": "http"}],
            "readinessProbe": {"httpGet": {"port": "http"}}, "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]}),
        );
        pod["spec"]["volumes"] = json!([{"name": "v"}]);
        assert_eq!(faults(pod), Vec::<String>::new());
    }

    #[test]
    fn containers_names_and_images_are_required() {
        assert_eq!(
            faults(json!({"spec": {}})),
            ["spec.containers: Required value"]
        );
        assert_eq!(
            faults(with_container(json!({}))),
            [
                "spec.containers[0].name: Required value",
                "spec.containers[0].image: Required value"
            ]
        );
        let two = json!({"spec": {"containers": [{"name": "a", "image": "b"}, {"name": "a", "image": "b"}]}});
        assert_eq!(
            faults(two),
            ["spec.containers[1].name: Duplicate value: \"a\""]
        );
    }

    #[test]
    fn policies_ports_and_mounts() {
        let mut pod = with_container(
            json!({"name": "a", "image": "b", "imagePullPolicy": "Sometimes",
            "ports": [{"containerPort": 70000}], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
        );
        pod["spec"]["restartPolicy"] = json!("Maybe");
        assert_eq!(
            faults(pod),
            [
                r#"spec.containers[0].imagePullPolicy: Unsupported value: "Sometimes": supported values: "Always", "IfNotPresent", "Never""#,
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                r#"spec.containers[0].volumeMounts[0].name: Not found: "v""#,
                r#"spec.restartPolicy: Unsupported value: "Maybe": supported values: "Always", "OnFailure", "Never""#,
            ]
        );
    }

    #[test]
    fn probes_and_variables() {
        let pod = with_container(
            json!({"name": "a", "image": "b", "livenessProbe": {"successThreshold": 2},
            "env": [{"name": ""}, {"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]}),
        );
        assert_eq!(
            faults(pod),
            [
                "spec.containers[0].env[0].name: Required value",
                "spec.containers[0].env[1].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
                "spec.containers[0].env[1].valueFrom.fieldRef.fieldPath: Unsupported value: \"spec.x\": supported values: \
                 \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \
                 \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            ]
        );
    }
}
