//! The workload that most tests are about: the Deployment `web`, whose pods serve HTTP, and its Service.

use serde_json::{Value, json};

/// What is to be applied; nothing is said that a test doesn't need.
pub(crate) struct Web {
    deployment: Value,
    port: u16,
}

impl Web {
    /// nginx with readiness probes.
    pub(crate) fn nginx(replicas: usize) -> Self {
        let container = json!({
            "name": "nginx", "image": "nginx",
            "ports": [{"name": "http", "containerPort": 80}],
            "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
        });
        Self::of(replicas, &container)
    }

    /// Pods that serve their own names.
    pub(crate) fn names(replicas: usize) -> Self {
        let serve = "mkdir /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www";
        let container = json!({
            "name": "main", "image": "busybox", "command": ["sh", "-c", serve],
            "ports": [{"name": "http", "containerPort": 80}],
            "readinessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 1},
        });
        Self::of(replicas, &container)
    }

    pub(crate) fn of(replicas: usize, container: &Value) -> Self {
        let labels = json!({"app": "web"});
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        });
        Self {
            deployment,
            port: 80,
        }
    }

    /// The port of the Service, instead of 80.
    pub(crate) fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// A field of the container.
    pub(crate) fn container(mut self, field: &str, value: Value) -> Self {
        self.pod()["containers"][0][field] = value;
        self
    }

    /// How long a pod may take to end, instead of Kubernetes' 30 s.
    pub(crate) fn ending_within(mut self, seconds: u32) -> Self {
        self.pod()["terminationGracePeriodSeconds"] = seconds.into();
        self
    }

    /// How long pods stay on a lost node, instead of the cluster's default.
    pub(crate) fn leaving_lost_nodes_after(mut self, seconds: u32) -> Self {
        let taints = ["unreachable", "not-ready"];
        self.pod()["tolerations"] = json!(taints.map(|taint| json!({
            "key": format!("node.kubernetes.io/{taint}"), "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": seconds,
        })));
        self
    }

    /// As many pods on one node as on another, and what to do where that can't be.
    pub(crate) fn spread(mut self, when_unsatisfiable: &str) -> Self {
        self.pod()["topologySpreadConstraints"] = json!([{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": when_unsatisfiable,
            "labelSelector": {"matchLabels": {"app": "web"}},
        }]);
        self
    }

    fn pod(&mut self) -> &mut Value {
        &mut self.deployment["spec"]["template"]["spec"]
    }

    /// The Deployment alone.
    pub(crate) fn deployment(&self) -> String {
        self.deployment.to_string()
    }

    /// The Deployment and its Service.
    pub(crate) fn manifest(&self) -> String {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {
                "selector": {"app": "web"},
                "ports": [{"name": "http", "port": self.port, "targetPort": "http"}],
            },
        });
        json!({"apiVersion": "v1", "kind": "List", "items": [self.deployment, service]}).to_string()
    }
}
