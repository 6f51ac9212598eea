//! From seconds to pixels.

use skiff_dev::DrillStatus;

use super::super::figures::first;
use super::width_of;

/// The shortest time that is drawn, in seconds.
const SHORTEST: f64 = 0.05;
/// How many times longer than what counts a drill has to be for a second, closer picture.
const CLOSER: f64 = 5.0;

/// A time, in seconds from the injection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    pub from: f64,
    pub to: f64,
}

impl Window {
    /// All that is known of a drill; `None` when nothing was broken.
    pub fn whole(status: &DrillStatus) -> Option<Self> {
        let injected = status.injected_at.as_ref()?;
        let completed = status.completed_at.as_ref();
        let completed = completed.map(|at| at.0.duration_since(injected.0).as_secs_f64());
        let buckets = status
            .requests
            .iter()
            .flat_map(|requests| &requests.buckets);
        let happened = status.timeline.iter().map(|entry| entry.at);
        let ends = status.spans.iter().filter_map(|span| span.to);
        let known = buckets
            .map(|bucket| bucket.at)
            .chain(happened)
            .chain(ends)
            .chain(completed);
        let (from, to) = known
            .filter(|at| at.is_finite())
            .fold((0.0_f64, 0.0_f64), |(from, to), at| {
                (from.min(at), to.max(at))
            });
        let to = to.max(from + SHORTEST);
        let margin = (to - from) * 0.03;
        Some(Self {
            from: from - margin,
            to: to + margin,
        })
    }

    /// The part in which it happened, if that is so short that it can't be seen in the whole.
    pub fn closer(self, status: &DrillStatus) -> Option<Self> {
        let recovered = status.time_to_recover?;
        let failed = first(&status.timeline, "lastFailedProbe").map_or(0.0, |entry| entry.at);
        let detected = status.time_to_detect.unwrap_or_default();
        let end = recovered.max(failed).max(detected).max(SHORTEST);
        (end * CLOSER < self.to - self.from).then_some(Self {
            from: (end * -0.2).max(self.from),
            to: (end * 1.3).min(self.to),
        })
    }

    pub fn contains(self, at: f64) -> bool {
        (self.from..=self.to).contains(&at)
    }
}

/// A window on a strip of the picture.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    pub window: Window,
    pub left: f64,
    pub right: f64,
}

impl Scale {
    pub fn new(window: Window, left: f64, right: f64) -> Self {
        Self {
            window,
            left,
            right,
        }
    }

    pub fn x(&self, at: f64) -> f64 {
        self.left + (at - self.window.from) * self.pixels_a_second()
    }

    pub fn pixels_a_second(&self) -> f64 {
        (self.right - self.left) / (self.window.to - self.window.from)
    }

    /// Where a time is, or the edge beyond which it is; `None` for no time at all.
    pub fn clamped(&self, at: f64) -> Option<f64> {
        (!at.is_nan()).then(|| self.x(at.clamp(self.window.from, self.window.to)))
    }

    /// Round times with room for a label each.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        const STEPS: [f64; 18] = [
            0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0,
            300.0, 600.0, 1800.0,
        ];
        let room = |step: &f64| {
            let longest = label(self.window.to, *step)
                .len()
                .max(label(self.window.from, *step).len());
            step * self.pixels_a_second() > width_of(&"0".repeat(longest)) + 30.0
        };
        let long = (self.window.to - self.window.from) / 8.0;
        let step = STEPS.into_iter().find(room).unwrap_or(long);
        let first = (self.window.from / step).ceil() as i64;
        let last = (self.window.to / step).floor() as i64;
        (first..=last)
            .map(|index| index as f64 * step)
            .map(|at| (at, label(at, step)))
            .collect()
    }
}

fn label(at: f64, step: f64) -> String {
    if at.abs() < step / 2.0 {
        return "0".to_owned();
    }
    if step >= 60.0 {
        return format!("{:+.0} min", at / 60.0);
    }
    let digits = match step {
        _ if step < 0.01 => 3,
        _ if step < 0.1 => 2,
        _ if step < 1.0 => 1,
        _ => 0,
    };
    format!("{at:+.digits$} s")
}

#[cfg(test)]
mod tests {
    use super::super::super::samples;
    use super::super::super::verdict::status;
    use super::*;

    fn scale(from: f64, to: f64) -> Scale {
        Scale::new(Window { from, to }, 200.0, 1000.0)
    }

    #[test]
    fn ticks_are_round_and_have_room() {
        for (from, to) in [
            (-0.1, 0.5),
            (-2.0, 4.5),
            (-2.0, 34.0),
            (-2.0, 120.0),
            (-5.0, 3600.0),
            (-5.0, 90_000.0),
        ] {
            let scale = scale(from, to);
            let ticks = scale.ticks();
            assert!((3..=14).contains(&ticks.len()), "{from} to {to}: {ticks:?}");
            for pair in ticks.windows(2) {
                let room = scale.x(pair[1].0) - scale.x(pair[0].0);
                assert!(room > width_of(&pair[0].1) / 2.0 + width_of(&pair[1].1) / 2.0);
            }
        }
        let labels: Vec<String> = scale(-2.0, 4.5)
            .ticks()
            .into_iter()
            .map(|tick| tick.1)
            .collect();
        assert_eq!(
            labels,
            ["-2 s", "-1 s", "0", "+1 s", "+2 s", "+3 s", "+4 s"]
        );
    }

    #[test]
    fn a_short_recovery_in_a_long_drill_is_looked_at_closely() {
        let status = status(&samples::recovered());
        let whole = Window::whole(&status).unwrap();
        assert!(whole.from < -2.0 && whole.to > 4.3);
        let closer = whole.closer(&status).unwrap();
        assert!(closer.contains(0.411) && closer.to < 1.0);
        assert_eq!(closer.closer(&status), None);
    }

    #[test]
    fn nothing_broken_is_nothing_to_draw() {
        assert_eq!(Window::whole(&status(&samples::refused())), None);
    }

    #[test]
    fn times_beyond_are_at_the_edge() {
        let scale = scale(0.0, 8.0);
        assert_eq!(scale.clamped(-5.0), Some(200.0));
        assert_eq!(scale.clamped(f64::INFINITY), Some(1000.0));
        assert_eq!(scale.clamped(f64::NAN), None);
        assert_eq!(scale.clamped(4.0), Some(600.0));
    }
}
