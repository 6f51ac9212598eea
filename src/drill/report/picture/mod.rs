//! The timeline of a drill as a picture: lanes for requests, their latency, each pod, each node and what
//! happened, under flags for the moments that count.
//!
//! ```text
//! flags      injected  detected  recovered
//! requests   ▁▁▁▁█▁▁▁▁▁▁
//! pods       ▇▇▇▇▒▒▒▇▇▇▇
//! nodes      ▇▇▇▇▇▇▇▇▇▇▇
//! events         ①②③
//! axis       -1s 0  +1s
//! ```
//!
//! Everything is computed here, in pixels of the picture's own; the page only scales it. No two texts ever
//! overlap: widths are estimated generously, and what does not fit is left to the hover title.

mod events;
mod flags;
mod lanes;
mod scale;
mod states;

use skiff_dev::DrillStatus;

use super::markup::Markup;
use scale::Scale;
pub use scale::Window;
pub use states::State;

/// The picture's size and inner edges.
const WIDTH: f64 = 1120.0;
/// Where lanes begin; their names are to the left.
const LEFT: f64 = 196.0;
/// Where lanes end; their sums are to the right.
const RIGHT: f64 = WIDTH - 150.0;
/// Of the widest usual font at the picture's text size.
const LETTER: f64 = 6.7;
const AXIS: f64 = 26.0;
const GAP: f64 = 10.0;

/// A picture, and which states its legend has to explain.
pub struct Picture {
    pub svg: Markup,
    pub states: Vec<State>,
    pub has_requests: bool,
}

/// Draws what happened in a window of time.
pub fn draw(status: &DrillStatus, window: Window) -> Picture {
    let scale = Scale::new(window, LEFT, RIGHT);
    let flags = flags::place(status, &scale);
    let top = flags.height;
    let mut lanes = lanes::Lanes::new(&scale, top + GAP);
    let has_requests = lanes.requests(status);
    lanes.objects_of(status);
    let (lanes_drawn, mut bottom, states) = lanes.finish();
    let mut events = Markup::default();
    if !status.timeline.is_empty() {
        bottom += events::draw(&mut events, status, &scale, bottom);
    }
    let height = bottom + AXIS;

    let mut svg = Markup::default();
    let view = format!("0 0 {WIDTH} {height:.0}");
    svg.open(
        "svg",
        &[("viewBox", &view), ("role", &"img"), ("class", &"picture")],
    );
    svg.element(
        "title",
        &[],
        "What happened when, in seconds from the injection",
    );
    shade(&mut svg, status, &scale, top, bottom);
    axis(&mut svg, &scale, top, bottom);
    flags.draw_lines(&mut svg, bottom);
    svg.append(&lanes_drawn).append(&events);
    flags.draw_labels(&mut svg);
    svg.close("svg");
    Picture {
        svg,
        states,
        has_requests,
    }
}

/// The time in which something was broken.
fn shade(svg: &mut Markup, status: &DrillStatus, scale: &Scale, top: f64, bottom: f64) {
    let healed = super::figures::first(&status.timeline, "healed").map(|entry| entry.at);
    let end = match (status.time_to_recover, healed) {
        (Some(recovered), Some(healed)) => recovered.max(healed),
        (Some(end), None) => end,
        (None, _) => f64::INFINITY,
    };
    let (Some(from), Some(to)) = (scale.clamped(0.0), scale.clamped(end)) else {
        return;
    };
    if status.injected_at.is_some() && to > from {
        rect(svg, "broken", from, top, to - from, bottom - top);
    }
}

fn axis(svg: &mut Markup, scale: &Scale, top: f64, bottom: f64) {
    for (at, label) in scale.ticks() {
        let x = px(scale.x(at));
        svg.empty(
            "line",
            &[
                ("class", &"grid"),
                ("x1", &x),
                ("x2", &x),
                ("y1", &px(top)),
                ("y2", &px(bottom + 4.0)),
            ],
        );
        text(
            svg,
            "tick",
            scale.x(at),
            bottom + 18.0,
            Anchor::Middle,
            &label,
        );
    }
}

#[derive(Debug, Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

/// The space that a text takes at most.
fn width_of(text: &str) -> f64 {
    text.chars().count() as f64 * LETTER
}

/// Coordinates to a tenth of a pixel.
fn px(value: f64) -> String {
    format!("{value:.1}")
}

fn rect(svg: &mut Markup, class: &'static str, x: f64, y: f64, width: f64, height: f64) {
    svg.empty(
        "rect",
        &[
            ("class", &class),
            ("x", &px(x)),
            ("y", &px(y)),
            ("width", &px(width)),
            ("height", &px(height)),
        ],
    );
}

/// A rectangle that tells more to whoever points at it.
fn titled_rect(
    svg: &mut Markup,
    class: &'static str,
    (x, y, width, height): (f64, f64, f64, f64),
    title: &str,
) {
    svg.open(
        "rect",
        &[
            ("class", &class),
            ("x", &px(x)),
            ("y", &px(y)),
            ("width", &px(width)),
            ("height", &px(height)),
        ],
    );
    svg.element("title", &[], title).close("rect");
}

fn text(svg: &mut Markup, class: &'static str, x: f64, y: f64, anchor: Anchor, content: &str) {
    let anchor = match anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    svg.element(
        "text",
        &[
            ("class", &class),
            ("x", &px(x)),
            ("y", &px(y)),
            ("text-anchor", &anchor),
        ],
        content,
    );
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::super::verdict::status;
    use super::*;

    #[test]
    fn every_lane_is_there() {
        let status = status(&samples::node_crash());
        let picture = draw(&status, Window::whole(&status).unwrap());
        let svg = picture.svg.as_str();
        for label in [
            "requests",
            "answers",
            "events",
            "node-1",
            "web-6f7b9c-m5hfw",
            "injected",
            "recovered",
        ] {
            assert!(svg.contains(label), "no {label} in {svg}");
        }
        assert!(picture.has_requests);
        assert!(picture.states.contains(&State::Terminating));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn ugly_drills_are_drawn_too() {
        for drill in [
            samples::crowded(),
            samples::never_recovered(),
            samples::nothing_sent(),
            samples::hostile(),
        ] {
            let status = status(&drill);
            let picture = draw(&status, Window::whole(&status).unwrap());
            let svg = picture.svg.as_str();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(!svg.contains("width=\"-"), "{svg}");
        }
    }
}
