//! Durations as Go writes them on command lines: `24h`, `1h30m`, `90s`, `0`.

use std::time::Duration;

/// # Errors
/// With the form that was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as 24h, 90m or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, after) = rest.split_at(digits.ok_or_else(wrong)?);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, next) = after.split_at(unit_end.unwrap_or(after.len()));
        let number: f64 = number.parse().map_err(|_| wrong())?;
        total += number
            * match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return Err(wrong()),
            };
        rest = next;
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(total).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, seconds) in [("24h", 86400), ("1h30m", 5400), ("90s", 90), ("0", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
        }
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        for wrong in ["", "h", "5", "5d", "-1h", "1h5", "1..2s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
