//! The shim's executable, and starting it for a sandbox.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use skiff_shim::protocol::{SPEC_FILE, SandboxSpec};

use super::error::RuntimeError;
use super::types::SandboxConfig;
use super::{CONFIG_FILE, Runtime};

/// The shim: a static executable, built and compressed (zstd) by this crate's build script.
static SHIM: &[u8] = include_bytes!(env!("SKIFF_SHIM"));

/// Writes the shim's executable into `directory`, named by its content so that an upgraded
/// agent never overwrites one that runs, and returns its path.
pub(super) fn install(directory: &Path) -> Result<PathBuf, RuntimeError> {
    let path = directory.join(concat!("skiff-shim-", env!("SKIFF_SHIM_HASH")));
    if path.exists() {
        return Ok(path);
    }
    std::fs::create_dir_all(directory).map_err(RuntimeError::io("making", directory))?;
    let draft = directory.join(format!(".skiff-shim-{}", std::process::id()));
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(&draft)
        .and_then(|mut file| {
            zstd::stream::copy_decode(SHIM, &mut file).and_then(|()| file.sync_all())
        })
        .and_then(|()| std::fs::rename(&draft, &path))
        .map_err(RuntimeError::io("writing", &path))?;
    Ok(path)
}

impl Runtime {
    /// Makes what a sandbox needs and starts its shim; returns once the shim listens. Blocking.
    pub(super) fn launch(&self, config: &SandboxConfig) -> Result<(), RuntimeError> {
        self.demolish(&config.uid, config.qos)?;
        let result = self.build(config);
        if result.is_err() {
            // The error that stopped the start is the one worth telling.
            let _ = self.demolish(&config.uid, config.qos);
        }
        result
    }

    fn build(&self, config: &SandboxConfig) -> Result<(), RuntimeError> {
        let run_dir = self.run_dir(&config.uid);
        std::fs::create_dir_all(&run_dir).map_err(RuntimeError::io("making", &run_dir))?;
        let containers = config.pod_dir.join("containers");
        std::fs::create_dir_all(&containers).map_err(RuntimeError::io("making", &containers))?;
        let group = self.cgroups().pod(config.qos, &config.uid);
        self.cgroups().create(&group, &config.resources)?;
        let spec = SandboxSpec {
            uid: config.uid.clone(),
            run_dir: run_dir.clone(),
            pod_dir: config.pod_dir.clone(),
            hostname: config.hostname.clone(),
            host_network: config.host_network,
            host_ipc: config.host_ipc,
            share_process_namespace: config.share_process_namespace,
            sysctls: config.sysctls.clone(),
            cgroups: self.cgroups().directories(&self.cgroups().shims()),
        };
        write_json(&run_dir.join(SPEC_FILE), &spec)?;
        write_json(&run_dir.join(CONFIG_FILE), config)?;
        self.start_shim(&config.uid, &run_dir)
    }

    /// The shim goes to the background by itself: when the process that was started ends with
    /// success, the shim listens.
    fn start_shim(&self, uid: &str, run_dir: &Path) -> Result<(), RuntimeError> {
        let shim = &self.inner.shim;
        let output = Command::new(shim)
            .arg(run_dir.join(SPEC_FILE))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .map_err(RuntimeError::io("starting", shim))?;
        if output.status.success() {
            return Ok(());
        }
        Err(RuntimeError::Shim {
            pod: uid.to_owned(),
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), RuntimeError> {
    let bytes = serde_json::to_vec(value)
        .map_err(|error| RuntimeError::io("writing", path)(std::io::Error::other(error)))?;
    std::fs::write(path, bytes).map_err(RuntimeError::io("writing", path))
}
