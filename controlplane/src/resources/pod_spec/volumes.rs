//! The rules for a pod's volumes and their mounts.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::error::{duplicate, forbidden, invalid, not_found, required};
use super::super::object::{at, integer, is_set, list, text};
use super::super::{FieldError, syntax};

pub(crate) fn validate(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{index}]");
        let name = text(volume, "name");
        if name.is_empty() {
            errors.push(required(&format!("{path}.name"), ""));
        } else {
            let faults = syntax::dns_label(name);
            errors.extend(
                faults
                    .iter()
                    .map(|why| invalid(&format!("{path}.name"), &volume["name"], why)),
            );
        }
        if !name.is_empty() && !seen.insert(name) {
            errors.push(duplicate(&format!("{path}.name"), &volume["name"]));
        }
        errors.extend(source(volume, &path));
    }
    errors
}

fn source(volume: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kinds: Vec<&String> = volume
        .as_object()
        .into_iter()
        .flat_map(|v| v.keys())
        .filter(|k| *k != "name")
        .collect();
    if kinds.is_empty() {
        errors.push(required(path, "must specify a volume type"));
    }
    for kind in kinds.iter().skip(1) {
        errors.push(forbidden(
            &format!("{path}.{kind}"),
            "may not specify more than 1 volume type",
        ));
    }
    let Some(kind) = kinds.first() else {
        return errors;
    };
    let source = &volume[kind.as_str()];
    let path = format!("{path}.{kind}");
    match kind.as_str() {
        "hostPath" => {
            let host_path = text(source, "path");
            if host_path.is_empty() {
                errors.push(required(&format!("{path}.path"), ""));
            } else if host_path.split('/').any(|part| part == "..") {
                errors.push(invalid(
                    &format!("{path}.path"),
                    &source["path"],
                    "must not contain '..'",
                ));
            }
        }
        "configMap" if text(source, "name").is_empty() => {
            errors.push(required(&format!("{path}.name"), ""))
        }
        "secret" if text(source, "secretName").is_empty() => {
            errors.push(required(&format!("{path}.secretName"), ""))
        }
        "persistentVolumeClaim" if text(source, "claimName").is_empty() => {
            errors.push(required(&format!("{path}.claimName"), ""));
        }
        _ => {}
    }
    if is_set(source, "defaultMode") && !(0..=0o777).contains(&integer(source, "defaultMode")) {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(invalid(
            &format!("{path}.defaultMode"),
            &source["defaultMode"],
            why,
        ));
    }
    for (index, item) in list(source, "items").iter().enumerate() {
        errors.extend(item_path(item, &format!("{path}.items[{index}]")));
    }
    errors
}

fn item_path(item: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if is_set(item, "key") && text(item, "key").is_empty() {
        errors.push(required(&format!("{path}.key"), ""));
    }
    let target = text(item, "path");
    if target.is_empty() {
        errors.push(required(&format!("{path}.path"), ""));
    } else if target.starts_with('/') {
        errors.push(invalid(
            &format!("{path}.path"),
            &item["path"],
            "must be a relative path",
        ));
    } else if target.split('/').any(|part| part == "..") {
        errors.push(invalid(
            &format!("{path}.path"),
            &item["path"],
            "must not contain '..'",
        ));
    } else if target.starts_with("..") {
        errors.push(invalid(
            &format!("{path}.path"),
            &item["path"],
            "must not start with '..'",
        ));
    }
    errors
}

/// A container's `volumeMounts`: they name volumes of the pod and do not overlap.
pub(crate) fn validate_mounts(container: &Value, spec: &Value, path: &str) -> Vec<FieldError> {
    let volumes: BTreeSet<&str> = list(spec, "volumes")
        .iter()
        .map(|v| text(v, "name"))
        .collect();
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, mount) in list(container, "volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        let name = text(mount, "name");
        if name.is_empty() {
            errors.push(required(&format!("{path}.name"), ""));
        } else if !volumes.contains(name) {
            errors.push(not_found(&format!("{path}.name"), name));
        }
        let target = text(mount, "mountPath");
        if target.is_empty() {
            errors.push(required(&format!("{path}.mountPath"), ""));
        } else if !seen.insert(target) {
            errors.push(invalid(
                &format!("{path}.mountPath"),
                &mount["mountPath"],
                "must be unique",
            ));
        }
        errors.extend(sub_path(mount, &path));
    }
    errors
}

fn sub_path(mount: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["subPath", "subPathExpr"] {
        let value = text(mount, field);
        if value.starts_with('/') {
            errors.push(invalid(
                &format!("{path}.{field}"),
                at(mount, field),
                "must be a relative path",
            ));
        }
        if value.split('/').any(|part| part == "..") {
            errors.push(invalid(
                &format!("{path}.{field}"),
                at(mount, field),
                "must not contain '..'",
            ));
        }
    }
    if !text(mount, "subPath").is_empty() && !text(mount, "subPathExpr").is_empty() {
        errors.push(invalid(
            &format!("{path}.subPathExpr"),
            &mount["subPathExpr"],
            "subPathExpr and subPath are mutually exclusive",
        ));
    }
    errors
}
