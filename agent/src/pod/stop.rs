//! Ending one container: preStop hook, stop signal, grace period, SIGKILL.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::watch;
use tokio::time::Instant;

use super::events::Severity;
use super::tasks::Live;
use super::{NodeContext, hooks};
use crate::runtime::types::ContainerRecord;

/// How a container is to be ended.
pub(super) struct Stop {
    pub(super) node: Arc<NodeContext>,
    pub(super) pod: Arc<Pod>,
    pub(super) container: Container,
    pub(super) field: String,
    pub(super) id: String,
    pub(super) live: Live,
    /// When it is killed at the latest; may move while it ends.
    pub(super) deadline: watch::Receiver<Instant>,
    /// Of the `Killing` event.
    pub(super) message: String,
}

/// The least time between SIGTERM and SIGKILL, whatever a preStop hook took.
const LEAST_GRACE: Duration = Duration::from_secs(2);

/// How long a container may be kept running because services still lead to it: longer than it ever
/// takes, shorter than anyone notices when the control plane is slow.
const LONGEST_WITHDRAWAL: Duration = Duration::from_secs(3);

impl Stop {
    /// preStop hook, stop signal, grace period, SIGKILL; returns when the container has ended.
    pub(super) async fn run(mut self) {
        self.node.events.container(
            &self.pod,
            &self.field,
            Severity::Normal,
            "Killing",
            self.message.clone(),
        );
        let mut state = self.live.state.clone();
        let id = self.id.clone();
        let ended = async {
            // An error means that the sandbox is gone, and the container with it.
            let _ = state
                .wait_for(|s| {
                    !s.alive
                        || s.containers
                            .get(&id)
                            .is_none_or(ContainerRecord::has_exited)
                })
                .await;
        };
        tokio::select! {
            () = ended => {}
            () = self.sequence() => {}
        }
    }

    async fn sequence(&mut self) {
        let lifecycle = self.container.lifecycle.clone();
        if let Some(handler) = lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) {
            let ip = self
                .live
                .ips
                .first()
                .map(ToString::to_string)
                .unwrap_or_default();
            let sandbox = self.live.sandbox.clone();
            let hook = hooks::run(handler, &self.container, &self.id, &*sandbox, &ip);
            let mut deadline = self.deadline.clone();
            let result = tokio::select! {
                result = hook => result,
                () = passed(&mut deadline) => Err("the grace period ended first".to_owned()),
            };
            if let Err(message) = result {
                let Self {
                    node, pod, field, ..
                } = self;
                node.events
                    .container(pod, field, Severity::Warning, "FailedPreStopHook", message);
            }
        }
        self.withdrawn().await;
        let signal = self.stop_signal().await;
        self.signal(signal).await;
        let least = tokio::time::sleep(LEAST_GRACE);
        tokio::join!(passed(&mut self.deadline), least);
        self.signal(libc::SIGKILL).await;
        std::future::pending().await
    }

    /// Waits until no service leads to a pod that is deleted, and nothing waits to be accepted by it: a container
    /// that ended before would refuse what is still sent to it. Its grace period goes on meanwhile.
    async fn withdrawn(&mut self) {
        if self.pod.metadata.deletion_timestamp.is_none() {
            return;
        }
        let namespace = self.live.sandbox.network_namespace();
        tokio::select! {
            () = self.node.network.withdrawn(&self.pod, namespace.as_deref()) => {}
            () = passed(&mut self.deadline) => {}
            () = tokio::time::sleep(LONGEST_WITHDRAWAL) => {
                let pod = self.pod.metadata.name.as_deref();
                tracing::info!(pod, "services still lead to the pod, which ends now");
            }
        }
    }

    /// The declaration's stop signal, else the image's, else SIGTERM.
    async fn stop_signal(&self) -> i32 {
        let lifecycle = self.container.lifecycle.as_ref();
        if let Some(name) = lifecycle.and_then(|l| l.stop_signal.as_deref()) {
            return signal_number(name);
        }
        let image = self.container.image.as_deref().unwrap_or_default();
        let image = self.node.images.find(image).await.ok().flatten();
        let config = image.as_ref().and_then(|i| i.config.config().as_ref());
        let name = config.and_then(|c| c.stop_signal().as_deref());
        name.map_or(libc::SIGTERM, signal_number)
    }

    async fn signal(&self, signal: i32) {
        if let Err(error) = self.live.sandbox.signal(&self.id, signal).await {
            let pod = self.pod.metadata.name.as_deref();
            tracing::warn!(pod, container = self.id, signal, %error, "signal not sent");
        }
    }
}

/// `SIGQUIT`, `QUIT` or `3`; SIGTERM for what is none.
fn signal_number(name: &str) -> i32 {
    if let Ok(number) = name.parse() {
        return number;
    }
    let name = name.to_ascii_uppercase();
    let name = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    name.parse::<nix::sys::signal::Signal>()
        .map_or(libc::SIGTERM, |signal| signal as i32)
}

/// Resolves when a deadline has passed that may be moved.
async fn passed(deadline: &mut watch::Receiver<Instant>) {
    loop {
        let at = *deadline.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep_until(at) => return,
            changed = deadline.changed() => if changed.is_err() {
                return tokio::time::sleep_until(at).await;
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals() {
        for (name, number) in [
            ("SIGQUIT", libc::SIGQUIT),
            ("int", libc::SIGINT),
            ("9", 9),
            ("nonsense", libc::SIGTERM),
        ] {
            assert_eq!(signal_number(name), number, "{name}");
        }
    }
}
