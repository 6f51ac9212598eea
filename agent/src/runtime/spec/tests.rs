use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1 as core;
use oci_spec::runtime::{Capability, Spec};
use serde_json::json;

use super::{Place, generate};
use crate::runtime::error::RuntimeError;
use crate::runtime::types::{CgroupResources, ContainerConfig, QosClass, SandboxConfig};

fn sandbox() -> SandboxConfig {
    SandboxConfig {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        uid: "u-1".to_owned(),
        hostname: Some("web".to_owned()),
        host_network: false,
        host_ipc: false,
        host_pid: false,
        share_process_namespace: false,
        pod_dir: PathBuf::from("/pods/web"),
        sysctls: BTreeMap::new(),
        qos: QosClass::BestEffort,
        resources: CgroupResources::default(),
    }
}

/// A container of a pod, both given as Kubernetes writes them, of an image with this `config`.
fn config(
    pod_spec: serde_json::Value,
    container: serde_json::Value,
    image: serde_json::Value,
) -> ContainerConfig {
    let image = json!({
        "architecture": "amd64", "os": "linux", "config": image,
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    ContainerConfig {
        id: "c1".to_owned(),
        name: "main".to_owned(),
        attempt: 0,
        pod: core::Pod {
            metadata: serde_json::from_value(
                json!({"name": "web", "namespace": "default", "uid": "u-1"}),
            )
            .unwrap(),
            spec: serde_json::from_value(pod_spec).unwrap(),
            status: None,
        },
        container: serde_json::from_value(container).unwrap(),
        image_id: "sha256:0".to_owned(),
        image: serde_json::from_value(image).unwrap(),
        layers: Vec::new(),
        env: vec![("WHO".to_owned(), "world".to_owned())],
        mounts: Vec::new(),
        log_path: PathBuf::from("/dev/null"),
        resources: CgroupResources::default(),
        oom_score_adj: 1000,
    }
}

fn spec(config: &ContainerConfig) -> Result<Spec, RuntimeError> {
    let sandbox = sandbox();
    let place = Place {
        sandbox: &sandbox,
        rootfs: "/rootfs".into(),
        shm: "/shm".into(),
        unified_cgroups: false,
    };
    generate(config, &place).map(|generated| generated.spec)
}

#[test]
fn command_and_arguments_override_the_image() {
    let image = json!({"Entrypoint": ["/entry"], "Cmd": ["a", "b"], "Env": ["PATH=/bin", "WHO=x"]});
    for (container, expected) in [
        (json!({"name": "main"}), vec!["/entry", "a", "b"]),
        (
            json!({"name": "main", "args": ["hello", "$(WHO)"]}),
            vec!["/entry", "hello", "world"],
        ),
        (
            json!({"name": "main", "command": ["/other"]}),
            vec!["/other"],
        ),
        (
            json!({"name": "main", "command": ["/other"], "args": ["$(NONE)"]}),
            vec!["/other", "$(NONE)"],
        ),
    ] {
        let config = config(json!({"containers": []}), container, image.clone());
        let spec = spec(&config).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &expected);
        let env = process.env().as_ref().unwrap();
        assert_eq!(env, &["PATH=/bin", "WHO=world", "HOSTNAME=web"]);
    }
}

#[test]
fn an_image_without_a_command_is_refused() {
    let config = config(
        json!({"containers": []}),
        json!({"name": "main"}),
        json!({}),
    );
    let error = spec(&config).unwrap_err();
    assert_eq!(error.reason(), "CreateContainerError");
    assert!(error.to_string().contains("no command specified"));
}

#[test]
fn root_is_refused_where_the_pod_says_so() {
    let pod = json!({"containers": [], "securityContext": {"runAsNonRoot": true}});
    let image = |user: &str| json!({"User": user, "Cmd": ["/x"]});
    let say = |container: serde_json::Value, user: &str| {
        let error = spec(&config(pod.clone(), container, image(user))).err()?;
        assert_eq!(error.reason(), "CreateContainerConfigError");
        Some(error.to_string())
    };
    let main = json!({"name": "main"});
    assert_eq!(
        say(main.clone(), "").unwrap(),
        "container has runAsNonRoot and image will run as root \
         (pod: \"web_default(u-1)\", container: main)"
    );
    assert_eq!(
        say(main.clone(), "nginx").unwrap(),
        "container has runAsNonRoot and image has non-numeric user (nginx), cannot verify user is \
         non-root (pod: \"web_default(u-1)\", container: main)"
    );
    assert_eq!(say(main, "101:101"), None);
    let own = json!({"name": "main", "securityContext": {"runAsUser": 0}});
    assert_eq!(
        say(own, "101").unwrap(),
        "container's runAsUser breaks non-root policy \
         (pod: \"web_default(u-1)\", container: main)"
    );
}

#[test]
fn capabilities_are_added_and_dropped() {
    let with = |context: serde_json::Value| {
        let container = json!({"name": "main", "command": ["/x"], "securityContext": context});
        let spec = spec(&config(json!({"containers": []}), container, json!({}))).unwrap();
        let process = spec.process().as_ref().unwrap();
        let capabilities = process.capabilities().as_ref().unwrap();
        capabilities.effective().clone().unwrap()
    };
    let default = with(json!({}));
    assert!(default.contains(&Capability::Chown) && !default.contains(&Capability::SysAdmin));
    let changed = with(json!({"capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}));
    assert_eq!(
        changed.into_iter().collect::<Vec<_>>(),
        [Capability::NetAdmin]
    );
    assert!(with(json!({"privileged": true})).contains(&Capability::SysAdmin));
}

#[test]
fn privileged_containers_are_not_confined() {
    let container =
        json!({"name": "main", "command": ["/x"], "securityContext": {"privileged": true}});
    let spec = spec(&config(json!({"containers": []}), container, json!({}))).unwrap();
    let linux = spec.linux().as_ref().unwrap();
    assert!(linux.seccomp().is_none());
    assert_eq!(linux.masked_paths().as_ref().unwrap().len(), 0);
    let devices = linux.devices().as_ref().unwrap();
    assert!(devices.iter().any(|device| device.path().ends_with("null")));
}
