use super::super::prepare;
use super::*;

fn faults(spec: Value) -> Vec<String> {
    let mut service = json!({"metadata": {"name": "web"}, "spec": spec});
    prepare::default_service(&mut service);
    prepare::create(&mut service);
    said(validate(&service))
}

fn said(errors: Vec<FieldError>) -> Vec<String> {
    let errors = errors.into_iter();
    errors
        .map(|e| format!("{}: {}", e.field, e.message))
        .collect()
}

#[test]
fn right_services_pass() {
    let none: [String; 0] = [];
    for spec in [
        json!({"ports": [{"port": 80}]}),
        json!({"clusterIP": "None"}),
        json!({"clusterIP": "None", "selector": {"a": "b"}}),
        json!({"type": "ExternalName", "externalName": "a.example."}),
        json!({"type": "LoadBalancer", "ports": [{"port": 80}], "loadBalancerSourceRanges": [" 10.0.0.0/8"], "externalTrafficPolicy": "Local"}),
        json!({"type": "NodePort", "ports": [{"port": 53, "name": "a", "nodePort": 30053}, {"port": 53, "name": "b", "nodePort": 30053, "protocol": "UDP"}]}),
        json!({"ports": [{"port": 80}], "externalIPs": ["192.0.2.1"], "trafficDistribution": "PreferSameNode"}),
    ] {
        assert_eq!(faults(spec.clone()), none, "{spec}");
    }
}

#[test]
fn wrong_ones_are_refused_in_kubernetes_words() {
    for (spec, fault) in [
        (json!({}), "spec.ports: Required value"),
        (
            json!({"type": "Web", "ports": [{"port": 80}]}),
            r#"spec.type: Unsupported value: "Web": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort""#,
        ),
        (
            json!({"ports": [{"port": 70_000, "targetPort": 80}]}),
            "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 30000}]}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({"ports": [{"port": 80}], "clusterIP": "web"}),
            r#"spec.clusterIPs[0]: Invalid value: "web": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#,
        ),
        (
            json!({"ports": [{"port": 80}], "clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.2"]}),
            r#"spec.clusterIPs: Invalid value: ["10.43.0.2"]: first value must match `clusterIP`"#,
        ),
        (
            json!({"ports": [{"port": 80}], "type": "NodePort", "clusterIP": "None"}),
            r#"spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for NodePort services"#,
        ),
        (
            json!({"ports": [{"port": 80}], "ipFamilyPolicy": "RequireDualStack"}),
            r#"spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services"#,
        ),
        (
            json!({"ports": [{"port": 80}], "ipFamilies": ["IPv6"]}),
            r#"spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster"#,
        ),
        (
            json!({"ports": [{"port": 80}], "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400",
        ),
        (
            json!({"ports": [{"port": 80}], "externalTrafficPolicy": "Local"}),
            r#"spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services"#,
        ),
        (
            json!({"ports": [{"port": 80}], "healthCheckNodePort": 30000}),
            "spec.healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ),
        (
            json!({"ports": [{"port": 80}], "externalIPs": ["127.0.0.1"]}),
            r#"spec.externalIPs[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)"#,
        ),
        (
            json!({"ports": [{"port": 80}], "allocateLoadBalancerNodePorts": true}),
            "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({"ports": [{"port": 80}], "trafficDistribution": "Near"}),
            r#"spec.trafficDistribution: Unsupported value: "Near": supported values: "PreferClose", "PreferSameNode", "PreferSameZone""#,
        ),
        (
            json!({"type": "ExternalName"}),
            "spec.externalName: Required value",
        ),
    ] {
        assert_eq!(faults(spec.clone()), [fault], "{spec}");
    }
    let several = faults(json!({"ports": [{"port": 80}, {"port": 80, "name": "b"}]}));
    assert_eq!(
        several,
        [
            "spec.ports[0].name: Required value",
            r#"spec.ports[1]: Duplicate value: {"port":80,"protocol":"TCP"}"#
        ]
    );
}

#[test]
fn what_was_given_stays() {
    let old = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"], "ipFamilies": ["IPv4"]}});
    let mut new = old.clone();
    assert_eq!(validate_update(&new, &old), []);
    new["spec"]["clusterIPs"] = json!(["10.43.0.10"]);
    assert_eq!(
        said(validate_update(&new, &old)),
        [r#"spec.clusterIPs[0]: Invalid value: ["10.43.0.10"]: may not change once set"#]
    );
}
