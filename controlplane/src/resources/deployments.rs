//! Deployments.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::error::{forbidden, immutable, invalid, non_negative, not_supported, required};
use super::object::{at, carry_over, default, default_zero, ensure, integer, text};
use super::pod_spec::{defaults, validation};
use super::print::{AGE, NAME, age, column, containers_and_images, label_selector, name, wide};
use super::{Column, FieldError, Hooks, Resource, Scale, metadata};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Ready",
        "string",
        "How many pods are ready, of those wanted.",
    ),
    column(
        "Up-to-date",
        "string",
        "How many pods have the current template.",
    ),
    column(
        "Available",
        "string",
        "How many pods have been ready for minReadySeconds.",
    ),
    AGE,
    wide(
        "Containers",
        "string",
        "The names of the template's containers.",
    ),
    wide(
        "Images",
        "string",
        "The images of the template's containers.",
    ),
    wide("Selector", "string", "Which pods belong to the deployment."),
];

pub(super) fn resource() -> Resource {
    Resource {
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        has_status: true,
        has_generation: true,
        scale: Some(Scale {
            replicas: "spec.replicas",
            status_replicas: "status.replicas",
            selector: "spec.selector",
        }),
        hooks: Hooks {
            default: default_deployment,
            prepare_create: |deployment| deployment["status"] = Value::Object(Map::new()),
            prepare_update: |new, old| carry_over(new, old, "status"),
            validate,
            validate_update: |new, old| {
                immutable(
                    "spec.selector",
                    &new["spec"]["selector"],
                    &old["spec"]["selector"],
                )
                .into_iter()
                .collect()
            },
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row,
        ..Resource::namespaced(
            "apps",
            "v1",
            "Deployment",
            "deployments",
            "io.k8s.api.apps.v1.Deployment",
        )
    }
}

fn default_deployment(deployment: &mut Value) {
    let spec = ensure(deployment, "spec");
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
    let strategy = ensure(spec, "strategy");
    default_zero(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = ensure(strategy, "rollingUpdate");
        default(rolling, "maxUnavailable", "25%");
        default(rolling, "maxSurge", "25%");
    }
    defaults::default_template(ensure(spec, "template"));
}

fn validate(deployment: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(deployment);
    let spec = &deployment["spec"];
    errors.extend(non_negative("spec.replicas", &spec["replicas"]));
    errors.extend(selector_and_template(spec));
    errors.extend(strategy(&spec["strategy"]));
    for field in [
        "minReadySeconds",
        "revisionHistoryLimit",
        "progressDeadlineSeconds",
    ] {
        errors.extend(non_negative(&format!("spec.{field}"), at(spec, field)));
    }
    let (deadline, ready) = (
        integer(spec, "progressDeadlineSeconds"),
        integer(spec, "minReadySeconds"),
    );
    if at(spec, "progressDeadlineSeconds").is_i64() && deadline <= ready {
        let why = "must be greater than minReadySeconds";
        errors.push(invalid(
            "spec.progressDeadlineSeconds",
            &spec["progressDeadlineSeconds"],
            why,
        ));
    }
    errors
}

/// What Deployments and ReplicaSets share: a selector that selects the template's pods, which
/// restart always.
pub(super) fn selector_and_template(spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let selector = at(spec, "selector");
    if selector.is_null() {
        errors.push(required("spec.selector", ""));
    } else {
        errors.extend(metadata::label_selector(selector, "spec.selector"));
        if metadata::selects_everything(selector) {
            let why = "empty selector is invalid for deployment";
            errors.push(invalid("spec.selector", selector, why));
        }
    }
    let labels = at(spec, "template.metadata.labels");
    if !selector.is_null() && !metadata::selects(selector, labels) {
        let why = "`selector` does not match template `labels`";
        errors.push(invalid("spec.template.metadata.labels", labels, why));
    }
    errors.extend(validation::template(at(spec, "template"), "spec.template"));
    let policy = text(spec, "template.spec.restartPolicy");
    if matches!(policy, "OnFailure" | "Never") {
        errors.push(not_supported(
            "spec.template.spec.restartPolicy",
            policy,
            &["Always"],
        ));
    }
    if at(spec, "template.spec.activeDeadlineSeconds").is_i64() {
        errors.push(forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        ));
    }
    errors
}

fn strategy(strategy: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match text(strategy, "type") {
        "Recreate" if !at(strategy, "rollingUpdate").is_null() => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(forbidden("spec.strategy.rollingUpdate", why));
        }
        "Recreate" => {}
        "RollingUpdate" => {
            let (unavailable, surge) = (
                at(strategy, "rollingUpdate.maxUnavailable"),
                at(strategy, "rollingUpdate.maxSurge"),
            );
            errors.extend(amount(
                unavailable,
                "spec.strategy.rollingUpdate.maxUnavailable",
            ));
            errors.extend(amount(surge, "spec.strategy.rollingUpdate.maxSurge"));
            if errors.is_empty() && number(unavailable) == Some(0) && number(surge) == Some(0) {
                let why = "may not be 0 when `maxSurge` is 0";
                errors.push(invalid(
                    "spec.strategy.rollingUpdate.maxUnavailable",
                    unavailable,
                    why,
                ));
            }
            if number(unavailable).is_some_and(|n| n > 100) && unavailable.is_string() {
                errors.push(invalid(
                    "spec.strategy.rollingUpdate.maxUnavailable",
                    unavailable,
                    "must not be greater than 100%",
                ));
            }
        }
        other => errors.push(not_supported(
            "spec.strategy.type",
            other,
            &["Recreate", "RollingUpdate"],
        )),
    }
    errors
}

/// A number of pods, or a percentage.
fn amount(value: &Value, path: &str) -> Option<FieldError> {
    match value {
        Value::String(_) if number(value).is_none() => {
            let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
            Some(invalid(path, value, why))
        }
        _ => non_negative(path, value),
    }
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => {
            let digits = text
                .strip_suffix('%')
                .filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
            digits.parse().ok()
        }
        other => other.as_i64(),
    }
}

fn row(deployment: &Value, now: Timestamp) -> Vec<Value> {
    let (containers, images) = containers_and_images(&deployment["spec"]["template"]);
    let ready = integer(deployment, "status.readyReplicas");
    vec![
        name(deployment),
        format!("{ready}/{}", integer(deployment, "spec.replicas")).into(),
        integer(deployment, "status.updatedReplicas").into(),
        integer(deployment, "status.availableReplicas").into(),
        age(deployment, now),
        containers,
        images,
        label_selector(&deployment["spec"]["selector"]).into(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn demo() -> Value {
        serde_yaml_ng::from_str(
            r"
            apiVersion: apps/v1
            kind: Deployment
            metadata: {name: nginx-demo, creationTimestamp: '2024-01-01T00:00:00Z'}
            spec:
              replicas: 3
              selector: {matchLabels: {app: nginx}}
              template:
                metadata: {labels: {app: nginx}}
                spec: {containers: [{name: nginx, image: nginx}]}
            ",
        )
        .unwrap()
    }

    fn faults(mut deployment: Value) -> Vec<String> {
        default_deployment(&mut deployment);
        validate(&deployment)
            .iter()
            .map(|e| format!("{}: {}", e.field, e.message))
            .collect()
    }

    #[test]
    fn defaults() {
        let mut deployment = demo();
        default_deployment(&mut deployment);
        let want: Value = serde_yaml_ng::from_str(
            r"
            replicas: 3
            revisionHistoryLimit: 10
            progressDeadlineSeconds: 600
            selector: {matchLabels: {app: nginx}}
            strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 25%, maxUnavailable: 25%}}
            template:
              metadata: {labels: {app: nginx}}
              spec:
                containers:
                - name: nginx
                  image: nginx
                  imagePullPolicy: Always
                  resources: {}
                  terminationMessagePath: /dev/termination-log
                  terminationMessagePolicy: File
                dnsPolicy: ClusterFirst
                restartPolicy: Always
                schedulerName: default-scheduler
                securityContext: {}
                terminationGracePeriodSeconds: 30
            ",
        )
        .unwrap();
        assert_eq!(deployment["spec"], want);
        assert_eq!(faults(demo()), Vec::<String>::new());
    }

    #[test]
    fn what_users_get_wrong() {
        let mut deployment = demo();
        deployment["spec"]["replicas"] = json!(-1);
        deployment["spec"]["selector"]["matchLabels"]["app"] = json!("apache");
        deployment["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
        assert_eq!(
            faults(deployment),
            [
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                r#"spec.template.metadata.labels: Invalid value: {"app":"nginx"}: `selector` does not match template `labels`"#,
                r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#,
            ]
        );
        let mut deployment = demo();
        deployment["spec"]["strategy"] =
            json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}});
        assert_eq!(
            faults(deployment),
            [
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"
            ]
        );
    }

    #[test]
    fn a_row() {
        let mut deployment = demo();
        deployment["status"] =
            json!({"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2});
        let cells = row(&deployment, "2024-01-01T00:00:30Z".parse().unwrap());
        assert_eq!(
            json!(cells),
            json!([
                "nginx-demo",
                "2/3",
                3,
                2,
                "30s",
                "nginx",
                "nginx",
                "app=nginx"
            ])
        );
    }
}
