//! The time, as containers' logs and records write it.

/// A moment of the wall clock.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    seconds: i64,
    nanoseconds: u32,
}

impl Moment {
    pub(crate) fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let since = since.unwrap_or_default();
        Self {
            seconds: since.as_secs() as i64,
            nanoseconds: since.subsec_nanos(),
        }
    }

    /// RFC 3339 with nanoseconds, in UTC, always 30 characters: the CRI log format's.
    pub(crate) fn to_nanos(self) -> String {
        format!("{}.{:09}Z", self.date_time("-", "T", ":"), self.nanoseconds)
    }

    /// RFC 3339 with microseconds, in UTC: Kubernetes' `MicroTime`.
    pub(crate) fn to_micros(self) -> String {
        let micros = self.nanoseconds / 1000;
        format!("{}.{micros:06}Z", self.date_time("-", "T", ":"))
    }

    /// `20060102-150405`: the suffix of a rotated log.
    pub(crate) fn to_suffix(self) -> String {
        self.date_time("", "-", "")
    }

    pub(crate) fn nanoseconds(self) -> u32 {
        self.nanoseconds
    }

    fn date_time(self, dash: &str, between: &str, colon: &str) -> String {
        let (year, month, day) = civil(self.seconds.div_euclid(86_400));
        let second = self.seconds.rem_euclid(86_400);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        format!(
            "{year:04}{dash}{month:02}{dash}{day:02}{between}\
             {hour:02}{colon}{minute:02}{colon}{second:02}"
        )
    }
}

/// The date in the Gregorian calendar of a day counted from 1970-01-01, by eras of 400 years
/// that begin on 1 March.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_in_utc() {
        let moment = Moment {
            seconds: 1_709_210_096,
            nanoseconds: 5_000,
        };
        assert_eq!(moment.to_nanos(), "2024-02-29T12:34:56.000005000Z");
        assert_eq!(moment.to_micros(), "2024-02-29T12:34:56.000005Z");
        assert_eq!(moment.to_suffix(), "20240229-123456");
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(-1), (1969, 12, 31));
        assert_eq!(civil(11_016), (2000, 2, 29));
    }
}
