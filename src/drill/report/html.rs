//! The report as one page for those who were not there: no script, nothing fetched, readable on paper.
//!
//! `page.html` holds the frame and the colours. A drill is an article: the story in sentences, the numbers, the
//! picture ([`super::picture`]), then every detail.

use skiff_dev::{Drill, DrillResult, DrillStatus, TimelineEntry};

use super::figures::{count, failures, first, grouped, mended, offset, percent, span, words};
use super::markup::Markup;
use super::picture::{self, Window};
use super::verdict::{Verdict, status};
use super::{Entry, Report, story};

const PAGE: &str = include_str!("page.html");
const TITLE: &str = "{{title}}";
const BODY: &str = "{{body}}";

pub fn page(report: &Report) -> String {
    let (mut title, mut body) = (Markup::default(), Markup::default());
    match report.single() {
        Some(drill) => {
            let (kind, target) = (drill.spec.drill, &drill.spec.target);
            title.text(format!("{kind} on {target}: {}", Verdict::of(drill).word()));
            article(&mut body, drill, None);
        }
        None => {
            let name = report.title.as_deref().unwrap_or("Drills");
            title.text(format!("{name}: {}", passed(report)));
            overview(&mut body, report, name);
            for (index, entry) in report.entries.iter().enumerate() {
                if let Entry::Drill { drill, .. } = entry {
                    article(&mut body, drill, Some(index + 1));
                }
            }
        }
    }
    body.raw("<footer>Made by <code>skiff drill</code> ");
    body.text(crate::up::VERSION);
    body.raw(". Times are seconds from the injection of the fault, which is 0.</footer>");
    fill(&title, &body)
}

/// The template with its two places filled, each once: what is put in is not looked at again.
fn fill(title: &Markup, body: &Markup) -> String {
    let (head, rest) = PAGE.split_once(TITLE).unwrap_or((PAGE, ""));
    let (middle, end) = rest.split_once(BODY).unwrap_or((rest, ""));
    [head, title.as_str(), middle, body.as_str(), end].concat()
}

fn passed(report: &Report) -> &'static str {
    if report.passed() { "PASSED" } else { "FAILED" }
}

/// What a game day came to, a row for each step.
fn overview(body: &mut Markup, report: &Report, name: &str) {
    body.raw("<header><p class=\"kicker\">Skiff game day</p>");
    body.element("h1", &[], name);
    body.raw("<p class=\"about\">");
    let class = if report.passed() {
        "badge good"
    } else {
        "badge bad"
    };
    body.element("span", &[("class", &class)], passed(report));
    let drills = report
        .entries
        .iter()
        .filter(|entry| !matches!(entry, Entry::Pause(_)));
    body.element("span", &[], count(drills.count() as i64, "drill"));
    body.raw("</p></header>");
    body.raw("<section class=\"card\">");
    if let Some(description) = &report.description {
        body.element("p", &[], description);
    }
    body.raw(
        "<p>A game day breaks things one after the other, on purpose, and stops at the first step that does not go as \
         expected.</p><table><thead><tr><th></th><th>Step</th><th>Drill</th><th>Target</th><th>Result</th>\
         <th>Detected</th><th>Recovered</th><th>Requests failed</th></tr></thead><tbody>",
    );
    for (index, entry) in report.entries.iter().enumerate() {
        step_row(body, index + 1, entry);
    }
    body.raw("</tbody></table></section>");
}

fn step_row(body: &mut Markup, number: usize, entry: &Entry) {
    body.raw("<tr>")
        .element("td", &[("class", &"count")], number);
    match entry {
        Entry::Pause(time) => {
            body.element(
                "td",
                &[("colspan", &7), ("class", &"quiet")],
                format!("a pause of {time}"),
            );
        }
        Entry::NotRun {
            title,
            kind,
            target,
            why,
        } => {
            body.element("td", &[], title)
                .element("td", &[], kind)
                .element("td", &[], target);
            let told = match why {
                Some(why) => format!("could not be begun: {why}"),
                None => "not run, since a step before it did not pass".to_owned(),
            };
            body.element("td", &[("colspan", &4), ("class", &"quiet")], told);
        }
        Entry::Drill { title, drill } => {
            let status = status(drill);
            let dash = || "–".to_owned();
            body.raw("<td>")
                .element("a", &[("href", &format!("#step-{number}"))], title)
                .raw("</td>");
            body.element("td", &[], drill.spec.drill)
                .element("td", &[], &drill.spec.target);
            body.raw("<td>");
            badge(body, Verdict::of(drill));
            body.raw("</td>");
            body.element("td", &[], status.time_to_detect.map_or_else(dash, span));
            body.element("td", &[], status.time_to_recover.map_or_else(dash, span));
            body.element(
                "td",
                &[],
                status.requests.as_ref().map_or_else(dash, failures),
            );
        }
    }
    body.raw("</tr>");
}

fn article(body: &mut Markup, drill: &Drill, step: Option<usize>) {
    let status = status(drill);
    match step {
        Some(number) => body.open("article", &[("id", &format!("step-{number}"))]),
        None => body.open("article", &[]),
    };
    heading(body, drill, &status, step);
    body.raw("<section class=\"card\"><h2>What was done, and what came of it</h2>");
    for paragraph in story::paragraphs(drill) {
        body.element("p", &[], paragraph);
    }
    body.raw("</section>");
    tiles(body, &status);
    expectations(body, &status);
    pictures(body, &status);
    timeline(body, &status);
    events(body, &status);
    explanations(body, drill, &status);
    body.raw("</article>");
}

fn heading(body: &mut Markup, drill: &Drill, status: &DrillStatus, step: Option<usize>) {
    body.raw("<header>");
    match step {
        Some(number) => body.element("p", &[("class", &"kicker")], format!("Step {number}")),
        None => body.raw("<p class=\"kicker\">Skiff failure drill</p>"),
    };
    body.raw("<h1>")
        .text(drill.spec.drill)
        .raw(" <span class=\"on\">on ");
    body.text(story::target(&drill.spec.target))
        .raw("</span></h1><p class=\"about\">");
    badge(body, Verdict::of(drill));
    if let Some(at) = status.injected_at.as_ref().or(status.started_at.as_ref()) {
        body.element("span", &[], at.0.strftime("%-d %B %Y, %T UTC"));
    }
    if let Some(name) = &drill.metadata.name {
        body.raw("<span>drill ")
            .element("span", &[("class", &"name")], name)
            .raw("</span>");
    }
    if let Some(namespace) = &drill.spec.target.namespace {
        body.raw("<span>namespace ")
            .element("span", &[("class", &"name")], namespace)
            .raw("</span>");
    }
    body.raw("</p></header>");
}

fn badge(body: &mut Markup, verdict: Verdict) {
    let class = match verdict {
        Verdict::Passed => "badge good",
        Verdict::Failed => "badge bad",
        Verdict::Refused | Verdict::Cancelled => "badge warn",
        Verdict::DryRun | Verdict::Unfinished(_) => "badge note",
    };
    body.element("span", &[("class", &class)], verdict.word());
}

fn tiles(body: &mut Markup, status: &DrillStatus) {
    if status.injected_at.is_none() || status.result == Some(DrillResult::Refused) {
        return;
    }
    body.raw("<ul class=\"tiles\">");
    let detected = status
        .time_to_detect
        .map_or_else(|| "not seen".to_owned(), span);
    tile(body, "", "Detected after", &detected, "by a status");
    match (status.time_to_recover, status.recovered) {
        (Some(seconds), _) => tile(
            body,
            "good",
            "Recovered after",
            &span(seconds),
            "Ready, in service",
        ),
        (None, Some(_)) if mended(status).is_some() => {
            tile(
                body,
                "bad",
                "Recovered",
                "not by itself",
                "the undo mended it",
            );
        }
        (None, Some(_)) => tile(body, "bad", "Recovered", "never", "within its time"),
        (None, None) => tile(body, "", "Recovered", "unknown", "it was not waited for"),
    }
    if let Some(requests) = &status.requests {
        let class = if requests.failed > 0 { "bad" } else { "good" };
        let share = match requests.sent {
            0 => "none was sent".to_owned(),
            sent => format!("of {}: {}", grouped(sent), percent(requests.failed, sent)),
        };
        tile(
            body,
            class,
            "Requests failed",
            &grouped(requests.failed),
            &share,
        );
        if requests.sent > 0 {
            tile(
                body,
                "",
                "Longest gap",
                &span(requests.longest_gap),
                "no good answer",
            );
        }
        if let Some(latency) = &requests.latency {
            let half = format!("half in {}", span(latency.p50));
            tile(body, "", "99% answered in", &span(latency.p99), &half);
        }
    }
    if let Some(writes) = &status.writes {
        let class = if writes.lost > 0 { "bad" } else { "good" };
        let of = format!("of {} acknowledged", grouped(writes.acknowledged));
        tile(body, class, "Writes lost", &grouped(writes.lost), &of);
    }
    if let Some(restarts) = status.restarts {
        tile(body, "", "Restarts", &grouped(restarts), "of containers");
    }
    if let Some(moved) = status.pods_moved {
        tile(body, "", "Pods moved", &grouped(moved), "to other nodes");
    }
    body.raw("</ul>");
}

fn tile(body: &mut Markup, class: &'static str, what: &'static str, value: &str, more: &str) {
    body.open("li", &[("class", &class)]);
    body.element("span", &[("class", &"what")], what);
    body.element("span", &[("class", &"value")], value);
    body.element("span", &[("class", &"more")], more);
    body.raw("</li>");
}

fn expectations(body: &mut Markup, status: &DrillStatus) {
    if status.expectations.is_empty() {
        return;
    }
    body.raw("<section class=\"card\"><h2>What was expected</h2><table><thead><tr><th></th><th>Expected</th><th>Measured</th></tr></thead><tbody>");
    for result in &status.expectations {
        body.raw("<tr><td class=\"mark\">");
        match result.met {
            true => body.raw("<span class=\"met\">✓ met</span>"),
            false => body.raw("<span class=\"missed\">✗ not met</span>"),
        };
        body.raw("</td>")
            .element("td", &[("class", &"name")], &result.text);
        body.element(
            "td",
            &[],
            if result.actual.is_empty() {
                "–"
            } else {
                &result.actual
            },
        )
        .raw("</tr>");
    }
    body.raw("</tbody></table></section>");
}

fn pictures(body: &mut Markup, status: &DrillStatus) {
    let Some(whole) = Window::whole(status) else {
        return;
    };
    body.raw("<section class=\"card\"><h2>What happened when</h2>");
    let picture = picture::draw(status, whole);
    body.raw("<figure>").append(&picture.svg).raw("</figure>");
    if let Some(closer) = whole.closer(status) {
        body.raw("<h3>The same, closer: the time until it had recovered</h3>");
        body.raw("<figure>")
            .append(&picture::draw(status, closer).svg)
            .raw("</figure>");
    }
    body.raw("<ul class=\"legend\">");
    if picture.has_requests {
        body.raw("<li><span class=\"b-answered\"></span>requests answered</li><li><span class=\"b-failed\"></span>requests failed</li>");
    }
    for state in &picture.states {
        body.raw("<li>")
            .element("span", &[("class", &state.class())], "");
        body.text(state.meaning()).raw("</li>");
    }
    body.raw("<li><span class=\"b-shade\"></span>from the injection until all was well, and undone</li></ul>");
    body.raw(
        "<p class=\"quiet\">Time runs from left to right. Each row is a pod or a node, coloured by its state; \
         numbers in the row of events are those of the list below.</p></section>",
    );
}

fn timeline(body: &mut Markup, status: &DrillStatus) {
    if status.timeline.is_empty() {
        return;
    }
    let mut sorted: Vec<&TimelineEntry> = status.timeline.iter().collect();
    sorted.sort_by(|a, b| a.at.total_cmp(&b.at));
    body.raw("<section class=\"card long\"><h2>Every event</h2><table><thead><tr><th></th><th>Time</th><th>Event</th><th>Object</th><th>Detail</th></tr></thead><tbody>");
    for (index, entry) in sorted.into_iter().enumerate() {
        body.raw("<tr>")
            .element("td", &[("class", &"count")], index + 1);
        body.element("td", &[("class", &"time")], offset(entry.at));
        body.element("td", &[("class", &"event")], words(&entry.event));
        body.element("td", &[("class", &"name")], &entry.object);
        body.element("td", &[], &entry.detail).raw("</tr>");
    }
    body.raw("</tbody></table></section>");
}

fn events(body: &mut Markup, status: &DrillStatus) {
    let errors = status.requests.iter().flat_map(|requests| &requests.errors);
    let errors: Vec<_> = errors.collect();
    if !errors.is_empty() {
        body.raw("<section class=\"card\"><h2>How requests failed</h2><table><thead><tr><th>Times</th><th>Error</th></tr></thead><tbody>");
        for error in errors {
            body.raw("<tr>")
                .element("td", &[("class", &"count")], error.count);
            body.element("td", &[], &error.reason).raw("</tr>");
        }
        body.raw("</tbody></table></section>");
    }
    if status.events.is_empty() {
        return;
    }
    body.raw("<section class=\"card long\"><h2>The cluster’s own Events meanwhile</h2><table><thead><tr><th>Times</th><th>Reason</th><th>Object</th><th>Message</th></tr></thead><tbody>");
    for event in &status.events {
        body.raw("<tr>")
            .element("td", &[("class", &"count")], event.count);
        body.element("td", &[("class", &"event")], &event.reason);
        body.element("td", &[("class", &"name")], &event.object);
        body.element("td", &[], &event.message).raw("</tr>");
    }
    body.raw("</tbody></table></section>");
}

/// What words mean here, only those that are used.
fn explanations(body: &mut Markup, drill: &Drill, status: &DrillStatus) {
    body.raw("<section class=\"card\"><details><summary>How to read this, and how to do it again</summary><dl>");
    let mut term = |term: &'static str, meaning: &'static str| {
        body.element("dt", &[], term).element("dd", &[], meaning);
    };
    term(
        "injected",
        "The instant right before the fault was brought about. All times count from it.",
    );
    if status.requests.is_some() {
        term(
            "requests",
            "Sent at a steady rate, each on a connection of its own, whether or not earlier ones were answered. One that gets no good answer in time has failed.",
        );
        term(
            "longest gap",
            "The longest time between two good answers, by when they were asked for. With ten requests a second it is at least 100 ms.",
        );
    }
    term(
        "detected",
        "The first change in the cluster’s own records that shows the fault.",
    );
    term(
        "recovered",
        "As many Ready pods in service as before, nothing broken among the victims, and no request failing any more for a second: the instant at which the last of these came true.",
    );
    if first(&status.timeline, "undone").is_some() {
        term("undone", "What Skiff itself had done was taken back.");
        term(
            "healed",
            "Everything was undone, and what had been hit was whole again.",
        );
    }
    body.raw("</dl>");
    if let Some(manifest) = manifest(drill, status) {
        body.raw("<p>The same drill, with the same victims as long as the candidates are the same: <code>skiff drill run -f drill.yaml</code> or <code>kubectl create -f drill.yaml</code> with</p>");
        body.element("pre", &[], manifest);
    }
    body.raw("</details></section>");
}

fn manifest(drill: &Drill, status: &DrillStatus) -> Option<String> {
    let mut spec = drill.spec.clone();
    spec.seed = spec.seed.or(status.seed);
    spec.cancel = false;
    let spec = serde_json::to_value(spec).ok()?;
    let manifest = serde_json::json!({
        "apiVersion": "skiff.dev/v1",
        "kind": "Drill",
        "metadata": {"generateName": format!("{}-", drill.spec.drill)},
        "spec": spec,
    });
    serde_yaml_ng::to_string(&manifest).ok()
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn a_page_is_one_file_that_needs_nothing_else() {
        let page = page(&Report::of_one(samples::node_crash()));
        for outside in [
            "http-equiv=\"refresh",
            "<script",
            "<link",
            "<img",
            "@import",
            "url(",
            "src=",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(!page.contains(TITLE) && !page.contains(BODY));
        assert!(page.contains("<title>node-crash on deployment/web: PASSED</title>"));
        assert!(page.contains("<svg") && page.contains("Every event"));
    }

    #[test]
    fn hostile_names_stay_text() {
        let page = page(&Report::of_one(samples::hostile()));
        assert!(!page.contains("<script"), "{page}");
        assert_eq!(page.matches("<main>").count(), 1);
        assert!(page.contains("&lt;script&gt;"));
    }

    #[test]
    fn what_never_happened_has_no_picture() {
        let page = page(&Report::of_one(samples::refused()));
        assert!(!page.contains("<svg") && page.contains("no netem"));
        let page = super::page(&Report::of_one(Drill::default()));
        assert!(page.contains("UNFINISHED"));
    }

    #[test]
    fn a_game_day_leads_to_its_steps() {
        let page = page(&samples::game_day());
        assert!(page.contains("href=\"#step-3\"") && page.contains("id=\"step-3\""));
        assert!(page.contains("a pause of 5s") && page.contains("not run, since"));
        assert_eq!(page.matches("<article").count(), 2);
    }

    #[test]
    fn the_same_drill_can_be_run_again() {
        let page = page(&Report::of_one(samples::recovered()));
        assert!(page.contains("seed: 42"), "{page}");
    }
}
