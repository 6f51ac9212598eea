//! Debian's `docker-registry`, as the images crate tests with it.
#![allow(dead_code, reason = "each test binary uses some of it")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../images/tests/registry/certificates.rs"]
pub(crate) mod certificates;
#[path = "../../images/tests/registry/debian.rs"]
pub(crate) mod debian;
