//! The API over HTTP: a path and a method become a verb on a resource, which one generic
//! pipeline serves.
//!
//! ```text
//! authenticate -> authorize -> decode -> default -> admit -> validate -> store
//!                                                              watch cache -> get, list, watch
//! ```

pub mod discovery;
pub mod openapi;
pub mod patch;
pub mod status;
pub mod table;
