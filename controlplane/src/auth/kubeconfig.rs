//! The client configuration that `kubectl` reads.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::pki::{Credentials, Pki, PkiError, write};

/// Writes a kubeconfig with the administrator's certificate (mode 0600, in one step).
///
/// # Errors
/// When the file can't be written.
pub fn write_admin(path: &Path, server: &str, pki: &Pki) -> Result<(), PkiError> {
    write(
        path,
        &render(server, pki.ca(), "kubernetes-admin", pki.admin()),
        0o600,
    )
}

/// A configuration that names the cluster, and nobody to be there.
pub fn render_cluster(server: &str, ca: &str) -> String {
    let ca = BASE64_STANDARD.encode(ca);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: \"\"
  cluster:
    server: {server}
    certificate-authority-data: {ca}
contexts: []
users: []
"
    )
}

fn render(server: &str, ca: &str, user: &str, credentials: &Credentials) -> String {
    let encode = |pem: &str| BASE64_STANDARD.encode(pem);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: skiff
  cluster:
    server: {server}
    certificate-authority-data: {}
users:
- name: {user}
  user:
    client-certificate-data: {}
    client-key-data: {}
contexts:
- name: skiff
  context:
    cluster: skiff
    user: {user}
current-context: skiff
",
        encode(ca),
        encode(&credentials.certificate),
        encode(&credentials.key),
    )
}
