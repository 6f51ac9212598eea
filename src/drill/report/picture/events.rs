//! The lane of what happened: numbers that are found again in the list of events.

use skiff_dev::{DrillStatus, TimelineEntry};

use super::super::figures::{offset, words};
use super::super::markup::Markup;
use super::scale::Scale;
use super::{Anchor, LEFT, px, text, width_of};

const HEIGHT: f64 = 16.0;
const BELOW: f64 = 8.0;
/// Between two numbers.
const SPACE: f64 = 3.0;

/// Entries that are so close to each other that they share a place.
struct Group<'a> {
    /// With their numbers in the list, from 1 on.
    entries: Vec<(usize, &'a TimelineEntry)>,
    from: f64,
    to: f64,
}

/// Draws the lane, and returns its height.
pub fn draw(svg: &mut Markup, status: &DrillStatus, scale: &Scale, top: f64) -> f64 {
    text(svg, "lane", LEFT - 10.0, top + 12.0, Anchor::End, "events");
    let mut sorted: Vec<&TimelineEntry> = status.timeline.iter().collect();
    sorted.sort_by(|a, b| a.at.total_cmp(&b.at));
    for group in groups(&sorted, scale) {
        let (left, right) = group.edges(scale);
        svg.open("g", &[]);
        svg.empty(
            "rect",
            &[
                ("class", &"event"),
                ("x", &px(left)),
                ("y", &px(top)),
                ("width", &px(right - left)),
                ("height", &px(HEIGHT)),
                ("rx", &px(HEIGHT / 2.0)),
            ],
        );
        svg.element("title", &[], group.told());
        text(
            svg,
            "number",
            left.midpoint(right),
            top + 12.0,
            Anchor::Middle,
            &group.label(),
        );
        svg.close("g");
    }
    HEIGHT + BELOW
}

fn groups<'a>(sorted: &[&'a TimelineEntry], scale: &Scale) -> Vec<Group<'a>> {
    let mut groups: Vec<Group> = Vec::new();
    for (index, entry) in sorted.iter().enumerate() {
        if !scale.window.contains(entry.at) {
            continue;
        }
        let x = scale.x(entry.at);
        let mut group = Group {
            entries: vec![(index + 1, *entry)],
            from: x,
            to: x,
        };
        while let Some(before) =
            groups.pop_if(|before| before.edges(scale).1 + SPACE > group.edges(scale).0)
        {
            group = before.with(group);
        }
        groups.push(group);
    }
    groups
}

impl<'a> Group<'a> {
    fn with(mut self, later: Group<'a>) -> Self {
        self.entries.extend(later.entries);
        self.to = later.to;
        self
    }

    fn label(&self) -> String {
        match &self.entries[..] {
            [(only, _)] => only.to_string(),
            [(first, _), .., (last, _)] => format!("{first}–{last}"),
            [] => String::new(),
        }
    }

    /// Around its times, and within the lane.
    fn edges(&self, scale: &Scale) -> (f64, f64) {
        let width = (width_of(&self.label()) + 8.0).max(HEIGHT);
        let half = width / 2.0;
        let center = self.from.midpoint(self.to);
        let center = center.clamp(scale.left + half, scale.right - half);
        (center - half, center + half)
    }

    fn told(&self) -> String {
        let lines = self.entries.iter().map(|(number, entry)| {
            let mut line = format!("{number}. {} {}", offset(entry.at), words(&entry.event));
            for part in [&entry.object, &entry.detail] {
                if !part.is_empty() {
                    line.push_str(", ");
                    line.push_str(part);
                }
            }
            line
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::samples;
    use super::super::super::verdict::status;
    use super::super::RIGHT;
    use super::super::scale::Window;
    use super::*;

    #[test]
    fn numbers_never_touch_and_none_is_missing() {
        for drill in [
            samples::recovered(),
            samples::node_crash(),
            samples::crowded(),
        ] {
            let status = status(&drill);
            let scale = Scale::new(Window::whole(&status).unwrap(), LEFT, RIGHT);
            let mut sorted: Vec<&TimelineEntry> = status.timeline.iter().collect();
            sorted.sort_by(|a, b| a.at.total_cmp(&b.at));
            let groups = groups(&sorted, &scale);
            let numbers: Vec<usize> = groups
                .iter()
                .flat_map(|group| group.entries.iter().map(|(number, _)| *number))
                .collect();
            assert_eq!(numbers, (1..=status.timeline.len()).collect::<Vec<_>>());
            for pair in groups.windows(2) {
                assert!(pair[0].edges(&scale).1 < pair[1].edges(&scale).0);
            }
        }
    }
}
