//! Numbers as people read them.

use skiff_dev::{DrillStatus, Requests, TimelineEntry};

/// A time from the injection: `+0.012s`, `-1.500s`.
pub fn offset(seconds: f64) -> String {
    // There is no negative nothing.
    let seconds = if seconds.abs() < 0.0005 { 0.0 } else { seconds };
    format!("{seconds:+.3}s")
}

/// How long something took, with about three digits: `0.4 ms`, `12 ms`, `1.304 s`, `2 min 5.1 s`.
pub fn span(seconds: f64) -> String {
    let millis = seconds * 1e3;
    match seconds {
        _ if !seconds.is_finite() => "unknown".to_owned(),
        _ if millis.abs() < 0.05 => "0 ms".to_owned(),
        _ if millis.abs() < 9.95 => format!("{millis:.1} ms"),
        _ if millis.abs() < 999.5 => format!("{millis:.0} ms"),
        _ if seconds < 60.0 => format!("{seconds:.3} s"),
        _ => {
            let tenths = (seconds * 10.0).round();
            let minutes = (tenths / 600.0).floor();
            format!("{minutes} min {:.1} s", (tenths - minutes * 600.0) / 10.0)
        }
    }
}

/// A part of a whole in percent: `0%`, `3.2%`, `<0.1%`, `100%`.
pub fn percent(part: i64, whole: i64) -> String {
    if part <= 0 || whole <= 0 {
        return "0%".to_owned();
    }
    let percent = part as f64 * 100.0 / whole as f64;
    match percent {
        _ if percent < 0.1 => "<0.1%".to_owned(),
        _ if part >= whole => "100%".to_owned(),
        // Not all is never called all.
        _ => format!("{:.1}%", percent.min(99.9)),
    }
}

/// `1 request`, `2 requests`, `12,345 requests`.
pub fn count(number: i64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(number))
}

/// With a comma at each thousand.
pub fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    if number < 0 {
        text.push('-');
    }
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `3 of 600 failed (0.5%)`, `none of 600 failed`.
pub fn failures(requests: &Requests) -> String {
    match (requests.failed, requests.sent) {
        (_, 0) => "none was sent".to_owned(),
        (0, sent) => format!("none of {} failed", grouped(sent)),
        (failed, sent) if failed >= sent => format!("all {} failed", grouped(sent)),
        (failed, sent) => format!(
            "{} of {} failed ({})",
            grouped(failed),
            grouped(sent),
            percent(failed, sent)
        ),
    }
}

/// An entry's event in words: `firstFailedProbe` is `first failed probe`.
pub fn words(event: &str) -> String {
    let letters: Vec<char> = event.chars().collect();
    let is_capital = |index: usize| letters.get(index).is_some_and(char::is_ascii_uppercase);
    let mut text = String::new();
    for (index, letter) in letters.iter().enumerate() {
        let next_is_small = letters.get(index + 1).is_some_and(char::is_ascii_lowercase);
        let begins = is_capital(index) && next_is_small;
        if begins && index > 0 {
            text.push(' ');
        }
        // The capitals of an abbreviation stay.
        let small = begins || (is_capital(index) && index > 0 && !is_capital(index - 1));
        text.push(if small {
            letter.to_ascii_lowercase()
        } else {
            *letter
        });
    }
    text
}

/// The first entry of an event.
pub fn first<'a>(timeline: &'a [TimelineEntry], event: &str) -> Option<&'a TimelineEntry> {
    let found = timeline.iter().filter(|entry| entry.event == event);
    found.min_by(|a, b| a.at.total_cmp(&b.at))
}

/// How long after the injection the target was whole although it had not recovered: the undo mended it.
pub fn mended(status: &DrillStatus) -> Option<f64> {
    let healed = first(&status.timeline, "healed")?;
    (status.recovered == Some(false)).then_some(healed.at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_have_a_sign_and_milliseconds() {
        assert_eq!(offset(0.0), "+0.000s");
        assert_eq!(offset(-0.0001), "+0.000s");
        assert_eq!(offset(-1.5), "-1.500s");
        assert_eq!(offset(61.2344), "+61.234s");
    }

    #[test]
    fn spans_have_as_many_digits_as_matter() {
        for (seconds, text) in [
            (0.0, "0 ms"),
            (0.0004, "0.4 ms"),
            (0.012, "12 ms"),
            (0.9994, "999 ms"),
            (0.9999, "1.000 s"),
            (1.304, "1.304 s"),
            (125.06, "2 min 5.1 s"),
            (119.99, "2 min 0.0 s"),
            (f64::NAN, "unknown"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn not_all_is_not_all() {
        assert_eq!(percent(0, 0), "0%");
        assert_eq!(percent(1, 10_000), "<0.1%");
        assert_eq!(percent(2, 63), "3.2%");
        assert_eq!(percent(99_999, 100_000), "99.9%");
        assert_eq!(percent(5, 5), "100%");
    }

    #[test]
    fn failures_are_a_phrase() {
        let requests = |sent, failed| Requests {
            sent,
            failed,
            ..Requests::default()
        };
        assert_eq!(failures(&requests(0, 0)), "none was sent");
        assert_eq!(failures(&requests(1234, 0)), "none of 1,234 failed");
        assert_eq!(failures(&requests(5, 5)), "all 5 failed");
        assert_eq!(failures(&requests(600, 3)), "3 of 600 failed (0.5%)");
    }

    #[test]
    fn events_are_read_as_words() {
        assert_eq!(words("firstFailedProbe"), "first failed probe");
        assert_eq!(words("injected"), "injected");
        assert_eq!(words("OOMKilled"), "OOM killed");
    }
}
