//! How long a pod stays on a node that is not ready or not reachable, unless it says so itself
//! (the admission plugin `DefaultTolerationSeconds`).

use serde_json::{Value, json};

use super::Request;
use crate::resources::object::{default, ensure, list, text};

/// Seconds that pods stay which say nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultTolerations {
    /// On a node that is not ready (`--default-not-ready-toleration-seconds`).
    pub not_ready: i64,
    /// On a node that is not reachable (`--default-unreachable-toleration-seconds`).
    pub unreachable: i64,
}

impl Default for DefaultTolerations {
    /// Five minutes, as Kubernetes.
    fn default() -> Self {
        Self {
            not_ready: 300,
            unreachable: 300,
        }
    }
}

pub(super) fn admit(request: &Request<'_>, pod: &mut Value) {
    let resource = request.resource;
    if request.old.is_none() && (resource.group, resource.plural) == ("", "pods") {
        complete(ensure(pod, "spec"), request.tolerations);
    }
}

fn complete(spec: &mut Value, seconds: DefaultTolerations) {
    for (key, seconds) in [
        ("node.kubernetes.io/not-ready", seconds.not_ready),
        ("node.kubernetes.io/unreachable", seconds.unreachable),
    ] {
        let covers = |toleration: &Value| {
            matches!(text(toleration, "effect"), "" | "NoExecute")
                && matches!(text(toleration, "key"), named if named == key || named.is_empty())
        };
        if list(spec, "tolerations").iter().any(covers) {
            continue;
        }
        default(spec, "tolerations", Value::Array(Vec::new()));
        if let Some(Value::Array(tolerations)) = spec.get_mut("tolerations") {
            tolerations.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_are_added_once() {
        let seconds = DefaultTolerations {
            not_ready: 10,
            unreachable: 20,
        };
        let mut spec = json!({"tolerations": [{
            "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": 5,
        }]});
        complete(&mut spec, seconds);
        complete(&mut spec, seconds);
        let tolerations = spec["tolerations"].as_array().unwrap();
        assert_eq!(tolerations.len(), 2);
        assert_eq!(tolerations[0]["tolerationSeconds"], 5);
        assert_eq!(tolerations[1]["tolerationSeconds"], 20);
        let mut all = json!({"tolerations": [{"operator": "Exists"}]});
        complete(&mut all, seconds);
        assert_eq!(all["tolerations"].as_array().unwrap().len(), 1);
    }
}
