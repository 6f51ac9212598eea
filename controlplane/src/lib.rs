//! The control plane: the Kubernetes API, its store, the controllers and the scheduler.

pub mod admission;
pub mod api;
pub mod auth;
pub mod cache;
pub mod controllers;
pub mod resources;
pub mod scheduler;
pub mod schema;
pub mod store;
