//! A container's image: the one that is here, or fetched, as `imagePullPolicy` says.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use tokio::time::Instant;

use super::NodeContext;
use super::events::Severity;
use super::seams::ResolvedImage;
use super::status::Waiting;

/// Why there is no image, and whether that came from trying to fetch it.
pub(super) struct ImageFailure {
    pub(super) waiting: Waiting,
    pub(super) pulled: bool,
}

/// Finds a container's image, or fetches it as the policy says.
pub(super) async fn resolve_image(
    node: Arc<NodeContext>,
    pod: Arc<Pod>,
    container: Container,
    field: String,
) -> Result<ResolvedImage, ImageFailure> {
    let name = container.image.clone().unwrap_or_default();
    let event = |severity, reason, message: String| {
        node.events
            .container(&pod, &field, severity, reason, message);
    };
    let fail = |reason: &str, message: String, pulled: bool| {
        event(Severity::Warning, "Failed", format!("Error: {reason}"));
        ImageFailure {
            waiting: Waiting::new(reason, message),
            pulled,
        }
    };
    let present = match node.images.find(&name).await {
        Ok(present) => present,
        Err(error) => {
            let message = format!("Failed to apply default image tag \"{name}\": {error}");
            event(Severity::Warning, "InspectFailed", message.clone());
            return Err(fail("InvalidImageName", message, false));
        }
    };
    let policy = container
        .image_pull_policy
        .as_deref()
        .unwrap_or("IfNotPresent");
    match (present, policy) {
        // Offline, what is here is the newest that can be had.
        (Some(image), policy) if policy != "Always" || node.offline => {
            let message = format!(
                "Container image \"{name}\" already present on machine and can be accessed by the pod"
            );
            event(Severity::Normal, "Pulled", message);
            return Ok(image);
        }
        (None, "Never") => {
            let message =
                format!("Container image \"{name}\" is not present with pull policy of Never");
            event(Severity::Warning, "ErrImageNeverPull", message.clone());
            return Err(fail("ErrImageNeverPull", message, false));
        }
        _ => {}
    }
    event(
        Severity::Normal,
        "Pulling",
        format!("Pulling image \"{name}\""),
    );
    let begun = Instant::now();
    let pulled = node
        .images
        .pull(&name, &pull_secrets(&node, &pod).await)
        .await;
    match pulled {
        Ok((image, bytes)) => {
            let took = go_duration(begun.elapsed());
            let message = format!(
                "Successfully pulled image \"{name}\" in {took} ({took} including waiting). \
                 Image size: {bytes} bytes."
            );
            event(Severity::Normal, "Pulled", message);
            Ok(image)
        }
        Err(error) => {
            let message = format!("Failed to pull image \"{name}\": {error}");
            event(Severity::Warning, "Failed", message);
            Err(fail("ErrImagePull", error.to_string(), true))
        }
    }
}

/// Milliseconds below a second, else seconds with three decimals, as Go prints durations.
fn go_duration(duration: Duration) -> String {
    match duration.as_millis() {
        millis if millis < 1000 => format!("{millis}ms"),
        _ => format!("{:.3}s", duration.as_secs_f64()),
    }
}

async fn pull_secrets(node: &NodeContext, pod: &Pod) -> Vec<Secret> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut secrets = Vec::new();
    let references = pod
        .spec
        .iter()
        .flat_map(|s| s.image_pull_secrets.iter().flatten());
    for reference in references {
        // A secret that is missing is no error: the image may be public.
        if let Ok(Some(secret)) = node.api.secret(namespace, &reference.name).await {
            secrets.push(secret);
        }
    }
    secrets
}
