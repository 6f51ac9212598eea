//! IPv4 address blocks in CIDR notation: the cluster's pods and its Services.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 block such as `10.43.0.0/16`. The address is always the block's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 block in CIDR notation, such as 10.43.0.0/16")]
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

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// How many addresses it has; those of 0.0.0.0/0 are counted as one too few.
    pub fn size(&self) -> u32 {
        u32::MAX
            .checked_shr(self.prefix.into())
            .unwrap_or(0)
            .saturating_add(1)
    }

    /// The address `offset` after the block's first; `None` past its end.
    pub fn nth(&self, offset: u32) -> Option<Ipv4Addr> {
        let address = Ipv4Addr::from(self.base.checked_add(offset)?);
        self.contains(address).then_some(address)
    }

    /// How far after the block's first an address of it is.
    pub fn offset(&self, address: Ipv4Addr) -> Option<u32> {
        self.contains(address)
            .then(|| address.to_bits() - self.base)
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
            base: base | ((block as u64) << (32 - u32::from(prefix))) as u32,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn blocks_are_read_and_written() {
        assert_eq!(cidr("10.43.9.7/16").to_string(), "10.43.0.0/16");
        for bad in ["", "10.43.0.0", "10.43.0.0/33", "10.43/16", "fd00::/8"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn offsets_and_addresses_are_the_same_thing() {
        let block = cidr("10.43.0.0/16");
        assert_eq!(block.size(), 65536);
        assert_eq!(cidr("10.43.0.1/32").size(), 1);
        assert_eq!(block.nth(10), Some("10.43.0.10".parse().unwrap()));
        assert_eq!(block.offset("10.43.1.0".parse().unwrap()), Some(256));
        assert_eq!(block.nth(65536), None);
        assert_eq!(block.offset("10.44.0.0".parse().unwrap()), None);
        assert_eq!(block.blocks(24).count(), 256);
        assert!(block.overlaps(&cidr("10.0.0.0/8")));
        assert!(!block.overlaps(&cidr("10.42.0.0/16")));
    }
}
