//! IPv4 address blocks in CIDR notation.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IPv4 block such as `10.42.8.0/22`. The address is always the block's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 block in CIDR notation, such as 10.42.0.0/16")]
pub struct InvalidCidr(String);

impl Cidr {
    /// The block of `prefix` bits (0 to 32) that contains `address`.
    pub const fn containing(address: Ipv4Addr, prefix: u8) -> Self {
        assert!(prefix <= 32, "an IPv4 prefix has at most 32 bits");
        Self {
            base: address.to_bits() & mask(prefix),
            prefix,
        }
    }

    pub fn first(&self) -> Ipv4Addr {
        self.base.into()
    }

    pub fn last(&self) -> Ipv4Addr {
        (self.base | !mask(self.prefix)).into()
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn mask(&self) -> Ipv4Addr {
        mask(self.prefix).into()
    }

    /// The address `offset` after the block's first; `None` past its end.
    pub fn nth(&self, offset: u32) -> Option<Ipv4Addr> {
        let address = Ipv4Addr::from(self.base.checked_add(offset)?);
        self.contains(address).then_some(address)
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.base
    }

    pub fn overlaps(&self, other: &Cidr) -> bool {
        let shorter = self.prefix.min(other.prefix);
        (self.base ^ other.base) & mask(shorter) == 0
    }

    /// The smaller blocks of `prefix` bits that this block divides into, in order.
    pub fn blocks(&self, prefix: u8) -> impl DoubleEndedIterator<Item = Cidr> + ExactSizeIterator {
        let count = match prefix.checked_sub(self.prefix) {
            Some(bits) if prefix <= 32 => 1usize << bits,
            _ => 0,
        };
        let base = self.base;
        (0..count).map(move |block| Cidr {
            base: base | ((block as u64) << (32 - prefix as u32)) as u32,
            prefix,
        })
    }
}

const fn mask(prefix: u8) -> u32 {
    match prefix {
        0 => 0,
        _ => u32::MAX << (32 - prefix),
    }
}

impl FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidCidr(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address: Ipv4Addr = address.parse().map_err(|_| invalid())?;
        let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
        if prefix > 32 {
            return Err(invalid());
        }
        Ok(Self::containing(address, prefix))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first(), self.prefix)
    }
}

impl TryFrom<String> for Cidr {
    type Error = InvalidCidr;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn parses_and_prints() {
        assert_eq!(cidr("10.42.9.7/22").to_string(), "10.42.8.0/22");
        assert_eq!(cidr("0.0.0.0/0").last(), Ipv4Addr::BROADCAST);
        for bad in ["", "10.42.0.0", "10.42.0.0/33", "10.42.0/16", "fd00::/8"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn knows_what_is_inside() {
        let block = cidr("10.42.8.0/22");
        assert!(block.contains("10.42.11.255".parse().unwrap()));
        assert!(!block.contains("10.42.12.0".parse().unwrap()));
        assert_eq!(block.nth(1023), Some("10.42.11.255".parse().unwrap()));
        assert_eq!(block.nth(1024), None);
        assert!(block.overlaps(&cidr("10.42.0.0/16")));
        assert!(cidr("10.42.11.7/32").overlaps(&block));
        assert!(!block.overlaps(&cidr("10.42.12.0/22")));
    }

    #[test]
    fn divides_into_blocks() {
        let blocks: Vec<_> = cidr("10.42.0.0/16").blocks(22).collect();
        assert_eq!(blocks.len(), 64);
        assert_eq!(blocks[1], cidr("10.42.4.0/22"));
        assert_eq!(blocks[63].last(), Ipv4Addr::new(10, 42, 255, 255));
        assert_eq!(cidr("10.42.0.0/24").blocks(22).count(), 0);
    }
}
