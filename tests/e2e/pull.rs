//! Images from a registry: Debian's, with TLS of an authority of its own and a password.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::Cluster;
use crate::registry::certificates::Authority;
use crate::registry::debian::{Access, DebianRegistry, PASSWORD, USER};
use crate::{images, wait};

/// A registry that has nginx, for those who know the password, and the folder that says how it is reached.
fn private_registry(scratch: &Path) -> (DebianRegistry, PathBuf) {
    let authority = Authority::new();
    let pair = authority.issue(&["127.0.0.1"]);
    let registry = DebianRegistry::start(Some(&pair), &Access::Password);
    push(&registry, &Access::Password);
    let config = scratch.join("registries.d");
    let host = config.join(registry.host());
    fs::create_dir_all(&host).expect("a folder");
    fs::write(host.join("ca.pem"), authority.pem()).expect("a certificate");
    let hosts = format!(
        "server = \"https://{0}\"\n[host.\"https://{0}\"]\nca = \"ca.pem\"\n",
        registry.host()
    );
    fs::write(host.join("hosts.toml"), hosts).expect("a file");
    (registry, config)
}

pub(crate) fn push(registry: &DebianRegistry, access: &Access<'_>) {
    let archive = images::demonstration().join("nginx.tar");
    let mut copy = Command::new("skopeo");
    copy.args([
        "copy",
        "--quiet",
        "--insecure-policy",
        "--dest-tls-verify=false",
    ]);
    if let Access::Password = access {
        copy.args(["--dest-creds", &format!("{USER}:{PASSWORD}")]);
    }
    let done = copy
        .arg(format!("oci-archive:{}", archive.display()))
        .arg(format!("docker://{}/nginx:1", registry.host()))
        .output()
        .expect("skopeo");
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

fn secret(cluster: &Cluster, registry: &DebianRegistry, password: &str) {
    let server = format!("--docker-server={}", registry.host());
    let password = format!("--docker-password={password}");
    let user = format!("--docker-username={USER}");
    let made = cluster.kubectl_args(&[
        "create",
        "secret",
        "docker-registry",
        "account",
        &server,
        &user,
        &password,
        "--dry-run=client",
        "-o",
        "json",
    ]);
    cluster.apply(&made);
}

fn deployment(image: &str, pod: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      {pod}
      containers:
      - {{name: nginx, image: "{image}", imagePullPolicy: Always}}
"#
    )
}

/// The pods' JSON.
fn pods(cluster: &Cluster) -> Vec<Value> {
    let list = cluster.kubectl("get pods -l app=web -o json");
    let list: Value = serde_json::from_str(&list).expect("JSON");
    list["items"].as_array().cloned().unwrap_or_default()
}

/// Why the container of the only pod waits.
fn waiting(cluster: &Cluster) -> Option<(String, String)> {
    let pods = pods(cluster);
    let waiting = &pods.first()?["status"]["containerStatuses"][0]["state"]["waiting"];
    let text = |field: &str| waiting[field].as_str().map(str::to_owned);
    Some((text("reason")?, text("message").unwrap_or_default()))
}

#[test]
fn private_images_come_with_the_secrets_of_pods_and_service_accounts() {
    let mut cluster = Cluster::new();
    let (registry, config) = private_registry(cluster.scratch());
    cluster.set_registries(&config);
    cluster.up();
    secret(&cluster, &registry, PASSWORD);
    let image = format!("{}/nginx:1", registry.host());
    // The missing one is told of and does no harm.
    let secrets = "imagePullSecrets: [{name: gone}, {name: account}]";
    cluster.apply(&deployment(&image, secrets));
    let pods = cluster.until_all_ready("app=web", 1);
    let status = &pods[0]["status"]["containerStatuses"][0];
    assert_eq!(status["image"], image.as_str());
    let id = status["imageID"].as_str().expect("an image id");
    let name = format!("{}/nginx@sha256:", registry.host());
    assert!(id.starts_with(&name), "{id}");

    let described = wait::until("its events are described", || {
        let described = cluster.kubectl("describe pod -l app=web");
        described
            .contains("Successfully pulled")
            .then_some(described)
    });
    for told in [
        format!("Pulling image \"{image}\""),
        format!("Successfully pulled image \"{image}\" in "),
        " including waiting). Image size: ".to_owned(),
        "FailedToRetrieveImagePullSecret".to_owned(),
        "Unable to retrieve some image pull secrets (gone); attempting to pull the image may not \
         succeed."
            .to_owned(),
    ] {
        assert!(described.contains(&told), "{told} is not in {described}");
    }
    wait::until("the node lists the image", || {
        let nodes = cluster.kubectl("get nodes -o jsonpath={.items[0].status.images[*].names}");
        (nodes.contains(id) && nodes.contains(&image)).then_some(())
    });

    cluster.kubectl("delete deployment web --wait --cascade=foreground");
    cluster.kubectl("create serviceaccount sailor");
    cluster.kubectl_args(&[
        "patch",
        "serviceaccount",
        "sailor",
        "-p",
        "{\"imagePullSecrets\": [{\"name\": \"account\"}]}",
    ]);
    cluster.apply(&deployment(&image, "serviceAccountName: sailor"));
    cluster.until_all_ready("app=web", 1);
}

#[test]
fn a_wrong_password_is_told_and_mended() {
    let mut cluster = Cluster::new();
    let (registry, config) = private_registry(cluster.scratch());
    cluster.set_registries(&config);
    cluster.up();
    secret(&cluster, &registry, "wrong");
    let image = format!("{}/nginx:1", registry.host());
    cluster.apply(&deployment(&image, "imagePullSecrets: [{name: account}]"));
    let message = wait::until("ErrImagePull", || {
        let (reason, message) = waiting(&cluster)?;
        (reason == "ErrImagePull").then_some(message)
    });
    for said in [
        format!("failed to pull and unpack image \"{image}\": failed to resolve reference"),
        "pull access denied, repository does not exist or may require authorization".to_owned(),
    ] {
        assert!(message.contains(&said), "{said} is not in {message}");
    }
    let message = wait::until("ImagePullBackOff", || {
        let (reason, message) = waiting(&cluster)?;
        (reason == "ImagePullBackOff").then_some(message)
    });
    let said = format!("Back-off pulling image \"{image}\": ErrImagePull: failed to pull");
    assert!(message.starts_with(&said), "{message}");
    secret(&cluster, &registry, PASSWORD);
    cluster.until_all_ready("app=web", 1);
    let described = cluster.kubectl("describe pod -l app=web");
    for told in [
        format!("Failed to pull image \"{image}\": failed to pull and unpack"),
        "Error: ErrImagePull".to_owned(),
        format!("Back-off pulling image \"{image}\""),
        "Error: ImagePullBackOff".to_owned(),
    ] {
        assert!(described.contains(&told), "{told} is not in {described}");
    }
}

/// All that is unpacked of an image, by a digest of its names, modes and contents.
fn content(store: &Path) -> String {
    let script = "cd \"$1\"/layers && find . -printf '%p %m %U %G %s %T@\\n' | sort \
                  && find . -type f -print0 | sort -z | xargs -0 sha256sum";
    let done = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(store)
        .output()
        .expect("sh");
    assert!(done.status.success());
    // Times of the directories that Skiff makes itself are not the image's.
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let own = |line: &&str| {
        let name = line.split(' ').next().unwrap_or_default();
        name.matches('/').count() > 2 || !name.starts_with('.')
    };
    text.lines().filter(own).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_pull_that_is_killed_leaves_a_store_that_works() {
    let scratch = tempfile::tempdir().expect("a directory");
    let registry = DebianRegistry::start(None, &Access::Anyone);
    push(&registry, &Access::Anyone);
    let image = format!("{}/nginx:1", registry.host());
    let pull = |data: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skiff"));
        command
            .args(["image", "pull", "--quiet", &image, "--data-dir"])
            .arg(data)
            .env("HOME", scratch.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    let finish = |data: &Path| {
        let done = pull(data).output().expect("skiff starts");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{said}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    let whole = scratch.path().join("whole");
    let began = Instant::now();
    let digest = finish(&whole);
    let took = began.elapsed();
    let expected = content(&whole.join("agent/images"));
    assert!(expected.contains("nginx"), "{expected}");

    let data = scratch.path().join("killed");
    let rounds = 12;
    for round in 0..rounds {
        let mut child = pull(&data).spawn().expect("skiff starts");
        // Not for luck: each round ends it at another point, and all must do no harm.
        std::thread::sleep(took * round / rounds + Duration::from_millis(1));
        child.kill().expect("SIGKILL");
        child.wait().expect("its end");
        let list = Command::new(env!("CARGO_BIN_EXE_skiff"))
            .args(["image", "list", "-o", "json", "--data-dir"])
            .arg(&data)
            .output()
            .expect("skiff starts");
        let said = String::from_utf8_lossy(&list.stderr);
        assert!(list.status.success() && said.is_empty(), "{said}");
        let store = data.join("agent/images");
        for left in ["ingest", "turns"] {
            let entries = fs::read_dir(store.join(left)).expect("a directory");
            assert_eq!(entries.count(), 0, "in {left}, after round {round}");
        }
        assert_eq!(finish(&data), digest);
        assert_eq!(content(&store), expected, "after round {round}");
        fs::remove_dir_all(&data).expect("removed");
    }
}
