//! Pods and containers of this host's nodes as they are on its disk and in its shims: what `ps`, `inspect`,
//! `logs` and `exec` work from, whether or not a control plane or an agent runs.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use k8s_openapi::api::core::v1::Pod;
use skiff_agent::fleet;
use skiff_agent::identity::Identity;
use skiff_agent::runtime::types::{ContainerRecord, ContainerState};
use skiff_agent::runtime::{Runtime, is_supervised};

use crate::data_dir;

/// Which node a command is about.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// The data directory of the node, or of a cluster with several nodes on this host
    #[arg(long, global = true, value_name = "DIR", default_value = data_dir::DEFAULT)]
    data_dir: PathBuf,
    /// One of the nodes that `skiff up --nodes` runs; by default all of them
    #[arg(long, global = true, value_name = "NAME")]
    node: Option<String>,
}

/// Where a node of this host keeps its state.
pub struct NodeDir {
    /// Of one of several nodes.
    pub node: Option<String>,
    pub data_dir: PathBuf,
}

impl NodeArgs {
    /// The nodes that are meant; at least one.
    ///
    /// # Errors
    /// When there is no node of this name, or it can't be found out.
    pub fn dirs(&self) -> anyhow::Result<Vec<NodeDir>> {
        let place = self.data_dir.display();
        let nodes = fleet::data_dirs(&self.data_dir)
            .with_context(|| format!("cannot tell which nodes there are in {place}"))?;
        if nodes.is_empty() {
            if let Some(node) = &self.node {
                bail!("--node {node}: the cluster in {place} was not started with --nodes");
            }
            return Ok(vec![NodeDir {
                node: None,
                data_dir: self.data_dir.clone(),
            }]);
        }
        let names: Vec<String> = nodes.iter().map(|(name, _)| name.clone()).collect();
        let meant = |name: &str| self.node.as_ref().is_none_or(|node| node == name);
        let dirs: Vec<NodeDir> = nodes
            .into_iter()
            .filter(|(name, _)| meant(name))
            .map(|(name, data_dir)| NodeDir {
                node: Some(name),
                data_dir,
            })
            .collect();
        match (&self.node, dirs.as_slice()) {
            (Some(node), []) => {
                bail!(
                    "there is no node {node} in {place}: it has {}",
                    names.join(", ")
                )
            }
            _ => Ok(dirs),
        }
    }

    /// The same, to look into.
    ///
    /// # Errors
    /// As [`dirs`](Self::dirs), and when there is no node there.
    pub fn nodes(&self) -> anyhow::Result<Nodes> {
        let dirs = self.dirs()?;
        let mut nodes = Vec::with_capacity(dirs.len());
        for NodeDir { node, data_dir } in dirs {
            // One of several that has never run yet has nothing to show.
            if node.is_some() && !data_dir.exists() {
                continue;
            }
            let identity = Identity::of(&data_dir).with_context(|| {
                format!(
                    "no node in {}: give its data directory with --data-dir",
                    data_dir.display()
                )
            })?;
            nodes.push(Node {
                name: node,
                identity,
            });
        }
        Ok(Nodes(nodes))
    }
}

/// Which container a command is about.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// A pod's name, or the beginning of a container's id
    #[arg(value_name = "POD|ID", value_parser = NonEmptyStringValueParser::new())]
    target: String,
    /// The pod's namespace, where its name alone is not enough
    #[arg(short, long)]
    namespace: Option<String>,
    /// The container, in a pod with several
    #[arg(short, long)]
    container: Option<String>,
}

/// Nodes of this host.
pub struct Nodes(Vec<Node>);

struct Node {
    name: Option<String>,
    identity: Identity,
}

/// A pod of a node.
pub struct LocalPod {
    /// Its node, where there are several.
    pub node: Option<String>,
    /// Of its node.
    pub identity: Identity,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub dir: PathBuf,
    /// Its last known object, if one was saved.
    pub object: Option<Pod>,
    /// Every attempt to run a container that is still known, by container, the latest last.
    pub records: Vec<ContainerRecord>,
    /// Whether a shim watches over it. Without one nothing of it is sure to run.
    pub supervised: bool,
}

impl Nodes {
    /// Every pod, by namespace and name.
    ///
    /// # Errors
    /// When a node's directory can't be read.
    pub async fn pods(&self) -> anyhow::Result<Vec<LocalPod>> {
        let mut pods = Vec::new();
        for node in &self.0 {
            pods.extend(node.pods().await?);
        }
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Ok(pods)
    }

    /// The pod that is meant, and the container if one is named.
    pub async fn find(&self, args: &TargetArgs) -> anyhow::Result<(LocalPod, Option<String>)> {
        let target = &args.target;
        let mut pods = self.pods().await?;
        if let Some(namespace) = &args.namespace {
            pods.retain(|pod| pod.namespace == *namespace);
        }
        let namespaces: BTreeSet<_> = pods
            .iter()
            .filter(|pod| pod.name == *target)
            .map(|pod| pod.namespace.clone())
            .collect();
        if namespaces.len() > 1 {
            let all: Vec<_> = namespaces.into_iter().collect();
            bail!(
                "pod {target} is in several namespaces ({}): choose one with -n",
                all.join(", ")
            );
        }
        let (mut named, others): (Vec<_>, Vec<_>) =
            pods.into_iter().partition(|pod| pod.name == *target);
        // A pod may be recreated under its name before the old one is cleared away.
        named.sort_by_key(|pod| Reverse((pod.supervised, pod.latest_creation())));
        match named.into_iter().next() {
            Some(pod) => {
                if let Some(container) = &args.container
                    && !pod.containers().contains(&container.as_str())
                {
                    bail!("pod {target} has no container {container}");
                }
                Ok((pod, args.container.clone()))
            }
            None => find_by_id(others, target, self.place()),
        }
    }

    /// Where it was looked for.
    fn place(&self) -> &'static str {
        match self.0.as_slice() {
            [_] => "on this node",
            _ => "on any node of this host",
        }
    }
}

impl Node {
    async fn pods(&self) -> anyhow::Result<Vec<LocalPod>> {
        let directory = self.identity.pods_dir();
        let mut pods = Vec::new();
        let mut entries = match tokio::fs::read_dir(&directory).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(pods),
            entries => entries.with_context(|| format!("listing {}", directory.display()))?,
        };
        while let Some(entry) = entries.next_entry().await? {
            pods.extend(self.pod(&entry.path()).await?);
        }
        Ok(pods)
    }

    /// `None` for a directory that is not a pod's.
    async fn pod(&self, dir: &Path) -> anyhow::Result<Option<LocalPod>> {
        let name = dir.file_name().and_then(|name| name.to_str());
        // Namespaces and names hold no underscore.
        let mut parts = name.unwrap_or_default().splitn(3, '_');
        let (Some(namespace), Some(name), Some(uid)) = (parts.next(), parts.next(), parts.next())
        else {
            return Ok(None);
        };
        let mut records = Runtime::records(dir.to_owned()).await?;
        records.sort_by(|a, b| (&a.name, a.attempt).cmp(&(&b.name, b.attempt)));
        let object = tokio::fs::read(dir.join("pod.json")).await.ok();
        Ok(Some(LocalPod {
            node: self.name.clone(),
            identity: self.identity.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            dir: dir.to_owned(),
            object: object.and_then(|bytes| serde_json::from_slice(&bytes).ok()),
            records,
            supervised: is_supervised(&self.identity, uid),
        }))
    }
}

fn find_by_id(
    pods: Vec<LocalPod>,
    prefix: &str,
    place: &str,
) -> anyhow::Result<(LocalPod, Option<String>)> {
    let matches = |record: &ContainerRecord| record.id.starts_with(prefix);
    let ids = pods.iter().flat_map(|pod| &pod.records);
    match ids.filter(|record| matches(record)).count() {
        0 => bail!("no pod or container {prefix} {place}"),
        1 => {}
        count => bail!("{prefix} is the beginning of {count} container ids: give more of it"),
    }
    for pod in pods {
        let found = pod.records.iter().find(|record| matches(record));
        if let Some(name) = found.map(|record| record.name.clone()) {
            return Ok((pod, Some(name)));
        }
    }
    bail!("no pod or container {prefix} {place}")
}

impl LocalPod {
    /// Its containers, in the order of its declaration where that is known.
    pub fn containers(&self) -> Vec<&str> {
        let spec = self.object.as_ref().and_then(|pod| pod.spec.as_ref());
        let mut names: Vec<&str> = spec
            .map(|spec| {
                let init = spec.init_containers.iter().flatten();
                let all = spec.containers.iter().chain(init);
                all.map(|container| container.name.as_str()).collect()
            })
            .unwrap_or_default();
        for record in &self.records {
            if !names.contains(&record.name.as_str()) {
                names.push(&record.name);
            }
        }
        names
    }

    /// The container that is meant when none is named, as kubectl chooses it.
    pub fn default_container(&self) -> anyhow::Result<String> {
        let annotations = self
            .object
            .as_ref()
            .and_then(|p| p.metadata.annotations.as_ref());
        let annotated = annotations.and_then(|a| a.get("kubectl.kubernetes.io/default-container"));
        let containers = self.containers();
        if let Some(name) = annotated.filter(|name| containers.contains(&name.as_str())) {
            return Ok(name.clone());
        }
        match containers.as_slice() {
            [] => bail!("pod {} has no container yet", self.name),
            [only] => Ok((*only).to_owned()),
            [first, ..] => {
                let all = containers.join(", ");
                eprintln!("Defaulted container \"{first}\" out of: {all}");
                Ok((*first).to_owned())
            }
        }
    }

    /// All known attempts to run one container, the latest last.
    pub fn attempts<'a>(
        &'a self,
        container: &str,
    ) -> impl DoubleEndedIterator<Item = &'a ContainerRecord> {
        self.records
            .iter()
            .filter(move |record| record.name == container)
    }

    /// The latest attempt of each container.
    pub fn current(&self) -> impl Iterator<Item = &ContainerRecord> {
        self.containers()
            .into_iter()
            .filter_map(|container| self.attempts(container).next_back())
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// A container's state in a word: what is recorded as running is not sure to run when no
    /// shim watches.
    pub fn state(&self, record: &ContainerRecord) -> &'static str {
        match record.state {
            ContainerState::Exited { .. } => "exited",
            _ if !self.supervised => "unknown",
            ContainerState::Created => "created",
            ContainerState::Running { .. } => "running",
        }
    }

    /// The running attempt of a container.
    pub fn running(&self, container: &str) -> anyhow::Result<&ContainerRecord> {
        let latest = self.attempts(container).next_back();
        let running = latest.filter(|record| self.state(record) == "running");
        running.with_context(|| {
            let state = latest.map_or("not created", |record| self.state(record));
            format!(
                "container {container} of pod {} is not running: it is {state}",
                self.name
            )
        })
    }

    fn latest_creation(&self) -> Option<String> {
        self.records
            .iter()
            .map(|record| record.created_at.clone())
            .max()
    }
}
