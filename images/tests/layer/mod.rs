//! Layers made entry by entry, honest or not.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::io;

use tar::{EntryType, Header};

/// A tar stream under construction.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// An entry with exactly this name, whatever it says.
    pub(crate) fn entry(
        mut self,
        name: &str,
        kind: EntryType,
        edit: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = header(name, kind);
        edit(&mut header);
        header.set_cksum();
        self.0.append(&header, io::empty()).unwrap();
        self
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(name, EntryType::Directory, |header| header.set_mode(0o755))
    }

    pub(crate) fn file(mut self, name: &str, content: &str) -> Self {
        let mut header = header(name, EntryType::Regular);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content.as_bytes()).unwrap();
        self
    }

    pub(crate) fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        self.entry(name, kind, |header| {
            header.set_link_name_literal(target).unwrap();
        })
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, name, target)
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Link, name, target)
    }

    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0
            .append_pax_extensions(records.iter().copied())
            .unwrap();
        self
    }

    pub(crate) fn bytes(
        mut self,
        name: &str,
        content: &[u8],
        edit: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = header(name, EntryType::Regular);
        header.set_size(content.len() as u64);
        edit(&mut header);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    /// Records that hold for all entries that follow.
    pub(crate) fn pax_global(self, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            // The length counts its own two digits.
            let length = key.len() + value.len() + 5;
            assert!((10..100).contains(&length));
            content.extend(format!("{length} {key}=").bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.bytes("pax_global_header", &content, |header| {
            header.set_entry_type(EntryType::XGlobalHeader);
        })
    }

    /// Blocks as another tool wrote them, without the end mark.
    pub(crate) fn raw(mut self, stream: &[u8]) -> Self {
        let blocks: Vec<&[u8]> = stream.chunks(512).collect();
        let end = blocks
            .iter()
            .rposition(|block| block.iter().any(|byte| *byte != 0))
            .map_or(0, |last| last + 1);
        for block in &blocks[..end] {
            self.0.get_mut().extend_from_slice(block);
        }
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn header(name: &str, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(0);
    header
}
