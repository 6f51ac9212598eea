//! From the network to the unpacker: a bounded channel of chunks, read as a stream of bytes.
//!
//! A download that outruns the unpacker waits, so memory stays flat whatever a layer's size. The
//! two ends may break apart at any time: the reader then gets an error and not an end, so that
//! half a layer is never taken for a whole one.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// Chunks on the way. A chunk is what one read from a socket gave: some ten to some hundred kB.
const CHUNKS: usize = 4;

/// The end that is filled.
pub(super) struct Feed(mpsc::Sender<Part>);

/// The end that is read, on a thread that may block.
pub(super) struct Fed {
    parts: mpsc::Receiver<Part>,
    chunk: Bytes,
    ended: bool,
}

enum Part {
    Chunk(Bytes),
    End,
}

/// The reader is gone: it found something wrong, and says so itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

pub(super) fn channel() -> (Feed, Fed) {
    let (feed, parts) = mpsc::channel(CHUNKS);
    let fed = Fed {
        parts,
        chunk: Bytes::new(),
        ended: false,
    };
    (Feed(feed), fed)
}

impl Feed {
    /// Waits until there is room.
    pub(super) async fn send(&self, chunk: Bytes) -> Result<(), Refused> {
        self.0.send(Part::Chunk(chunk)).await.map_err(|_| Refused)
    }

    /// Says that this was all.
    pub(super) async fn end(self) -> Result<(), Refused> {
        self.0.send(Part::End).await.map_err(|_| Refused)
    }
}

impl Read for Fed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() && !self.ended {
            match self.parts.blocking_recv() {
                Some(Part::Chunk(chunk)) => self.chunk = chunk,
                Some(Part::End) => self.ended = true,
                None => return Err(io::Error::other("the download was given up")),
            }
        }
        let read = self.chunk.len().min(buffer.len());
        self.chunk.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_fed_is_read() {
        let (feed, mut fed) = channel();
        let reading = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            fed.read_to_end(&mut all).map(|_| all)
        });
        for chunk in ["he", "", "llo", " ", "wor", "ld"] {
            feed.send(Bytes::from_static(chunk.as_bytes()))
                .await
                .unwrap();
        }
        feed.end().await.unwrap();
        assert_eq!(reading.await.unwrap().unwrap(), b"hello world");
    }

    #[tokio::test]
    async fn a_feed_that_breaks_off_is_an_error() {
        let (feed, mut fed) = channel();
        feed.send(Bytes::from_static(b"half")).await.unwrap();
        drop(feed);
        let read = tokio::task::spawn_blocking(move || fed.read_to_end(&mut Vec::new()));
        assert!(read.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_reader_that_gives_up_stops_the_feed() {
        let (feed, fed) = channel();
        drop(fed);
        assert_eq!(feed.send(Bytes::from_static(b"x")).await, Err(Refused));
        assert_eq!(feed.end().await, Err(Refused));
    }
}
