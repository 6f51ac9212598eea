//! What is done to packets: by the kernel, so that it lasts without any process. [`crate::net::faults`] does it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use skiff_dev::{GoDuration, PodRef};

use crate::drill::fault::{Fault, FaultError, Order};
use crate::drill::helper::blocking;
use crate::drill::site::{Scene, Site};
use crate::net::faults::{PacketFault, PacketFaultError, PodPlace};

const DNS_PORT: u16 = 53;

/// No packet passes between this node and the API servers.
pub(in crate::drill) struct CutControlPlane;

/// No packet passes between some pods and others.
pub(in crate::drill) struct CutPods {
    pub(in crate::drill) pods: Vec<PodRef>,
    pub(in crate::drill) peers: Vec<String>,
}

/// The DNS queries of some pods are dropped.
pub(in crate::drill) struct SilenceDns {
    pub(in crate::drill) pods: Vec<PodRef>,
}

/// Some packets of some pods are lost.
pub(in crate::drill) struct LosePackets {
    pub(in crate::drill) pods: Vec<PodRef>,
    pub(in crate::drill) percent: i32,
}

/// All packets of some pods are held for a while.
pub(in crate::drill) struct DelayPackets {
    pub(in crate::drill) pods: Vec<PodRef>,
    pub(in crate::drill) delay: GoDuration,
}

/// What each of them comes down to.
#[async_trait]
trait OnPackets: Send + Sync {
    /// # Errors
    /// Why it can't be done here.
    async fn plan(&self, scene: &Scene) -> Result<PacketFault, FaultError>;

    fn cuts_off_agent(&self) -> bool {
        false
    }
}

#[async_trait]
impl OnPackets for CutControlPlane {
    fn cuts_off_agent(&self) -> bool {
        true
    }

    async fn plan(&self, scene: &Scene) -> Result<PacketFault, FaultError> {
        let refused = |message: String| Err(FaultError::Refused(message));
        let Some(url) = &scene.surroundings.api_server else {
            return refused(format!(
                "node {} can't be cut off from the control plane: both are one process",
                scene.node_name
            ));
        };
        let servers = match addresses(url).await {
            Ok(servers) => servers,
            Err(error) => return refused(error),
        };
        Ok(PacketFault::CutControlPlane {
            servers,
            endpoint: scene.surroundings.endpoint,
        })
    }
}

#[async_trait]
impl OnPackets for CutPods {
    async fn plan(&self, scene: &Scene) -> Result<PacketFault, FaultError> {
        let peers = self.peers.iter().map(|peer| {
            let address = peer.parse();
            address.map_err(|_| FaultError::Refused(format!("{peer:?} is no IPv4 address")))
        });
        Ok(PacketFault::CutPods {
            pods: places_of(scene, &self.pods)?,
            peers: peers.collect::<Result<_, _>>()?,
        })
    }
}

#[async_trait]
impl OnPackets for SilenceDns {
    async fn plan(&self, scene: &Scene) -> Result<PacketFault, FaultError> {
        let surroundings = &scene.surroundings;
        let by_name = SocketAddrV4::new(surroundings.dns_service, DNS_PORT);
        let SocketAddr::V4(own) = surroundings.dns_server else {
            let message = "this node's DNS server has no IPv4 address";
            return Err(FaultError::Refused(message.to_owned()));
        };
        let usual = SocketAddrV4::new(*own.ip(), DNS_PORT);
        Ok(PacketFault::SilenceDns {
            pods: places_of(scene, &self.pods)?,
            servers: vec![by_name, own, usual],
        })
    }
}

#[async_trait]
impl OnPackets for LosePackets {
    async fn plan(&self, scene: &Scene) -> Result<PacketFault, FaultError> {
        let percent = u8::try_from(self.percent).ok();
        let Some(percent) = percent.filter(|percent| (1..=100).contains(percent)) else {
            let message = format!("{} % of the packets: there may be 1 to 100", self.percent);
            return Err(FaultError::Refused(message));
        };
        Ok(PacketFault::Lose {
            pods: places_of(scene, &self.pods)?,
            percent,
        })
    }
}

#[async_trait]
impl OnPackets for DelayPackets {
    async fn plan(&self, scene: &Scene) -> Result<PacketFault, FaultError> {
        let addresses = places_of(scene, &self.pods)?;
        let place = |(pod, address): (&PodRef, Ipv4Addr)| PodPlace {
            uid: pod.uid.clone(),
            address,
        };
        let pods: Vec<_> = self.pods.iter().zip(addresses).map(place).collect();
        let fault = PacketFault::Delay {
            pods,
            delay: self.delay.0,
        };
        Ok(fault)
    }
}

/// The addresses of pods that have one here.
fn places_of(scene: &Scene, pods: &[PodRef]) -> Result<Vec<Ipv4Addr>, FaultError> {
    if pods.is_empty() {
        let message = "no pod is named: nothing was done";
        return Err(FaultError::Refused(message.to_owned()));
    }
    let network = &scene.surroundings.network;
    let address = |pod: &PodRef| match network.address(&pod.uid) {
        Some(place) => Ok(place.ip),
        None => Err(FaultError::Refused(format!(
            "pod {}/{} has no address in the pod network of node {}: it is not there, or uses the host's network",
            pod.namespace, pod.name, scene.node_name
        ))),
    };
    pods.iter().map(address).collect()
}

/// Where the API servers listen.
async fn addresses(url: &str) -> Result<Vec<SocketAddrV4>, String> {
    let parsed: Option<http::Uri> = url.parse().ok();
    let parsed = parsed.ok_or_else(|| format!("{url:?} is no API server's URL"))?;
    let host = parsed.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = parsed.port_u16().unwrap_or(443);
    let found: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => match tokio::net::lookup_host((host, port)).await {
            Ok(found) => found.collect(),
            Err(error) => return Err(format!("the API server's name {host:?}: {error}")),
        },
    };
    let servers = found.iter().filter_map(|address| match address {
        SocketAddr::V4(address) => Some(*address),
        SocketAddr::V6(_) => None,
    });
    let servers: Vec<_> = servers.collect();
    // One that is not cut off would be the way round.
    if servers.is_empty() || servers.len() < found.len() {
        return Err(format!(
            "the API server at {url} is reached by IPv6, which a node can't be cut off from"
        ));
    }
    Ok(servers)
}

#[async_trait]
impl<F: OnPackets> Fault for F {
    type Undo = PacketFault;

    fn silences_agent(&self) -> bool {
        self.cuts_off_agent()
    }

    async fn prepare(&self, scene: &Scene, _: &Order) -> Result<PacketFault, FaultError> {
        self.plan(scene).await
    }

    async fn inject(
        &self,
        scene: &Scene,
        order: &Order,
        fault: &PacketFault,
    ) -> Result<Timestamp, FaultError> {
        let (identity, uid) = (scene.site.identity.clone(), order.uid.clone());
        let fault = fault.clone();
        let begun = blocking(move || {
            let now = Timestamp::now();
            fault.bring_about(&identity, &uid).map(|()| now)
        });
        Ok(begun.await?)
    }

    async fn undo(
        &self,
        site: &Site,
        order: &Order,
        fault: &PacketFault,
    ) -> Result<(), FaultError> {
        let (identity, uid) = (site.identity.clone(), order.uid.clone());
        let fault = fault.clone();
        Ok(blocking(move || fault.undo(&identity, &uid)).await?)
    }
}

impl From<PacketFaultError> for FaultError {
    fn from(error: PacketFaultError) -> Self {
        match error {
            PacketFaultError::NoEmulator
            | PacketFaultError::Occupied { .. }
            | PacketFaultError::NoLink { .. } => Self::Refused(error.to_string()),
            PacketFaultError::Table { .. } | PacketFaultError::Delay { .. } => Self::Packets(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn api_servers_are_found_by_address_and_by_name() {
        let found = addresses("https://100.96.0.1:6443").await;
        assert_eq!(found, Ok(vec!["100.96.0.1:6443".parse().unwrap()]));
        let found = addresses("https://192.0.2.1").await;
        assert_eq!(found, Ok(vec!["192.0.2.1:443".parse().unwrap()]));
        let refused = addresses("https://[fd00::1]:6443").await.unwrap_err();
        assert!(refused.contains("IPv6"), "{refused}");
        assert!(
            addresses("https://no-such-host.invalid:6443")
                .await
                .is_err()
        );
        assert!(addresses("not a url").await.is_err());
    }
}
