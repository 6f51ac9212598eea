//! A pod's quality of service class, which follows from its containers' resources.

use serde_json::Value;

use super::super::object::{entries, list, text};
use super::super::quantity::Quantity;

/// `Guaranteed` when every container limits cpu and memory and requests the same;
/// `BestEffort` when none says anything of either; else `Burstable`.
pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let containers = || {
        list(spec, "containers")
            .iter()
            .chain(list(spec, "initContainers"))
    };
    let says_anything = containers().any(|c| {
        entries(c, "resources.requests")
            .chain(entries(c, "resources.limits"))
            .any(|(name, amount)| is_compute(name) && parsed(amount).is_some_and(|q| !q.is_zero()))
    });
    if !says_anything {
        return "BestEffort";
    }
    if containers().all(is_guaranteed) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn is_guaranteed(container: &Value) -> bool {
    ["cpu", "memory"].iter().all(|name| {
        let amount = |kind: &str| parsed_text(text(container, &format!("resources.{kind}.{name}")));
        let limit = amount("limits").filter(|q| !q.is_zero());
        // An absent request is filled from the limit when the pod is defaulted.
        limit.is_some() && amount("requests").is_none_or(|request| Some(request) == limit)
    })
}

fn is_compute(name: &str) -> bool {
    matches!(name, "cpu" | "memory")
}

fn parsed(amount: &Value) -> Option<Quantity> {
    parsed_text(amount.as_str()?)
}

fn parsed_text(amount: &str) -> Option<Quantity> {
    Quantity::parse(amount).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::qos_class;

    #[test]
    fn classes() {
        let spec = |resources| json!({"containers": [{"name": "a", "resources": resources}]});
        assert_eq!(qos_class(&spec(json!({}))), "BestEffort");
        assert_eq!(
            qos_class(&spec(json!({"requests": {"cpu": "0"}}))),
            "BestEffort"
        );
        assert_eq!(
            qos_class(&spec(json!({"requests": {"cpu": "1"}}))),
            "Burstable"
        );
        assert_eq!(
            qos_class(&spec(json!({"limits": {"cpu": "1"}}))),
            "Burstable"
        );
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(
            qos_class(&spec(json!({"limits": both, "requests": both}))),
            "Guaranteed"
        );
        let same = json!({"cpu": "1000m", "memory": "1024Mi"});
        assert_eq!(
            qos_class(&spec(json!({"limits": both, "requests": same}))),
            "Guaranteed"
        );
    }
}
