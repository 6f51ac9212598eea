//! What drills take from a node: its disk, and the registries that it asks.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cluster::{Cluster, condition, container_status, name, shell_pod};
use crate::drill_tasks::{LONG, begin, run_pod, stop, until_forgotten, until_phase};
use crate::registry::debian::{Access, DebianRegistry};
use crate::{images, wait};

/// A small disk of a node's own.
pub(crate) struct Disk(PathBuf);

impl Disk {
    pub(crate) fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).expect("a directory");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some("size=96m"))
            .expect("a tmpfs");
        Self(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_is_told_of_and_emptied_again() {
    let disk;
    let mut cluster = Cluster::new();
    disk = Disk::mount(&cluster.identity().agent_root());
    cluster.up();
    cluster.import(&images::demonstration().join("busybox.tar"));
    run_pod(&mut cluster, "here", "");
    let node = cluster.get("/api/v1/nodes").expect("nodes")["items"][0].clone();
    let path = format!("/api/v1/nodes/{}", name(&node));
    let pressure = |cluster: &mut Cluster, wanted: &str| {
        wait::until(&format!("DiskPressure is {wanted}"), || {
            let node = cluster.get(&path)?;
            (condition(&node, "DiskPressure")["status"] == wanted).then_some(())
        });
    };
    pressure(&mut cluster, "False");
    begin(
        &mut cluster,
        "fill",
        &json!({"type": "FillDisk", "leave": 1 << 20, "sharedDisk": false}),
        LONG,
    );
    until_phase(&mut cluster, "fill", "Active");
    let free = || {
        let stat = nix::sys::statvfs::statvfs(&disk.0).expect("a file system");
        stat.blocks_free() * stat.fragment_size()
    };
    assert!(free() <= 1 << 20, "{}", free());
    pressure(&mut cluster, "True");
    stop(&cluster, "fill");
    until_phase(&mut cluster, "fill", "Ended");
    assert!(free() > 10 << 20, "{}", free());
    pressure(&mut cluster, "False");
    until_forgotten(&cluster);
    assert_eq!(
        container_status(&cluster.until_ready("here"))["restartCount"],
        0
    );
    cluster.stop();
    cluster.skiff(["down"]);
    drop(disk);
}

#[test]
fn registries_are_out_for_this_node_until_they_are_not() {
    let mut cluster = Cluster::new();
    let registry = DebianRegistry::start(None, &Access::Anyone);
    crate::pull::push(&registry, &Access::Anyone);
    let config = cluster.scratch().join("registries.d");
    fs::create_dir_all(&config).expect("a folder");
    cluster.set_registries(&config);
    cluster.up();
    let outage = json!({"type": "RefuseRegistries", "registries": [registry.host()]});
    begin(&mut cluster, "outage", &outage, LONG);
    until_phase(&mut cluster, "outage", "Active");
    let image = format!("{}/nginx:1", registry.host());
    cluster.apply(&shell_pod("web", "sleep 1000", "", "").replacen(
        "image: busybox",
        &format!("image: {image}"),
        1,
    ));
    let failed = cluster.until_pod("web", "not pulled", |pod| {
        container_status(pod)["state"]["waiting"]["reason"] == "ErrImagePull"
    });
    let message = container_status(&failed)["state"]["waiting"]["message"]
        .as_str()
        .unwrap_or_default();
    assert!(
        message.contains("connection refused (registry-outage drill)"),
        "{message}"
    );
    let events = cluster.kubectl("events --for pod/web");
    assert!(events.contains("registry-outage drill"), "{events}");
    // Only the agent's own client is concerned.
    let address = registry.host().to_owned();
    assert!(std::net::TcpStream::connect(address).is_ok());
    stop(&cluster, "outage");
    until_phase(&mut cluster, "outage", "Ended");
    cluster.until_pod("web", "pulled", |pod| {
        container_status(pod)["state"]["waiting"]["reason"] != "ErrImagePull"
            && container_status(pod)["imageID"]
                .as_str()
                .is_some_and(|id| !id.is_empty())
    });
}
