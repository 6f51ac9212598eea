//! The moments that count: a line through all lanes, with a label on top.

use skiff_dev::DrillStatus;

use super::super::figures::{first, offset};
use super::super::markup::Markup;
use super::scale::Scale;
use super::{Anchor, px, text, width_of};

const ROW: f64 = 18.0;
/// Between a line and its label, and after the label.
const SPACE: f64 = 5.0;

/// An entry's event, the colour of its flag, and what is written on it.
const MOMENTS: [(&str, &str, &str); 7] = [
    ("injected", "flag-injected", "injected"),
    ("firstFailedProbe", "flag-failed", "first failure"),
    ("detected", "flag-detected", "detected"),
    ("lastFailedProbe", "flag-failed", "last failure"),
    ("recovered", "flag-recovered", "recovered"),
    ("undone", "flag-healed", "undone"),
    ("healed", "flag-healed", "healed"),
];

pub struct Flags {
    flags: Vec<Flag>,
    pub height: f64,
}

struct Flag {
    class: &'static str,
    label: String,
    x: f64,
    row: usize,
}

/// Finds each flag a row in which nothing is in its way.
pub fn place(status: &DrillStatus, scale: &Scale) -> Flags {
    let mut moments: Vec<(f64, &'static str, String)> = MOMENTS
        .iter()
        .filter_map(|(event, class, label)| {
            let at = match *event {
                "injected" => status.injected_at.as_ref().map(|_| 0.0)?,
                "recovered" => status.time_to_recover?,
                // Where nothing had to be undone, all is well with the recovery.
                "healed" => {
                    first(&status.timeline, event)
                        .filter(|_| first(&status.timeline, "undone").is_some())?
                        .at
                }
                _ => first(&status.timeline, event)?.at,
            };
            let label = match *event {
                "injected" => (*label).to_owned(),
                _ => format!("{label} {}", offset(at)),
            };
            scale.window.contains(at).then_some((at, *class, label))
        })
        .collect();
    moments.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut flags: Vec<Flag> = Vec::new();
    for (at, class, label) in moments {
        let x = scale.x(at);
        // Below every label that its line would cross, and the one it would touch.
        let row = flags
            .iter()
            .filter(|flag| flag.end() > x)
            .map(|flag| flag.row + 1)
            .max();
        flags.push(Flag {
            class,
            label,
            x,
            row: row.unwrap_or_default(),
        });
    }
    let rows = flags
        .iter()
        .map(|flag| flag.row + 1)
        .max()
        .unwrap_or_default();
    Flags {
        flags,
        height: rows as f64 * ROW + SPACE,
    }
}

impl Flag {
    fn end(&self) -> f64 {
        self.x + SPACE + width_of(&self.label) + SPACE
    }
}

impl Flags {
    pub fn draw_lines(&self, svg: &mut Markup, bottom: f64) {
        for flag in &self.flags {
            let x = px(flag.x);
            svg.empty(
                "line",
                &[
                    ("class", &format!("flag {}", flag.class)),
                    ("x1", &x),
                    ("x2", &x),
                    ("y1", &px(flag.row as f64 * ROW + 3.0)),
                    ("y2", &px(bottom)),
                ],
            );
        }
    }

    pub fn draw_labels(&self, svg: &mut Markup) {
        for flag in &self.flags {
            let y = flag.row as f64 * ROW + 13.0;
            text(
                svg,
                flag.class,
                flag.x + SPACE,
                y,
                Anchor::Start,
                &flag.label,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::samples;
    use super::super::super::verdict::status;
    use super::super::scale::Window;
    use super::super::{LEFT, RIGHT, WIDTH};
    use super::*;

    #[test]
    fn no_label_is_on_another_or_crossed_by_a_line() {
        for drill in [
            samples::recovered(),
            samples::node_crash(),
            samples::crowded(),
        ] {
            let status = status(&drill);
            let window = Window::whole(&status).unwrap();
            let placed = place(&status, &Scale::new(window, LEFT, RIGHT));
            assert!(placed.flags.len() >= 5);
            for (index, flag) in placed.flags.iter().enumerate() {
                assert!(flag.end() <= WIDTH, "{} leaves the picture", flag.label);
                for later in &placed.flags[index + 1..] {
                    let reaches = flag.end() > later.x;
                    assert!(
                        !reaches || later.row > flag.row,
                        "{} and {}",
                        flag.label,
                        later.label
                    );
                }
            }
        }
    }

    #[test]
    fn moments_beyond_the_window_have_no_flag() {
        let status = status(&samples::node_crash());
        let window = Window {
            from: -1.0,
            to: 2.0,
        };
        let placed = place(&status, &Scale::new(window, LEFT, RIGHT));
        assert!(
            placed
                .flags
                .iter()
                .all(|flag| !flag.label.starts_with("recovered"))
        );
    }
}
