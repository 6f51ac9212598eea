//! What is fuzzed: parsers of what strangers wrote. Each target takes any bytes and panics when
//! something does not hold. `images/fuzz` gives them to libFuzzer; the tests here run each for a
//! few seconds on mutations of good input.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use oci_spec::image::{Descriptor, MediaType};

use crate::store::image;
use crate::unpack::Budget;
use crate::{Digest, Error, Limits, Reference};

/// A reference that is accepted reads back as it prints, in full and in short.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(reference) = text.parse::<Reference>() else {
        return;
    };
    for printed in [reference.to_string(), reference.familiar()] {
        let again: Result<Reference, _> = printed.parse();
        assert_eq!(again.as_ref(), Ok(&reference), "{text:?} {printed:?}");
    }
    assert!(!reference.registry().is_empty() && !reference.repository().is_empty());
    assert!(reference.tag().is_some() || reference.digest().is_some());
}

/// Documents (an index, a manifest, a configuration) one after the other, zero bytes between them.
/// Whatever they say, an image of which all parts fit is what comes out.
pub fn manifest(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    let media_type = match kind % 4 {
        0 => MediaType::ImageManifest,
        1 => MediaType::ImageIndex,
        2 => MediaType::from("application/vnd.docker.distribution.manifest.v2+json"),
        _ => MediaType::from("application/vnd.docker.distribution.manifest.list.v2+json"),
    };
    let mut documents = data.split(|byte| *byte == 0);
    let target = Descriptor::new(media_type, 0, Digest::of(b""));
    let parsed = image::parse("fuzzed", &target, &mut |digest| match documents.next() {
        Some(document) => Ok(document.to_vec()),
        None => Err(Error::NotFound(digest.to_string())),
    });
    let Ok(parsed) = parsed else {
        return;
    };
    let layers = parsed.manifest.layers().len();
    if let Ok(diff_ids) = parsed.diff_ids() {
        assert_eq!(diff_ids.len(), layers);
    }
    if let Ok(blobs) = parsed.blobs() {
        assert!(blobs.len() >= layers + 2);
    }
}

/// A layer, packed in whatever way. If the first byte is odd, the headers' sums are put right, so that
/// changed headers are looked at. Nothing outside the directory is touched, and limits are kept.
pub fn unpack(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    let mut data = data.to_vec();
    if kind % 2 == 1 {
        put_sums_right(&mut data);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    fs::create_dir(&root).expect("a directory");
    fs::create_dir(&outside).expect("a directory");
    fs::write(outside.join("target"), "untouched").expect("a file");
    let before = look(&outside);
    let limits = Limits {
        bytes: 16 << 20,
        entries: 200,
    };
    let budget = Budget::new(limits);
    let passed = crate::store::layer::pass(&data[..], None, Some(&root), &budget);
    assert_eq!(look(&outside), before);
    assert_eq!(names(dir.path()), ["outside", "root"]);
    let files = count(&root);
    assert!(files <= limits.entries, "{files} files");
    if let Ok(passed) = passed {
        let unpacked = passed.unpacked.expect("it was unpacked");
        assert!(unpacked.bytes <= limits.bytes && unpacked.entries <= limits.entries);
        for path in &unpacked.implied {
            assert!(root.join(path).is_dir(), "{}", path.display());
        }
    }
}

fn look(directory: &Path) -> Vec<(String, u32, u64, i64, u64, Vec<u8>)> {
    let look = |path: &Path, name: String| {
        let metadata = fs::symlink_metadata(path).expect("it is there");
        let changed = metadata.ctime_nsec();
        let content = fs::read(path).unwrap_or_default();
        (
            name,
            metadata.mode(),
            metadata.nlink(),
            changed,
            metadata.size(),
            content,
        )
    };
    let mut seen = vec![look(directory, String::new())];
    seen.extend(
        names(directory)
            .into_iter()
            .map(|name| look(&directory.join(&name), name)),
    );
    seen
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<String> = entries
        .map(|entry| name(entry.expect("an entry")))
        .collect();
    names.sort();
    names
}

fn count(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).expect("a directory");
    let entries = entries.map(|entry| entry.expect("an entry").path());
    let below = |path: &Path| {
        let metadata = fs::symlink_metadata(path).expect("it is there");
        if metadata.is_dir() { count(path) } else { 0 }
    };
    entries.map(|path| 1 + below(&path)).sum()
}

/// Goes from header to header as an unpacker would, and makes each valid.
fn put_sums_right(data: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = data.get_mut(at..at + 512) {
        if block.iter().all(|byte| *byte == 0) {
            return;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let size = tar::Header::from_byte_slice(block)
            .entry_size()
            .unwrap_or(0);
        let Ok(size) = usize::try_from(size) else {
            return;
        };
        let Some(next) = size
            .checked_next_multiple_of(512)
            .and_then(|size| size.checked_add(at + 512))
        else {
            return;
        };
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::{EntryType, Header};

    /// xorshift64*: the same mutations each time.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
        }

        fn below(&mut self, bound: usize) -> usize {
            usize::try_from(self.next() >> 16).unwrap() % bound.max(1)
        }

        fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
            all[self.below(all.len())]
        }

        fn mutate(&mut self, seeds: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
            let mut data = seeds[self.below(seeds.len())].clone();
            for _ in 0..=self.below(6) {
                let at = self.below(data.len());
                let length = self.below(64).min(data.len() - at);
                match self.below(8) {
                    0 if !data.is_empty() => data[at] ^= 1 << self.below(8),
                    1 if !data.is_empty() => data[at] = self.next() as u8,
                    2 => drop(data.drain(at..at + length)),
                    3 => {
                        let copy = data[at..at + length].to_vec();
                        data.splice(at..at, copy);
                    }
                    4 => {
                        // The name of an entry, or the target of a link, in a tar stream.
                        let field = at / 512 * 512 + [1, 158][self.below(2)];
                        let word = self.of(words);
                        if let Some(place) = data.get_mut(field..field + word.len() + 1) {
                            place[..word.len()].copy_from_slice(word);
                            place[word.len()] = 0;
                        }
                    }
                    5 => drop(data.splice(at..at + length, self.of(words).iter().copied())),
                    6 if data.len() > 2048 => {
                        // Whole blocks change places.
                        let (from, to) =
                            (self.below(data.len() / 512), self.below(data.len() / 512));
                        for byte in 1..512 {
                            let last = data.len() - 1;
                            data.swap((from * 512 + byte).min(last), (to * 512 + byte).min(last));
                        }
                    }
                    _ => {
                        let other = &seeds[self.below(seeds.len())];
                        let from = self.below(other.len());
                        data.truncate(at);
                        data.extend_from_slice(&other[from..]);
                    }
                }
            }
            data
        }
    }

    /// As many as take a second or two; FUZZ_RUNS asks for more, FUZZ_SEED for others.
    fn runs(default: usize) -> (Random, usize) {
        let number = |name: &str| std::env::var(name).ok()?.parse().ok();
        let seed = number("FUZZ_SEED").unwrap_or(0x5EED) as u64;
        (Random(seed.max(1)), number("FUZZ_RUNS").unwrap_or(default))
    }

    #[test]
    fn references_read_back() {
        let digest = Digest::of(b"").to_string();
        let seeds: Vec<Vec<u8>> = [
            "nginx".to_owned(),
            "docker.io/library/nginx:1.27".to_owned(),
            "localhost:5000/a/b:c".to_owned(),
            format!("[::1]:5000/a__b/c-d.e:t@{digest}"),
            format!("index.docker.io/x@{digest}"),
            "Host/Path:TAG_1.0-x".to_owned(),
        ]
        .map(String::into_bytes)
        .to_vec();
        let words: [&[u8]; 8] = [
            b":",
            b"/",
            b"@",
            b"sha256:",
            b"library/",
            b"docker.io",
            b"..",
            b"[::1]",
        ];
        let (mut random, runs) = runs(100_000);
        for _ in 0..runs {
            reference(&random.mutate(&seeds, &words));
        }
    }

    #[test]
    fn manifests_fit_or_are_refused() {
        let digest = Digest::of(b"x");
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["x"],"Labels":null}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#
        );
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":1}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":1}}]}}"#
        );
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":1,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
        );
        let seeds = [
            format!("\u{0}{manifest}\0{config}").into_bytes(),
            format!("\u{2}{manifest}\0{config}").into_bytes(),
            format!("\u{1}{index}\0{manifest}\0{config}").into_bytes(),
            format!("\u{3}{index}\0{manifest}\0{config}").into_bytes(),
        ];
        // They are as good as they look, or the mutations would never get far.
        for seed in &seeds {
            let mut documents = seed[1..].split(|byte| *byte == 0);
            let kind = if seed[0] % 2 == 0 {
                MediaType::ImageManifest
            } else {
                MediaType::ImageIndex
            };
            let target = Descriptor::new(kind, 0, digest);
            let mut read = |_| Ok(documents.next().unwrap().to_vec());
            assert_eq!(
                image::parse("x", &target, &mut read)
                    .unwrap()
                    .diff_ids()
                    .unwrap(),
                [digest]
            );
        }
        let words: [&[u8]; 8] = [
            b"{",
            b"[",
            b"null",
            b"\"digest\"",
            b"-1",
            b"99999999999999999999",
            b"\\u0000",
            b"\"\"",
        ];
        let (mut random, runs) = runs(10_000);
        for _ in 0..runs {
            super::manifest(&random.mutate(&seeds, &words));
        }
    }

    #[test]
    fn layers_stay_where_they_belong() {
        let seeds = [
            seed(1, layer()),
            seed(1, sparse()),
            seed(0, gzip(&layer())),
            seed(0, zstd(&layer())),
        ];
        let words: [&[u8]; 14] = [
            b"../outside/target",
            b"/outside/target",
            b"link/target",
            b"link",
            b"../outside",
            b"/",
            b".wh.",
            b".wh..wh..opq",
            b".wh.file",
            b"d/../../outside",
            b"./",
            b"file",
            b"d/file",
            b"twin",
        ];
        let (mut random, runs) = runs(400);
        for _ in 0..runs {
            super::unpack(&random.mutate(&seeds, &words));
        }
    }

    fn seed(kind: u8, layer: Vec<u8>) -> Vec<u8> {
        [vec![kind], layer].concat()
    }

    fn header(name: &str, kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o6755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(size);
        header
    }

    fn layer() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |name: &str, kind: EntryType, link: &str, content: &[u8]| {
            let mut header = header(name, kind, content.len() as u64);
            if !link.is_empty() {
                header.set_link_name_literal(link).unwrap();
            }
            if matches!(kind, EntryType::Char | EntryType::Block) {
                header.set_device_major(1).unwrap();
                header.set_device_minor(3).unwrap();
            }
            header.set_cksum();
            tar.append(&header, content).unwrap();
        };
        add("./", EntryType::Directory, "", b"");
        add("d/", EntryType::Directory, "", b"");
        add("x", EntryType::XGlobalHeader, "", b"13 comment=a\n");
        add(
            "x",
            EntryType::XHeader,
            "",
            b"25 SCHILY.xattr.user.a=b\n16 mtime=1.5555\n",
        );
        add("file", EntryType::Regular, "", b"content");
        add("twin", EntryType::Link, "file", b"");
        add("link", EntryType::Symlink, "d", b"");
        add("link/file", EntryType::Regular, "", &[0; 600]);
        add("out", EntryType::Symlink, "../outside", b"");
        add("implied/deep/file", EntryType::Regular, "", b"x");
        add(".wh.gone", EntryType::Regular, "", b"");
        add("d/.wh..wh..opq", EntryType::Regular, "", b"");
        add("null", EntryType::Char, "", b"");
        add("pipe", EntryType::Fifo, "", b"");
        add("@", EntryType::GNULongName, "", b"a/name/that/is/long\0");
        add("x", EntryType::Regular, "", b"");
        tar.into_inner().unwrap()
    }

    fn sparse() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let records =
            b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n31 GNU.sparse.realsize=1000000\n";
        let mut map = b"2\n0\n3\n999998\n2\n".to_vec();
        map.resize(512, 0);
        map.extend_from_slice(b"abcde");
        for (name, kind, content) in [
            ("x", EntryType::XHeader, &records[..]),
            ("holes", EntryType::Regular, &map),
        ] {
            let mut header = header(name, kind, content.len() as u64);
            header.set_cksum();
            tar.append(&header, content).unwrap();
        }
        let mut header = header("old", EntryType::GNUSparse, 3);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.sparse[0].offset.copy_from_slice(b"00000010000\0");
        gnu.sparse[0].numbytes.copy_from_slice(b"00000000003\0");
        gnu.realsize.copy_from_slice(b"00000020000\0");
        header.set_cksum();
        tar.append(&header, &b"abc"[..]).unwrap();
        tar.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(bytes).unwrap();
        packer.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    /// The seeds unpack as they are.
    #[test]
    fn seeds_are_good() {
        for layer in [layer(), sparse()] {
            let root = tempfile::tempdir().unwrap();
            crate::unpack(&layer[..], root.path(), Limits::default()).unwrap();
        }
    }
}
