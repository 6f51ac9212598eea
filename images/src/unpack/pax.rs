//! PAX records: `<length> <key>=<value>\n`, where the length counts all of it.

use std::io;

use super::sparse::{self, Segment};
use super::stream::bad;

const XATTR: &str = "SCHILY.xattr.";

/// The records before one entry, in their order.
#[derive(Debug, Default)]
pub(super) struct Records(Vec<(String, Vec<u8>)>);

impl Records {
    pub(super) fn parse(bytes: Vec<u8>) -> io::Result<Self> {
        let mut records = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (record, after) = split(rest).ok_or_else(|| bad("a PAX record is malformed"))?;
            records.push(record);
            rest = after;
        }
        Ok(Self(records))
    }

    /// The last value of a key. An empty one means that there is none.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        let (_, value) = self.0.iter().rev().find(|(own, _)| own == key)?;
        (!value.is_empty()).then_some(value)
    }

    pub(super) fn text(&self, key: &str) -> io::Result<Option<Vec<u8>>> {
        match self.get(key) {
            Some(value) if value.contains(&0) => Err(bad("a PAX name holds a zero byte")),
            value => Ok(value.map(<[u8]>::to_vec)),
        }
    }

    pub(super) fn number(&self, key: &str) -> io::Result<Option<u64>> {
        self.get(key)
            .map(|value| number(value).ok_or_else(|| bad("a PAX number is malformed")))
            .transpose()
    }

    /// The size with its holes, if the file is sparse.
    pub(super) fn sparse_size(&self) -> io::Result<Option<u64>> {
        match self.number("GNU.sparse.realsize")? {
            Some(size) => Ok(Some(size)),
            None => self.number("GNU.sparse.size"),
        }
    }

    /// Where the parts of a sparse file are, in the formats 0.0 and 0.1. Format 1.0 has it in
    /// the content.
    pub(super) fn sparse_map(&self) -> io::Result<Option<Vec<Segment>>> {
        if self.get("GNU.sparse.major") == Some(b"1") {
            return Ok(None);
        }
        let numbers: Vec<&[u8]> = match self.get("GNU.sparse.map") {
            Some(map) => map.split(|byte| *byte == b',').collect(),
            None => self
                .0
                .iter()
                .filter(|(key, _)| key == "GNU.sparse.offset" || key == "GNU.sparse.numbytes")
                .map(|(_, value)| value.as_slice())
                .collect(),
        };
        let numbers: Option<Vec<u64>> = numbers.into_iter().map(number).collect();
        let numbers = numbers.ok_or_else(|| bad("a PAX number is malformed"))?;
        sparse::pairs(&numbers).map(Some)
    }

    /// Names and values of extended attributes.
    pub(super) fn into_xattrs(self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.0
            .into_iter()
            .filter_map(|(key, value)| {
                let name = key.strip_prefix(XATTR)?;
                Some((name.as_bytes().to_vec(), value))
            })
            .collect()
    }
}

/// A record and what follows it.
#[expect(clippy::type_complexity, reason = "a record, and the rest")]
fn split(bytes: &[u8]) -> Option<((String, Vec<u8>), &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(number(&bytes[..space])?).ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let key = std::str::from_utf8(&record[..equals]).ok()?;
    let value = record[equals + 1..].to_vec();
    (!key.is_empty() && !key.contains('\0')).then(|| ((key.to_owned(), value), &bytes[length..]))
}

/// Decimal digits alone.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().ok(),
        false => None,
    }
}

/// Decimal seconds with an optional fraction, perhaps before 1970, as seconds and nanoseconds.
pub(super) fn time(value: &[u8]) -> Option<(i64, i64)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    match whole.starts_with('-') && nanoseconds > 0 {
        true => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        false => Some((seconds, nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_any_byte() {
        let bytes = b"14 path=a\nb=c\n22 SCHILY.xattr.a=\xff\n\x0a\n13 linkpath=\n";
        let records = Records::parse(bytes.to_vec()).unwrap();
        assert_eq!(records.get("path"), Some(&b"a\nb=c"[..]));
        assert_eq!(records.get("linkpath"), None);
        let xattrs = records.into_xattrs();
        assert_eq!(xattrs, [(b"a".to_vec(), b"\xff\n\n".to_vec())]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bytes in [
            &b"x path=a\n"[..],
            b"9999 path=a\n",
            b"10 path=ab",
            b"5 a=b",
            b"1 \n",
            b"0 a=b\n",
            b"5 =a\n",
            b"18446744073709551616 a=b\n",
        ] {
            assert!(
                Records::parse(bytes.to_vec()).is_err(),
                "{}",
                bytes.escape_ascii()
            );
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        for (text, expected) in [
            ("12", Some((12, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.1234567891", Some((12, 123_456_789))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-3", Some((-3, 0))),
            ("x", None),
            ("1.x", None),
            ("-9223372036854775808.5", None),
        ] {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }
}
