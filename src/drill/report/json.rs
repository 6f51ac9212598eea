//! The report for scripts: names that stay as they are, times in seconds from the injection.

use serde::Serialize;
use serde_json::Value;
use skiff_dev::{
    Drill, DrillPhase, DrillResult, EventCount, ExpectationResult, Requests, Span, Writes,
};

use super::verdict::status;
use super::{Entry, Report};

/// A drill. What is not known is `null`, never left out.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DrillReport {
    drill: String,
    target: String,
    victims: Vec<String>,
    seed: Option<i64>,
    recovered: Option<bool>,
    time_to_detect: Option<f64>,
    time_to_recover: Option<f64>,
    requests: Option<Requests>,
    restarts: Option<i64>,
    pods_moved: Option<i64>,
    timeline: Vec<Happening>,
    expectations: Vec<ExpectationResult>,
    name: Option<String>,
    phase: DrillPhase,
    result: Option<DrillResult>,
    message: Option<String>,
    dry_run: bool,
    injected_at: Option<String>,
    writes: Option<Writes>,
    events: Vec<EventCount>,
    spans: Vec<Span>,
}

#[derive(Debug, Serialize)]
struct Happening {
    at: f64,
    event: String,
    object: String,
    detail: String,
}

/// A game day, or several drills.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct GameDayReport {
    name: Option<String>,
    passed: bool,
    steps: Vec<Value>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SkippedStep {
    title: String,
    drill: String,
    target: String,
    /// Why it could not be begun; nothing if its turn never came.
    not_run: Option<String>,
}

/// One drill as an object of its own, several as the `steps` of one.
pub fn value(report: &Report) -> serde_json::Result<Value> {
    match report.single() {
        Some(drill) => serde_json::to_value(of_drill(drill)),
        None => serde_json::to_value(GameDayReport {
            name: report.title.clone(),
            passed: report.passed(),
            steps: report.entries.iter().map(step).collect::<Result<_, _>>()?,
        }),
    }
}

fn step(entry: &Entry) -> serde_json::Result<Value> {
    match entry {
        Entry::Drill { title, drill } => {
            let mut value = serde_json::to_value(of_drill(drill))?;
            value["title"] = title.as_str().into();
            Ok(value)
        }
        Entry::Pause(time) => Ok(serde_json::json!({ "pause": time.0.as_secs_f64() })),
        Entry::NotRun {
            title,
            kind,
            target,
            why,
        } => serde_json::to_value(SkippedStep {
            title: title.clone(),
            drill: kind.to_string(),
            target: target.to_string(),
            not_run: why.clone(),
        }),
    }
}

fn of_drill(drill: &Drill) -> DrillReport {
    let status = status(drill);
    let mut timeline: Vec<Happening> = status
        .timeline
        .into_iter()
        .map(|entry| Happening {
            at: entry.at,
            event: entry.event,
            object: entry.object,
            detail: entry.detail,
        })
        .collect();
    timeline.sort_by(|a, b| a.at.total_cmp(&b.at));
    DrillReport {
        drill: drill.spec.drill.to_string(),
        target: drill.spec.target.to_string(),
        victims: status.victims,
        seed: status.seed,
        recovered: status.recovered,
        time_to_detect: status.time_to_detect,
        time_to_recover: status.time_to_recover,
        requests: status.requests,
        restarts: status.restarts,
        pods_moved: status.pods_moved,
        timeline,
        expectations: status.expectations,
        name: drill.metadata.name.clone(),
        phase: status.phase,
        result: status.result,
        message: status.message,
        dry_run: drill.spec.dry_run,
        injected_at: status.injected_at.map(|at| at.0.to_string()),
        writes: status.writes,
        events: status.events,
        spans: status.spans,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::samples;
    use super::*;

    #[test]
    fn the_contract_is_kept() {
        let value = value(&Report::of_one(samples::recovered())).unwrap();
        assert_eq!(value["drill"], "container-kill");
        assert_eq!(value["target"], "deployment/web");
        assert_eq!(value["victims"], json!(["pod/web-6f7b9c-4xk2p (node-1)"]));
        assert_eq!(value["seed"], 42);
        assert_eq!(value["recovered"], true);
        assert_eq!(value["timeToDetect"], 0.012);
        assert_eq!(value["timeToRecover"], 0.411);
        assert_eq!(value["requests"]["sent"], 63);
        assert_eq!(value["requests"]["failed"], 2);
        assert_eq!(value["requests"]["longestGap"], 0.21);
        assert_eq!(
            (&value["restarts"], &value["podsMoved"]),
            (&json!(1), &json!(0))
        );
        let injected = &value["timeline"][0];
        assert_eq!(
            (&injected["at"], &injected["event"]),
            (&json!(0.0), &json!("injected"))
        );
        assert!(injected["object"].is_string());
        let recovered = value["timeline"].as_array().unwrap().last().unwrap();
        assert_eq!(recovered["object"], "", "there even when there is none");
        assert_eq!(value["expectations"][0]["text"], "recovery<5s");
        assert_eq!(value["expectations"][0]["met"], true);
    }

    #[test]
    fn what_is_unknown_is_null() {
        let value = value(&Report::of_one(Drill::default())).unwrap();
        for name in [
            "recovered",
            "timeToDetect",
            "timeToRecover",
            "requests",
            "restarts",
            "podsMoved",
            "seed",
        ] {
            assert_eq!(value.get(name), Some(&Value::Null), "{name}");
        }
        assert_eq!(value["victims"], json!([]));
    }

    #[test]
    fn a_game_day_is_its_steps() {
        let value = value(&samples::game_day()).unwrap();
        assert_eq!(
            (&value["name"], &value["passed"]),
            (&json!("friday"), &json!(false))
        );
        let steps = value["steps"].as_array().unwrap();
        assert_eq!(steps[0]["title"], "crash");
        assert_eq!(steps[1], json!({"pause": 5.0}));
        assert_eq!(steps[3]["notRun"], Value::Null);
    }
}
