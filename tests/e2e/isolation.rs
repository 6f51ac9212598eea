//! Containers are contained: seen from inside them, and in the kernel's own files.

use serde_json::{Value, json};

use crate::cluster::{Cluster, SERVE, container_status, shell_pod};
use crate::{host, images};

/// Docker's default capabilities.
const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;
const CAP_NET_BIND_SERVICE: u64 = 1 << 10;
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_CHOWN: u64 = 1;

#[test]
fn containers_share_what_a_pod_shares_and_nothing_else() {
    let mut cluster = Cluster::start();
    let script = serde_json::to_string(SERVE).expect("a string");
    let second = format!("- name: side\n  image: busybox\n  command: [sh, -c, {script}]");
    let pod = shell_pod("two", SERVE, "", "")
        + &second
            .lines()
            .map(|l| format!("  {l}\n"))
            .collect::<String>();
    cluster.apply(&pod);
    cluster.apply(&shell_pod("other", SERVE, "", ""));
    let two = cluster.until_ready("two");
    cluster.until_ready("other");
    let main = cluster.container_pid("two", "main");
    let side = cluster.container_pid("two", "side");
    let other = cluster.container_pid("other", "main");
    let here = std::process::id() as i32;
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(
            host::namespace(main, kind),
            host::namespace(side, kind),
            "{kind} is the pod's"
        );
    }
    for kind in ["mnt", "pid", "cgroup"] {
        assert_ne!(
            host::namespace(main, kind),
            host::namespace(side, kind),
            "{kind} is the container's"
        );
    }
    for kind in ["net", "ipc", "uts", "mnt", "pid", "cgroup"] {
        assert_ne!(
            host::namespace(main, kind),
            host::namespace(other, kind),
            "{kind}"
        );
        assert_ne!(
            host::namespace(main, kind),
            host::namespace(here, kind),
            "{kind}"
        );
    }

    assert_eq!(cluster.kubectl("exec two -c main -- hostname"), "two\n");
    let first = cluster.kubectl("exec two -c main -- cat /proc/1/cmdline");
    assert!(first.starts_with("sh\0-c\0"), "{first:?}");
    let processes = cluster.kubectl_args(&[
        "exec",
        "two",
        "-c",
        "main",
        "--",
        "sh",
        "-c",
        "ls /proc | grep -c '^[0-9]'",
    ]);
    let processes: u32 = processes.trim().parse().expect("a number");
    assert!(processes <= 6, "{processes} processes are visible");
    let mounts = std::fs::read_to_string(format!("/proc/{main}/mounts")).expect("mounts");
    let root = mounts
        .lines()
        .find(|line| line.split(' ').nth(1) == Some("/"))
        .expect("a root");
    assert!(root.starts_with("overlay / overlay rw"), "{root}");
    // The pod's network is its own, with its address.
    let address = two["status"]["podIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    assert!(
        cluster
            .kubectl("exec two -c side -- ip -4 addr")
            .contains(&format!("inet {address}/"))
    );
    let hosts = cluster.kubectl("exec two -c main -- cat /etc/hosts");
    assert!(
        hosts
            .lines()
            .any(|line| line.split_whitespace().eq([address.as_str(), "two"])),
        "{hosts}"
    );
    // What one container writes, the other does not see.
    cluster.kubectl("exec two -c main -- touch /only-here");
    assert!(
        !cluster
            .try_kubectl("exec two -c side -- ls /only-here")
            .status
            .success()
    );
}

#[test]
fn the_image_says_and_the_pod_overrides() {
    let mut cluster = Cluster::start_empty();
    let archive = cluster.scratch().join("sailor.tar");
    let config = json!({
        "User": "sailor",
        "Env": ["PATH=/bin", "FROM_IMAGE=yes", "BOTH=image"],
        "Entrypoint": ["sh", "-c", "id; env; pwd; echo args: $0 $*; exec sleep 1000"],
        "Cmd": ["image", "arguments"],
        "WorkingDir": "/work",
    });
    images::pack(&archive, "docker.io/library/sailor:1.0", &config);
    cluster.import(&archive);
    let pod = |name: &str, more: &str, container: &str| {
        shell_pod(name, "-", more, container)
            .replace("image: busybox", "image: sailor:1.0")
            .replace("    command: [sh, -c, \"-\"]\n", "")
    };
    cluster.apply(&pod("plain", "", ""));
    cluster.apply(&pod(
        "overridden",
        "securityContext: {supplementalGroups: [500], fsGroup: 600}",
        "args: [$(BOTH), here]\nworkingDir: /tmp\n\
         env: [{name: BOTH, value: pod}, {name: REFERS, value: $(BOTH)-$(NONE)-$$(BOTH)}]\n\
         securityContext: {runAsUser: 1000, runAsGroup: 2000}",
    ));
    cluster.apply(&pod(
        "commanded",
        "",
        "command: [sh, -c, 'echo alone $0; sleep 1000']",
    ));
    for name in ["plain", "overridden", "commanded"] {
        cluster.until_ready(name);
    }
    let plain = crate::wait::until("output", || {
        Some(cluster.kubectl("logs plain")).filter(|log| log.contains("args:"))
    });
    for line in [
        // The kernel keeps the groups sorted.
        "uid=1234(sailor) gid=1234(sailor) groups=77(crew),1234(sailor)",
        "FROM_IMAGE=yes",
        "BOTH=image",
        "/work",
        "args: image arguments",
    ] {
        assert!(plain.lines().any(|l| l == line), "no {line:?} in\n{plain}");
    }
    let log = crate::wait::until("output", || {
        Some(cluster.kubectl("logs overridden")).filter(|log| log.contains("args:"))
    });
    for line in [
        "FROM_IMAGE=yes",
        "BOTH=pod",
        "REFERS=pod-$(NONE)-$(BOTH)",
        "/tmp",
        "args: pod here",
    ] {
        assert!(log.lines().any(|l| l == line), "no {line:?} in\n{log}");
    }
    let id = log
        .lines()
        .find(|line| line.starts_with("uid="))
        .expect("an id");
    assert!(id.starts_with("uid=1000 gid=2000 groups="), "{id}");
    for group in ["2000", "500", "600"] {
        assert!(
            id.split(['=', ',']).any(|g| g == group),
            "no {group} in {id}"
        );
    }
    // A command of the pod's drops the image's arguments.
    let commanded = crate::wait::until("output", || {
        Some(cluster.kubectl("logs commanded")).filter(|log| !log.is_empty())
    });
    assert_eq!(commanded, "alone sh\n");
}

#[test]
fn requests_and_limits_reach_the_cgroup() {
    let mut cluster = Cluster::start();
    cluster.apply(&shell_pod(
        "guaranteed",
        SERVE,
        "",
        "resources: {limits: {cpu: 250m, memory: 64Mi}}",
    ));
    let burstable = "resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {memory: 128Mi}}";
    cluster.apply(&shell_pod("burstable", SERVE, "", burstable));
    cluster.apply(&shell_pod("besteffort", SERVE, "", ""));
    for (name, class) in [
        ("guaranteed", "Guaranteed"),
        ("burstable", "Burstable"),
        ("besteffort", "BestEffort"),
    ] {
        let pod = cluster.until_ready(name);
        assert_eq!(pod["status"]["qosClass"], class);
    }
    let root = cluster.identity().cgroup_root();
    let mut file = |pod: &str, file: &str| {
        let pod_object = cluster.pod(pod).expect("the pod");
        let uid = pod_object["metadata"]["uid"].as_str().expect("a uid");
        let id = container_status(&pod_object)["containerID"]
            .as_str()
            .expect("an id")
            .to_owned();
        let id = id.split_once("://").expect("a runtime").1;
        let cgroup = format!("{root}/{pod}/pod{uid}/{id}");
        host::cgroup_file(&cgroup, file).unwrap_or_else(|| panic!("no {cgroup}/{file}"))
    };
    assert!(!file("besteffort", "cgroup.procs").is_empty());
    if host::cgroup_v2() {
        assert_eq!(file("guaranteed", "cpu.max"), "25000 100000");
        assert_eq!(file("guaranteed", "memory.max"), (64 << 20).to_string());
        assert_eq!(file("burstable", "cpu.max"), "max 100000");
        assert_eq!(file("burstable", "memory.max"), (128 << 20).to_string());
        assert_eq!(file("besteffort", "memory.max"), "max");
    } else {
        assert_eq!(file("guaranteed", "cpu.shares"), "256");
        assert_eq!(file("guaranteed", "cpu.cfs_quota_us"), "25000");
        assert_eq!(
            file("guaranteed", "memory.limit_in_bytes"),
            (64 << 20).to_string()
        );
        assert_eq!(file("burstable", "cpu.shares"), "102");
        assert_eq!(file("burstable", "cpu.cfs_quota_us"), "-1");
        assert_eq!(
            file("burstable", "memory.limit_in_bytes"),
            (128 << 20).to_string()
        );
        assert_eq!(file("besteffort", "cpu.shares"), "2");
    }
    assert_ne!(file("besteffort", "pids.max"), "0");

    // The container sees its own cgroup as the root, and can't widen it.
    let seen = cluster.kubectl("exec guaranteed -- cat /proc/self/cgroup");
    assert!(seen.lines().all(|line| line.ends_with(":/")), "{seen}");
    let widen = "for f in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do echo 999999999 >$f && echo widened; done; true";
    let output = cluster.kubectl_args(&["exec", "guaranteed", "--", "sh", "-c", widen]);
    assert!(!output.contains("widened"), "{output}");
    let adjustment = |pod: &str| {
        let pid = cluster.container_pid(pod, "main");
        std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))
            .expect("a number")
            .trim()
            .to_owned()
    };
    assert_eq!(adjustment("besteffort"), "1000");
}

#[test]
fn the_default_is_dockers_confinement() {
    let mut cluster = Cluster::start();
    cluster.apply(&shell_pod("plain", SERVE, "", ""));
    cluster.until_ready("plain");
    let pid = cluster.container_pid("plain", "main");
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let bits = u64::from_str_radix(&host::status_field(pid, set), 16).expect("bits");
        assert_eq!(bits, DEFAULT_CAPABILITIES, "{set} is {bits:x}");
    }
    assert_eq!(host::status_field(pid, "Seccomp"), "2");
    assert_eq!(host::status_field(pid, "NoNewPrivs"), "0");
    let shell = |script: &str| cluster.kubectl_args(&["exec", "plain", "--", "sh", "-c", script]);
    for refused in [
        "echo 1 >/proc/sys/kernel/printk",
        "echo b >/proc/sysrq-trigger",
        "mkdir /sys/kernel/x",
        "mount -t tmpfs tmpfs /mnt",
        "unshare --mount true",
        "mknod /tmp/disk b 8 0 && cat /tmp/disk",
        "ip link set lo down",
    ] {
        assert_eq!(
            shell(&format!(
                "({refused}) 2>/dev/null && echo done || echo refused"
            )),
            "refused\n",
            "{refused}"
        );
    }
    assert_eq!(
        shell("cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c"),
        "0\n"
    );
    assert_eq!(
        shell("ls /sys/firmware /proc/acpi 2>/dev/null | grep -v : | grep . | wc -l"),
        "0\n"
    );
    // Devices that every container has.
    assert_eq!(
        shell(
            "for d in null zero full random urandom tty; do [ -c /dev/$d ] || echo no $d; done; [ -d /dev/pts ] && [ -d /dev/shm ] && echo both"
        ),
        "both\n"
    );
}

#[test]
fn the_security_context_is_honoured() {
    let mut cluster = Cluster::start();
    let pod = |name: &str, context: &str| {
        shell_pod(name, SERVE, "", &format!("securityContext: {context}"))
    };
    cluster.apply(&pod(
        "added",
        "{capabilities: {add: [NET_ADMIN], drop: [CHOWN]}}",
    ));
    cluster.apply(&pod(
        "dropped",
        "{capabilities: {add: [NET_BIND_SERVICE], drop: [ALL]}}",
    ));
    cluster.apply(&pod("privileged", "{privileged: true}"));
    cluster.apply(&pod("user", "{runAsUser: 1000, runAsNonRoot: true}"));
    cluster.apply(&pod("nonroot", "{runAsNonRoot: true}"));
    cluster.apply(&pod("readonly", "{readOnlyRootFilesystem: true}"));
    cluster.apply(&pod("noescalation", "{allowPrivilegeEscalation: false}"));
    cluster.apply(&pod("unconfined", "{seccompProfile: {type: Unconfined}}"));
    for name in [
        "added",
        "dropped",
        "privileged",
        "user",
        "readonly",
        "noescalation",
        "unconfined",
    ] {
        cluster.until_ready(name);
    }
    let field = |cluster: &Cluster, pod: &str, field: &str| {
        host::status_field(cluster.container_pid(pod, "main"), field)
    };
    let bits = |cluster: &Cluster, pod: &str, set: &str| {
        u64::from_str_radix(&field(cluster, pod, set), 16).expect("bits")
    };
    assert_eq!(
        bits(&cluster, "added", "CapEff"),
        (DEFAULT_CAPABILITIES | CAP_NET_ADMIN) & !CAP_CHOWN
    );
    assert_eq!(bits(&cluster, "dropped", "CapEff"), CAP_NET_BIND_SERVICE);
    assert_eq!(
        bits(&cluster, "user", "CapEff"),
        0,
        "an ordinary user has none"
    );
    let own = u64::from_str_radix(&host::status_field(std::process::id() as i32, "CapBnd"), 16)
        .expect("bits");
    assert_eq!(
        bits(&cluster, "privileged", "CapEff"),
        own,
        "all that the host has"
    );
    assert_eq!(field(&cluster, "privileged", "Seccomp"), "0");
    assert_eq!(field(&cluster, "unconfined", "Seccomp"), "0");
    assert_eq!(field(&cluster, "noescalation", "NoNewPrivs"), "1");

    assert_eq!(cluster.kubectl("exec added -- ip link set lo mtu 1400"), "");
    assert_eq!(cluster.kubectl("exec user -- id -u"), "1000\n");
    assert_eq!(
        cluster.kubectl("exec privileged -- mount -t tmpfs tmpfs /mnt"),
        ""
    );
    let written = cluster.try_kubectl("exec readonly -- touch /here");
    assert!(
        String::from_utf8_lossy(&written.stderr).contains("Read-only file system"),
        "{written:?}"
    );
    let refused = cluster.until_pod("nonroot", "refused", |pod| {
        container_status(pod)["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    let message: &Value = &container_status(&refused)["state"]["waiting"]["message"];
    assert!(
        message
            .as_str()
            .expect("a message")
            .starts_with("container has runAsNonRoot and image will run as root"),
        "{message}"
    );
}

#[test]
fn a_pod_may_use_the_hosts_namespaces() {
    let mut cluster = Cluster::start();
    cluster.apply(&shell_pod(
        "onhost",
        SERVE,
        "hostNetwork: true\nhostPID: true\nhostIPC: true",
        "",
    ));
    let shared = shell_pod("shared", SERVE, "shareProcessNamespace: true", "");
    let script = serde_json::to_string(SERVE).expect("a string");
    cluster.apply(&format!(
        "{shared}  - name: side\n    image: busybox\n    command: [sh, -c, {script}]\n"
    ));
    let pod = cluster.until_ready("onhost");
    assert_eq!(pod["status"]["podIP"], pod["status"]["hostIP"]);
    let here = std::process::id() as i32;
    let pid = cluster.container_pid("onhost", "main");
    for kind in ["net", "ipc", "pid", "uts"] {
        assert_eq!(
            host::namespace(pid, kind),
            host::namespace(here, kind),
            "{kind}"
        );
    }
    assert_ne!(host::namespace(pid, "mnt"), host::namespace(here, "mnt"));
    cluster.until_ready("shared");
    let (main, side) = (
        cluster.container_pid("shared", "main"),
        cluster.container_pid("shared", "side"),
    );
    assert_eq!(host::namespace(main, "pid"), host::namespace(side, "pid"));
    assert_ne!(host::namespace(main, "pid"), host::namespace(here, "pid"));
}
