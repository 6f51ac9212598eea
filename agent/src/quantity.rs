//! Kubernetes quantities as numbers: `500m`, `1.5`, `64Mi`, `1e3`.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A quantity in thousandths, rounded up; `None` when it is not a quantity.
pub(crate) fn milli(quantity: &Quantity) -> Option<i64> {
    scaled(&quantity.0, 3)
}

/// A quantity in units, rounded up; `None` when it is not a quantity.
pub(crate) fn units(quantity: &Quantity) -> Option<i64> {
    scaled(&quantity.0, 0)
}

/// The quantity times 10^`decimals`, rounded up and clamped to what an i64 holds.
fn scaled(text: &str, decimals: i32) -> Option<i64> {
    let text = text.trim();
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (binary, exponent) = match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        other => (
            0,
            other
                .strip_prefix(['e', 'E'])?
                .parse::<i32>()
                .ok()?
                .clamp(-30, 30),
        ),
    };
    let power = exponent + decimals - i32::try_from(fraction.len()).ok()?;
    let value = mantissa.checked_mul(1 << binary)?;
    let value = if power >= 0 {
        value.saturating_mul(10_i128.checked_pow(power.unsigned_abs())?)
    } else {
        let divisor = 10_i128.checked_pow(power.unsigned_abs())?;
        value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0)
    };
    let value = if negative { -value } else { value };
    Some(i64::try_from(value).unwrap_or(if negative { i64::MIN } else { i64::MAX }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form() {
        for (text, thousandths) in [
            ("500m", 500),
            ("1", 1000),
            ("1.5", 1500),
            (".5", 500),
            ("2k", 2_000_000),
            ("1Ki", 1_024_000),
            ("1.5Gi", 1_610_612_736_000),
            ("1e3", 1_000_000),
            ("1E3", 1_000_000),
            ("100u", 1),
            ("0", 0),
            ("-1", -1000),
        ] {
            assert_eq!(milli(&Quantity(text.into())), Some(thousandths), "{text}");
        }
    }

    #[test]
    fn rounds_up_and_refuses_nonsense() {
        assert_eq!(units(&Quantity("100m".into())), Some(1));
        assert_eq!(units(&Quantity("64Mi".into())), Some(64 << 20));
        for text in ["", "x", "1Q", "Mi"] {
            assert_eq!(units(&Quantity(text.into())), None, "{text}");
        }
    }
}
