//! Completes Services: defaults, and what an update keeps or drops as the type changes
//! (`pkg/registry/core/service/strategy.go` and `storage.go` of Kubernetes).

use serde_json::{Map, Value, json};

use super::{
    has_cluster_address, has_health_check, has_node_ports, is_externally_accessible, is_headless,
};
use crate::resources::object::{
    at, carry_over, default, default_zero, ensure, integer, is_set, items_mut, list, text,
};

pub(super) fn default_service(service: &mut Value) {
    let spec = ensure(service, "spec");
    default_zero(spec, "sessionAffinity", "None");
    default_zero(spec, "type", "ClusterIP");
    match text(spec, "sessionAffinity") {
        "ClientIP" => {
            let config = ensure(ensure(spec, "sessionAffinityConfig"), "clientIP");
            default(config, "timeoutSeconds", 10_800);
        }
        "None" => unset(spec, "sessionAffinityConfig"),
        _ => {}
    }
    for port in items_mut(spec, "ports") {
        default_zero(port, "protocol", "TCP");
        let number = port["port"].clone();
        default_zero(port, "targetPort", number);
        if integer(port, "nodePort") == 0 {
            unset(port, "nodePort");
        }
    }
    let kind = text(spec, "type").to_string();
    if kind != "ExternalName" {
        default(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
    if integer(spec, "healthCheckNodePort") == 0 {
        unset(spec, "healthCheckNodePort");
    }
    if is_externally_accessible(service) {
        default_zero(ensure(service, "spec"), "externalTrafficPolicy", "Cluster");
    }
}

pub(super) fn create(service: &mut Value) {
    service["status"] = json!({"loadBalancer": {}});
    let spec = ensure(service, "spec");
    if text(spec, "clusterIP").is_empty() {
        unset(spec, "clusterIP");
    } else if list(spec, "clusterIPs").is_empty() {
        spec["clusterIPs"] = json!([spec["clusterIP"]]);
    }
    families(service, &Value::Null);
}

pub(super) fn update(new: &mut Value, old: &Value) {
    carry_over(new, old, "status");
    singular_or_plural(new, old);
    keep_allocated(new, old);
    drop_other_types_fields(new, old);
    families(new, old);
}

/// A writer that knows `clusterIP` alone has changed it: `clusterIPs` follows.
fn singular_or_plural(new: &mut Value, old: &Value) {
    let (was, is) = (text(old, "spec.clusterIP"), text(new, "spec.clusterIP"));
    let same_plural = list(old, "spec.clusterIPs") == list(new, "spec.clusterIPs");
    let is = is.to_string();
    let spec = ensure(new, "spec");
    if is.is_empty() {
        unset(spec, "clusterIP");
    }
    if is != was {
        if is.is_empty() && same_plural {
            unset(spec, "clusterIPs");
        } else if !is.is_empty() && (same_plural || !is_set(spec, "clusterIPs")) {
            spec["clusterIPs"] = json!([is]);
        }
    }
}

/// An update that leaves out what was allocated keeps it.
fn keep_allocated(new: &mut Value, old: &Value) {
    if has_cluster_address(old) && has_cluster_address(new) {
        let spec = ensure(new, "spec");
        if !is_set(spec, "clusterIP") {
            carry_over(spec, &old["spec"], "clusterIP");
        }
        let same = text(spec, "clusterIP") == text(old, "spec.clusterIP");
        if list(spec, "clusterIPs").is_empty() && same {
            carry_over(spec, &old["spec"], "clusterIPs");
        }
    }
    if has_node_ports(old) && has_node_ports(new) {
        keep_node_ports(new, old);
    }
    if has_health_check(old) && has_health_check(new) && !is_set(new, "spec.healthCheckNodePort") {
        carry_over(&mut new["spec"], &old["spec"], "healthCheckNodePort");
    }
}

fn keep_node_ports(new: &mut Value, old: &Value) {
    let same = |a: &Value, b: &Value| {
        text(a, "protocol") == text(b, "protocol") && integer(a, "port") == integer(b, "port")
    };
    let mut used: Vec<i64> = node_ports(new);
    for port in items_mut(&mut new["spec"], "ports") {
        if integer(port, "nodePort") != 0 {
            continue;
        }
        let before = list(old, "spec.ports").iter().find(|p| same(p, port));
        let kept = before.map_or(0, |before| integer(before, "nodePort"));
        if kept != 0 && !used.contains(&kept) {
            port["nodePort"] = json!(kept);
            used.push(kept);
        }
    }
}

/// What belongs to the old type alone goes with it, unless the writer has changed it: then it
/// is for validation to refuse it.
fn drop_other_types_fields(new: &mut Value, old: &Value) {
    let same = |new: &Value, field: &str| at(&new["spec"], field) == at(&old["spec"], field);
    if has_cluster_address(old) && !has_cluster_address(new) {
        let addresses = ["clusterIP", "clusterIPs"];
        let kept = addresses.iter().all(|field| same(new, field));
        for field in addresses.iter().filter(|_| kept) {
            unset(&mut new["spec"], field);
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if same(new, field) {
                unset(&mut new["spec"], field);
            }
        }
    }
    if has_node_ports(old) && !has_node_ports(new) {
        let (before, now) = (node_ports(old), node_ports(new));
        if now.iter().all(|port| before.contains(port)) {
            for port in items_mut(&mut new["spec"], "ports") {
                unset(port, "nodePort");
            }
        }
    }
    let is_balancer = |service: &Value| text(service, "spec.type") == "LoadBalancer";
    let mut gone = Vec::new();
    if has_health_check(old) && !has_health_check(new) {
        gone.push("healthCheckNodePort");
    }
    if is_balancer(old) && !is_balancer(new) {
        gone.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if is_externally_accessible(old) && !is_externally_accessible(new) {
        gone.push("externalTrafficPolicy");
    }
    for field in gone {
        if same(new, field) {
            unset(&mut new["spec"], field);
        }
    }
    if !is_balancer(new) {
        new["status"]["loadBalancer"] = json!({});
    }
}

/// The address families: of this cluster there is one, IPv4. A headless Service without a
/// selector may list addresses of both.
fn families(new: &mut Value, old: &Value) {
    if !has_cluster_address(new) {
        return;
    }
    let both = is_headless(new)
        && at(new, "spec.selector")
            .as_object()
            .is_none_or(Map::is_empty);
    let spec = ensure(new, "spec");
    if !is_set(spec, "ipFamilyPolicy") {
        let before = text(old, "spec.ipFamilyPolicy");
        let policy = match (before, both) {
            ("", true) => "RequireDualStack",
            ("", false) => "SingleStack",
            (before, _) => before,
        };
        spec["ipFamilyPolicy"] = json!(policy);
    }
    let single = text(spec, "ipFamilyPolicy") == "SingleStack";
    match list(spec, "ipFamilies") {
        [] if both && !single => spec["ipFamilies"] = json!(["IPv4", "IPv6"]),
        [] => spec["ipFamilies"] = json!(["IPv4"]),
        [one] if both && !single => {
            let other = if one == "IPv4" { "IPv6" } else { "IPv4" };
            spec["ipFamilies"] = json!([one, other]);
        }
        _ => {}
    }
}

/// What is right but of no effect (`pkg/api/service/warnings.go`).
pub(super) fn warnings(service: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |text: &str| warnings.push(text.to_string());
    if is_headless(service) {
        if is_set(service, "spec.loadBalancerIP") {
            warn("spec.loadBalancerIP is ignored for headless services");
        }
        if !list(service, "spec.externalIPs").is_empty() {
            warn("spec.externalIPs is ignored for headless services");
        }
        if text(service, "spec.sessionAffinity") != "None" {
            warn("spec.SessionAffinity is ignored for headless services");
        }
    }
    if text(service, "spec.type") != "ExternalName" && is_set(service, "spec.externalName") {
        warn("spec.externalName is ignored when spec.type is not \"ExternalName\"");
    }
    if text(service, "spec.trafficDistribution") == "PreferClose" {
        warn(
            "spec.trafficDistribution: use \"PreferSameZone\" rather than the deprecated \"PreferClose\"",
        );
    }
    warnings
}

fn node_ports(service: &Value) -> Vec<i64> {
    let ports = list(service, "spec.ports").iter();
    ports
        .map(|port| integer(port, "nodePort"))
        .filter(|port| *port != 0)
        .collect()
}

fn unset(value: &mut Value, field: &str) {
    if let Some(fields) = value.as_object_mut() {
        fields.remove(field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "web"}, "spec": spec});
        default_service(&mut service);
        create(&mut service);
        service
    }

    fn updated(old: &Value, spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "web"}, "spec": spec});
        default_service(&mut service);
        update(&mut service, old);
        service
    }

    fn node_port() -> Value {
        let mut service = created(json!({"type": "NodePort", "ports": [{"port": 80}]}));
        service["spec"]["clusterIP"] = json!("10.43.0.9");
        service["spec"]["clusterIPs"] = json!(["10.43.0.9"]);
        service["spec"]["ports"][0]["nodePort"] = json!(30080);
        service
    }

    #[test]
    fn a_new_service_is_completed() {
        let service = created(json!({"selector": {"app": "nginx"}, "ports": [{"port": 80}]}));
        assert_eq!(
            service["spec"],
            json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "selector": {"app": "nginx"},
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]})
        );
        let service = created(json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP"}));
        assert_eq!(service["spec"]["externalTrafficPolicy"], "Cluster");
        assert_eq!(service["spec"]["allocateLoadBalancerNodePorts"], true);
        assert_eq!(
            service["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"],
            10_800
        );
        let service = created(json!({"externalIPs": ["192.0.2.1"]}));
        assert_eq!(service["spec"]["externalTrafficPolicy"], "Cluster");
        let headless = created(json!({"clusterIP": "None"}));
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
        assert_eq!(headless["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    }

    #[test]
    fn an_update_keeps_what_was_allocated() {
        let old = node_port();
        let new = updated(
            &old,
            json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81, "name": "b"}]}),
        );
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.43.0.9"]));
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
        assert!(new["spec"]["ports"][1].get("nodePort").is_none());
    }

    #[test]
    fn a_type_takes_its_fields_with_it() {
        let old = node_port();
        let mut spec = old["spec"].clone();
        spec["type"] = json!("ClusterIP");
        let new = updated(&old, spec.clone());
        assert!(new["spec"]["ports"][0].get("nodePort").is_none());
        assert!(new["spec"].get("externalTrafficPolicy").is_none());
        assert_eq!(new["spec"]["clusterIP"], "10.43.0.9");
        // A port that the writer has changed is left to validation.
        spec["ports"][0]["nodePort"] = json!(30081);
        assert_eq!(updated(&old, spec)["spec"]["ports"][0]["nodePort"], 30081);
        let new = updated(
            &old,
            json!({"type": "ExternalName", "externalName": "a.example", "clusterIP": ""}),
        );
        for gone in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            assert!(new["spec"].get(gone).is_none(), "{gone}: {new}");
        }
    }

    #[test]
    fn a_changed_address_reaches_validation() {
        let new = updated(
            &node_port(),
            json!({"type": "NodePort", "clusterIP": "10.43.0.10", "clusterIPs": ["10.43.0.9"]}),
        );
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.43.0.10"]));
    }
}
