//! The data plane of services: what kube-proxy does elsewhere.
//!
//! ```text
//! service_watch -> model -> program of each service that changed
//!     -> tables: the difference -> one nftables transaction -> stale UDP connections deleted
//!                                                           -> lost: a little later, unanswered others too
//! ```
//!
//! [`model`] says which endpoints a service's packets may go to, [`program`] what that asks of the node's
//! table, [`layout`] how the table looks, [`tables`] what has to change. The pods' host ports and the
//! other nodes' addresses are programs in the same table.

mod conntrack;
mod health;
mod layout;
mod lost;
mod model;
mod program;
mod proxy;
mod selectors;
mod tables;
mod withdrawal;

pub(in crate::net) use layout::Blocks;
pub(in crate::net) use program::{Entry, Frontend, Owner, Program, Protocol, ServiceName, Target};
#[cfg(test)]
pub(in crate::net) use proxy::Known;
pub(crate) use proxy::ServiceProxy;
pub(in crate::net) use proxy::Services;
pub(in crate::net) use tables::Tables;
pub(in crate::net) use withdrawal::Committed;
