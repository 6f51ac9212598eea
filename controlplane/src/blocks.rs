//! Addresses in a block, by their distance from its first.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The address `offset` after the block's first; `None` past its end.
pub(crate) fn nth(block: Ipv4Net, offset: u32) -> Option<Ipv4Addr> {
    let address = block.network().to_bits().checked_add(offset)?;
    let address = Ipv4Addr::from_bits(address);
    block.contains(&address).then_some(address)
}

/// How far after the block's first an address of it is.
pub(crate) fn offset(block: Ipv4Net, address: Ipv4Addr) -> Option<u32> {
    let inside = block.contains(&address);
    inside.then(|| address.to_bits() - block.network().to_bits())
}

/// How many addresses it has; those of 0.0.0.0/0 are counted as one too few.
pub(crate) fn size(block: Ipv4Net) -> u32 {
    block.hostmask().to_bits().saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_addresses_are_the_same_thing() {
        let block = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let services = block("10.43.0.0/16");
        assert_eq!(size(services), 65536);
        assert_eq!(size(block("10.43.0.1/32")), 1);
        assert_eq!(size(block("0.0.0.0/0")), u32::MAX);
        assert_eq!(nth(services, 10), Some(Ipv4Addr::new(10, 43, 0, 10)));
        assert_eq!(nth(services, 65536), None);
        assert_eq!(nth(services, u32::MAX), None);
        assert_eq!(offset(services, Ipv4Addr::new(10, 43, 1, 0)), Some(256));
        assert_eq!(offset(services, Ipv4Addr::new(10, 44, 0, 0)), None);
    }
}
