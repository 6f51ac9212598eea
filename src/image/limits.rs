//! How much one image may become: options that every command with an image store takes.

use clap::Args;
use skiff_images::Limits;

#[derive(Debug, Clone, Copy, Args)]
pub struct LimitArgs {
    /// Bytes that one image may unpack to, holes included, such as 500M or 20G
    #[arg(
        long,
        global = true,
        value_name = "SIZE",
        env = "SKIFF_MAX_IMAGE_SIZE",
        default_value = "64G",
        value_parser = size
    )]
    max_image_size: u64,
    /// Files, directories and links that one image may unpack to
    #[arg(
        long,
        global = true,
        value_name = "NUMBER",
        env = "SKIFF_MAX_IMAGE_FILES",
        default_value_t = Limits::default().entries
    )]
    max_image_files: u64,
}

impl LimitArgs {
    pub fn limits(self) -> Limits {
        Limits {
            bytes: self.max_image_size,
            entries: self.max_image_files,
        }
    }
}

/// Bytes, or a number with K, M, G or T: powers of 1024, as `Ki`, `KiB` and the like.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("'{unit}' is not a unit: K, M, G and T are")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("'{text}' is not a size, such as 500M"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("10"), Ok(10));
        assert_eq!(size("10k"), Ok(10_240));
        assert_eq!(size("64G"), Ok(Limits::default().bytes));
        assert_eq!(size("1GiB"), Ok(1 << 30));
        for wrong in ["", "G", "1X", "-1", "1.5G", "99999999T"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
