//! Services as people see them: made, shown, refused, and kept through a crash.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::Mutex;

use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ListParams, PostParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, SERVE, shell_pod};
use crate::{images, wait};

impl Cluster {
    fn service(&mut self, name: &str) -> Option<Value> {
        self.get(&format!("/api/v1/namespaces/default/services/{name}"))
    }

    /// The endpoints of a Service's slices.
    pub(crate) fn endpoints_of(&mut self, service: &str) -> Vec<Value> {
        let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
        let selector = format!("labelSelector=kubernetes.io%2Fservice-name%3D{service}");
        let list = self.get(&format!("{path}?{selector}")).unwrap_or_default();
        let slices = list["items"].as_array().cloned().unwrap_or_default();
        let endpoints = slices
            .iter()
            .filter_map(|slice| slice["endpoints"].as_array());
        endpoints.flatten().cloned().collect()
    }

    fn until_ready_endpoints(&mut self, service: &str, count: usize) {
        wait::until(&format!("{count} ready endpoints of {service}"), || {
            let endpoints = self.endpoints_of(service);
            let ready = endpoints
                .iter()
                .filter(|e| e["conditions"]["ready"] == true);
            (ready.count() == count).then_some(())
        });
    }

    /// What kubectl says on stderr when it is refused.
    fn refusal(&self, args: &str) -> String {
        let output = self.try_kubectl(args);
        assert!(!output.status.success(), "kubectl {args} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

/// A table's rows without the header, in words.
fn rows(table: &str) -> Vec<Vec<&str>> {
    let lines = table.lines().skip(1);
    lines
        .map(|line| line.split_whitespace().collect())
        .collect()
}

#[test]
fn a_deployment_is_exposed_and_its_service_shown() {
    let mut cluster = Cluster::start();
    let demo = images::nginx_demo();
    cluster.kubectl_args(&["apply", "-f", demo.to_str().expect("a path")]);
    let exposed =
        cluster.kubectl("expose deployment nginx-demo --name=web --port=80 --type=NodePort");
    assert_eq!(exposed, "service/web exposed\n");
    cluster.until_all_ready("app=nginx", 3);
    cluster.until_ready_endpoints("web", 3);

    let service = cluster.service("web").expect("the Service");
    let address = service["spec"]["clusterIP"].as_str().expect("an address");
    let node_port = service["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .expect("a port");
    assert!((30_000..=32_767).contains(&node_port));
    let table = cluster.kubectl("get svc web -o wide");
    assert_eq!(
        table
            .lines()
            .next()
            .map(|header| header.split_whitespace().collect()),
        Some(vec![
            "NAME",
            "TYPE",
            "CLUSTER-IP",
            "EXTERNAL-IP",
            "PORT(S)",
            "AGE",
            "SELECTOR"
        ])
    );
    let ports = format!("80:{node_port}/TCP");
    let row = &rows(&table)[0];
    assert_eq!(row[..5], ["web", "NodePort", address, "<none>", &ports]);
    assert_eq!(row[6], "app=nginx");

    let slices = cluster.kubectl("get endpointslices -l kubernetes.io/service-name=web");
    let row = &rows(&slices)[0];
    assert!(row[0].starts_with("web-"), "{slices}");
    assert_eq!(row[1..3], ["IPv4", "80"]);
    assert_eq!(row[3].split(',').count(), 3);

    let output = cluster.try_kubectl("get ep web");
    let warned = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        warned,
        "Warning: v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\n"
    );
    let table = String::from_utf8_lossy(&output.stdout);
    assert_eq!(rows(&table)[0][1].matches(":80").count(), 3, "{table}");

    let described = cluster.kubectl("describe svc web");
    for line in [
        "Selector:                 app=nginx",
        "Type:                     NodePort",
        "IP Family Policy:         SingleStack",
        "IP Families:              IPv4",
        "Port:                     <unset>  80/TCP",
        "TargetPort:               80/TCP",
        "Session Affinity:         None",
        "External Traffic Policy:  Cluster",
        "Internal Traffic Policy:  Cluster",
    ] {
        assert!(described.contains(line), "{line}\n{described}");
    }
    let endpoints = described
        .lines()
        .find(|line| line.starts_with("Endpoints:"));
    assert_eq!(
        endpoints.map(|line| line.matches(":80").count()),
        Some(3),
        "{described}"
    );

    cluster.kubectl("scale deployment nginx-demo --replicas=1");
    cluster.until_ready_endpoints("web", 1);
    assert_eq!(
        cluster.kubectl("delete svc web"),
        "service \"web\" deleted from default namespace\n"
    );
    wait::until("the slices are gone", || {
        cluster.endpoints_of("web").is_empty().then_some(())
    });
}

#[test]
fn services_of_every_type_are_created_and_wrong_ones_refused() {
    let mut cluster = Cluster::start_empty();
    let listed = cluster.kubectl("get svc");
    assert_eq!(rows(&listed)[0][0], "kubernetes");
    assert_eq!(rows(&listed)[0][4], "443/TCP");

    cluster.kubectl("create service clusterip plain --tcp=80:8080");
    cluster.kubectl("create service clusterip headless --clusterip=None");
    cluster.kubectl("create service nodeport outer --tcp=80 --node-port=30080");
    cluster.kubectl("create service loadbalancer balanced --tcp=8081");
    cluster.kubectl("create service externalname elsewhere --external-name=www.example.com");
    let node = cluster.get("/api/v1/nodes").expect("the nodes");
    let addresses = node["items"][0]["status"]["addresses"]
        .as_array()
        .expect("addresses");
    let internal = addresses
        .iter()
        .find(|a| a["type"] == "InternalIP")
        .expect("one");
    let balanced = wait::until("the load balancer's address", || {
        let service = cluster.service("balanced")?;
        let ip = service["status"]["loadBalancer"]["ingress"][0]["ip"].clone();
        ip.is_string().then_some(ip)
    });
    assert_eq!(balanced, internal["address"]);

    let listed = cluster.kubectl("get svc");
    let table: BTreeMap<&str, Vec<&str>> =
        rows(&listed).into_iter().map(|row| (row[0], row)).collect();
    assert_eq!(table["plain"][3..5], ["<none>", "80/TCP"]);
    assert_eq!(table["headless"][2..5], ["None", "<none>", "<none>"]);
    assert_eq!(table["outer"][4], "80:30080/TCP");
    assert_eq!(Value::from(table["balanced"][3]), balanced);
    assert_eq!(
        table["elsewhere"][1..5],
        ["ExternalName", "<none>", "www.example.com", "<none>"]
    );

    let taken = cluster.refusal("create service nodeport again --tcp=80 --node-port=30080");
    assert!(
        taken.contains(
            "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"
        ),
        "{taken}"
    );
    let outside = cluster.refusal("create service nodeport again --tcp=80 --node-port=80");
    assert!(
        outside.contains(
            "provided port is not in the valid range. The range of valid ports is 30000-32767"
        ),
        "{outside}"
    );
    let address = table["plain"][2];
    let taken = cluster.refusal(&format!(
        "create service clusterip again --tcp=80 --clusterip={address}"
    ));
    assert!(
        taken.contains(&format!(
            "failed to allocate IP {address}: provided IP is already allocated"
        )),
        "{taken}"
    );
    let moved = r#"{"spec":{"clusterIP":"None","clusterIPs":["None"]}}"#;
    let moved = cluster.refusal(&format!("patch svc plain -p {moved}"));
    assert!(moved.contains("may not change once set"), "{moved}");

    // What a change of the type or the Service's end releases is free again.
    cluster.kubectl(r#"patch svc outer -p {"spec":{"type":"ClusterIP"}}"#);
    cluster.kubectl("create service nodeport again --tcp=80 --node-port=30080");
    cluster.kubectl("delete svc plain");
    cluster.kubectl(&format!(
        "create service clusterip plain --tcp=80 --clusterip={address}"
    ));
}

#[test]
fn a_crash_loses_no_service_and_gives_nothing_out_twice() {
    let mut cluster = Cluster::start_empty();
    let acknowledged = Mutex::new(Vec::new());
    let client = cluster.client();
    let creating = |writer: usize| {
        let (api, acknowledged) = (
            Api::<Service>::default_namespaced(client.clone()),
            &acknowledged,
        );
        async move {
            for number in 0.. {
                let name = format!("s{writer}-{number}");
                match api.create(&PostParams::default(), &node_port(&name)).await {
                    Ok(service) => acknowledged.lock().expect("whole").push(given(&service)),
                    // The server is gone.
                    Err(_) => return,
                }
            }
        }
    };
    let writers = futures::future::join_all((0..8).map(creating));
    let pid = nix::unistd::Pid::from_raw(cluster.server_pid());
    let killing = async {
        while acknowledged.lock().expect("whole").len() < 40 {
            tokio::task::yield_now().await;
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("SIGKILL");
    };
    cluster.block_on(async { futures::future::join(writers, killing).await });
    cluster.crash();
    cluster.up();

    let api: Api<Service> = Api::default_namespaced(cluster.client());
    let mut all = cluster.block_on(async {
        for number in 0..40 {
            let service = node_port(&format!("after-{number}"));
            api.create(&PostParams::default(), &service)
                .await
                .expect("created");
        }
        api.list(&ListParams::default())
            .await
            .expect("a list")
            .items
    });
    all.retain(|service| service.metadata.name.as_deref() != Some("kubernetes"));
    let all: Vec<(String, String, i32)> = all.iter().map(given).collect();
    for service in acknowledged.into_inner().expect("whole") {
        assert!(all.contains(&service), "{service:?} is lost or changed");
    }
    let mut addresses: Vec<&str> = all.iter().map(|(_, address, _)| address.as_str()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), all.len(), "an address twice");
    let mut ports: Vec<i32> = all.iter().map(|(_, _, port)| *port).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), all.len(), "a port twice");
}

fn node_port(name: &str) -> Service {
    let service =
        json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    serde_json::from_value(service).expect("a Service")
}

/// Its name, cluster address and node port.
fn given(service: &Service) -> (String, String, i32) {
    let spec = service.spec.clone().unwrap_or_default();
    let port = spec.ports.and_then(|ports| ports.first()?.node_port);
    (
        service.metadata.name.clone().unwrap_or_default(),
        spec.cluster_ip.unwrap_or_default(),
        port.unwrap_or_default(),
    )
}

#[test]
fn a_pod_reaches_the_api_with_its_own_token() {
    let mut cluster = Cluster::start();
    cluster.apply(&shell_pod("box", SERVE, "", ""));
    cluster.until_ready("box");
    let files = "/var/run/secrets/kubernetes.io/serviceaccount";
    let read = |name: &str| cluster.kubectl(&format!("exec box -- cat {files}/{name}"));
    assert_eq!(read("namespace"), "default");
    let (token, authority) = (read("token"), cluster.scratch().join("ca.crt"));
    fs::write(&authority, read("ca.crt")).expect("a file");
    let slice = cluster
        .get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes")
        .expect("the API server's address");
    let address = slice["endpoints"][0]["addresses"][0].as_str();
    let own = format!(
        "{}:{}",
        address.expect("an address"),
        slice["ports"][0]["port"]
    );
    let service = cluster.service("kubernetes").expect("the Service");
    let service = service["spec"]["clusterIP"]
        .as_str()
        .expect("an address")
        .to_string();
    // From inside the pod's network: where the API listens for pods, and through the Service.
    let pid = cluster.container_pid("box", "main");
    for server in [&own, &service] {
        let whoami = Command::new("nsenter")
            .args(["--net", "--target", &pid.to_string()])
            .arg(images::kubectl())
            .args(["--kubeconfig=/dev/null", "--token", &token])
            .arg(format!("--server=https://{server}"))
            .arg(format!("--certificate-authority={}", authority.display()))
            .args([
                "auth",
                "whoami",
                "-o",
                "jsonpath={.status.userInfo.username}",
            ])
            .env("HOME", cluster.scratch())
            .output()
            .expect("nsenter");
        assert_eq!(
            String::from_utf8_lossy(&whoami.stdout),
            "system:serviceaccount:default:default",
            "{server}: {}",
            String::from_utf8_lossy(&whoami.stderr)
        );
    }
    // And by its name, as clients in pods look for it.
    let found = cluster.kubectl("exec box -- nslookup kubernetes.default.svc.cluster.local");
    assert!(found.contains(&service), "{found}");
}
