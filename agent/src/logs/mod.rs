//! Reading container logs: files in the CRI format, one for each attempt to run a container.
//!
//! The shim writes `<attempt>.log` and, when it grows large, renames it to `<attempt>.log.<time>` and
//! begins a new one. A [`LogStream`] gives what a user asked for: from the end, since a time,
//! or everything, and then, if it follows, whatever is written until the container has ended.
//! It holds on to the file that it reads, so a rename loses nothing: it reads that file to its
//! end and goes on with the one that was begun after it.
//!
//! ```text
//! LogSource + LogOptions -> position -> reader (line) -> LogStream -> HTTP body, terminal
//!                                         ^ watcher: the file grew, was rotated, the container ended
//! ```

mod follow;
mod line;
mod position;
mod reader;
#[cfg(test)]
mod tests;
mod watcher;

use std::fs::File;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;

use follow::Following;
pub use line::OutputStream;
use reader::{Format, Reader};
pub use watcher::{Watch, Watcher};

/// Where one attempt's log is, and where its end will be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSource {
    /// `<pod dir>/<container>/<attempt>.log`
    pub log_path: PathBuf,
    /// The directory of the container's record: following ends when the record says that the
    /// container has ended, or when it is gone.
    pub state_dir: PathBuf,
}

/// What to give out; the fields of Kubernetes' `PodLogOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    /// Begin each line with its time.
    pub timestamps: bool,
    /// Only that many lines of what is there at the beginning.
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    pub limit_bytes: Option<u64>,
    /// `None`: both.
    pub stream: Option<OutputStream>,
}

/// A log on its way to somebody.
pub struct LogStream {
    /// `None` only while it is lent to a thread that reads.
    position: Option<Position>,
    following: Option<Following>,
}

struct Position {
    reader: Reader,
    format: Format,
}

impl LogStream {
    /// Opens the log. The watcher is used only to follow.
    ///
    /// # Errors
    /// When the file does not exist or can't be read, or the host's limit of watches is reached.
    pub async fn open(
        source: LogSource,
        options: LogOptions,
        watcher: &Watcher,
    ) -> io::Result<Self> {
        // The watch begins before anything is read, so that no change falls in between.
        let following = match options.follow {
            true => Some(Following::begin(&source, watcher)?),
            false => None,
        };
        let position = blocking(move || {
            let file = File::open(&source.log_path)?;
            Ok(Position {
                reader: Reader::at(file, &options)?,
                format: Format::new(&options),
            })
        })
        .await?;
        Ok(Self {
            position: Some(position),
            following,
        })
    }

    /// The next bytes; `None` at the end. A call that is cancelled ends the log.
    ///
    /// # Errors
    /// When the file can't be read.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while let Some(mut position) = self.position.take() {
            let (position, bytes, at_end) = blocking(move || {
                let mut out = Vec::new();
                let at_end = !position.reader.read(&mut position.format, &mut out)?;
                Ok((position, out, at_end))
            })
            .await?;
            let exhausted = position.format.is_exhausted();
            if !exhausted {
                self.position = Some(position);
            }
            if !bytes.is_empty() {
                return Ok(Some(bytes.into()));
            }
            if at_end && !exhausted && !self.go_on().await? {
                self.position = None;
            }
        }
        Ok(None)
    }

    /// The log as a stream of bytes, for a response's body.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        futures::stream::try_unfold(self, |mut log| async move {
            Ok(log.next().await?.map(|bytes| (bytes, log)))
        })
    }

    /// At the file's end: whether there is, or may be, more to read.
    async fn go_on(&mut self) -> io::Result<bool> {
        match (&mut self.following, &mut self.position) {
            (Some(following), Some(position)) => following.go_on(&mut position.reader).await,
            _ => Ok(false),
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}
