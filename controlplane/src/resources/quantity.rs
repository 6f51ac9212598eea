//! Resource quantities: exact fixed-point numbers with Kubernetes' suffixes.
//!
//! The form is `<sign><digits>[.<digits>]<suffix>` with a decimal suffix (`n u m k M G T P E`),
//! a binary one (`Ki Mi Gi Ti Pi Ei`) or an exponent (`e3`, `E-2`). A quantity remembers its
//! family of suffixes, so that its canonical form stays in it (`1024Mi` is `1Gi`, `0.5` is `500m`).

use std::cmp::Ordering;
use std::fmt;

/// What the API server says of a string that is no quantity.
pub const MALFORMED: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// The largest value that is kept, in whole units: Kubernetes caps at 2^63 - 1.
const CAP: i128 = (i64::MAX as i128) * NANOS;
const NANOS: i128 = 1_000_000_000;

/// A string that is no quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MALFORMED}")]
pub struct Malformed;

/// Which suffixes the canonical form uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// An exact amount, in steps of 10^-9; finer ones are rounded up.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    form: Form,
}

impl Quantity {
    pub const ZERO: Self = Self {
        nanos: 0,
        form: Form::DecimalSi,
    };

    /// # Errors
    /// When the text is not of the quantities' form.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(Malformed);
        }
        let (scale, form) = Scale::parse(suffix)?;

        let nanos = scaled(whole, fraction, scale);
        let nanos = if negative { -nanos } else { nanos };
        Ok(Self {
            nanos: nanos.clamp(-CAP, CAP),
            form,
        })
    }

    /// Whole units in decimal form.
    pub fn from_units(units: i64) -> Self {
        Self {
            nanos: i128::from(units) * NANOS,
            form: Form::DecimalSi,
        }
    }

    /// Whole bytes in binary form.
    pub fn from_bytes(bytes: i64) -> Self {
        Self {
            nanos: i128::from(bytes) * NANOS,
            form: Form::BinarySi,
        }
    }

    /// Thousandths in decimal form.
    pub fn from_millis(millis: i64) -> Self {
        Self {
            nanos: i128::from(millis) * (NANOS / 1000),
            form: Form::DecimalSi,
        }
    }

    /// In whole units, rounded up (away from zero), as Kubernetes' `Value()`.
    pub fn units(self) -> i64 {
        saturate(divide_away(self.nanos, NANOS))
    }

    /// In thousandths, rounded up, as Kubernetes' `MilliValue()`.
    pub fn millis(self) -> i64 {
        saturate(divide_away(self.nanos, NANOS / 1000))
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number of units.
    pub fn is_whole(self) -> bool {
        self.nanos % NANOS == 0
    }

    /// The sum, in the form of `self` (or of `other`, when `self` is zero).
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let form = if self.is_zero() {
            other.form
        } else {
            self.form
        };
        Self {
            nanos: self.nanos.saturating_add(other.nanos).clamp(-CAP, CAP),
            form,
        }
    }
}

/// A suffix's factor.
enum Scale {
    Ten(i32),
    Two(u32),
}

impl Scale {
    fn parse(suffix: &str) -> Result<(Self, Form), Malformed> {
        let decimal = |power| Ok((Self::Ten(power), Form::DecimalSi));
        let binary = |power| Ok((Self::Two(power), Form::BinarySi));
        match suffix {
            "" => decimal(0),
            "n" => decimal(-9),
            "u" => decimal(-6),
            "m" => decimal(-3),
            "k" => decimal(3),
            "M" => decimal(6),
            "G" => decimal(9),
            "T" => decimal(12),
            "P" => decimal(15),
            "E" => decimal(18),
            "Ki" => binary(10),
            "Mi" => binary(20),
            "Gi" => binary(30),
            "Ti" => binary(40),
            "Pi" => binary(50),
            "Ei" => binary(60),
            _ => {
                let exponent = suffix.strip_prefix(['e', 'E']).ok_or(Malformed)?;
                let power: i32 = exponent.parse().map_err(|_| Malformed)?;
                Ok((Self::Ten(power), Form::DecimalExponent))
            }
        }
    }
}

/// `whole.fraction * scale` in nanos, rounded up, capped.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let digits = whole
        .bytes()
        .chain(fraction.bytes())
        .map(|d| i128::from(d - b'0'));
    // A power of ten that the digits, read as one integer, are to be multiplied with.
    let shift = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let (ten, two) = match scale {
        Scale::Ten(power) => (power.saturating_add(9).saturating_sub(shift), 0),
        Scale::Two(power) => (9i32.saturating_sub(shift), power),
    };
    let mut value: i128 = 0;
    let mut dropped = false;
    let mut ten = ten;
    for digit in digits {
        if value > CAP * 1000 {
            // Past any precision that counts: further digits only scale.
            ten = ten.saturating_add(1);
            dropped |= digit != 0;
        } else {
            value = value * 10 + digit;
        }
    }
    if value == 0 {
        return 0;
    }
    // Binary factors first, so that a fraction such as 0.5Gi stays exact.
    value = value.saturating_mul(1i128 << two);
    if ten >= 0 {
        for _ in 0..ten {
            value = value.saturating_mul(10);
            if value > CAP {
                return CAP;
            }
        }
        return value;
    }
    for _ in 0..ten.unsigned_abs() {
        if value == 0 {
            break;
        }
        dropped |= value % 10 != 0;
        value /= 10;
    }
    value + i128::from(dropped)
}

fn divide_away(value: i128, by: i128) -> i128 {
    let quotient = value / by;
    match (value % by).cmp(&0) {
        Ordering::Greater => quotient + 1,
        Ordering::Less => quotient - 1,
        Ordering::Equal => quotient,
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The canonical form: no fraction, and the largest suffix that keeps it so.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANOS;
        if self.form == Form::BinarySi && !small && self.is_whole() {
            let mut value = self.nanos / NANOS;
            let mut power = 0;
            while value % 1024 == 0 && power < 6 {
                value /= 1024;
                power += 1;
            }
            return write!(
                f,
                "{value}{}",
                ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]
            );
        }
        let mut value = self.nanos;
        let mut power = 0;
        while value % 1000 == 0 && (power < 9) {
            value /= 1000;
            power += 1;
        }
        if self.form == Form::DecimalExponent {
            let exponent = (i32::try_from(power).unwrap_or(0) - 3) * 3;
            return if exponent == 0 {
                write!(f, "{value}")
            } else {
                write!(f, "{value}e{exponent}")
            };
        }
        write!(
            f,
            "{value}{}",
            ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][power]
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        Quantity::parse(text).unwrap().to_string()
    }

    #[test]
    fn canonical_forms() {
        for (given, want) in [
            ("0", "0"),
            ("0Mi", "0"),
            ("1", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1000", "1k"),
            ("128Mi", "128Mi"),
            ("1024Mi", "1Gi"),
            ("1536Mi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("1.5Ki", "1536"),
            ("0.1Gi", "107374182400m"),
            ("1e3", "1e3"),
            ("12e2", "1200"),
            ("1E", "1E"),
            ("1E3", "1e3"),
            ("1Ei", "1Ei"),
            ("500Ki", "500Ki"),
            ("1023", "1023"),
            ("512", "512"),
            ("1Ki", "1Ki"),
            ("0.0000000001", "1n"),
            ("-1", "-1"),
            ("+3G", "3G"),
            ("1u", "1u"),
            ("64M", "64M"),
            ("2048", "2048"),
            ("100e-3", "100e-3"),
        ] {
            assert_eq!(canonical(given), want, "{given}");
        }
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for text in [
            "", "a", "1.2.3", "1 Gi", "1gi", "1Kii", "--1", "1e", ".", "1mm", "Gi",
        ] {
            assert_eq!(Quantity::parse(text), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn compares_and_rounds() {
        assert_eq!(
            Quantity::parse("1").unwrap(),
            Quantity::parse("1000m").unwrap()
        );
        assert!(Quantity::parse("1Gi").unwrap() > Quantity::parse("1G").unwrap());
        assert_eq!(Quantity::parse("1500m").unwrap().units(), 2);
        assert_eq!(Quantity::parse("0.0001").unwrap().millis(), 1);
        assert_eq!(Quantity::parse("9999E").unwrap().units(), i64::MAX);
    }
}
