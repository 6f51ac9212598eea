//! What survives the agent and the shim, and what is left when they are gone.

use serde_json::json;
use skiff_agent::runtime::types::ContainerState;
use skiff_agent::runtime::{Runtime, purge};

use crate::fixture::{DEADLINE, Node, ended, eventually, leftovers, output, pid, until};

#[tokio::test]
async fn an_agent_finds_what_runs_and_what_ended_meanwhile() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let staying = node
        .start(&pod, node.container(&pod, &["sleep", "1000"], json!({})))
        .await;
    let script = "echo before; while [ ! -e /data/go ]; do sleep 0.01; done; echo after; exit 9";
    let volume = tempfile::tempdir().unwrap();
    let mut config = node.shell(&pod, script, json!({}));
    config
        .mounts
        .push(crate::lifecycle::bind(volume.path(), "/data"));
    let log = config.log_path.clone();
    let leaving = node.start(&pod, config).await;
    let before = pod.state();
    let state_dir = pod.state_dir(&leaving.id);
    drop(pod);
    std::fs::write(volume.path().join("go"), "").unwrap();
    eventually(|| {
        let record = skiff_shim::record::ContainerRecord::read(&state_dir);
        record.is_ok_and(|record| record.has_exited())
    })
    .await;
    let runtime = Runtime::new(node.identity.clone()).await.unwrap();
    let found = runtime.sandboxes().await.unwrap();
    assert_eq!(found.len(), 1);
    let pod = &found[0];
    assert_eq!(pod.state().shim_pid, before.shim_pid);
    assert!(pod.is_alive());
    assert_eq!(pod.container(&staying.id), Some(staying));
    assert_eq!(ended(pod, &leaving.id).await.exit_code, 9);
    assert_eq!(output(&log), "before\nafter\n");
    node.finish().await;
}

#[tokio::test]
async fn containers_of_a_killed_shim_are_lost_and_gone() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let record = node
        .start(&pod, node.container(&pod, &["sleep", "1000"], json!({})))
        .await;
    let pid = pid(&pod, &record.id).await;
    // SAFETY: the process is this test's shim.
    unsafe { libc::kill(pod.state().shim_pid, libc::SIGKILL) };
    until(&pod, |state| !state.alive).await;
    let end = ended(&pod, &record.id).await;
    assert_eq!((end.exit_code, end.lost), (255, true));
    assert!(gone(pid));
    let refused = pod
        .create_container(node.container(&pod, &["sleep", "1"], json!({})))
        .await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("its shim does not run")
    );
    // The same pod gets a new sandbox, which knows of the lost container.
    let config = pod.config().clone();
    let pod = node.runtime.create_sandbox(config).await.unwrap();
    assert!(pod.is_alive());
    assert!(matches!(
        pod.container(&record.id).unwrap().state,
        ContainerState::Exited { lost: true, .. }
    ));
    node.finish().await;
}

#[tokio::test]
async fn an_agent_closes_the_records_of_a_shim_that_died_meanwhile() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let record = node
        .start(&pod, node.container(&pod, &["sleep", "1000"], json!({})))
        .await;
    let (shim, container) = (pod.state().shim_pid, pid(&pod, &record.id).await);
    drop(pod);
    // SAFETY: both are this test's.
    unsafe {
        libc::kill(shim, libc::SIGKILL);
        libc::kill(container, libc::SIGKILL);
    }
    eventually(|| gone(shim)).await;
    let runtime = Runtime::new(node.identity.clone()).await.unwrap();
    let found = runtime.sandboxes().await.unwrap();
    assert!(!found[0].is_alive());
    assert!(matches!(
        found[0].container(&record.id).unwrap().state,
        ContainerState::Exited {
            exit_code: 255,
            lost: true,
            ..
        }
    ));
    found[0].destroy().await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn purging_ends_everything_whatever_was_begun() {
    let node = Node::new().await;
    for name in ["a", "b", "c"] {
        let pod = node.pod(name).await;
        node.start(&pod, node.container(&pod, &["sleep", "1000"], json!({})))
            .await;
    }
    // A start that was cut short: a directory and a cgroup, no shim.
    let half = node.identity.pod_run_dir("uid-half");
    std::fs::create_dir_all(half).unwrap();
    let cgroups = node.runtime.cgroups();
    let group = format!("{}/burstable/poduid-half", cgroups.root());
    cgroups.create(&group, &Default::default()).unwrap();
    assert!(!leftovers(&node.identity).is_empty());
    tokio::time::timeout(DEADLINE, purge(node.identity.clone()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(leftovers(&node.identity), Vec::<String>::new());
    node.finish().await;
}

#[tokio::test]
async fn several_clients_are_served_at_once() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let second = Runtime::new(node.identity.clone()).await.unwrap();
    let second = second.sandboxes().await.unwrap().remove(0);
    let record = node
        .start(&pod, node.container(&pod, &["sleep", "1000"], json!({})))
        .await;
    pid(&second, &record.id).await;
    second.signal(&record.id, libc::SIGKILL).await.unwrap();
    assert_eq!(ended(&pod, &record.id).await.signal, Some(9));
    assert_eq!(ended(&second, &record.id).await.signal, Some(9));
    second.remove_container(&record.id).await.unwrap();
    until(&pod, |state| state.containers.is_empty()).await;
    node.finish().await;
}

/// Whether a process has ended; the host's first process may not have reaped it yet.
fn gone(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}
