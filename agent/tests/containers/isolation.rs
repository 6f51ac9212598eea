//! What a container sees and may do, looked at from inside and at the kernel's files.

use serde_json::{Value, json};
use skiff_agent::runtime::types::{CgroupResources, ContainerConfig};

use crate::fixture::{Node, eventually, reason};
use crate::lifecycle::bind;

/// Runs a script in a container and returns what it says.
async fn say(node: &Node, script: &str, container: Value) -> String {
    let pod = node.pod("web").await;
    let config = node.shell(&pod, script, container);
    node.run(&pod, config).await.1
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| *key == name).unwrap().1.trim()
}

#[tokio::test]
async fn each_container_has_its_own_view_in_the_pods_namespaces() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let mut pids = Vec::new();
    for _ in 0..2 {
        let config = node.container(&pod, &["sleep", "1000"], json!({}));
        pids.push(node.start(&pod, config).await.pid().unwrap());
    }
    for (name, is_own) in [
        ("net", false),
        ("ipc", false),
        ("uts", false),
        ("mnt", true),
        ("pid", true),
        ("cgroup", true),
    ] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        let (first, second) = (of(&pids[0].to_string()), of(&pids[1].to_string()));
        assert_eq!(first != second, is_own, "{name} is its own");
        assert_ne!(first, of("self"), "{name} is the host's");
    }
    // In a command `$$` is Kubernetes' way to write a dollar.
    let script = "echo $$$$; hostname; ip -o link | wc -l; cat /proc/self/cgroup";
    let (_, text) = node.run(&pod, node.shell(&pod, script, json!({}))).await;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[..3],
        ["1", "web", "1"],
        "first process, host name, only the loopback link"
    );
    let used = ["cpu", "memory", "pids"];
    for line in lines[3..]
        .iter()
        .filter(|line| used.iter().any(|name| line.contains(name)))
    {
        assert!(line.contains("cpuset") || line.ends_with(":/"), "{line}");
    }
    node.finish().await;
}

#[tokio::test]
async fn the_default_is_confined() {
    let node = Node::new().await;
    let script = "cat /proc/self/status; mount -t tmpfs none /tmp 2>&1; unshare -m true 2>&1; \
                  echo x 2>&1 > /proc/sys/kernel/hostname; cat /proc/kcore 2>/dev/null | wc -c; cat /proc/timer_list; \
                  ls /sys/firmware 2>/dev/null | wc -l; touch /sys/x 2>&1; touch /file && echo writable; \
                  ls /dev | tr '\\n' ' '; mknod /tmp/sda b 8 0 && cat /tmp/sda 2>&1 | head -c 100";
    let text = say(&node, script, json!({})).await;
    // The 14 capabilities of Docker's default set.
    assert_eq!(field(&text, "CapEff"), "00000000a80425fb");
    assert_eq!(field(&text, "CapBnd"), "00000000a80425fb");
    assert_eq!(field(&text, "CapInh"), "0000000000000000");
    assert_eq!(field(&text, "NoNewPrivs"), "0");
    assert_eq!(field(&text, "Seccomp"), "2");
    assert_eq!(field(&text, "SigIgn"), "0000000000000000");
    assert_eq!(field(&text, "SigBlk"), "0000000000000000");
    let rest = text.split("nonvoluntary_ctxt_switches").nth(1).unwrap();
    assert!(
        rest.contains("mount: ") && rest.contains("unshare: "),
        "{rest}"
    );
    assert_eq!(rest.matches("Read-only file system").count(), 2, "{rest}");
    assert!(
        rest.contains("can't open '/tmp/sda': Operation not permitted"),
        "{rest}"
    );
    assert!(rest.contains("\n0\n0\n"), "masked: {rest}");
    assert!(rest.contains("writable"), "{rest}");
    assert!(
        rest.contains("mqueue null ptmx pts random shm stderr"),
        "{rest}"
    );
    node.finish().await;
}

#[tokio::test]
async fn exec_is_confined_as_the_container_is() {
    use tokio::io::AsyncReadExt;
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let declared = json!({"securityContext": {
        "runAsUser": 101, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
    }});
    let id = node
        .start(&pod, node.container(&pod, &["sleep", "1000"], declared))
        .await
        .id;
    let request = skiff_agent::runtime::types::ExecRequest {
        command: [
            "sh",
            "-c",
            "cat /proc/self/status; id; echo $HOME; cat /proc/self/oom_score_adj",
        ]
        .map(str::to_owned)
        .to_vec(),
        tty: false,
        stdin: false,
    };
    let mut session = pod.exec(&id, request).await.unwrap();
    let mut text = String::new();
    session
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .await
        .unwrap();
    assert_eq!(field(&text, "Seccomp"), "2");
    assert_eq!(field(&text, "NoNewPrivs"), "1");
    assert_eq!(field(&text, "CapBnd"), "0000000000000000");
    assert_eq!(field(&text, "CapEff"), "0000000000000000");
    assert_eq!(field(&text, "SigBlk"), "0000000000000000");
    assert_eq!(field(&text, "SigIgn"), "0000000000000000");
    assert!(
        text.contains("uid=101(web) gid=102(web) groups=102(web),103(extra)"),
        "{text}"
    );
    assert!(text.ends_with("/srv\n500\n"), "{text}");
    node.finish().await;
}

#[tokio::test]
async fn privileges_are_given_where_they_are_asked_for() {
    let node = Node::new().await;
    let script = "cat /proc/self/status; mount -t tmpfs none /tmp && echo mounted; \
                  touch /proc/sys/kernel/hostname && echo sysctl; ls /dev | wc -l; df /sys >/dev/null; \
                  mount | grep ' /sys '";
    let text = say(
        &node,
        script,
        json!({"securityContext": {"privileged": true}}),
    )
    .await;
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    assert_eq!(field(&text, "CapEff"), field(&own, "CapBnd"));
    assert_eq!(field(&text, "Seccomp"), "0");
    assert!(
        text.contains("mounted\n") && text.contains("sysctl\n"),
        "{text}"
    );
    assert!(text.contains("sysfs (rw"), "{text}");
    node.finish().await;
}

#[tokio::test]
async fn capabilities_user_and_root_follow_the_security_context() {
    let node = Node::new().await;
    let script = "cat /proc/self/status; id; touch /file 2>&1; pwd";
    let declared = json!({
        "workingDir": "/made/for/me",
        "securityContext": {
            "runAsUser": 101, "runAsGroup": 7, "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
        },
    });
    let text = say(&node, script, declared).await;
    assert_eq!(field(&text, "CapBnd"), "0000000000001000");
    assert_eq!(field(&text, "NoNewPrivs"), "1");
    assert_eq!(field(&text, "Seccomp"), "2");
    assert!(
        text.contains("uid=101(web) gid=7 groups=7,103(extra)"),
        "{text}"
    );
    assert!(text.contains("Read-only file system"), "{text}");
    assert!(text.ends_with("/made/for/me\n"), "{text}");
    node.finish().await;
}

#[tokio::test]
async fn the_images_user_is_looked_up_in_the_image() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let mut config = node.shell(&pod, "id; echo $HOME", json!({}));
    set_image_user(&mut config, "web");
    let (_, text) = node.run(&pod, config).await;
    assert_eq!(
        text,
        "uid=101(web) gid=102(web) groups=102(web),103(extra)\n/srv\n"
    );
    let mut config = node.shell(&pod, "id", json!({}));
    set_image_user(&mut config, "nobody-knows");
    let (kind, message) = reason(pod.create_container(config).await);
    assert_eq!(kind, "CreateContainerError");
    assert!(
        message.contains("unable to find user nobody-knows"),
        "{message}"
    );
    node.finish().await;
}

fn set_image_user(config: &mut ContainerConfig, user: &str) {
    let mut image = config.image.config().clone().unwrap();
    image.set_user(Some(user.to_owned()));
    config.image.set_config(Some(image));
}

#[tokio::test]
async fn limits_are_in_the_cgroup_files() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let mut config = node.container(&pod, &["sleep", "1000"], json!({}));
    config.resources = CgroupResources {
        cpu_shares: Some(512),
        cpu_quota: Some(25_000),
        memory_limit_bytes: Some(64 << 20),
        pids_limit: Some(50),
    };
    let id = node.start(&pod, config).await.id;
    let cgroups = node.runtime.cgroups();
    let group = pod.group(&id);
    let read = |controller: &str, file: &str| {
        let directory = cgroups.directory(&group, controller).unwrap();
        std::fs::read_to_string(directory.join(file))
            .unwrap()
            .trim()
            .to_owned()
    };
    if cgroups.is_v2() {
        assert_eq!(read("cpu", "cpu.max"), "25000 100000");
        assert_eq!(read("memory", "memory.max"), (64 << 20).to_string());
    } else {
        assert_eq!(read("cpu", "cpu.shares"), "512");
        assert_eq!(read("cpu", "cpu.cfs_quota_us"), "25000");
        assert_eq!(
            read("memory", "memory.limit_in_bytes"),
            (64 << 20).to_string()
        );
    }
    assert_eq!(read("pids", "pids.max"), "50");
    // The child that set it up may take a moment to be gone.
    eventually(|| read("pids", "pids.current") == "1").await;
    let stats = pod.stats(&id).await.unwrap();
    assert_eq!((stats.pids, stats.memory_limit_bytes), (1, Some(64 << 20)));
    assert!(stats.cpu_usage_ns > 0 && stats.memory_usage_bytes > 0);
    assert!(group.contains("/burstable/pod"), "{group}");
    node.finish().await;
}

#[tokio::test]
async fn volumes_are_mounted_as_declared() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("file"), "content").unwrap();
    let script = "cat /data/file /data/sub/file; touch /data/new && echo rw; touch /ro/x 2>&1; \
                  echo shared > /dev/shm/x; mount | grep -c overlay";
    let mut config = node.shell(&pod, script, json!({}));
    let mut read_only = bind(volume.path(), "/ro");
    read_only.read_only = true;
    // Declared inside out: the outer must not hide the inner.
    config.mounts = vec![
        bind(volume.path(), "/data/sub"),
        bind(volume.path(), "/data"),
        read_only,
    ];
    let (_, text) = node.run(&pod, config).await;
    assert!(text.starts_with("contentcontentrw\n"), "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
    assert!(volume.path().join("new").exists());
    let (_, text) = node
        .run(&pod, node.shell(&pod, "cat /dev/shm/x", json!({})))
        .await;
    assert_eq!(text, "shared\n");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&node.identity.data_dir().display().to_string()));
    node.finish().await;
}

#[tokio::test]
async fn a_pod_may_share_its_processes() {
    let node = Node::new().await;
    let mut config = node.sandbox_config("web");
    config.share_process_namespace = true;
    let pod = node.runtime.create_sandbox(config).await.unwrap();
    let other = node
        .start(&pod, node.container(&pod, &["sleep", "12345"], json!({})))
        .await;
    let (_, text) = node
        .run(&pod, node.shell(&pod, "echo $$$$; ps", json!({})))
        .await;
    assert!(!text.starts_with("1\n"), "{text}");
    assert!(text.contains("sleep 12345"), "{text}");
    let script = "setsid sleep 54321 & echo started";
    let (_, _) = node.run(&pod, node.shell(&pod, script, json!({}))).await;
    let (_, text) = node.run(&pod, node.shell(&pod, "ps", json!({}))).await;
    assert!(!text.contains("54321"), "ended with its container: {text}");
    pod.signal(&other.id, libc::SIGKILL).await.unwrap();
    crate::fixture::ended(&pod, &other.id).await;
    node.finish().await;
}

#[tokio::test]
async fn a_pod_may_use_the_hosts_namespaces() {
    let node = Node::new().await;
    let mut config = node.sandbox_config("web");
    (config.host_network, config.host_pid, config.host_ipc) = (true, true, true);
    config.hostname = None;
    let pod = node.runtime.create_sandbox(config).await.unwrap();
    assert_eq!(pod.netns(), None);
    let script = "for n in net ipc uts pid; do stat -L -c $n:[%i] /proc/self/ns/$n; done";
    let (_, text) = node.run(&pod, node.shell(&pod, script, json!({}))).await;
    for name in ["net", "ipc", "uts", "pid"] {
        let link = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert!(text.contains(&link.display().to_string()), "{name}: {text}");
    }
    node.finish().await;
}

#[tokio::test]
async fn sysctls_and_the_loopback_link_are_set() {
    let node = Node::new().await;
    let mut config = node.sandbox_config("web");
    config.sysctls.insert(
        "net.ipv4.ip_local_port_range".to_owned(),
        "4000\t5000".to_owned(),
    );
    config
        .sysctls
        .insert("kernel.shm_rmid_forced".to_owned(), "1".to_owned());
    let pod = node.runtime.create_sandbox(config).await.unwrap();
    let script = "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced \
                  /proc/sys/net/ipv4/ip_unprivileged_port_start; ip addr show lo";
    let (_, text) = node.run(&pod, node.shell(&pod, script, json!({}))).await;
    assert!(text.starts_with("4000\t5000\n1\n0\n"), "{text}");
    assert!(text.contains("127.0.0.1/8"), "{text}");
    node.finish().await;
}
