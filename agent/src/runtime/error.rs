//! What can go wrong between a declaration and a process.

use std::path::PathBuf;

use skiff_shim::protocol::{Failure, FailureKind};

/// Why the runtime did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The container's declaration can't be carried out: Kubernetes' `CreateContainerConfigError`.
    #[error("{0}")]
    Config(String),
    /// Setting the container up failed before its process existed: `CreateContainerError`.
    #[error("{0}")]
    Create(String),
    /// The process could not be set up or executed, in the runtime's own words: `StartError` /
    /// `RunContainerError` (a record with exit code 128 is left behind), or a failed exec.
    #[error("{0}")]
    Start(String),
    #[error("container {0} not found")]
    NotFound(String),
    /// The container's state does not allow the operation.
    #[error("{0}")]
    Conflict(String),
    /// The sandbox's shim is not running.
    #[error("the sandbox of pod {0} is gone: its shim does not run")]
    Gone(String),
    #[error("{doing} {path}: {source}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the shim of pod {pod}: {message}")]
    Shim { pod: String, message: String },
    #[error("cgroup: {0}")]
    Cgroup(String),
}

impl RuntimeError {
    pub(crate) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }

    pub(crate) fn from_failure(pod: &str, failure: Failure) -> Self {
        match failure.kind {
            FailureKind::NotFound => Self::NotFound(failure.message),
            FailureKind::Conflict => Self::Conflict(failure.message),
            FailureKind::Start => Self::Start(failure.message),
            FailureKind::Invalid | FailureKind::Internal => Self::Shim {
                pod: pod.to_owned(),
                message: failure.message,
            },
        }
    }

    /// The reason that Kubernetes gives for it in a container's status.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Config(_) => "CreateContainerConfigError",
            Self::Start(_) => "RunContainerError",
            _ => "CreateContainerError",
        }
    }
}
