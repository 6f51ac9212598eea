//! OCI images on a node: references, a content-addressed store, import, unpacking, packing.
//!
//! An archive (or a registry, through [`Puller`]) is read blob by blob. Each blob is hashed while
//! it is staged; a layer is unpacked in the same pass, so that nothing is read twice. When all of
//! an image is staged and verified, one commit renames it into the [`Store`] and names it in
//! `index.json`. The agent asks the store for an [`Image`] and mounts its layers.

mod archive;
mod credentials;
mod digest;
mod error;
mod export;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod import;
mod pack;
mod platform;
mod pull;
mod reference;
pub mod registry;
mod store;
mod unpack;

pub use credentials::{Credentials, CredentialsError, DockerConfig, Keyring};
pub use digest::{Digest, DigestError};
pub use error::Error;
pub use pack::{Compression, PackOptions, pack};
pub use platform::{Platform, PlatformError};
pub use pull::{
    FetchError, LayerStage, Observer, Offline, PullError, PullEvent, PullRequest, Pulled, Puller,
    RegistryPuller,
};
pub use reference::{Reference, ReferenceError};
pub use store::{Damaged, Image, Prune, Pruned, Removal, Removed, Store};
pub use unpack::{Limits, UnpackError, Unpacked, unpack};
