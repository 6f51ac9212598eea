//! Accounts at registries, and where they come from: `~/.docker/config.json` with its helper
//! programs for the command line, `imagePullSecrets` for pods.
//!
//! Both are files of the same format, read by [`DockerConfig`]; they differ in how an image finds
//! its account in them. [`Keyring`] has the kubelet's rules, `DockerConfig::lookup` Docker's.

mod docker_config;
mod helper;
mod keyring;

pub use docker_config::{CredentialsError, DockerConfig};
pub use keyring::Keyring;

use std::fmt;

use crate::Digest;

/// An account at a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A name and a password (or an access token in its place).
    Basic { username: String, password: String },
    /// An OAuth2 refresh token, which a token server exchanges: `identitytoken` in Docker's
    /// configuration.
    IdentityToken(String),
}

impl Credentials {
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Basic {
            username: username.into(),
            password: password.into(),
        }
    }

    /// Tells accounts apart (also two passwords of one user) without holding them.
    pub fn fingerprint(&self) -> Digest {
        let text = match self {
            // Neither a name nor a header can hold a line's end, so this is unambiguous.
            Self::Basic { username, password } => format!("basic\n{username}\n{password}"),
            Self::IdentityToken(token) => format!("token\n{token}"),
        };
        Digest::of(text.as_bytes())
    }
}

/// Without the secret.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => f
                .debug_struct("Basic")
                .field("username", username)
                .finish_non_exhaustive(),
            Self::IdentityToken(_) => f.write_str("IdentityToken(..)"),
        }
    }
}
