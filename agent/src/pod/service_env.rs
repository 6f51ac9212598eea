//! The services that a container finds in its environment: `KUBERNETES_SERVICE_HOST` and the like, and the variables
//! that Docker's links once made (kubelet `envvars`).

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::timeout;

use super::seams::ServiceDirectory;
use crate::net::dns::ServiceAddress;

/// Where the API's own service is, which every pod is told of.
const API_NAMESPACE: &str = "default";
const API_SERVICE: &str = "kubernetes";

/// For the services to be read.
const PATIENCE: Duration = Duration::from_secs(5);

/// Variables for the pod's containers: the API's service, and with `enableServiceLinks` those of its namespace.
///
/// # Errors
/// The kubelet's words when services are not known yet.
pub(super) async fn of(
    directory: &dyn ServiceDirectory,
    pod: &Pod,
) -> Result<Vec<(String, String)>, String> {
    // An agent that has just started knows them in a moment.
    let _ = timeout(PATIENCE, directory.known()).await;
    let unknown = "services have not yet been read at least once, cannot construct envvars";
    let services = |namespace: &str| {
        let found = directory.services(namespace);
        found.ok_or_else(|| unknown.to_owned())
    };
    let mut found = services(API_NAMESPACE)?;
    found.retain(|service| service.name == API_SERVICE);
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links);
    if links.unwrap_or(true) {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let own = services(namespace)?;
        found.retain(|api| !own.iter().any(|service| service.name == api.name));
        found.extend(own);
    }
    Ok(found.iter().flat_map(variables).collect())
}

fn variables(service: &ServiceAddress) -> Vec<(String, String)> {
    let name = variable_name(&service.name);
    let host = service.address;
    let mut all = vec![(format!("{name}_SERVICE_HOST"), host.to_string())];
    let Some(first) = service.ports.first() else {
        return all;
    };
    all.push((format!("{name}_SERVICE_PORT"), first.number.to_string()));
    for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
        let variable = format!("{name}_SERVICE_PORT_{}", variable_name(&port.name));
        all.push((variable, port.number.to_string()));
    }
    let url = |protocol: &str, number: u16| format!("{protocol}://{host}:{number}");
    all.push((format!("{name}_PORT"), url(&first.protocol, first.number)));
    for port in &service.ports {
        let (protocol, number) = (&port.protocol, port.number);
        let prefix = format!("{name}_PORT_{number}_{}", protocol.to_ascii_uppercase());
        all.push((prefix.clone(), url(protocol, number)));
        all.push((format!("{prefix}_PROTO"), protocol.clone()));
        all.push((format!("{prefix}_PORT"), number.to_string()));
        all.push((format!("{prefix}_ADDR"), host.to_string()));
    }
    all
}

fn variable_name(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::dns::ServicePort;
    use serde_json::json;

    struct Two;

    fn service(name: &str, last: u8, ports: &[(&str, &str, u16)]) -> ServiceAddress {
        let ports = ports.iter().map(|(name, protocol, number)| ServicePort {
            name: (*name).to_owned(),
            protocol: (*protocol).to_owned(),
            number: *number,
        });
        ServiceAddress {
            name: name.to_owned(),
            address: [10, 43, 0, last].into(),
            ports: ports.collect(),
        }
    }

    #[async_trait::async_trait]
    impl ServiceDirectory for Two {
        async fn known(&self) {}

        fn services(&self, namespace: &str) -> Option<Vec<ServiceAddress>> {
            Some(match namespace {
                "default" => vec![
                    service("kubernetes", 1, &[("https", "tcp", 443)]),
                    service("other", 2, &[]),
                ],
                "ns" => vec![service(
                    "my-db",
                    3,
                    &[("", "tcp", 80), ("dns-x", "udp", 53)],
                )],
                _ => return None,
            })
        }
    }

    async fn env(namespace: &str, links: Option<bool>) -> Result<Vec<String>, String> {
        let pod = serde_json::from_value(json!({"metadata": {"namespace": namespace},
            "spec": {"containers": [], "enableServiceLinks": links}}));
        let found = of(&Two, &pod.unwrap()).await?;
        Ok(found.into_iter().map(|(k, v)| format!("{k}={v}")).collect())
    }

    #[tokio::test]
    async fn as_the_kubelet_writes_them() {
        let api = [
            "KUBERNETES_SERVICE_HOST=10.43.0.1",
            "KUBERNETES_SERVICE_PORT=443",
            "KUBERNETES_SERVICE_PORT_HTTPS=443",
            "KUBERNETES_PORT=tcp://10.43.0.1:443",
            "KUBERNETES_PORT_443_TCP=tcp://10.43.0.1:443",
            "KUBERNETES_PORT_443_TCP_PROTO=tcp",
            "KUBERNETES_PORT_443_TCP_PORT=443",
            "KUBERNETES_PORT_443_TCP_ADDR=10.43.0.1",
        ];
        let own = [
            "MY_DB_SERVICE_HOST=10.43.0.3",
            "MY_DB_SERVICE_PORT=80",
            "MY_DB_SERVICE_PORT_DNS_X=53",
            "MY_DB_PORT=tcp://10.43.0.3:80",
            "MY_DB_PORT_80_TCP=tcp://10.43.0.3:80",
            "MY_DB_PORT_80_TCP_PROTO=tcp",
            "MY_DB_PORT_80_TCP_PORT=80",
            "MY_DB_PORT_80_TCP_ADDR=10.43.0.3",
            "MY_DB_PORT_53_UDP=udp://10.43.0.3:53",
            "MY_DB_PORT_53_UDP_PROTO=udp",
            "MY_DB_PORT_53_UDP_PORT=53",
            "MY_DB_PORT_53_UDP_ADDR=10.43.0.3",
        ];
        assert_eq!(
            env("ns", None).await.unwrap(),
            [&api[..], &own[..]].concat()
        );
        assert_eq!(env("ns", Some(false)).await.unwrap(), api);
        assert_eq!(env("default", None).await.unwrap().len(), api.len() + 1);
        assert!(
            env("unknown", None)
                .await
                .unwrap_err()
                .starts_with("services have not yet been read")
        );
        assert_eq!(env("unknown", Some(false)).await.unwrap(), api);
    }
}
