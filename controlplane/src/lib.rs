//! The control plane: the Kubernetes API, its store, the controllers and the scheduler.
//!
//! [`ControlPlane::start`] brings all of it up and returns a [`Running`] one: a client that
//! reaches the API in memory, the cluster's certificates, and the address that serves others.

pub mod admission;
pub mod allocation;
pub mod api;
pub mod auth;
mod blocks;
pub mod cache;
pub mod cluster_info;
pub mod controllers;
pub mod drill_hooks;
mod drills;
pub mod presence;
pub mod resources;
pub mod scheduler;
pub mod schema;
mod server;
pub mod store;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;

use admission::DefaultTolerations;
use allocation::{Observing, ServiceAllocator};
use api::status::ApiError;
use api::{Api, Credentials, Settings};
use auth::UserInfo;
use auth::pki::{Pki, PkiError};
use auth::tokens::{TokenError, Tokens};
use cache::{Cache, CacheWriter};
use controllers::{Advertised, Informers};
use drill_hooks::DrillHooks;
use ipnet::Ipv4Net;
use presence::Presence;
use resources::Registry;
pub use server::BindError;
use server::{Admits, Listener};
use store::Snapshot;
use store::sqlite::{OpenError, Opened, SqliteStore};

/// Where the control plane lives and listens.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's data directory: the control plane's part is `<data_dir>/server`.
    pub data_dir: PathBuf,
    /// The address of the API; port 0 takes a free one. `None` serves this process alone.
    pub listen: Option<SocketAddr>,
    /// Names and addresses by which clients reach the API, beside those that always hold.
    pub host_names: Vec<String>,
    /// The address by which pods and other nodes reach the API: the `kubernetes` Service leads
    /// there. Where `listen` does not cover it, the API listens there as well, on the same port,
    /// for the cluster's pods and this host alone.
    pub advertise: Option<Ipv4Addr>,
    /// The block of the nodes' own addresses, where they have one that is theirs alone: they are
    /// let in at `advertise` too.
    pub node_cidr: Option<Ipv4Net>,
    /// The block that the nodes' pods get their addresses from.
    pub cluster_cidr: Ipv4Net,
    /// The block that Services get their cluster addresses from.
    pub service_cidr: Ipv4Net,
    /// Whether the controllers and the scheduler run too.
    pub controllers: bool,
    /// The longest life of the certificates that nodes get.
    pub signing_duration: Duration,
    /// How drills reach the process around the control plane; without them, those that need it are
    /// refused.
    pub drill_hooks: Option<Arc<dyn DrillHooks>>,
    /// How long pods stay on a node that is lost, if they don't say.
    pub tolerations: DefaultTolerations,
}

pub const CLUSTER_CIDR: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 42, 0, 0), 16);
pub const SERVICE_CIDR: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 43, 0, 0), 16);

/// Where in the block of Services the cluster's DNS server has its address.
const CLUSTER_DNS_OFFSET: u32 = 10;

impl Config {
    /// With the default blocks, which no other cluster that can be reached from here may use.
    pub fn new(data_dir: impl Into<PathBuf>, listen: Option<SocketAddr>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen,
            host_names: Vec::new(),
            advertise: None,
            node_cidr: None,
            cluster_cidr: CLUSTER_CIDR,
            service_cidr: SERVICE_CIDR,
            controllers: true,
            signing_duration: controllers::SIGNING_DURATION,
            drill_hooks: None,
            tolerations: DefaultTolerations::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot create {}: {error}", path.display())]
    Directory { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("cannot create the cluster's first objects: {0}")]
    Bootstrap(#[from] ApiError),
    #[error("the control plane's start was interrupted")]
    Interrupted,
}

/// The control plane, before it runs.
pub struct ControlPlane;

/// A control plane at work.
pub struct Running {
    /// Reaches the API in memory, with all rights.
    pub client: kube::Client,
    pub pki: Arc<Pki>,
    /// Where the API is served; `None` when it serves this process alone.
    pub local_addr: Option<SocketAddr>,
    store: Arc<SqliteStore>,
    workers: Option<Workers>,
    servers: Vec<JoinHandle<()>>,
    endpoint: Endpoint,
    stopping: CancellationToken,
}

/// What every listening socket serves.
struct Endpoint {
    api: Arc<Api>,
    tls: Arc<rustls::ServerConfig>,
    presence: Presence,
    stopping: CancellationToken,
}

/// What works on the objects through the API.
struct Workers {
    informers: Informers,
    controllers: controllers::Running,
    scheduler: scheduler::Running,
}

impl ControlPlane {
    /// Opens the store, serves the API, and starts the controllers and the scheduler.
    ///
    /// # Errors
    /// With one sentence for the operator: a taken port, a store in use.
    pub async fn start(config: Config) -> Result<Running, StartError> {
        let listeners = listen(&config).await?;
        let local_addr = listeners.first().and_then(|l| l.socket.local_addr().ok());
        let registry = resources::registry();
        let directory = config.data_dir.join("server");
        let names = host_names(&config, local_addr);
        let (opened, snapshot, pki) = spawn_blocking(move || open(&directory, &names))
            .await
            .map_err(|_| StartError::Interrupted)??;
        let cache = Cache::load(snapshot, &selectable_fields(&registry));
        let services = ServiceAllocator::load(config.service_cidr, &cache);
        let observer = Observing {
            allocator: services.clone(),
            next: CacheWriter(cache.clone()),
        };
        let store = Arc::new(opened.serve(observer)?);
        let stopping = CancellationToken::new();
        let address = local_addr.map_or_else(String::new, |address| address.to_string());
        let credentials = Credentials {
            node_tls: pki.node_client_config()?,
            tokens: Tokens::new(pki.service_account_key())?,
        };
        let credentials = Some(credentials);
        let api = Api::new(
            registry,
            store.clone(),
            cache,
            services,
            credentials,
            Settings {
                address,
                tolerations: config.tolerations,
            },
            stopping.clone(),
        );
        let api = Arc::new(api);
        let mut objects = auth::bootstrap::cluster_roles();
        objects.extend(auth::bootstrap::cluster_role_bindings());
        objects.extend(auth::bootstrap::cluster_info_access());
        let advertised = advertised(&config, local_addr);
        objects.push(advertised.service());
        for namespace in api::bootstrap::NAMESPACES {
            let map = controllers::service_account::root_ca_map(namespace, pki.ca());
            objects.push(serde_json::to_value(map).map_err(ApiError::internal)?);
        }
        api.bootstrap(objects).await?;
        let client = client(api.clone());
        let endpoint = Endpoint {
            api,
            tls: pki.server_config()?,
            presence: Presence::default(),
            stopping: stopping.clone(),
        };
        let servers = listeners.into_iter().map(|l| endpoint.serve(l)).collect();
        let pki = Arc::new(pki);
        let workers = config.controllers.then(|| {
            let settings = controllers::Config {
                signer: Some(pki.clone()),
                signing_duration: config.signing_duration,
                drill_hooks: config.drill_hooks.clone(),
                presence: endpoint.presence.clone(),
                advertised: Some(advertised),
                cluster_dns: blocks::nth(config.service_cidr, CLUSTER_DNS_OFFSET),
                ..controllers::Config::new(pki.ca().to_string(), config.cluster_cidr)
            };
            Workers::start(&client, settings)
        });
        Ok(Running {
            client,
            pki,
            local_addr,
            store,
            workers,
            servers,
            endpoint,
            stopping,
        })
    }
}

impl Running {
    /// A client of the API in this process with the rights of a node's agent.
    pub fn node_client(&self, node: &str) -> kube::Client {
        let name = format!("{}{node}", auth::NODE_PREFIX);
        let user = UserInfo::authenticated(name, [auth::NODES.to_string()]);
        client_of(self.endpoint.api.clone(), user)
    }

    /// Stops the controllers and the scheduler, ends connections, and closes the store.
    pub async fn shutdown(self) {
        if let Some(workers) = self.workers {
            workers.stop().await;
        }
        self.stopping.cancel();
        for server in self.servers {
            if let Err(error) = server.await {
                tracing::error!(%error, "the API's endpoint failed");
            }
        }
        self.store.close().await;
    }
}

impl Workers {
    fn start(client: &kube::Client, config: controllers::Config) -> Self {
        let informers = Informers::start(client);
        let controllers = controllers::start(client.clone(), &informers, config);
        let scheduler = scheduler::start(client.clone(), &informers);
        Self {
            informers,
            controllers,
            scheduler,
        }
    }

    async fn stop(self) {
        self.scheduler.stop().await;
        self.controllers.stop().await;
        self.informers.stop().await;
    }
}

/// A client of the API in this process, with the control plane's own rights.
pub fn client(api: Arc<Api>) -> kube::Client {
    client_of(api, UserInfo::control_plane())
}

fn client_of(api: Arc<Api>, user: UserInfo) -> kube::Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let (api, user) = (api.clone(), user.clone());
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(user);
            Ok::<_, Infallible>(api.handle(request).await)
        }
    });
    kube::Client::new(service, "default")
}

impl Endpoint {
    fn serve(&self, listener: Listener) -> JoinHandle<()> {
        tokio::spawn(server::serve(
            listener,
            self.tls.clone(),
            self.api.clone(),
            self.presence.clone(),
            self.stopping.clone(),
        ))
    }
}

fn open(directory: &Path, names: &[String]) -> Result<(Opened, Snapshot, Pki), StartError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| StartError::Directory {
            path: directory.to_path_buf(),
            error,
        })?;
    let (opened, snapshot) = SqliteStore::open(&directory.join("store.db"))?;
    let pki = Pki::open(&directory.join("pki"), names)?;
    Ok((opened, snapshot, pki))
}

/// The sockets of the API: the one that was asked for, and where that is not for the
/// cluster's pods, a second one for them.
async fn listen(config: &Config) -> Result<Vec<Listener>, BindError> {
    let Some(address) = config.listen else {
        return Ok(Vec::new());
    };
    let socket = server::bind(address).await?;
    let port = socket
        .local_addr()
        .map_or(address.port(), |local| local.port());
    let mut listeners = vec![Listener {
        socket,
        admits: Admits::Everyone,
    }];
    let covered = |host: Ipv4Addr| address.ip().is_unspecified() || address.ip() == host;
    if let Some(host) = config.advertise.filter(|host| !covered(*host)) {
        listeners.push(Listener {
            socket: server::bind((host, port).into()).await?,
            admits: Admits::Cluster {
                pods: config.cluster_cidr,
                nodes: config.node_cidr,
                host,
            },
        });
    }
    Ok(listeners)
}

/// How pods reach the API that listens at `local_addr`.
fn advertised(config: &Config, local_addr: Option<SocketAddr>) -> Advertised {
    let listening = match local_addr.map(|address| address.ip()) {
        Some(IpAddr::V4(ip)) if !ip.is_loopback() && !ip.is_unspecified() => Some(ip),
        _ => None,
    };
    let address = config.advertise.or(listening);
    Advertised {
        address: address
            .zip(local_addr)
            .map(|(ip, local)| SocketAddrV4::new(ip, local.port())),
        services: config.service_cidr,
    }
}

/// What the API's certificate is good for.
fn host_names(config: &Config, local_addr: Option<SocketAddr>) -> Vec<String> {
    let mut names: Vec<String> = [
        "127.0.0.1",
        "::1",
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(str::to_string)
    .to_vec();
    // The `kubernetes` Service has the first address of its block.
    let service = blocks::nth(config.service_cidr, 1);
    let own = service.into_iter().chain(config.advertise);
    names.extend(own.map(|address| address.to_string()));
    let host = nix::unistd::gethostname().ok();
    names.extend(host.and_then(|name| name.into_string().ok()));
    let listen = local_addr.map(|address| address.ip());
    names.extend(
        listen
            .filter(|ip| !ip.is_unspecified())
            .map(|ip| ip.to_string()),
    );
    names.extend(config.host_names.iter().cloned());
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

fn selectable_fields(
    registry: &Registry,
) -> HashMap<String, &'static [resources::SelectableField]> {
    registry
        .iter()
        .filter(|resource| resource.stored_as.is_none())
        .map(|resource| (resource.storage_id(), resource.selectable_fields))
        .collect()
}
