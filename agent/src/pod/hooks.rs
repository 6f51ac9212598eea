//! Lifecycle hooks: commands and requests at a container's start and before its end.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use super::http_check::{self, Purpose};
use super::network_check;
use super::seams::{ExecOutcome, PodSandbox};

/// The most that an HTTP hook may take when nothing else bounds it.
const HTTP_LIMIT: Duration = Duration::from_secs(60);

/// Runs a hook to its end.
///
/// # Errors
/// What went wrong, as the kubelet's `FailedPostStartHook` and `FailedPreStopHook` events say it.
pub(super) async fn run(
    handler: &LifecycleHandler,
    container: &Container,
    container_id: &str,
    sandbox: &dyn PodSandbox,
    pod_ip: &str,
) -> Result<(), String> {
    if let Some(action) = &handler.exec {
        let command = action.command.clone().unwrap_or_default();
        return match sandbox.exec(container_id, &command, None).await {
            Ok(ExecOutcome::Exited { code: 0, .. }) => Ok(()),
            Ok(ExecOutcome::Exited { code, output }) => Err(format!(
                "Exec lifecycle hook ({command:?}) for Container {:?} failed - error: command '{}' \
                 exited with {code}: {output}, message: {output:?}",
                container.name,
                command.join(" ")
            )),
            Ok(ExecOutcome::TimedOut) => Err("command timed out".into()),
            Err(error) => Err(error.to_string()),
        };
    }
    if let Some(action) = &handler.http_get {
        let answer = http_check::get(container, action, pod_ip, HTTP_LIMIT, Purpose::Hook).await;
        let status = answer.map_err(|e| e.to_string())?.status;
        return if status < 400 {
            Ok(())
        } else {
            Err(format!("HTTP lifecycle hook failed with status {status}"))
        };
    }
    if let Some(action) = &handler.sleep {
        let seconds = u64::try_from(action.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        return Ok(());
    }
    if let Some(action) = &handler.tcp_socket {
        let connected = network_check::tcp(container, action, pod_ip, HTTP_LIMIT).await;
        return connected.map_err(|e| e.to_string());
    }
    Err("invalid handler: neither exec, httpGet, sleep nor tcpSocket".into())
}
