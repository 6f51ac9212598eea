//! What a drill's status says: while it runs, and at its end.
//!
//! Times in a status are seconds from the injection, rounded to a millisecond. Everything that another process needs to go
//! on with the record of a drill is in its status too: see [`remembered`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use skiff_dev::{
    Drill, DrillPlan, DrillResult, DrillStatus, DrillTask, DrillTaskStatus, Expectation,
    ProbeScheme, Requests, Span, TimelineEntry,
};

use super::course::{Course, Moment, Stay};
use super::observe::{Act, Active};
use super::recovery;
use super::tasks::objects_of;

/// Entries of the timeline that follow from other things that are known.
const DERIVED: [&str; 9] = [
    "injected",
    "refused",
    "firstFailedProbe",
    "detected",
    "lastFailedProbe",
    "recovered",
    "undone",
    "healed",
    "event",
];
/// What of an object's changes is the drill's own doing, and no sign that anybody noticed.
const OWN_DOING: [&str; 3] = ["cordoned", "uncordoned", "created"];

/// What is known of a drill that has begun to break things.
pub(super) struct Facts<'a> {
    pub(super) drill: &'a Drill,
    pub(super) plan: &'a DrillPlan,
    pub(super) active: &'a Active,
    pub(super) faults: &'a [Arc<DrillTask>],
    pub(super) probe: Option<&'a DrillTaskStatus>,
    pub(super) injected: Option<Timestamp>,
    pub(super) recovered: Option<Timestamp>,
    pub(super) healed: Option<Timestamp>,
}

impl Facts<'_> {
    /// Notes since when all is as it was, the target being whole since `whole`; gives what is not.
    pub(super) fn heal(
        &mut self,
        healed: Result<Timestamp, String>,
        whole: Timestamp,
    ) -> Option<String> {
        match (self.healed, healed) {
            (Some(_), _) => None,
            (None, Ok(at)) => {
                self.healed = Some(at.max(whole));
                None
            }
            (None, Err(why)) => Some(why),
        }
    }

    /// The status as it is to be now.
    pub(super) fn status(&self) -> DrillStatus {
        let mut status = self.drill.status.clone().unwrap_or_default();
        let course = &self.active.course;
        if let Some(plan) = &mut status.plan {
            plan.whole_since = course.whole_since().map(MicroTime);
        }
        let Some(injected) = self.injected else {
            return status;
        };
        status.injected_at = Some(MicroTime(injected));
        status.recovered = self.recovered.map(|_| true).or(status.recovered);
        status.time_to_recover = self.recovered.map(|at| seconds(at, injected));
        status.healed_at = self.healed.map(MicroTime);
        status.restarts = Some(restarts(course, self.plan));
        status.pods_moved = Some(moved(course, self.plan));
        let mut moments = self.moments(injected);
        let detected = self.detected(injected);
        status.time_to_detect = detected.as_ref().map(|moment| seconds(moment.at, injected));
        moments.extend(detected);
        // To the millisecond, as they are told.
        let told = |moment: &Moment| (seconds(moment.at, injected) * 1e3).round() as i64;
        moments.sort_by_key(|moment| (told(moment), rank(&moment.event), moment.at));
        status.timeline = moments
            .iter()
            .map(|moment| entry(moment, injected))
            .collect();
        status.spans = course.stays().map(|stay| span(stay, injected)).collect();
        status
    }

    /// The report.
    pub(super) fn report(&self, at: Timestamp) -> DrillStatus {
        let mut status = self.status();
        status.plan = None;
        status.completed_at = Some(MicroTime(at));
        if let Some(injected) = self.injected {
            status.events = self.active.course.events();
            status.requests = self.requests(injected);
        }
        if status.result.is_none() {
            status.recovered.get_or_insert(false);
            self.judge(&mut status);
        }
        status
    }

    fn judge(&self, status: &mut DrillStatus) {
        let expected = self.drill.spec.expect.iter();
        // The API refuses expectations that can't be read.
        let expected = expected.filter_map(|text| text.parse::<Expectation>().ok());
        status.expectations = expected.map(|e| e.evaluate(status)).collect();
        let missed = status.expectations.iter().filter(|e| !e.met);
        let missed: Vec<String> = missed
            .map(|missed| format!("{}: {}", missed.text, missed.actual))
            .collect();
        let is_recovered = status.recovered == Some(true);
        status.result = Some(if is_recovered && missed.is_empty() {
            DrillResult::Passed
        } else {
            DrillResult::Failed
        });
        if !missed.is_empty() && is_recovered {
            status.message = Some(format!("not as expected: {}", missed.join("; ")));
        }
    }

    /// Everything that happened since the injection, in no order.
    fn moments(&self, injected: Timestamp) -> Vec<Moment> {
        let mut moments = Vec::new();
        let mut add = |at: Timestamp, event: &str, object: &str, detail: &str| {
            moments.push(Moment {
                at,
                event: event.to_owned(),
                object: object.to_owned(),
                detail: detail.to_owned(),
            });
        };
        for (object, act) in &self.active.acts {
            match &act.refused {
                None => add(act.at, "injected", object, ""),
                Some(why) => add(act.at, "refused", object, why),
            }
        }
        let lasts = self.drill.spec.drill.default_duration().is_some();
        for task in self.faults {
            let Some(status) = &task.status else { continue };
            let message = status.message.as_deref().unwrap_or_default();
            for object in objects_of(task) {
                if let Some(at) = &status.started_at {
                    add(at.0, "injected", &object, message);
                }
                if let Some(at) = status.ended_at.as_ref().filter(|_| lasts) {
                    add(at.0, "undone", &object, "");
                }
            }
        }
        if let Some(probe) = self.probe {
            let what = self.plan.probe.as_ref().map(|p| url(&p.target));
            let what = what.unwrap_or_default();
            if let Some(at) = &probe.first_failed_at {
                add(at.0, "firstFailedProbe", "", &what);
            }
            if let Some(at) = &probe.last_failed_at {
                add(at.0, "lastFailedProbe", "", &what);
            }
        }
        if let Some(at) = self.recovered {
            let undone =
                recovery::first_undone(self.faults).filter(|undone| lasts && *undone <= at);
            add(at, "recovered", "", undone.map_or("", |_| "after the undo"));
        }
        if let Some(at) = self.healed {
            add(at, "healed", "", "");
        }
        let course = &self.active.course;
        let seen = course.moments().iter().cloned();
        moments.extend(seen.chain(course.event_moments()));
        // A request that was under way when the fault came was sent before it.
        let timeout = self.plan.probe.as_ref().map(|probe| probe.timeout.0);
        let under_way = injected - timeout.unwrap_or_default();
        moments.retain(|moment| match moment.event.as_str() {
            "firstFailedProbe" | "lastFailedProbe" => moment.at >= under_way,
            _ => moment.at >= injected,
        });
        moments
    }

    /// The first change of what was hit that shows the fault.
    fn detected(&self, injected: Timestamp) -> Option<Moment> {
        let course = &self.active.course;
        let mut moments = course.moments().iter();
        let shown = moments.find(|moment| {
            moment.at >= injected
                && !OWN_DOING.contains(&moment.event.as_str())
                && course.is_hit(&moment.object)
        })?;
        let detail = match shown.detail.as_str() {
            "" => shown.event.clone(),
            detail => format!("{} ({detail})", shown.event),
        };
        Some(Moment {
            event: "detected".into(),
            detail,
            ..shown.clone()
        })
    }

    fn requests(&self, injected: Timestamp) -> Option<Requests> {
        let plan = self.plan.probe.as_ref()?;
        let mut requests = self.probe?.requests.clone().unwrap_or_default();
        let origin = injected.as_microsecond() as f64 / 1e6;
        for bucket in &mut requests.buckets {
            bucket.at = millis(bucket.at - origin);
        }
        if requests.target.is_empty() {
            requests.target = url(&plan.target);
        }
        if requests.from.is_empty() {
            requests.from.clone_from(&plan.node);
        }
        Some(requests)
    }
}

/// Of what happened at once, what follows from the rest comes last.
fn rank(event: &str) -> usize {
    let order = ["injected", "", "detected", "recovered", "healed"];
    order.iter().position(|known| *known == event).unwrap_or(1)
}

/// As `http://10.43.0.7:80/`.
fn url(target: &skiff_dev::ProbeTarget) -> String {
    let host = match target.host.contains(':') {
        true => format!("[{}]", target.host),
        false => target.host.clone(),
    };
    match target.scheme {
        ProbeScheme::Http => format!("http://{host}:{}{}", target.port, target.path),
        ProbeScheme::Tcp => format!("tcp://{host}:{}", target.port),
    }
}

/// What a status keeps of a record that another process made.
pub(super) fn remembered(status: &DrillStatus) -> (Vec<Moment>, Vec<Stay>) {
    let Some(injected) = status.injected_at.as_ref().map(|at| at.0) else {
        return Default::default();
    };
    let seen = status.timeline.iter();
    let seen = seen.filter(|entry| !DERIVED.contains(&entry.event.as_str()));
    let moments = seen.map(|entry| Moment {
        at: after(injected, entry.at),
        event: entry.event.clone(),
        object: entry.object.clone(),
        detail: entry.detail.clone(),
    });
    let stays = status.spans.iter().map(|span| Stay {
        object: span.object.clone(),
        state: span.state.clone(),
        from: after(injected, span.from),
        to: span.to.map(|to| after(injected, to)),
    });
    (moments.collect(), stays.collect())
}

/// What a controller did itself, as the timeline tells.
pub(super) fn acts(status: &DrillStatus) -> BTreeMap<String, Act> {
    let Some(injected) = status.injected_at.as_ref().map(|at| at.0) else {
        return BTreeMap::new();
    };
    let acts = status.timeline.iter().filter_map(|entry| {
        let refused = match entry.event.as_str() {
            "injected" => None,
            "refused" => Some(entry.detail.clone()),
            _ => return None,
        };
        let at = after(injected, entry.at);
        Some((entry.object.clone(), Act { at, refused }))
    });
    acts.collect()
}

/// How many times containers of the target were started anew since the baseline.
fn restarts(course: &Course, plan: &DrillPlan) -> i64 {
    let before: HashMap<&str, i64> = plan
        .baseline
        .iter()
        .flat_map(|baseline| &baseline.pods)
        .map(|pod| (pod.uid.as_str(), pod.restarts))
        .collect();
    let since = course.pods().map(|(uid, pod)| {
        let before = before.get(uid.as_str()).copied().unwrap_or_default();
        (pod.restarts - before).max(0)
    });
    since.sum()
}

/// How many pods the target has more on some node than at the baseline: those that were replaced elsewhere.
fn moved(course: &Course, plan: &DrillPlan) -> i64 {
    let mut gain: HashMap<&str, i64> = HashMap::new();
    let before = plan.baseline.iter().flat_map(|baseline| &baseline.pods);
    let mut lost = 0;
    for pod in before {
        *gain.entry(&pod.node).or_default() -= 1;
        let is_there = course
            .pod(&pod.uid)
            .is_some_and(|pod| pod.left_at.is_none());
        lost += i64::from(!is_there);
    }
    let there = course.pods().filter(|(_, pod)| pod.left_at.is_none());
    for (_, pod) in there.filter(|(_, pod)| !pod.node.is_empty()) {
        *gain.entry(&pod.node).or_default() += 1;
    }
    let gained: i64 = gain.values().filter(|gain| **gain > 0).sum();
    gained.min(lost)
}

fn entry(moment: &Moment, injected: Timestamp) -> TimelineEntry {
    TimelineEntry {
        at: seconds(moment.at, injected),
        event: moment.event.clone(),
        object: moment.object.clone(),
        detail: moment.detail.clone(),
    }
}

fn span(stay: &Stay, injected: Timestamp) -> Span {
    Span {
        object: stay.object.clone(),
        state: stay.state.clone(),
        from: seconds(stay.from, injected),
        to: stay.to.map(|to| seconds(to, injected)),
    }
}

/// Seconds from `origin` to `at`, to the millisecond.
pub(super) fn seconds(at: Timestamp, origin: Timestamp) -> f64 {
    let micros = at.as_microsecond() - origin.as_microsecond();
    millis(micros as f64 / 1e6)
}

fn millis(seconds: f64) -> f64 {
    let rounded = (seconds * 1e3).round() / 1e3;
    // No negative zero.
    rounded + 0.0
}

/// The time that is so many seconds after `origin`.
pub(super) fn after(origin: Timestamp, seconds: f64) -> Timestamp {
    let micros = (seconds * 1e6).round() as i64;
    origin
        .checked_add(SignedDuration::from_micros(micros))
        .unwrap_or(origin)
}

#[cfg(test)]
mod tests;
