//! The image archives that tests import: the demonstration images, built once, and small ones made on the spot.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The directory with `nginx.tar` and `busybox.tar`; the first test that asks builds them.
pub(crate) fn demonstration() -> PathBuf {
    let dir = Path::new(ROOT).join("target/test-images");
    fs::create_dir_all(&dir).expect("a directory for images");
    let lock = File::create(dir.join(".lock")).expect("a lock");
    lock.lock().expect("the lock");
    if !(dir.join("nginx.tar").exists() && dir.join("busybox.tar").exists()) {
        let status = Command::new(Path::new(ROOT).join("scripts/build-images"))
            .arg(&dir)
            .status();
        assert!(
            status.expect("scripts/build-images").success(),
            "scripts/build-images failed"
        );
    }
    dir
}

/// Write an OCI archive of an image that holds a static busybox and `config` (in the image specification's
/// terms: `User`, `Env`, `Entrypoint`, `Cmd`, `WorkingDir` ...).
pub(crate) fn pack(archive: &Path, reference: &str, config: &Value) {
    let layer = busybox_layer();
    let layer_digest = digest(&layer);
    let config = to_bytes(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    }));
    let manifest = to_bytes(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }));
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": reference,
    });
    let index = to_bytes(&json!({"schemaVersion": 2, "manifests": [entry]}));

    let mut tar = tar::Builder::new(File::create(archive).expect("an archive"));
    add(
        &mut tar,
        "oci-layout",
        0o644,
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    );
    add(&mut tar, "index.json", 0o644, &index);
    for blob in [&layer, &config, &manifest] {
        add(
            &mut tar,
            &format!("blobs/sha256/{}", &digest(blob)["sha256:".len()..]),
            0o644,
            blob,
        );
    }
    tar.finish().expect("a complete archive");
}

fn busybox_layer() -> Vec<u8> {
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut tar = tar::Builder::new(Vec::new());
    for dir in ["bin", "etc", "work", "tmp"] {
        let mut header = header(0o755, 0);
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, format!("{dir}/"), std::io::empty())
            .expect("a directory");
    }
    add(&mut tar, "bin/busybox", 0o755, &busybox);
    add(
        &mut tar,
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nsailor:x:1234:1234::/work:/bin/sh\n",
    );
    add(
        &mut tar,
        "etc/group",
        0o644,
        b"root:x:0:\nsailor:x:1234:\ncrew:x:77:sailor\n",
    );
    for applet in [
        "sh", "cat", "id", "env", "pwd", "sleep", "echo", "ls", "touch",
    ] {
        let mut header = header(0o777, 0);
        header.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")
            .expect("a link");
    }
    tar.into_inner().expect("a complete layer")
}

fn add<W: std::io::Write>(tar: &mut tar::Builder<W>, path: &str, mode: u32, content: &[u8]) {
    let mut header = header(mode, content.len() as u64);
    tar.append_data(&mut header, path, content).expect("a file");
}

/// A header of root's, from the beginning of time.
fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

fn digest(blob: &[u8]) -> String {
    let hex: String = Sha256::digest(blob)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{hex}")
}

fn to_bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON")
}

/// The kubectl that tests drive: the one that `scripts/install` keeps under target/, else the PATH's.
pub(crate) fn kubectl() -> PathBuf {
    let kept = Path::new(ROOT).join("target/tools/kubectl");
    let executable = fs::metadata(&kept).is_ok_and(|m| m.permissions().mode() & 0o111 != 0);
    if executable {
        kept
    } else {
        PathBuf::from("kubectl")
    }
}

/// The manifest that the documentation shows.
pub(crate) fn nginx_demo() -> PathBuf {
    Path::new(ROOT).join("docs/examples/nginx-demo.yaml")
}
