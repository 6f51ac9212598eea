//! What a repository holds: manifests, read whole and checked, and blobs, which arrive in pieces.

use std::fmt;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName};

use super::error::{Failure, Operation, RegistryError};
use super::transport::{Answer, show};
use crate::Digest;

/// The largest manifest or index that is read, in bytes: what containerd and the distribution
/// specification agree on.
pub const MANIFEST_LIMIT: usize = 4 * 1024 * 1024;

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Tag(String),
    Digest(Digest),
}

impl From<Digest> for Target {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A manifest or an index, as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub bytes: Bytes,
    /// As the registry says, or else as the manifest itself does; empty if neither.
    pub media_type: String,
    /// Of `bytes`: computed, and the one asked for if one was.
    pub digest: Digest,
}

/// A blob's bytes, arriving. They are not verified: whoever has all of them does that.
pub struct Blob {
    /// Where the stream starts: at the offset asked for, or before it (mostly at 0) if the
    /// registry knows no ranges.
    pub offset: u64,
    /// The size of the whole blob, if the registry tells.
    pub total: Option<u64>,
    /// Ends at the blob's end. An error ends it too; a transient one means that the rest can be
    /// asked for again.
    pub stream: BoxStream<'static, Result<Bytes, RegistryError>>,
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob")
            .field("offset", &self.offset)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

pub(super) async fn expect(answer: Answer, statuses: &[StatusCode]) -> Result<Answer, Failure> {
    match statuses.contains(&answer.status()) {
        true => Ok(answer),
        false => Err(answer.into_failure().await),
    }
}

/// The digest that a registry says its manifest has.
pub(super) fn said_digest(answer: &Answer) -> Option<Digest> {
    answer.header(DOCKER_CONTENT_DIGEST)?.parse().ok()
}

pub(super) async fn read_manifest(answer: Answer, target: &Target) -> Result<Manifest, Failure> {
    let answer = expect(answer, &[StatusCode::OK]).await?;
    let url = show(&answer.url);
    let expected = match target {
        Target::Digest(digest) => Some(*digest),
        Target::Tag(_) => said_digest(&answer),
    };
    let said_type = answer.header(CONTENT_TYPE).and_then(media_type);
    let length = content_length(&answer);
    if length.is_some_and(|length| length > MANIFEST_LIMIT as u64) {
        return Err(Failure::ManifestTooLarge { url });
    }
    let Some(bytes) = answer.read(MANIFEST_LIMIT).await? else {
        return Err(Failure::ManifestTooLarge { url });
    };
    let digest = Digest::of(&bytes);
    match expected {
        Some(expected) if expected != digest => Err(Failure::Mismatch {
            url,
            expected,
            actual: digest,
        }),
        _ => Ok(Manifest {
            media_type: said_type.unwrap_or_else(|| own_media_type(&bytes)),
            bytes,
            digest,
        }),
    }
}

/// Without its parameters; nothing for the types that mean "some file".
fn media_type(header: &str) -> Option<String> {
    let name = header.split(';').next().unwrap_or_default().trim();
    let vague = matches!(
        name,
        "" | "text/plain" | "application/json" | "application/octet-stream"
    );
    (!vague).then(|| name.to_ascii_lowercase())
}

/// What a manifest says it is.
fn own_media_type(bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Typed {
        #[serde(rename = "mediaType")]
        media_type: Option<String>,
    }
    let typed: Option<Typed> = serde_json::from_slice(bytes).ok();
    typed.and_then(|typed| typed.media_type).unwrap_or_default()
}

pub(super) async fn open_blob(
    answer: Answer,
    offset: u64,
    operation: Operation,
) -> Result<Blob, Failure> {
    let url = show(&answer.url);
    let fail = |reason: String| Failure::Answer {
        url: url.clone(),
        reason,
    };
    let length = content_length(&answer);
    let range = answer.header(CONTENT_RANGE).map(ContentRange::parse);
    let (start, length, total) = match (answer.status(), range) {
        (StatusCode::OK, _) => (0, length, length),
        (StatusCode::PARTIAL_CONTENT, Some(Some(ContentRange::Part { first, last, total })))
            if first <= offset =>
        {
            (first, Some(last - first + 1), total)
        }
        (StatusCode::PARTIAL_CONTENT, _) => {
            let reason = format!("it gave another part than the one from byte {offset} on");
            return Err(fail(reason));
        }
        // Nothing is left to fetch.
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(Some(ContentRange::Outside { total })))
            if offset == total =>
        {
            return Ok(Blob {
                offset,
                total: Some(total),
                stream: futures::stream::empty().boxed(),
            });
        }
        _ => return Err(answer.into_failure().await),
    };
    let body = answer.into_body(length);
    Ok(Blob {
        offset: start,
        total,
        stream: body
            .map_err(move |failure| RegistryError::new(operation.clone(), failure))
            .boxed(),
    })
}

fn content_length(answer: &Answer) -> Option<u64> {
    answer.header(CONTENT_LENGTH)?.parse().ok()
}

/// A `Content-Range` (RFC 9110, 14.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContentRange {
    Part {
        first: u64,
        last: u64,
        total: Option<u64>,
    },
    Outside {
        total: u64,
    },
}

impl ContentRange {
    fn parse(text: &str) -> Option<Self> {
        let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        if range == "*" {
            let total = total.parse().ok()?;
            return Some(Self::Outside { total });
        }
        let (first, last) = range.split_once('-')?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let total = match total {
            "*" => None,
            total => Some(total.parse().ok()?),
        };
        let sound = first <= last && last < total.unwrap_or(u64::MAX);
        sound.then_some(Self::Part { first, last, total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_with_suspicion() {
        let part = |first, last, total| Some(ContentRange::Part { first, last, total });
        for (text, range) in [
            ("bytes 5-9/10", part(5, 9, Some(10))),
            ("bytes 5-9/*", part(5, 9, None)),
            ("bytes */10", Some(ContentRange::Outside { total: 10 })),
            ("bytes 5-10/10", None),
            ("bytes 9-5/10", None),
            ("bytes 0-18446744073709551615/*", None),
            ("bytes -5/10", None),
            ("items 0-1/2", None),
            ("bytes 0-1", None),
            ("", None),
        ] {
            assert_eq!(ContentRange::parse(text), range, "{text}");
        }
    }

    #[test]
    fn vague_media_types_are_none() {
        assert_eq!(
            media_type("application/vnd.OCI.image.index.v1+json; charset=utf-8").as_deref(),
            Some("application/vnd.oci.image.index.v1+json")
        );
        assert_eq!(media_type("application/json"), None);
        assert_eq!(media_type(""), None);
        assert_eq!(own_media_type(b"{\"mediaType\": \"a/b\"}"), "a/b");
        assert_eq!(own_media_type(b"nonsense"), "");
    }
}
