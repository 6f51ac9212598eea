//! What changes or refuses a write before it is stored, beyond the rules of its own kind.
//!
//! Each step is a file with one function. They run in the order of [`admit`], on every
//! create and update of a main resource, and read other objects from the watch cache.

mod certificates;
mod drill_tasks;
mod namespace;
mod node;
mod node_labels;
mod priority;
mod service_account;
mod tolerations;

use serde_json::Value;

use crate::api::status::ApiError;
use crate::auth::UserInfo;
use crate::cache::Cache;
use crate::resources::Resource;
pub use node::{NodeWrite, restrict, restrict_change};
pub use node_labels::is_nodes_own;
pub use service_account::awaits;
pub use tolerations::DefaultTolerations;

/// A write on its way to the store.
pub struct Request<'a> {
    pub resource: &'a Resource,
    pub user: &'a UserInfo,
    /// Empty for cluster-scoped objects.
    pub namespace: &'a str,
    /// What is stored now; `None` for a create.
    pub old: Option<&'a Value>,
    pub cache: &'a Cache,
    pub tolerations: DefaultTolerations,
}

/// Passes a new or changed object through every step.
///
/// # Errors
/// Of the first step that refuses it.
pub fn admit(request: &Request<'_>, object: &mut Value) -> Result<(), ApiError> {
    namespace::exists(request)?;
    certificates::stamp(request, object);
    drill_tasks::restrict(request, object)?;
    service_account::admit(request, object)?;
    priority::admit(request, object)?;
    tolerations::admit(request, object);
    Ok(())
}
