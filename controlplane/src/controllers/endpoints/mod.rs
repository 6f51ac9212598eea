//! Which pods are behind which Service.
//!
//!     pods, Services -> selection -> endpoint -> slices (EndpointSlices), legacy (Endpoints)
//!     hand-written Endpoints -> mirror -> EndpointSlices
//!     the API server's own address -> kubernetes (the Service `kubernetes`)
//!
//! `selection` finds the Services that a pod's change concerns; `endpoint` says what a pod is
//! to a Service. EndpointSlices are what data planes and DNS read; Endpoints are kept for older
//! clients. A pod that is deleted leaves both by the very event of its deletion.

mod endpoint;
mod kubernetes;
mod legacy;
mod mirror;
mod packing;
mod selection;
mod slices;
mod trigger;
mod written;

use kube::Client;

use super::Informers;
use super::tasks::Tasks;
pub use kubernetes::Advertised;

pub(super) fn start(
    client: &Client,
    informers: &Informers,
    advertised: Option<Advertised>,
    tasks: &Tasks,
) {
    slices::start(client.clone(), informers, tasks);
    legacy::start(client.clone(), informers, tasks);
    mirror::start(client.clone(), informers, tasks);
    kubernetes::start(client.clone(), informers, advertised, tasks);
}
