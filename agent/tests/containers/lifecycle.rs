//! From created to ended: codes, signals, memory, what can't be started.

use serde_json::json;
use skiff_agent::runtime::RuntimeError;
use skiff_agent::runtime::types::ContainerState;

use crate::fixture::{Ended, Node, ended, eventually, output, pid, reason};

#[tokio::test]
async fn a_container_runs_and_its_exit_code_is_known() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let config = node.shell(&pod, "echo hello; echo oops >&2; exit 3", json!({}));
    let log = config.log_path.clone();
    let (ended, _) = node.run(&pod, config).await;
    let expected = Ended {
        exit_code: 3,
        signal: None,
        oom_killed: false,
        lost: false,
    };
    assert_eq!(ended, expected);
    let text = std::fs::read_to_string(log).unwrap();
    assert!(text.contains(" stdout F hello\n"), "{text}");
    assert!(text.contains(" stderr F oops\n"), "{text}");
    node.finish().await;
}

#[tokio::test]
async fn a_signal_ends_it_and_is_recorded() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let record = node
        .start(&pod, node.container(&pod, &["sleep", "1000"], json!({})))
        .await;
    pod.signal(&record.id, libc::SIGKILL).await.unwrap();
    let killed = ended(&pod, &record.id).await;
    assert_eq!((killed.exit_code, killed.signal), (137, Some(9)));
    let script = "trap 'exit 7' TERM; echo ready; while true; do sleep 0.05; done";
    let config = node.shell(&pod, script, json!({}));
    let log = config.log_path.clone();
    let record = node.start(&pod, config).await;
    eventually(|| output(&log) == "ready\n").await;
    pod.signal(&record.id, libc::SIGTERM).await.unwrap();
    assert_eq!(ended(&pod, &record.id).await.exit_code, 7);
    node.finish().await;
}

#[tokio::test]
async fn a_process_killed_on_the_host_is_noticed() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let record = node
        .start(&pod, node.container(&pod, &["sleep", "1000"], json!({})))
        .await;
    let pid = pid(&pod, &record.id).await;
    // SAFETY: the process is this test's container.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    assert_eq!(ended(&pod, &record.id).await.signal, Some(9));
    node.finish().await;
}

#[tokio::test]
async fn too_much_memory_is_told_from_other_kills() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let mut config = node.container(&pod, &["tail", "/dev/zero"], json!({}));
    config.resources.memory_limit_bytes = Some(16 << 20);
    let record = node.start(&pod, config).await;
    let end = ended(&pod, &record.id).await;
    assert_eq!((end.exit_code, end.oom_killed), (137, true), "{end:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_command_that_does_not_exist_leaves_a_record() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let config = node.container(&pod, &["no-such-command"], json!({}));
    let id = config.id.clone();
    let (kind, message) = reason(pod.create_container(config).await);
    assert_eq!(kind, "RunContainerError");
    let why = "exec: \"no-such-command\": executable file not found in $PATH";
    assert!(message.contains(why), "{message}");
    let record = pod.container(&id).unwrap();
    let ContainerState::Exited {
        exit_code,
        error,
        started_at,
        ..
    } = record.state
    else {
        panic!("{record:?}");
    };
    assert_eq!((exit_code, started_at), (128, None));
    assert!(error.unwrap().contains(why));
    assert!(!node.runtime.cgroups().exists(&pod.group(&id)));
    pod.remove_container(&id).await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_file_that_is_no_program_fails_at_the_start() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let volume = tempfile::tempdir().unwrap();
    let program = volume.path().join("program");
    std::fs::write(&program, "\u{7f}not an executable").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let mut config = node.container(&pod, &["/data/program"], json!({}));
    config.mounts.push(bind(volume.path(), "/data"));
    let record = pod.create_container(config).await.unwrap();
    let (kind, message) = reason(pod.start_container(&record.id).await);
    assert_eq!(kind, "RunContainerError");
    assert!(
        message.contains("exec /data/program: exec format error"),
        "{message}"
    );
    assert_eq!(ended(&pod, &record.id).await.exit_code, 128);
    node.finish().await;
}

#[tokio::test]
async fn a_limit_too_low_to_start_in_fails_the_start() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let mut config = node.container(&pod, &["sleep", "1000"], json!({}));
    config.resources.memory_limit_bytes = Some(200 << 10);
    let id = config.id.clone();
    let (kind, _) = reason(pod.create_container(config).await);
    assert_eq!(kind, "RunContainerError");
    assert_eq!(ended(&pod, &id).await.exit_code, 128);
    assert!(pod.is_alive());
    node.finish().await;
}

#[tokio::test]
async fn removing_needs_an_end() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let record = node
        .start(&pod, node.container(&pod, &["sleep", "1000"], json!({})))
        .await;
    let refused = pod.remove_container(&record.id).await.unwrap_err();
    assert!(matches!(refused, RuntimeError::Conflict(_)), "{refused}");
    pod.signal(&record.id, libc::SIGKILL).await.unwrap();
    ended(&pod, &record.id).await;
    pod.remove_container(&record.id).await.unwrap();
    assert_eq!(pod.container(&record.id), None);
    assert!(!pod.state_dir(&record.id).exists());
    node.finish().await;
}

#[tokio::test]
async fn destroying_a_pod_leaves_its_records_and_nothing_running() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let record = node
        .start(&pod, node.container(&pod, &["sleep", "1000"], json!({})))
        .await;
    let pid = pid(&pod, &record.id).await;
    let run_dir = node.identity.pod_run_dir(pod.uid());
    assert!(pod.netns().unwrap().exists());
    pod.destroy().await.unwrap();
    pod.destroy().await.unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(!run_dir.exists());
    let records = skiff_agent::runtime::Runtime::records(pod.config().pod_dir.clone()).await;
    let records = records.unwrap();
    assert!(
        matches!(
            records[0].state,
            ContainerState::Exited {
                exit_code: 137,
                lost: false,
                ..
            }
        ),
        "{records:?}"
    );
    node.finish().await;
}

pub(crate) fn bind(
    host: &std::path::Path,
    container: &str,
) -> skiff_agent::runtime::types::BindMount {
    skiff_agent::runtime::types::BindMount {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        read_only: false,
        propagation: skiff_agent::runtime::types::MountPropagation::Private,
    }
}
