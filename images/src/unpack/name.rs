//! Names in a layer: what an entry is called, where it belongs and whether it is a whiteout.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names that aufs kept its own books under; they mean nothing to anyone else.
const AUFS: &[u8] = b".wh..wh.";

/// As long as a path can be that a program opens (`linux/limits.h`).
const PATH_MAX: usize = 4096;

/// The components of a path below the layer's root. None of them is empty, `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Components(Vec<OsString>);

/// What an entry's name says it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Root,
    Path {
        parent: Components,
        file: OsString,
    },
    /// Hides `file` of the layers below.
    Whiteout {
        parent: Components,
        file: OsString,
    },
    /// Hides all that the layers below have in this directory.
    Opaque {
        directory: Components,
    },
    /// To be passed over.
    Ignored,
}

impl Name {
    /// # Errors
    /// The reason why no honest layer has this name.
    pub(super) fn parse(raw: &[u8]) -> Result<Self, String> {
        let Components(mut components) = Components::parse(raw)?;
        if components
            .iter()
            .any(|c| c.as_bytes().starts_with(AUFS) && c.as_bytes() != OPAQUE)
        {
            return Ok(Self::Ignored);
        }
        let Some(file) = components.pop() else {
            return Ok(Self::Root);
        };
        if components
            .iter()
            .any(|c| c.as_bytes().starts_with(WHITEOUT))
        {
            return Err("a whiteout can't be a directory".to_owned());
        }
        let parent = Components(components);
        if file.as_bytes() == OPAQUE {
            return Ok(Self::Opaque { directory: parent });
        }
        match file.as_bytes().strip_prefix(WHITEOUT) {
            None => Ok(Self::Path { parent, file }),
            Some(b"" | b"." | b"..") => Err("a whiteout must name a file".to_owned()),
            Some(hidden) => Ok(Self::Whiteout {
                parent,
                file: OsStr::from_bytes(hidden).to_owned(),
            }),
        }
    }
}

impl Components {
    pub(super) fn parse(raw: &[u8]) -> Result<Self, String> {
        if raw.starts_with(b"/") {
            return Err("absolute paths are not allowed".to_owned());
        }
        if raw.contains(&0) {
            return Err("the name holds a zero byte".to_owned());
        }
        if raw.len() > PATH_MAX {
            return Err(format!("the path is longer than {PATH_MAX} bytes"));
        }
        let mut components = Vec::new();
        for component in raw.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err("'..' is not allowed in a path".to_owned()),
                name if name.len() > 255 => {
                    return Err("a file name is longer than 255 bytes".to_owned());
                }
                name => components.push(OsStr::from_bytes(name).to_owned()),
            }
        }
        Ok(Self(components))
    }

    /// The target of a hard link: a path below the root.
    pub(super) fn parse_link_target(raw: &[u8]) -> Result<(Self, OsString), String> {
        let Self(mut components) = Self::parse(raw)
            .map_err(|reason| format!("hard link to '{}': {reason}", raw.escape_ascii()))?;
        match components.pop() {
            Some(file) => Ok((Self(components), file)),
            None => Err("hard link to the layer's root".to_owned()),
        }
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &OsStr> {
        self.0.iter().map(OsString::as_os_str)
    }

    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn to_path(&self) -> PathBuf {
        self.0.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn components(path: &str) -> Components {
        Components::parse(path.as_bytes()).unwrap()
    }

    #[test]
    fn names_are_told_apart() {
        for (raw, name) in [
            ("./", Name::Root),
            ("", Name::Root),
            (
                "./a//b/",
                Name::Path {
                    parent: components("a"),
                    file: "b".into(),
                },
            ),
            (
                "a/.wh.b",
                Name::Whiteout {
                    parent: components("a"),
                    file: "b".into(),
                },
            ),
            (
                "a/.wh..wh..opq",
                Name::Opaque {
                    directory: components("a"),
                },
            ),
            (".wh..wh.plnk/12.34", Name::Ignored),
            (
                ".whatever",
                Name::Path {
                    parent: components(""),
                    file: ".whatever".into(),
                },
            ),
        ] {
            assert_eq!(Name::parse(raw.as_bytes()), Ok(name), "{raw}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let long = "x".repeat(256);
        for raw in [
            "/etc/passwd",
            "..",
            "../a",
            "a/../../b",
            "a/..",
            ".wh.",
            "a/.wh..",
            ".wh...",
            ".wh.a/b",
            "a\0b",
            &long,
            &"x/".repeat(2049),
        ] {
            assert!(Name::parse(raw.as_bytes()).is_err(), "{raw}");
        }
    }
}
