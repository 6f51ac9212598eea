//! Domain names as messages carry them: length-prefixed labels, lower case, ended by an empty one.

use std::fmt;

/// The most bytes that a name has on the wire (RFC 1035, 2.3.4).
const MAX_NAME: usize = 255;
const MAX_LABEL: usize = 63;
/// The two high bits of a length that make it a pointer to an earlier name.
pub(super) const POINTER: u8 = 0xc0;

/// A whole name in lower case, so that equal names have equal bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Name(Box<[u8]>);

/// The bytes are no name: a label runs past the end, a pointer does not point backwards, or the
/// name is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a domain name")]
pub(super) struct InvalidName;

impl Name {
    /// Reads the name at `at`, following pointers; gives it and where the bytes after it begin.
    pub(super) fn read(message: &[u8], at: usize) -> Result<(Self, usize), InvalidName> {
        let mut bytes = Vec::with_capacity(64);
        let (mut at, mut end) = (at, None);
        loop {
            let length = *message.get(at).ok_or(InvalidName)?;
            match length & POINTER {
                0 => {
                    let next = at + 1 + usize::from(length);
                    let label = message.get(at..next).ok_or(InvalidName)?;
                    bytes.extend(label.iter().map(u8::to_ascii_lowercase));
                    if bytes.len() > MAX_NAME {
                        return Err(InvalidName);
                    }
                    at = next;
                    if length == 0 {
                        return Ok((Self(bytes.into()), end.unwrap_or(at)));
                    }
                }
                POINTER => {
                    let low = *message.get(at + 1).ok_or(InvalidName)?;
                    let target = usize::from(length & !POINTER) << 8 | usize::from(low);
                    // Only backwards: that is what makes this loop end.
                    if target >= at {
                        return Err(InvalidName);
                    }
                    end.get_or_insert(at + 2);
                    at = target;
                }
                _ => return Err(InvalidName),
            }
        }
    }

    /// The name of a dotted text; a dot at the end changes nothing.
    pub(super) fn parse(text: &str) -> Result<Self, InvalidName> {
        let mut bytes = Vec::with_capacity(text.len() + 2);
        for label in text.trim_end_matches('.').split('.') {
            push_label(&mut bytes, label)?;
        }
        bytes.push(0);
        if bytes.len() > MAX_NAME {
            return Err(InvalidName);
        }
        Ok(Self(bytes.into()))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The labels, without the empty one at the end.
    pub(super) fn labels(&self) -> Labels<'_> {
        Labels { rest: &self.0 }
    }

    /// What stands before `zone` when the name is in it, itself included.
    pub(super) fn within(&self, zone: &Name) -> Option<Labels<'_>> {
        let mut labels = self.labels();
        let mut before = self.0.len().checked_sub(zone.0.len())?;
        if self.0[before..] != *zone.0 {
            return None;
        }
        // The zone has to begin where a label does.
        while before > 0 {
            let label = labels.next()?;
            before = before.checked_sub(label.len() + 1)?;
        }
        Some(Labels {
            rest: &self.0[..self.0.len() - zone.0.len()],
        })
    }
}

/// Appends a label in lower case.
pub(super) fn push_label(bytes: &mut Vec<u8>, label: &str) -> Result<(), InvalidName> {
    if label.is_empty() || label.len() > MAX_LABEL {
        return Err(InvalidName);
    }
    // At most 63, so that it fits.
    bytes.push(label.len() as u8);
    bytes.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
    Ok(())
}

/// Where the bytes after the name at `at` begin. Pointers are not followed.
pub(super) fn skip(message: &[u8], mut at: usize) -> Result<usize, InvalidName> {
    loop {
        let length = *message.get(at).ok_or(InvalidName)?;
        match length & POINTER {
            0 if length == 0 => return Ok(at + 1),
            0 => at += 1 + usize::from(length),
            POINTER if at + 2 <= message.len() => return Ok(at + 2),
            _ => return Err(InvalidName),
        }
    }
}

/// Labels, first to last; what is left is still in the form of the wire.
#[derive(Clone)]
pub(super) struct Labels<'a> {
    rest: &'a [u8],
}

impl<'a> Labels<'a> {
    /// Of bytes that need not end with the empty label.
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The labels that were not taken yet, length bytes included.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Labels<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (&length, rest) = self.rest.split_first()?;
        if length == 0 {
            return None;
        }
        let (label, rest) = rest.split_at_checked(usize::from(length))?;
        self.rest = rest;
        Some(label)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for label in self.labels() {
            write!(f, "{}.", label.escape_ascii())?;
        }
        if self.0.len() == 1 {
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn reads_labels_and_follows_pointers() {
        let message = b"\x05Local\x00\x03WWW\xc0\x00rest";
        let (found, end) = Name::read(message, 7).unwrap();
        assert_eq!(found, name("www.local"));
        assert_eq!(&message[end..], b"rest");
        assert_eq!(skip(message, 7), Ok(end));
    }

    #[test]
    fn refuses_what_is_no_name() {
        let endless = b"\x01a\xc0\x00";
        let forwards = b"\xc0\x02\x00";
        let cut = b"\x05abc";
        let reserved = b"\x41a\x00";
        let long = [[1, b'a'].repeat(128), vec![0]].concat();
        for bad in [&endless[..], forwards, cut, reserved, &long, b""] {
            assert_eq!(Name::read(bad, 0), Err(InvalidName), "{bad:?}");
        }
        assert!(Name::parse("a..b").is_err());
        assert!(Name::parse(&"a".repeat(64)).is_err());
    }

    #[test]
    fn knows_its_zone() {
        let zone = name("cluster.local");
        let before = |text: &str| {
            let name = name(text);
            let labels = name.within(&zone)?;
            Some(labels.map(<[u8]>::to_vec).collect::<Vec<_>>())
        };
        assert_eq!(
            before("A.b.Cluster.Local."),
            Some(vec![b"a".to_vec(), b"b".to_vec()])
        );
        assert_eq!(before("cluster.local"), Some(vec![]));
        assert_eq!(before("mycluster.local"), None);
        assert_eq!(before("local"), None);
    }
}
