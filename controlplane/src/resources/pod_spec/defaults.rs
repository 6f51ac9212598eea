//! Kubernetes' defaults for a pod's specification (`pkg/apis/core/v1/defaults.go`).

use serde_json::{Map, Value};

use super::super::object::{default, default_zero, ensure, items_mut, text, truth};
use super::resources;

/// Volumes' file modes, 0644.
const DEFAULT_MODE: i64 = 0o644;

/// Completes a pod template (`{metadata, spec}`).
pub(crate) fn default_template(template: &mut Value) {
    ensure(template, "metadata");
    pod_spec(ensure(template, "spec"));
}

/// Completes a pod: a template's defaults, and those that only pods get.
pub(crate) fn default_pod(pod: &mut Value) {
    let spec = ensure(pod, "spec");
    pod_spec(spec);
    default(spec, "enableServiceLinks", true);
    if truth(spec, "hostNetwork") {
        host_ports(spec);
    }
    for kind in ["containers", "initContainers"] {
        items_mut(spec, kind).for_each(resources::requests_from_limits);
    }
}

fn pod_spec(spec: &mut Value) {
    default_zero(spec, "dnsPolicy", "ClusterFirst");
    default_zero(spec, "restartPolicy", "Always");
    default_zero(spec, "schedulerName", "default-scheduler");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "securityContext", Value::Object(Map::new()));
    service_account(spec);
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        items_mut(spec, kind).for_each(container);
    }
    items_mut(spec, "volumes").for_each(volume);
}

/// `serviceAccount` is the deprecated twin of `serviceAccountName`; both always say the same.
fn service_account(spec: &mut Value) {
    let name = match text(spec, "serviceAccountName") {
        "" => text(spec, "serviceAccount"),
        name => name,
    };
    if !name.is_empty() {
        let name = Value::from(name);
        spec["serviceAccountName"] = name.clone();
        spec["serviceAccount"] = name;
    }
}

fn container(container: &mut Value) {
    default_zero(container, "terminationMessagePath", "/dev/termination-log");
    default_zero(container, "terminationMessagePolicy", "File");
    let policy = pull_policy(text(container, "image"));
    default_zero(container, "imagePullPolicy", policy);
    default(container, "resources", Value::Object(Map::new()));
    items_mut(container, "ports").for_each(|port| default_zero(port, "protocol", "TCP"));
    for variable in items_mut(container, "env") {
        if let Some(reference) = variable.pointer_mut("/valueFrom/fieldRef") {
            default_zero(reference, "apiVersion", "v1");
        }
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(value) = container.get_mut(kind) {
            probe(value);
        }
    }
    for hook in ["/lifecycle/postStart/httpGet", "/lifecycle/preStop/httpGet"] {
        if let Some(get) = container.pointer_mut(hook) {
            http_get(get);
        }
    }
}

/// `Always` for the tag `latest`, given or implied; `IfNotPresent` for others and for digests.
pub(crate) fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        _ => "Always",
    }
}

fn probe(probe: &mut Value) {
    default_zero(probe, "timeoutSeconds", 1);
    default_zero(probe, "periodSeconds", 10);
    default_zero(probe, "successThreshold", 1);
    default_zero(probe, "failureThreshold", 3);
    if let Some(get) = probe.get_mut("httpGet") {
        http_get(get);
    }
    if let Some(grpc) = probe.get_mut("grpc") {
        default(grpc, "service", "");
    }
}

fn http_get(get: &mut Value) {
    default_zero(get, "path", "/");
    default_zero(get, "scheme", "HTTP");
}

fn volume(volume: &mut Value) {
    let has_source = volume
        .as_object()
        .is_some_and(|v| v.keys().any(|k| k != "name"));
    if !has_source {
        default(volume, "emptyDir", Value::Object(Map::new()));
    }
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(kind) {
            default(source, "defaultMode", DEFAULT_MODE);
        }
    }
    if let Some(source) = volume.get_mut("hostPath") {
        default(source, "type", "");
    }
    if let Some(source) = volume.get_mut("downwardAPI") {
        downward_items(source);
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in items_mut(projected, "sources") {
            if let Some(downward) = source.get_mut("downwardAPI") {
                downward_items(downward);
            }
            if let Some(token) = source.get_mut("serviceAccountToken") {
                default(token, "expirationSeconds", 3600);
            }
        }
    }
    if let Some(claim) = volume.pointer_mut("/ephemeral/volumeClaimTemplate/spec") {
        default(claim, "volumeMode", "Filesystem");
    }
    if let Some(source) = volume.get_mut("image") {
        let policy = pull_policy(text(source, "reference"));
        default_zero(source, "pullPolicy", policy);
    }
}

fn downward_items(source: &mut Value) {
    for item in items_mut(source, "items") {
        if let Some(reference) = item.get_mut("fieldRef") {
            default_zero(reference, "apiVersion", "v1");
        }
    }
}

/// On the host's network a container's port is the host's.
fn host_ports(spec: &mut Value) {
    for kind in ["containers", "initContainers"] {
        for container in items_mut(spec, kind) {
            for port in items_mut(container, "ports") {
                let number = port["containerPort"].clone();
                default_zero(port, "hostPort", number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn yaml(text: &str) -> Value {
        serde_yaml_ng::from_str(text).unwrap()
    }

    #[test]
    fn pull_policies_follow_the_tag() {
        for (image, want) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:abc", "IfNotPresent"),
            ("nginx:latest@sha256:abc", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), want, "{image}");
        }
    }

    #[test]
    fn a_bare_pod_is_completed() {
        let mut pod = yaml(
            "{spec: {containers: [{name: a, image: nginx, ports: [{containerPort: 80}], resources: {limits: {cpu: 500m}}}]}}",
        );
        default_pod(&mut pod);
        let want = yaml(
            r"
            spec:
              containers:
              - name: a
                image: nginx
                imagePullPolicy: Always
                ports: [{containerPort: 80, protocol: TCP}]
                resources: {limits: {cpu: 500m}, requests: {cpu: 500m}}
                terminationMessagePath: /dev/termination-log
                terminationMessagePolicy: File
              dnsPolicy: ClusterFirst
              enableServiceLinks: true
              restartPolicy: Always
              schedulerName: default-scheduler
              securityContext: {}
              terminationGracePeriodSeconds: 30
            ",
        );
        assert_eq!(pod, want);
    }

    #[test]
    fn templates_get_less() {
        let mut template = yaml(
            "{spec: {hostNetwork: true, containers: [{name: a, image: 'nginx:1', ports: [{containerPort: 80}], resources: {limits: {cpu: 1}}}]}}",
        );
        default_template(&mut template);
        assert_eq!(template["spec"].get("enableServiceLinks"), None);
        assert_eq!(
            template["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": 1}})
        );
        assert_eq!(
            template["spec"]["containers"][0]["ports"][0].get("hostPort"),
            None
        );
    }

    #[test]
    fn probes_and_volumes() {
        let mut pod = yaml(
            r"
            spec:
              serviceAccount: bob
              hostNetwork: true
              containers:
              - name: a
                image: a:1
                ports: [{containerPort: 80}]
                livenessProbe: {httpGet: {port: 80}}
                env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
              volumes:
              - {name: a}
              - {name: b, configMap: {name: c}}
              - {name: h, hostPath: {path: /}}
              - {name: p, projected: {sources: [{serviceAccountToken: {path: t}}]}}
            ",
        );
        default_pod(&mut pod);
        let spec = &pod["spec"];
        assert_eq!(spec["serviceAccountName"], "bob");
        let container = &spec["containers"][0];
        assert_eq!(
            container["ports"][0],
            json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"})
        );
        assert_eq!(
            container["livenessProbe"],
            json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
                "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(
            container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"],
            "v1"
        );
        assert_eq!(
            spec["volumes"],
            json!([{"name": "a", "emptyDir": {}}, {"name": "b", "configMap": {"name": "c", "defaultMode": 420}},
                {"name": "h", "hostPath": {"path": "/", "type": ""}},
                {"name": "p", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}]}}])
        );
    }
}
