//! A container's image: the one that is here, or fetched, as `imagePullPolicy` says.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use tokio::time::Instant;

use super::NodeContext;
use super::events::Severity;
use super::seams::{FetchedImage, ResolvedImage};
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
        Ok(FetchedImage { image, size, took }) => {
            let waited = begun.elapsed();
            let message = format!(
                "Successfully pulled image \"{name}\" in {} ({} including waiting). \
                 Image size: {size} bytes.",
                // A pull that another pod had begun took longer than this one has waited.
                go_duration(took.min(waited)),
                go_duration(waited)
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

/// To the millisecond, as Go prints durations: `831ms`, `1.2s`, `1m2.05s`.
fn go_duration(duration: Duration) -> String {
    let (minutes, millis) = (duration.as_secs() / 60, duration.as_millis() % 60_000);
    let seconds = match millis % 1000 {
        0 => format!("{}s", millis / 1000),
        part => {
            let decimals = format!("{part:03}");
            format!("{}.{}s", millis / 1000, decimals.trim_end_matches('0'))
        }
    };
    match minutes {
        0 if duration.is_zero() => "0s".to_owned(),
        0 if millis < 1000 => format!("{millis}ms"),
        0 => seconds,
        m if m < 60 => format!("{m}m{seconds}"),
        m => format!("{}h{}m{seconds}", m / 60, m % 60),
    }
}

/// The secrets that are to be had. A missing one is no failure, because the image may be public.
async fn pull_secrets(node: &NodeContext, pod: &Pod) -> Vec<Secret> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let spec = pod.spec.iter();
    let references = spec.flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    // Old objects may have references without a name.
    let names = references.map(|secret| &secret.name);
    let (mut secrets, mut missing) = (Vec::new(), Vec::new());
    for name in names.filter(|name| !name.is_empty()) {
        match node.api.secret(namespace, name).await {
            Ok(Some(secret)) => secrets.push(secret),
            Ok(None) | Err(_) => missing.push(name.as_str()),
        }
    }
    if !missing.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not \
             succeed.",
            missing.join(", ")
        );
        let reason = "FailedToRetrieveImagePullSecret";
        node.events.pod(pod, Severity::Warning, reason, message);
    }
    secrets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_go_does() {
        for (millis, text) in [
            (0, "0s"),
            (7, "7ms"),
            (1_000, "1s"),
            (1_200, "1.2s"),
            (12_034, "12.034s"),
            (62_050, "1m2.05s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
    }
}
