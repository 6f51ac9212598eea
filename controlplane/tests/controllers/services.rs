//! Services, and the endpoints behind them.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use skiff_controlplane::store::sqlite::SqliteStore;
use skiff_controlplane::store::{Change, Expect, Key, Observer, Op, Store};
use skiff_controlplane::{Config, ControlPlane};

use crate::cluster::{Cluster, wait_for};

impl Cluster {
    fn services(&self) -> Api<Service> {
        Api::namespaced(self.client.clone(), "default")
    }

    fn endpoints(&self) -> Api<Endpoints> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create_service(&self, name: &str, spec: Value) -> Service {
        let service =
            json!({"metadata": {"name": name, "labels": {"tier": "front"}}, "spec": spec});
        let service = serde_json::from_value(service).unwrap();
        let params = PostParams::default();
        self.services().create(&params, &service).await.unwrap()
    }

    async fn slices(&self, service: &str) -> Vec<EndpointSlice> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), "default");
        let params = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        api.list(&params).await.unwrap().items
    }

    /// The Service's slices, once they are as wanted.
    async fn slices_that(
        &self,
        service: &str,
        wanted: impl Fn(&[EndpointSlice]) -> bool,
    ) -> Vec<EndpointSlice> {
        wait_for(&format!("slices of {service}"), || async {
            Some(self.slices(service).await).filter(|slices| wanted(slices))
        })
        .await
    }

    async fn create_pod(&self, name: &str, port: i32) {
        let pod = json!({
            "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "nginx:1", "ports": [{"name": "http", "containerPort": port}]}]},
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let params = PostParams::default();
        self.pods().create(&params, &pod).await.unwrap();
    }
}

fn all(slices: &[EndpointSlice]) -> Vec<&Endpoint> {
    slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .collect()
}

fn ready(slices: &[EndpointSlice]) -> usize {
    let is_ready = |endpoint: &&&Endpoint| {
        let conditions = endpoint.conditions.as_ref();
        conditions.and_then(|c| c.ready) == Some(true)
    };
    all(slices).iter().filter(is_ready).count()
}

#[tokio::test]
async fn endpoints_follow_the_pods() {
    let cluster = Cluster::start(1).await;
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]});
    let service = cluster.create_service("web", spec).await;
    let slices = cluster.slices_that("web", |slices| slices.len() == 1).await;
    assert!(all(&slices).is_empty());
    for name in ["a", "b"] {
        cluster.create_pod(name, 8080).await;
    }
    let slices = cluster
        .slices_that("web", |slices| ready(slices) == 2)
        .await;
    assert_eq!(slices.len(), 1);
    let slice = &slices[0];
    assert_eq!(slice.owner_references()[0].uid, service.uid().unwrap());
    assert_eq!(slice.labels()["tier"], "front");
    let manager = &slice.labels()["endpointslice.kubernetes.io/managed-by"];
    assert_eq!(manager, "endpointslice-controller.k8s.io");
    let trigger = "endpoints.kubernetes.io/last-change-trigger-time";
    assert!(slice.annotations().contains_key(trigger));
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
    let endpoint = &slice.endpoints.as_ref().unwrap()[0];
    assert_eq!(endpoint.node_name.as_deref(), Some("node-0"));
    assert_eq!(
        endpoint.target_ref.as_ref().unwrap().kind.as_deref(),
        Some("Pod")
    );

    let legacy = wait_for("Endpoints", || async {
        let endpoints = cluster.endpoints().get_opt("web").await.unwrap()?;
        let addresses = endpoints
            .subsets
            .iter()
            .flatten()
            .flat_map(|s| s.addresses.iter().flatten());
        (addresses.count() == 2).then_some(endpoints)
    })
    .await;
    let subsets = legacy.subsets.unwrap();
    let port = &subsets[0].ports.as_ref().unwrap()[0];
    assert_eq!((port.port, port.name.as_deref()), (8080, None));

    // A pod of another port needs a slice of its own.
    cluster.create_pod("c", 9090).await;
    cluster
        .slices_that("web", |slices| slices.len() == 2 && ready(slices) == 3)
        .await;
    let now = DeleteParams::default().grace_period(0);
    cluster.pods().delete("c", &now).await.unwrap();
    cluster
        .slices_that("web", |slices| slices.len() == 1 && ready(slices) == 2)
        .await;

    cluster
        .services()
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    cluster
        .slices_that("web", <[EndpointSlice]>::is_empty)
        .await;
    wait_for("Endpoints to go", || async {
        cluster
            .endpoints()
            .get_opt("web")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_pod_that_is_deleted_is_not_ready_from_then_on() {
    let mut cluster = Cluster::start(1).await;
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
    cluster.create_service("web", spec).await;
    cluster.create_pod("a", 80).await;
    cluster
        .slices_that("web", |slices| ready(slices) == 1)
        .await;
    // Nobody ends the pod: it stays, terminating.
    cluster.silence("node-0");
    cluster
        .pods()
        .delete("a", &DeleteParams::default())
        .await
        .unwrap();
    let slices = cluster
        .slices_that("web", |slices| ready(slices) == 0)
        .await;
    let conditions = all(&slices)[0].conditions.clone().unwrap();
    assert_eq!(
        (conditions.serving, conditions.terminating),
        (Some(true), Some(true))
    );
    let legacy = wait_for("Endpoints", || async {
        let endpoints = cluster.endpoints().get("web").await.unwrap();
        endpoints.subsets.is_none().then_some(endpoints)
    })
    .await;
    assert_eq!(legacy.name_any(), "web");
    cluster.stop().await;
}

#[tokio::test]
async fn many_endpoints_take_several_slices_and_no_endpoint_two_places() {
    let cluster = Cluster::start(2).await;
    let spec = json!({"clusterIP": "None", "publishNotReadyAddresses": true, "selector": {"app": "web"}, "ports": [{"port": 80}]});
    cluster.create_service("web", spec).await;
    for number in 0..120 {
        cluster.create_pod(&format!("p{number}"), 80).await;
    }
    let slices = cluster
        .slices_that("web", |slices| all(slices).len() == 120)
        .await;
    assert!(
        slices
            .iter()
            .all(|slice| slice.endpoints.iter().flatten().count() <= 100)
    );
    assert!(
        slices[0]
            .labels()
            .contains_key("service.kubernetes.io/headless")
    );
    let names: BTreeSet<_> = all(&slices)
        .iter()
        .map(|e| e.target_ref.as_ref().unwrap().name.clone())
        .collect();
    assert_eq!(names.len(), 120);
    cluster.stop().await;
}

#[tokio::test]
async fn what_is_broken_by_hand_is_mended() {
    let cluster = Cluster::start(1).await;
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
    cluster.create_service("web", spec).await;
    cluster.create_pod("a", 80).await;
    let slices = cluster
        .slices_that("web", |slices| ready(slices) == 1)
        .await;
    let api: Api<EndpointSlice> = Api::namespaced(cluster.client.clone(), "default");
    let name = slices[0].name_any();
    let emptied = Patch::Merge(json!({"endpoints": []}));
    api.patch(&name, &PatchParams::default(), &emptied)
        .await
        .unwrap();
    cluster
        .slices_that("web", |slices| ready(slices) == 1)
        .await;
    api.delete(&name, &DeleteParams::default()).await.unwrap();
    cluster
        .slices_that("web", |slices| {
            ready(slices) == 1 && slices[0].name_any() != name
        })
        .await;
    cluster.stop().await;
}

#[tokio::test]
async fn hand_written_endpoints_are_mirrored() {
    let cluster = Cluster::start(0).await;
    cluster
        .create_service("db", json!({"ports": [{"port": 5432}]}))
        .await;
    let endpoints = |ip: &str| -> Endpoints {
        serde_json::from_value(json!({"metadata": {"name": "db"}, "subsets": [
            {"addresses": [{"ip": ip}], "notReadyAddresses": [{"ip": "192.0.2.9"}], "ports": [{"port": 5432}]},
        ]}))
        .unwrap()
    };
    let params = PostParams::default();
    cluster
        .endpoints()
        .create(&params, &endpoints("192.0.2.1"))
        .await
        .unwrap();
    let slices = cluster.slices_that("db", |slices| ready(slices) == 1).await;
    assert_eq!(all(&slices).len(), 2);
    cluster
        .endpoints()
        .replace("db", &params, &endpoints("192.0.2.2"))
        .await
        .unwrap();
    cluster
        .slices_that("db", |slices| {
            slices.len() == 1 && all(slices).iter().any(|e| e.addresses == ["192.0.2.2"])
        })
        .await;
    cluster
        .endpoints()
        .delete("db", &DeleteParams::default())
        .await
        .unwrap();
    cluster.slices_that("db", <[EndpointSlice]>::is_empty).await;
    cluster.stop().await;
}

#[tokio::test]
async fn load_balancers_are_answered_on_the_nodes() {
    let cluster = Cluster::start(2).await;
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.client.clone());
    for number in 0..2 {
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")}]}});
        let params = PatchParams::default();
        let patch = Patch::Strategic(status);
        nodes
            .patch_status(&format!("node-{number}"), &params, &patch)
            .await
            .unwrap();
    }
    let balanced = |port: i32| json!({"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": port}]});
    cluster.create_service("web", balanced(80)).await;
    let addresses = |name: &'static str, count: usize| {
        let services = cluster.services();
        wait_for("addresses", move || {
            let services = services.clone();
            async move {
                let status = services.get(name).await.unwrap().status?;
                let ingress = status.load_balancer?.ingress.unwrap_or_default();
                (ingress.len() == count).then_some(ingress)
            }
        })
    };
    let given = addresses("web", 2).await;
    assert_eq!(given[0].ip.as_deref(), Some("192.0.2.0"));
    // Of two that want the same port, the younger one waits.
    cluster.create_service("again", balanced(80)).await;
    cluster.create_service("other", balanced(81)).await;
    addresses("other", 2).await;
    addresses("again", 0).await;
    cluster
        .services()
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    addresses("again", 2).await;
    // Local traffic needs a local endpoint.
    let local = Patch::Merge(json!({"spec": {"externalTrafficPolicy": "Local"}}));
    let params = PatchParams::default();
    let service = cluster
        .services()
        .patch("other", &params, &local)
        .await
        .unwrap();
    assert!(service.spec.unwrap().health_check_node_port.is_some());
    addresses("other", 0).await;
    cluster.create_pod("a", 81).await;
    addresses("other", 1).await;
    cluster.stop().await;
}

#[tokio::test]
async fn pods_get_the_token_of_their_account() {
    let cluster = Cluster::start(0).await;
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(cluster.client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": "fresh"}})).unwrap();
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
    // At once, without waiting for the controllers.
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "fresh");
    let pod = |account: Value| -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"},
            "spec": {"serviceAccountName": account, "containers": [{"name": "c", "image": "nginx:1"}]}}))
        .unwrap()
    };
    let params = PostParams::default();
    let created = pods.create(&params, &pod(Value::Null)).await.unwrap();
    let spec = created.spec.unwrap();
    assert_eq!(spec.service_account_name.as_deref(), Some("default"));
    let mounts = spec.containers[0].volume_mounts.clone().unwrap();
    assert_eq!(
        mounts[0].mount_path,
        "/var/run/secrets/kubernetes.io/serviceaccount"
    );
    assert!(
        spec.volumes.unwrap()[0]
            .name
            .starts_with("kube-api-access-")
    );
    let refused = pods.create(&params, &pod(json!("robot"))).await;
    let Err(kube::Error::Api(status)) = refused else {
        panic!("created")
    };
    assert_eq!(status.code, 403);
    assert_eq!(
        status.message,
        r#"pods "p" is forbidden: error looking up service account fresh/robot: serviceaccount "robot" not found"#
    );
    cluster.stop().await;
}

#[tokio::test]
async fn the_kubernetes_service_is_always_there() {
    let data = tempfile::tempdir().unwrap();
    let mut config = Config::new(data.path(), Some("127.0.0.1:0".parse().unwrap()));
    config.advertise = Some("192.0.2.7".parse().unwrap());
    config.service_cidr = "10.99.0.0/20".parse().unwrap();
    // Nothing here has that address, so the API can't listen on it.
    let refused = ControlPlane::start(config.clone())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("192.0.2.7"), "{refused}");

    config.advertise = Some("127.0.0.2".parse().unwrap());
    let running = ControlPlane::start(config).await.unwrap();
    let services: Api<Service> = Api::namespaced(running.client.clone(), "default");
    let first = services.get("kubernetes").await.unwrap();
    let spec = first.spec.clone().unwrap();
    assert_eq!(spec.cluster_ip.as_deref(), Some("10.99.0.1"));
    services
        .delete("kubernetes", &DeleteParams::default())
        .await
        .unwrap();
    let again = wait_for("the Service", || async {
        let service = services.get_opt("kubernetes").await.unwrap()?;
        (service.uid() != first.uid()).then_some(service)
    })
    .await;
    assert_eq!(again.spec.unwrap().cluster_ip, spec.cluster_ip);
    running.shutdown().await;
}

#[tokio::test]
async fn many_clients_get_addresses_of_their_own() {
    let cluster = Cluster::start(0).await;
    let creating = (0..32).map(|client| {
        let api = cluster.services();
        async move {
            let mut given = Vec::new();
            for number in 0..8 {
                let service: Service = serde_json::from_value(json!({
                    "metadata": {"name": format!("s{client}-{number}")},
                    "spec": {"type": "NodePort", "ports": [{"port": 80}]},
                }))
                .unwrap();
                let created = api.create(&PostParams::default(), &service).await.unwrap();
                let spec = created.spec.unwrap();
                given.push((
                    spec.cluster_ip.unwrap(),
                    spec.ports.unwrap()[0].node_port.unwrap(),
                ));
            }
            given
        }
    });
    let given: Vec<_> = futures::future::join_all(creating)
        .await
        .into_iter()
        .flatten()
        .collect();
    let addresses: BTreeSet<_> = given.iter().map(|(address, _)| address).collect();
    let ports: BTreeSet<_> = given.iter().map(|(_, port)| port).collect();
    assert_eq!((addresses.len(), ports.len()), (256, 256));
    cluster.stop().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_no_address_taken_twice() {
    let cluster = Cluster::start(0).await;
    // Some of these writes are committed after their client has gone.
    for number in 0..40 {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": format!("s{number}")},
            "spec": {"type": "NodePort", "ports": [{"port": 80}]},
        }))
        .unwrap();
        let (api, params) = (cluster.services(), PostParams::default());
        let creating = api.create(&params, &service);
        let _ = tokio::time::timeout(Duration::from_micros(50 * number), creating).await;
    }
    let mut address = None;
    for number in 0..40 {
        let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
        let service = cluster.create_service(&format!("t{number}"), spec).await;
        address = service.spec.unwrap().cluster_ip;
    }
    let services = cluster
        .services()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items;
    let given: Vec<_> = services
        .iter()
        .map(|s| s.spec.as_ref().unwrap().cluster_ip.clone())
        .collect();
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), given.len());
    // What is taken is refused, in Kubernetes' words.
    let address = address.unwrap();
    let wanted = json!({"metadata": {"name": "again"}, "spec": {"clusterIP": address, "ports": [{"port": 80}]}});
    let wanted: Service = serde_json::from_value(wanted).unwrap();
    let refused = cluster
        .services()
        .create(&PostParams::default(), &wanted)
        .await;
    let Err(kube::Error::Api(status)) = refused else {
        panic!("created")
    };
    assert_eq!(status.code, 422);
    assert_eq!(
        status.message,
        format!(
            r#"Service "again" is invalid: spec.clusterIPs: Invalid value: ["{address}"]: failed to allocate IP {address}: provided IP is already allocated"#
        )
    );
    cluster.stop().await;
}

#[tokio::test]
async fn services_from_before_there_were_addresses_get_theirs() {
    struct Nobody;
    impl Observer for Nobody {
        fn committed(&mut self, _: Vec<Change>) {}
    }
    let data = tempfile::tempdir().unwrap();
    std::fs::create_dir(data.path().join("server")).unwrap();
    let (store, _) = SqliteStore::open(&data.path().join("server/store.db")).unwrap();
    let store = store.serve(Nobody).unwrap();
    let old = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}});
    let key = Key::new("", "services", "default", "web");
    let value = Op::Put(old.to_string().into());
    store.commit(key, Expect::Absent, value).await.unwrap();
    store.close().await;

    let running = ControlPlane::start(Config::new(data.path(), None))
        .await
        .unwrap();
    let services: Api<Service> = Api::namespaced(running.client.clone(), "default");
    let spec = services.get("web").await.unwrap().spec.unwrap();
    assert!(spec.cluster_ip.unwrap().starts_with("10.43."));
    assert!(spec.ports.unwrap()[0].node_port.is_some());
    assert_eq!(spec.ip_families.unwrap(), ["IPv4"]);
    running.shutdown().await;
}
