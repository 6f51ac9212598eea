//! The last known object of a pod, in `<pod dir>/pod.json`.
//!
//! It is what the agent works from while the control plane is away, and what `skiff inspect`
//! shows. Its status is the one that the node computed last, whether or not the API has it yet.

use std::io;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

/// The file in a pod's directory.
pub const POD_FILE: &str = "pod.json";

/// Writes the object; a reader sees the old one or the new one. Blocking.
///
/// # Errors
/// When the file can't be written.
pub fn save(pod_dir: &Path, pod: &Pod) -> io::Result<()> {
    let draft = pod_dir.join(".pod.json");
    std::fs::write(&draft, serde_json::to_vec(pod).map_err(io::Error::other)?)?;
    std::fs::rename(draft, pod_dir.join(POD_FILE))
}

/// Reads the object in one pod's directory. Blocking.
///
/// # Errors
/// When there is none, or it is not a pod.
pub fn load(pod_dir: &Path) -> io::Result<Pod> {
    let bytes = std::fs::read(pod_dir.join(POD_FILE))?;
    serde_json::from_slice(&bytes).map_err(io::Error::other)
}

/// Every pod known in `<root>/pods`. Directories without a readable object are skipped. Blocking.
///
/// # Errors
/// When the directory can't be listed.
pub fn load_all(pods_dir: &Path) -> io::Result<Vec<Pod>> {
    let entries = match std::fs::read_dir(pods_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(entries
        .filter_map(|entry| load(&entry.ok()?.path()).ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let pod_dir = dir.path().join("ns_web_u1");
        std::fs::create_dir_all(&pod_dir).unwrap();
        std::fs::create_dir_all(dir.path().join("half-made")).unwrap();
        let mut pod = Pod::default();
        pod.metadata.uid = Some("u1".into());
        save(&pod_dir, &pod).unwrap();
        assert_eq!(load_all(dir.path()).unwrap(), [pod]);
        assert!(load_all(&dir.path().join("none")).unwrap().is_empty());
    }
}
