//! The rules for a pod's specification, with the API server's words
//! (`pkg/apis/core/validation`). Runs after defaulting.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::error::{duplicate, forbidden, invalid, non_negative, not_supported, required};
use super::super::object::{at, integer, is_set, list, text, truth};
use super::super::{FieldError, metadata, syntax};
use super::{resources, volumes};

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
    errors.extend(host_port_conflicts(spec, path));
    errors
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

fn container(container: &Value, spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = text(container, "name");
    if name.is_empty() {
        errors.push(required(&format!("{path}.name"), ""));
    } else {
        let faults = syntax::dns_label(name);
        errors.extend(
            faults
                .iter()
                .map(|why| invalid(&format!("{path}.name"), &container["name"], why)),
        );
    }
    let image = text(container, "image");
    if image.is_empty() {
        errors.push(required(&format!("{path}.image"), ""));
    } else if image.trim() != image {
        let why = "must not have leading or trailing whitespace";
        errors.push(invalid(&format!("{path}.image"), &container["image"], why));
    }
    errors.extend(one_of(
        container,
        path,
        "imagePullPolicy",
        &["Always", "IfNotPresent", "Never"],
    ));
    errors.extend(one_of(
        container,
        path,
        "terminationMessagePolicy",
        &["File", "FallbackToLogsOnError"],
    ));
    errors.extend(ports(container, path));
    errors.extend(environment(container, path));
    errors.extend(volumes::validate_mounts(container, spec, path));
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if is_set(container, kind) {
            errors.extend(probe(&container[kind], &format!("{path}.{kind}")));
        }
    }
    for hook in ["postStart", "preStop"] {
        if is_set(container, &format!("lifecycle.{hook}")) {
            errors.extend(handler(
                &container["lifecycle"][hook],
                &format!("{path}.lifecycle.{hook}"),
                HOOKS,
            ));
        }
    }
    errors.extend(resources::validate(
        at(container, "resources"),
        &format!("{path}.resources"),
    ));
    errors.extend(container_security(container, path));
    errors
}

fn ports(container: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut names = BTreeSet::new();
    for (index, port) in list(container, "ports").iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        let name = text(port, "name");
        if !name.is_empty() {
            let faults = syntax::port_name(name);
            errors.extend(
                faults
                    .iter()
                    .map(|why| invalid(&format!("{path}.name"), &port["name"], why)),
            );
            if faults.is_empty() && !names.insert(name) {
                errors.push(duplicate(&format!("{path}.name"), &port["name"]));
            }
        }
        if integer(port, "containerPort") == 0 {
            errors.push(required(&format!("{path}.containerPort"), ""));
        } else {
            let faults = syntax::port_number(integer(port, "containerPort"));
            errors.extend(faults.iter().map(|why| {
                invalid(
                    &format!("{path}.containerPort"),
                    &port["containerPort"],
                    why,
                )
            }));
        }
        if integer(port, "hostPort") != 0 {
            let faults = syntax::port_number(integer(port, "hostPort"));
            errors.extend(
                faults
                    .iter()
                    .map(|why| invalid(&format!("{path}.hostPort"), &port["hostPort"], why)),
            );
        }
        errors.extend(one_of(port, &path, "protocol", &["SCTP", "TCP", "UDP"]));
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

fn environment(container: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, variable) in list(container, "env").iter().enumerate() {
        let path = format!("{path}.env[{index}]");
        let name = text(variable, "name");
        if name.is_empty() {
            errors.push(required(&format!("{path}.name"), ""));
        } else {
            let faults = syntax::env_name(name);
            errors.extend(
                faults
                    .iter()
                    .map(|why| invalid(&format!("{path}.name"), &variable["name"], why)),
            );
        }
        if is_set(variable, "valueFrom") {
            errors.extend(value_from(variable, &format!("{path}.valueFrom")));
        }
    }
    for (index, source) in list(container, "envFrom").iter().enumerate() {
        let path = format!("{path}.envFrom[{index}]");
        match (is_set(source, "configMapRef"), is_set(source, "secretRef")) {
            (false, false) => errors.push(invalid(
                &path,
                &Value::from(""),
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            (true, true) => errors.push(invalid(
                &path,
                &Value::from(""),
                "may not have more than one field specified at a time",
            )),
            (config, _) => {
                let kind = if config { "configMapRef" } else { "secretRef" };
                if text(&source[kind], "name").is_empty() {
                    errors.push(required(&format!("{path}.{kind}.name"), ""));
                }
            }
        }
    }
    errors
}

fn value_from(variable: &Value, path: &str) -> Vec<FieldError> {
    const FIELDS: &[&str] = &[
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    let source = &variable["valueFrom"];
    let empty = Value::from("");
    let mut errors = Vec::new();
    let kinds = source.as_object().map_or(0, serde_json::Map::len);
    if kinds == 0 {
        let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.push(invalid(path, &empty, why));
    } else if !text(variable, "value").is_empty() {
        errors.push(invalid(
            path,
            &empty,
            "may not be specified when `value` is not empty",
        ));
    } else if kinds > 1 {
        errors.push(invalid(
            path,
            &empty,
            "may not have more than one field specified at a time",
        ));
    }
    if is_set(source, "fieldRef") {
        let field = text(source, "fieldRef.fieldPath");
        let subscripted = ["metadata.labels['", "metadata.annotations['"]
            .iter()
            .any(|p| field.starts_with(p));
        if field.is_empty() {
            errors.push(required(&format!("{path}.fieldRef.fieldPath"), ""));
        } else if !subscripted && !FIELDS.contains(&field) {
            errors.push(not_supported(
                &format!("{path}.fieldRef.fieldPath"),
                field,
                FIELDS,
            ));
        }
    }
    for kind in ["configMapKeyRef", "secretKeyRef"] {
        if is_set(source, kind) {
            for field in ["name", "key"] {
                if text(&source[kind], field).is_empty() {
                    errors.push(required(&format!("{path}.{kind}.{field}"), ""));
                }
            }
        }
    }
    errors
}

const PROBES: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc"];
const HOOKS: &[&str] = &["exec", "httpGet", "tcpSocket", "sleep"];

fn probe(probe: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = handler(probe, path, PROBES);
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        errors.extend(non_negative(&format!("{path}.{field}"), at(probe, field)));
    }
    errors
}

fn handler(handler: &Value, path: &str, kinds: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let given: Vec<&&str> = kinds.iter().filter(|kind| is_set(handler, kind)).collect();
    if given.is_empty() {
        errors.push(required(path, "must specify a handler type"));
    }
    for extra in given.iter().skip(1) {
        errors.push(forbidden(
            &format!("{path}.{extra}"),
            "may not specify more than 1 handler type",
        ));
    }
    if is_set(handler, "exec") && list(handler, "exec.command").is_empty() {
        errors.push(required(&format!("{path}.exec.command"), ""));
    }
    if is_set(handler, "httpGet") {
        let path = format!("{path}.httpGet");
        if text(handler, "httpGet.path").is_empty() {
            errors.push(required(&format!("{path}.path"), ""));
        }
        errors.extend(port_number_or_name(
            &handler["httpGet"]["port"],
            &format!("{path}.port"),
        ));
        errors.extend(one_of(
            &handler["httpGet"],
            &path,
            "scheme",
            &["HTTP", "HTTPS"],
        ));
    }
    if is_set(handler, "tcpSocket") {
        errors.extend(port_number_or_name(
            &handler["tcpSocket"]["port"],
            &format!("{path}.tcpSocket.port"),
        ));
    }
    if is_set(handler, "grpc") {
        errors.extend(port_number_or_name(
            &handler["grpc"]["port"],
            &format!("{path}.grpc.port"),
        ));
    }
    errors
}

fn port_number_or_name(port: &Value, path: &str) -> Vec<FieldError> {
    let faults = match port {
        Value::String(name) => syntax::port_name(name),
        other => syntax::port_number(other.as_i64().unwrap_or_default()),
    };
    let given = if port.is_null() {
        Value::from(0)
    } else {
        port.clone()
    };
    faults
        .iter()
        .map(|why| invalid(path, &given, why))
        .collect()
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

fn container_security(container: &Value, path: &str) -> Vec<FieldError> {
    let context = at(container, "securityContext");
    let path = format!("{path}.securityContext");
    let mut errors = ids(context, &path, &["runAsUser", "runAsGroup"]);
    if at(context, "allowPrivilegeEscalation") == false {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        if truth(context, "privileged") {
            errors.push(invalid(&path, context, why));
        }
        if list(context, "capabilities.add")
            .iter()
            .any(|c| c == "SYS_ADMIN" || c == "CAP_SYS_ADMIN")
        {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(invalid(&path, context, why));
        }
    }
    errors
}

fn ids(context: &Value, path: &str, fields: &[&str]) -> Vec<FieldError> {
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
fn one_of(value: &Value, path: &str, field: &str, allowed: &[&str]) -> Option<FieldError> {
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
