//! The lanes: requests as bars, the time that answers took, and the states of pods and nodes.

use std::collections::BTreeSet;

use skiff_dev::{DrillStatus, ProbeBucket, Requests, Span};

use super::super::figures::{count, grouped, offset, span as time_span};
use super::super::markup::Markup;
use super::scale::Scale;
use super::states::State;
use super::{Anchor, GAP, LEFT, RIGHT, px, rect, text, titled_rect, width_of};

const REQUESTS: f64 = 56.0;
const ANSWERS: f64 = 34.0;
const BAR: f64 = 16.0;
const LANE: f64 = 21.0;
/// No bar of requests is narrower, in pixels.
const NARROWEST: f64 = 2.5;
/// Objects beyond these are only counted; those that something happened to come first.
const MOST_OBJECTS: usize = 48;
/// Letters of a lane's name.
const NAME: usize = 27;

pub struct Lanes<'a> {
    svg: Markup,
    scale: &'a Scale,
    y: f64,
    states: BTreeSet<State>,
}

/// The spans of one pod or node.
struct Object<'a> {
    name: &'a str,
    spans: Vec<&'a Span>,
    hit: bool,
}

impl<'a> Lanes<'a> {
    pub fn new(scale: &'a Scale, top: f64) -> Self {
        Self {
            svg: Markup::default(),
            scale,
            y: top,
            states: BTreeSet::new(),
        }
    }

    /// What was drawn, where it ends, and the states in it.
    pub fn finish(self) -> (Markup, f64, Vec<State>) {
        (self.svg, self.y, self.states.into_iter().collect())
    }

    /// Whether there were any.
    pub fn requests(&mut self, status: &DrillStatus) -> bool {
        let Some(requests) = status.requests.as_ref() else {
            return false;
        };
        let bars = bars(requests, self.scale);
        if bars.is_empty() {
            return false;
        }
        self.bars_of_requests(requests, &bars);
        if bars.iter().any(|bar| bar.slowest > 0.0) {
            self.time_of_answers(requests, &bars);
        }
        true
    }

    fn bars_of_requests(&mut self, requests: &Requests, bars: &[Bar]) {
        let bottom = self.y + REQUESTS;
        self.name("requests", self.y + REQUESTS / 2.0 + 4.0);
        self.sum(
            &format!("{} sent", grouped(requests.sent)),
            "sum",
            self.y + REQUESTS / 2.0 - 4.0,
        );
        let class = if requests.failed > 0 {
            "sum-bad"
        } else {
            "sum"
        };
        self.sum(
            &format!("{} failed", grouped(requests.failed)),
            class,
            self.y + REQUESTS / 2.0 + 12.0,
        );
        for bar in bars {
            // A bar is as high as the lane: what matters is the part that failed.
            let failed = bar.failed as f64 / bar.sent as f64 * REQUESTS;
            let title = format!(
                "{} to {}\n{} sent, {} failed{}",
                offset(bar.from),
                offset(bar.to),
                bar.sent,
                bar.failed,
                match bar.slowest > 0.0 {
                    true => format!("\nslowest answer {}", time_span(bar.slowest)),
                    false => String::new(),
                }
            );
            if REQUESTS > failed {
                let shape = (bar.x, self.y, bar.width, REQUESTS - failed);
                titled_rect(&mut self.svg, "answered", shape, &title);
            }
            if failed > 0.0 {
                titled_rect(
                    &mut self.svg,
                    "failed",
                    (bar.x, bottom - failed, bar.width, failed),
                    &title,
                );
            }
        }
        self.base_line(bottom);
        self.y = bottom + GAP;
    }

    fn time_of_answers(&mut self, requests: &Requests, bars: &[Bar]) {
        let slowest = bars.iter().map(|bar| bar.slowest).fold(0.0, f64::max);
        let bottom = self.y + ANSWERS;
        self.name("answers: slowest", self.y + ANSWERS / 2.0 + 4.0);
        self.sum(
            &format!("up to {}", time_span(slowest)),
            "sum",
            self.y + ANSWERS / 2.0 - 4.0,
        );
        if let Some(latency) = &requests.latency {
            self.sum(
                &format!("99% in {}", time_span(latency.p99)),
                "sum",
                self.y + ANSWERS / 2.0 + 12.0,
            );
        }
        for bar in bars.iter().filter(|bar| bar.slowest > 0.0) {
            let height = (bar.slowest / slowest * ANSWERS).max(1.0);
            rect(
                &mut self.svg,
                "latency",
                bar.x,
                bottom - height,
                bar.width,
                height,
            );
        }
        self.base_line(bottom);
        self.y = bottom + GAP;
    }

    /// A lane for each pod, then for each node.
    pub fn objects_of(&mut self, status: &DrillStatus) {
        let (pods, others): (Vec<_>, Vec<_>) = objects(status)
            .into_iter()
            .partition(|object| object.name.starts_with("pod/"));
        self.objects(pods, "pod");
        self.objects(others, "other");
    }

    fn objects(&mut self, mut objects: Vec<Object>, noun: &str) {
        if objects.is_empty() {
            return;
        }
        // Those that something happened to first, otherwise as they came.
        objects.sort_by_key(|object| (!object.hit, object.spans.len() < 2));
        let more = objects.len().saturating_sub(MOST_OBJECTS);
        for object in objects.iter().take(MOST_OBJECTS) {
            self.object(object);
        }
        if more > 0 {
            text(
                &mut self.svg,
                "lane",
                LEFT,
                self.y + 12.0,
                Anchor::Start,
                &format!("and {}", count(more as i64, &format!("more {noun}"))),
            );
            self.y += LANE;
        }
        self.y += GAP - (LANE - BAR);
    }

    fn object(&mut self, object: &Object) {
        let short = object
            .name
            .split_once('/')
            .map_or(object.name, |(_, name)| name);
        let y = self.y + 12.0;
        self.svg.open("g", &[("class", &"object")]);
        text(
            &mut self.svg,
            "lane",
            LEFT - 10.0,
            y,
            Anchor::End,
            &shortened(short),
        );
        self.svg.element("title", &[], object.name).close("g");
        if object.hit {
            text(
                &mut self.svg,
                "sum-bad",
                RIGHT + 10.0,
                y,
                Anchor::Start,
                "hit",
            );
        }
        for span in &object.spans {
            self.span(span);
        }
        self.y += LANE;
    }

    fn span(&mut self, span: &Span) {
        let window = self.scale.window;
        let end = span.to.unwrap_or(f64::INFINITY);
        if end <= window.from || span.from >= window.to {
            return;
        }
        let (Some(from), Some(to)) = (self.scale.clamped(span.from), self.scale.clamped(end))
        else {
            return;
        };
        let state = State::of(&span.state);
        self.states.insert(state);
        let width = (to - from).max(1.0);
        let title = match span.to {
            Some(end) => format!(
                "{}\n{} from {} to {}",
                span.object,
                span.state,
                offset(span.from),
                offset(end)
            ),
            None => format!(
                "{}\n{} from {} on",
                span.object,
                span.state,
                offset(span.from)
            ),
        };
        titled_rect(
            &mut self.svg,
            state.class(),
            (from, self.y, width, BAR),
            &title,
        );
        if width_of(&span.state) + 10.0 < width {
            let x = from.midpoint(to);
            text(
                &mut self.svg,
                state.text_class(),
                x,
                self.y + 12.0,
                Anchor::Middle,
                &span.state,
            );
        }
    }

    fn name(&mut self, name: &str, y: f64) {
        text(&mut self.svg, "lane", LEFT - 10.0, y, Anchor::End, name);
    }

    fn sum(&mut self, sum: &str, class: &'static str, y: f64) {
        text(&mut self.svg, class, RIGHT + 10.0, y, Anchor::Start, sum);
    }

    fn base_line(&mut self, y: f64) {
        let y = px(y);
        self.svg.empty(
            "line",
            &[
                ("class", &"base"),
                ("x1", &px(self.scale.left)),
                ("x2", &px(self.scale.right)),
                ("y1", &y),
                ("y2", &y),
            ],
        );
    }
}

/// One or more buckets that share a bar.
struct Bar {
    from: f64,
    to: f64,
    x: f64,
    width: f64,
    sent: i64,
    failed: i64,
    slowest: f64,
}

fn bars(requests: &Requests, scale: &Scale) -> Vec<Bar> {
    let buckets = &requests.buckets;
    let interval = match &buckets[..] {
        [first, second, ..] => second.at - first.at,
        _ => 0.1,
    };
    if !interval.is_finite() || interval <= 0.0 {
        return Vec::new();
    }
    let pixels = interval * scale.pixels_a_second();
    let together = (NARROWEST / pixels).ceil().max(1.0) as usize;
    let bars = buckets
        .chunks(together)
        .filter_map(|chunk| bar(chunk, interval, scale));
    without_beats(bars.collect())
}

/// Requests that are sent as often as there are buckets fall into the same one now and then, and leave the next
/// one empty: that is no pause. Two empty ones are.
fn without_beats(bars: Vec<Bar>) -> Vec<Bar> {
    let mut shown: Vec<Bar> = Vec::with_capacity(bars.len());
    let mut rest = bars.into_iter().peekable();
    while let Some(bar) = rest.next() {
        if bar.sent > 0 {
            shown.push(bar);
        } else if rest.peek().is_some_and(|next| next.sent > 0)
            && let Some(before) = shown
                .last_mut()
                .filter(|before| before.to >= bar.from - 1e-6)
        {
            before.width = bar.x + bar.width - before.x;
            before.to = bar.to;
        }
    }
    shown
}

fn bar(chunk: &[ProbeBucket], interval: f64, scale: &Scale) -> Option<Bar> {
    let from = chunk.first()?.at;
    let to = chunk.last()?.at + interval;
    if to <= scale.window.from || from >= scale.window.to {
        return None;
    }
    let (x, end) = (scale.clamped(from)?, scale.clamped(to)?);
    // A seam between wide bars, none between narrow ones.
    let seam = if end - x > 6.0 { 1.0 } else { 0.3 };
    Some(Bar {
        from,
        to,
        x,
        width: (end - x - seam).max(0.5),
        sent: chunk.iter().map(|bucket| bucket.sent).sum(),
        failed: chunk.iter().map(|bucket| bucket.failed).sum(),
        slowest: chunk
            .iter()
            .map(|bucket| bucket.slowest)
            .fold(0.0, f64::max),
    })
}

fn objects(status: &DrillStatus) -> Vec<Object<'_>> {
    let mut objects: Vec<Object> = Vec::new();
    for span in &status.spans {
        let known = objects.iter_mut().find(|object| object.name == span.object);
        match known {
            Some(object) => object.spans.push(span),
            None => objects.push(Object {
                name: &span.object,
                spans: vec![span],
                hit: is_victim(status, &span.object),
            }),
        }
    }
    objects
}

/// Victims have their node behind their name.
fn is_victim(status: &DrillStatus, object: &str) -> bool {
    let name = |victim: &str| {
        victim
            .split_once(" (")
            .map_or(victim, |(name, _)| name)
            .to_owned()
    };
    status.victims.iter().any(|victim| name(victim) == object)
}

/// Names that differ do so at either end.
fn shortened(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    if letters.len() <= NAME {
        return name.to_owned();
    }
    let head: String = letters[..NAME / 2 - 3].iter().collect();
    let tail: String = letters[letters.len() - (NAME / 2 + 3)..].iter().collect();
    format!("{head}…{tail}")
}

#[cfg(test)]
mod tests {
    use super::super::super::samples;
    use super::super::super::verdict::status;
    use super::super::scale::Window;
    use super::*;

    #[test]
    fn long_names_keep_both_ends_and_fit() {
        assert_eq!(shortened("web-6f7b9c-4xk2p"), "web-6f7b9c-4xk2p");
        let short = shortened("a-deployment-with-a-name-of-someone-5d8f7c9b6d-abcde");
        assert!(
            short.starts_with("a-deployme…") && short.ends_with("-abcde"),
            "{short}"
        );
        assert!(width_of(&short) <= LEFT - 10.0);
    }

    #[test]
    fn many_buckets_share_bars_and_none_is_lost() {
        let status = status(&samples::never_recovered());
        let scale = Scale::new(Window::whole(&status).unwrap(), LEFT, RIGHT);
        let requests = status.requests.unwrap();
        assert_eq!(requests.buckets.len(), 600);
        let bars = bars(&requests, &scale);
        assert!(bars.len() <= 300);
        assert_eq!(bars.iter().map(|bar| bar.sent).sum::<i64>(), 1200);
        assert_eq!(bars.iter().map(|bar| bar.failed).sum::<i64>(), 1180);
        assert!(bars.iter().all(|bar| bar.width > 0.0));
    }

    #[test]
    fn one_empty_bucket_is_no_pause_and_two_are() {
        let mut status = status(&samples::recovered());
        let buckets = &mut status.requests.as_mut().unwrap().buckets;
        for index in [3, 7, 8] {
            buckets[index].sent = 0;
        }
        let scale = Scale::new(Window::whole(&status).unwrap(), LEFT, RIGHT);
        let bars = bars(status.requests.as_ref().unwrap(), &scale);
        let holes = bars
            .windows(2)
            .filter(|pair| pair[1].from - pair[0].to > 0.05);
        assert_eq!((bars.len(), holes.count()), (60, 1));
    }

    #[test]
    fn victims_are_found_under_their_names() {
        let status = status(&samples::recovered());
        assert!(is_victim(&status, "pod/web-6f7b9c-4xk2p"));
        assert!(!is_victim(&status, "pod/web-6f7b9c-9qzzd"));
    }
}
