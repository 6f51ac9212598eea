//! Who is asking, and may they.
//!
//! `pki` keeps the cluster's certificates and keys. `authenticate` turns a client certificate
//! or a bearer token into a [`UserInfo`]; `authorize` decides whether that user may do what
//! the request's [`Attributes`] say, by group, as a node, or by RBAC objects.

pub mod authenticate;
pub mod authorize;
pub mod bootstrap;
pub mod bootstrap_tokens;
mod es256;
pub mod kubeconfig;
pub mod pki;
pub mod references;
pub mod signing;
pub mod tokens;

/// Members may do everything, whatever RBAC says: the way in when RBAC is broken.
pub const MASTERS: &str = "system:masters";
/// Every authenticated user is a member.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Requests without credentials.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const ANONYMOUS: &str = "system:anonymous";
/// Agents are members; their names are `system:node:<node>`.
pub const NODES: &str = "system:nodes";
pub const NODE_PREFIX: &str = "system:node:";

/// Who made a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
}

impl UserInfo {
    /// A user that proved who it is; joins `system:authenticated`.
    pub fn authenticated(
        name: impl Into<String>,
        groups: impl IntoIterator<Item = String>,
    ) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_string());
        }
        Self {
            name: name.into(),
            uid: String::new(),
            groups,
        }
    }

    /// A request that carries no credentials.
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_string(),
            uid: String::new(),
            groups: vec![UNAUTHENTICATED.to_string()],
        }
    }

    /// The control plane's own parts.
    pub fn control_plane() -> Self {
        Self::authenticated("system:skiff", [MASTERS.to_string()])
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node that this user is the agent of.
    pub fn node(&self) -> Option<&str> {
        if self.is_in(NODES) {
            self.name.strip_prefix(NODE_PREFIX)
        } else {
            None
        }
    }
}
