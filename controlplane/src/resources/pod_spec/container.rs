//! The rules for one container: names, image, ports, environment, probes, hooks, security.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::error::{duplicate, forbidden, invalid, non_negative, not_supported, required};
use super::super::object::{at, integer, is_set, list, text, truth};
use super::super::{FieldError, syntax};
use super::validation::{ids, one_of};
use super::{resources, volumes};

/// The rules for one container of `spec`, found at `path`.
pub(super) fn container(container: &Value, spec: &Value, path: &str) -> Vec<FieldError> {
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
