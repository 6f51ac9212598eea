//! The agent as a whole: `Config -> Agent::start -> Running`.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt;
use k8s_openapi::api::core::v1::{Pod, Taint};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use skiff_images::{Puller, Store};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::drill;
use crate::hooks::AgentHooks;
use crate::identity::Identity;
use crate::leases::Leases;
use crate::logs::Watcher;
use crate::net::blocks::nth;
use crate::net::dns::{Dns, DnsConfig, DnsError};
use crate::net::{
    ClusterBlocks, HostPort, Network, NetworkConfig, NetworkError, host_ports, service_watch,
};
use crate::node::host::Host;
use crate::node::{
    Collector, ImageGcPolicy, NodeConfig, NodeImageList, Registrar, allocatable_memory, new_node,
    pod_cidr,
};
use crate::pod::api::KubeApi;
use crate::pod::dispatch::{Dispatch, FindSandbox, Pods};
use crate::pod::dns_config::NodeDns;
use crate::pod::events::{self, Events};
use crate::pod::fields::NodeFacts;
use crate::pod::seams::PodSandbox;
use crate::pod::{NodeContext, record};
use crate::pull_accounts::PullAccounts;
use crate::reconnect::Reconnect;
use crate::runtime::{Runtime, RuntimeError};
use crate::server::{Credentials, NodeServer, ServerConfig, ServerError};
use crate::wiring::{Lookup, NodeImages, NodeRuntime, NodeSandbox, Sandboxes};

/// The service that each node answers itself.
const DNS_SERVICE: (&str, &str) = ("kube-system", "kube-dns");
/// Where in the block of services the cluster's DNS server has its address.
const DNS_OFFSET: u32 = 10;
/// Pods that a node takes by default.
pub const MAX_PODS: u32 = 500;

/// What an agent is made of.
pub struct Config {
    pub identity: Identity,
    /// The API, in this process or elsewhere.
    pub client: Client,
    pub api: ApiServer,
    pub node_name: String,
    /// Labels beside those that every node has, such as `node-role.kubernetes.io/control-plane`.
    pub labels: BTreeMap<String, String>,
    /// The taints that the node joins with.
    pub taints: Vec<Taint>,
    /// Where the node is reached; see [`crate::node::host_address`].
    pub address: IpAddr,
    pub images: Store,
    pub puller: Arc<dyn Puller>,
    /// Nothing is ever fetched; an image that is here serves `imagePullPolicy: Always` too.
    pub offline: bool,
    /// Where the node's HTTPS endpoint listens; port 0 takes any.
    pub listen: SocketAddr,
    pub credentials: Credentials,
    /// The cluster's address blocks; the tenth of the services' is its DNS server's.
    pub blocks: ClusterBlocks,
    /// Names the servers that know the rest of the world; see [`HOST_FILE`].
    ///
    /// [`HOST_FILE`]: crate::net::dns::resolv_conf::HOST_FILE
    pub resolv_conf: PathBuf,
    pub max_pods: u32,
    pub image_gc: ImageGcPolicy,
    /// How drills reach the process around the agent.
    pub hooks: Arc<dyn AgentHooks>,
}

/// Where the API is, for those who don't ask it by [`Config::client`].
#[derive(Debug, Clone)]
pub struct ApiServer {
    /// `https://HOST:PORT`; `None` when it is served in this process.
    pub url: Option<String>,
    /// The authority (PEM) that its certificate comes from.
    pub authority: String,
}

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("the container runtime: {0}")]
    Runtime(#[from] RuntimeError),
    #[error("the pod network: {0}")]
    Network(#[from] NetworkError),
    #[error("the node's DNS server: {0}")]
    Dns(#[from] DnsError),
    #[error("the service block {0} is too small: a cluster needs at least a /28")]
    ServiceBlock(ipnet::Ipv4Net),
    #[error("the node's endpoint: {0}")]
    Server(#[from] ServerError),
    #[error("reading this node's pods: {0}")]
    Pods(#[source] std::io::Error),
    #[error("watching log files: {0}")]
    Logs(#[source] std::io::Error),
    #[error("the journal of drills: {0}")]
    Drills(#[source] std::io::Error),
}

/// The node agent.
pub struct Agent;

impl Agent {
    /// Takes over the pods that run, and begins to look after this node.
    ///
    /// The API need not answer yet where an agent ran before: pods that are known are looked
    /// after without it.
    ///
    /// # Errors
    /// When something that every pod needs can't be had on this host.
    pub async fn start(config: Config) -> Result<Running, AgentError> {
        let (known, host) = read_host(&config.identity).await?;
        let mut node = NodeConfig {
            name: config.node_name.clone(),
            labels: config.labels,
            taints: config.taints,
            address: config.address,
            port: 0,
            pod_cidr: Network::recorded_block(&config.identity).await?,
            max_pods: config.max_pods,
        };
        let (runtime, network) = tokio::join!(
            Runtime::new(config.identity.clone()),
            open_network(
                &config.identity,
                &config.client,
                config.blocks,
                &node,
                &host
            ),
        );
        let (runtime, network) = (runtime?, network?);
        node.pod_cidr = Some(network.cidr());
        let sandboxes = Sandboxes::default();
        adopt(&runtime, &network, &sandboxes, &known).await?;
        let used = images_in_use(&config.identity, &known).await?;
        let (leases, keep_leases) = Leases::new(config.images.clone(), used);

        let (events, queue) = Events::queue();
        let pods = Pods::default();
        let lookup = Lookup {
            identity: config.identity.clone(),
            pods: pods.clone(),
            sandboxes: sandboxes.clone(),
        };
        let server_config = ServerConfig {
            node_name: config.node_name.clone(),
            listen: config.listen,
            credentials: config.credentials,
        };
        let logs = Watcher::new().map_err(AgentError::Logs)?;
        let services = config.blocks.services;
        let cluster_dns = nth(services, DNS_OFFSET);
        let cluster_dns = cluster_dns.ok_or(AgentError::ServiceBlock(services))?;
        let dns_config = DnsConfig {
            listen: network.node_address(),
            cluster_address: cluster_dns,
            blocks: vec![config.blocks.pods, services],
            resolv_conf: config.resolv_conf.clone(),
            copy: config.identity.agent_root().join("network/names.json"),
        };
        let dns = Dns::bind(dns_config).await?;
        let server = NodeServer::bind(server_config, Arc::new(lookup), logs.clone()).await?;
        let endpoint = server.local_addr().map_err(|source| ServerError::Listen {
            address: config.listen,
            source,
        })?;

        let scene = drill::Scene {
            site: drill::Site::new(config.identity.clone())?,
            node_name: config.node_name.clone(),
            client: config.client.clone(),
            sandboxes: sandboxes.clone(),
            puller: config.puller.clone(),
            hooks: config.hooks,
            incarnation: rand::random(),
            surroundings: drill::Surroundings {
                network: network.clone(),
                api_server: config.api.url,
                authority: config.api.authority,
                api_service: SocketAddrV4::new(nth(services, 1).unwrap_or(services.network()), 443),
                endpoint: endpoint.port(),
                dns_service: cluster_dns,
                dns_server: dns.address(),
            },
            files: logs.clone(),
        };
        let drills = drill::Runner::open(scene).await;
        let drills = drills.map_err(AgentError::Drills)?;
        node.port = endpoint.port();
        let proxy = network.service_proxy(config.node_name.clone());
        if let SocketAddr::V4(address) = dns.address() {
            network.lead_service_to_socket(DNS_SERVICE.0, DNS_SERVICE.1, address);
        }
        let peers = network
            .peer_routes(config.node_name.clone(), config.address)
            .run(config.client.clone());
        let answers = network.clone().answer_others();
        let images_changed = Arc::new(Notify::new());
        let accounts = PullAccounts::new(config.identity.data_dir());
        let context = Arc::new(NodeContext {
            facts: facts(&node, &host),
            memory_capacity: host.memory_bytes,
            identity: config.identity,
            offline: config.offline,
            runtime: Arc::new(NodeRuntime {
                runtime,
                sandboxes: sandboxes.clone(),
            }),
            network: Arc::new(network),
            images: Arc::new(NodeImages {
                store: config.images.clone(),
                puller: config.puller,
                leases,
                accounts,
                changed: Arc::clone(&images_changed),
            }),
            api: Arc::new(KubeApi::new(config.client.clone())),
            events: events.clone(),
            dns: NodeDns {
                address: cluster_dns.into(),
                host_file: config.resolv_conf,
            },
            services: Arc::new(dns.directory()),
        });
        let images = NodeImageList {
            store: config.images,
            changed: images_changed,
        };
        let registrar = Registrar::new(
            node,
            host,
            images.clone(),
            config.client.clone(),
            events.clone(),
        );
        let collector = Collector::new(
            config.node_name.clone(),
            images,
            config.image_gc,
            events,
            registrar.disk_pressure(),
        );
        let registered = registrar.registered();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run(stop.clone()));
        tasks.spawn(drills.run(stop.clone()));
        let observers = vec![dns.observer(), proxy.observer()];
        tasks.spawn(dns.run(logs, stop.clone()));
        let services = service_watch::run(config.client.clone(), observers);
        tasks.spawn(until(&stop, services));
        tasks.spawn(until(&stop, registrar.run()));
        tasks.spawn(until(&stop, keep_leases));
        // What can't be fetched again is worth more than the room it takes.
        if !config.offline {
            tasks.spawn(until(&stop, collector.run()));
        }
        tasks.spawn(until(&stop, proxy.run()));
        tasks.spawn(until(&stop, peers));
        tasks.spawn(until(&stop, answers));
        tasks.spawn(until(
            &stop,
            events::write(config.client.clone(), config.node_name.clone(), queue),
        ));
        let dispatch = Dispatch::new(context, pods, find(sandboxes));
        let watch = watch_pods(config.client, &config.node_name);
        tasks.spawn(until(&stop, dispatch.run(known, watch)));
        Ok(Running {
            stop,
            tasks,
            registered,
            endpoint,
        })
    }
}

/// Runs a task until the agent stops.
fn until(
    stop: &CancellationToken,
    work: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let stop = stop.clone();
    async move {
        stop.run_until_cancelled_owned(work)
            .await
            .unwrap_or_default()
    }
}

/// The pod network, in the block that the control plane gives this node.
async fn open_network(
    identity: &Identity,
    client: &Client,
    blocks: ClusterBlocks,
    node: &NodeConfig,
    host: &Host,
) -> Result<Network, NetworkError> {
    let new = new_node(node, host);
    let node_cidr = pod_cidr(client.clone(), new, node.pod_cidr).await;
    let config = NetworkConfig { blocks, node_cidr };
    Network::open(identity.clone(), config).await
}

async fn read_host(identity: &Identity) -> Result<(Vec<Pod>, Host), AgentError> {
    let (pods_dir, root) = (identity.pods_dir(), identity.agent_root());
    let looked = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&pods_dir)?;
        Ok((record::load_all(&pods_dir)?, Host::look(&root)))
    });
    match looked.await {
        Ok(result) => result.map_err(AgentError::Pods),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Finds the sandboxes that run, and ends those whose pods nobody knows.
async fn adopt(
    runtime: &Runtime,
    network: &Network,
    sandboxes: &Sandboxes,
    known: &[Pod],
) -> Result<(), AgentError> {
    let ports_of = |pod: &Pod| Some((pod.metadata.uid.clone()?, host_ports(pod)));
    let pods: HashMap<String, Vec<HostPort>> = known.iter().filter_map(ports_of).collect();
    for sandbox in runtime.sandboxes().await? {
        if pods.contains_key(sandbox.uid()) {
            sandboxes.put(sandbox);
        } else {
            sandbox.destroy().await?;
        }
    }
    Ok(network.reconcile(pods).await?)
}

/// The containers of known pods, dead ones too, with the images they were made from.
async fn images_in_use(
    identity: &Identity,
    known: &[Pod],
) -> Result<Vec<(String, String)>, AgentError> {
    let mut used = Vec::new();
    for pod in known {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let meta = &pod.metadata;
        let pod_dir = identity.pod_dir(&text(&meta.namespace), &text(&meta.name), &text(&meta.uid));
        for record in Runtime::records(pod_dir).await? {
            used.push((record.id, record.image_id));
        }
    }
    Ok(used)
}

fn find(sandboxes: Sandboxes) -> FindSandbox {
    Arc::new(move |uid| {
        let sandboxes = sandboxes.clone();
        async move {
            let sandbox = sandboxes.get(&uid)?;
            let sandbox: Arc<dyn PodSandbox> = Arc::new(NodeSandbox { sandbox, sandboxes });
            Some(sandbox)
        }
        .boxed()
    })
}

fn facts(node: &NodeConfig, host: &Host) -> NodeFacts {
    NodeFacts {
        node_name: node.name.clone(),
        host_ips: vec![node.address],
        allocatable_milli_cpu: i64::try_from(host.cpus).unwrap_or(1) * 1000,
        allocatable_memory: allocatable_memory(host),
    }
}

fn watch_pods(
    client: Client,
    node_name: &str,
) -> impl futures::Stream<Item = Result<watcher::Event<Pod>, watcher::Error>> + Send + use<> {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    watcher(Api::<Pod>::all(client), config).backoff(Reconnect::default())
}

/// An agent at work. Dropping it stops the agent and leaves the containers running, as
/// [`Running::shutdown`] does in good order.
pub struct Running {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    registered: watch::Receiver<bool>,
    endpoint: SocketAddr,
}

impl Running {
    /// Where the node's HTTPS endpoint listens.
    pub fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    /// Resolves once the node is in the API, and Ready.
    pub async fn registered(&self) {
        let mut registered = self.registered.clone();
        // An error means that the agent ended.
        let _ = registered.wait_for(|done| *done).await;
    }

    /// Resolves when a part of the agent ends that should not: with the panic that ended it.
    pub async fn failed(&mut self) -> Option<JoinError> {
        self.tasks.join_next().await.and_then(Result::err)
    }

    /// Stops the agent. Containers go on.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}
