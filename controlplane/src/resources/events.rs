//! Events, in both their APIs: core Events are stored, `events.k8s.io` Events are another view
//! of them.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::error::{invalid, required};
use super::object::{integer, is_set, text};
use super::print::{NAME, column, name, since, wide};
use super::{Column, FieldError, Hooks, Resource, SelectableField, StoredAs, metadata};

/// As the API server's `--event-ttl`.
const TIME_TO_LIVE: Duration = Duration::from_secs(3600);

/// The fields whose names differ: `events.k8s.io` first, core second.
const RENAMED: [(&str, &str); 8] = [
    ("deprecatedCount", "count"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedSource", "source"),
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("reportingInstance", "reportingInstance"),
];

const COLUMNS: &[Column] = &[
    column("Last Seen", "string", "When it happened last."),
    column("Type", "string", "Normal or Warning."),
    column("Reason", "string", "What happened, in one word."),
    column("Object", "string", "What it happened to."),
    wide(
        "Subobject",
        "string",
        "The part of the object that it happened to.",
    ),
    wide("Source", "string", "Who tells."),
    column("Message", "string", "What happened."),
    wide("First Seen", "string", "When it happened first."),
    wide("Count", "string", "How often it happened."),
    Column {
        priority: 1,
        ..NAME
    },
];

const SELECTABLE: &[SelectableField] = &[
    SelectableField::text("involvedObject.kind"),
    SelectableField::text("involvedObject.namespace"),
    SelectableField::text("involvedObject.name"),
    SelectableField::text("involvedObject.uid"),
    SelectableField::text("involvedObject.apiVersion"),
    SelectableField::text("involvedObject.resourceVersion"),
    SelectableField::text("involvedObject.fieldPath"),
    SelectableField::text("reason"),
    SelectableField::text("reportingComponent"),
    SelectableField::text("source.component").named("source"),
    SelectableField::text("type"),
];

const VIEW_SELECTABLE: &[SelectableField] = &[
    SelectableField::text("regarding.kind"),
    SelectableField::text("regarding.namespace"),
    SelectableField::text("regarding.name"),
    SelectableField::text("regarding.uid"),
    SelectableField::text("regarding.apiVersion"),
    SelectableField::text("regarding.resourceVersion"),
    SelectableField::text("regarding.fieldPath"),
    SelectableField::text("reason"),
    SelectableField::text("reportingController"),
    SelectableField::text("deprecatedSource.component").named("source"),
    SelectableField::text("type"),
];

pub(super) fn resources() -> [Resource; 2] {
    let core = Resource {
        singular: "event",
        short_names: &["ev"],
        hooks: Hooks {
            validate,
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row,
        selectable_fields: SELECTABLE,
        time_to_live: Some(TIME_TO_LIVE),
        ..Resource::namespaced("", "v1", "Event", "events", "io.k8s.api.core.v1.Event")
    };
    let view = Resource {
        group: "events.k8s.io",
        schema: "io.k8s.api.events.v1.Event",
        hooks: Hooks {
            validate: validate_view,
            ..Hooks::NONE
        },
        row: |event, now| {
            let mut core = event.clone();
            to_core(&mut core);
            row(&core, now)
        },
        selectable_fields: VIEW_SELECTABLE,
        stored_as: Some(StoredAs {
            group: "",
            plural: "events",
            to_stored: to_core,
            from_stored: from_core,
        }),
        ..core.clone()
    };
    [core, view]
}

fn to_core(event: &mut Value) {
    rename(event, "v1", |(new, old)| (new, old));
}

fn from_core(event: &mut Value) {
    rename(event, "events.k8s.io/v1", |(new, old)| (old, new));
}

fn rename(
    event: &mut Value,
    api_version: &str,
    direction: fn((&'static str, &'static str)) -> (&'static str, &'static str),
) {
    let Value::Object(fields) = event else { return };
    fields.insert("apiVersion".into(), api_version.into());
    let moved: Map<String, Value> = RENAMED
        .into_iter()
        .map(direction)
        .filter_map(|(from, to)| Some((to.to_string(), fields.remove(from)?)))
        .collect();
    fields.extend(moved);
}

fn validate(event: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(event);
    let (about, own) = (
        text(event, "involvedObject.namespace"),
        text(event, "metadata.namespace"),
    );
    // Events about what has no namespace are kept in `default`.
    let fits = if about.is_empty() {
        matches!(own, "default" | "kube-system")
    } else {
        about == own
    };
    if !fits {
        let why = "does not match event.namespace";
        errors.push(invalid(
            "involvedObject.namespace",
            &Value::from(about),
            why,
        ));
    }
    errors
}

/// The newer API asks for more.
fn validate_view(event: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(event);
    if !is_set(event, "eventTime") {
        errors.push(required("eventTime", ""));
    }
    for field in [
        "reportingController",
        "reportingInstance",
        "action",
        "reason",
    ] {
        if text(event, field).is_empty() {
            errors.push(required(field, ""));
        }
    }
    if !matches!(text(event, "type"), "Normal" | "Warning") {
        errors.push(invalid(
            "type",
            &Value::from(text(event, "type")),
            "has invalid value: ",
        ));
    }
    errors
}

fn row(event: &Value, now: Timestamp) -> Vec<Value> {
    let ago = |field: &str| match text(event, field) {
        "" => None,
        time => Some(since(time, now)),
    };
    let first = ago("firstTimestamp")
        .or_else(|| ago("eventTime"))
        .unwrap_or_else(|| "<unknown>".into());
    let (last, count) = if is_set(event, "series") {
        let last = since(text(event, "series.lastObservedTime"), now);
        (last, integer(event, "series.count"))
    } else {
        // The newer API does not count what happened once.
        (
            ago("lastTimestamp").unwrap_or_else(|| first.clone()),
            integer(event, "count").max(1),
        )
    };
    let kind = text(event, "involvedObject.kind").to_lowercase();
    let object = match text(event, "involvedObject.name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    vec![
        last.into(),
        text(event, "type").into(),
        text(event, "reason").into(),
        object.into(),
        text(event, "involvedObject.fieldPath").into(),
        source(event).into(),
        text(event, "message").trim().into(),
        first.into(),
        count.to_string().into(),
        name(event),
    ]
}

fn source(event: &Value) -> String {
    let or = |first: &'static str, second: &'static str| match text(event, first) {
        "" => text(event, second),
        found => found,
    };
    let (component, host) = (
        or("source.component", "reportingComponent"),
        or("source.host", "reportingInstance"),
    );
    if host.is_empty() {
        component.to_string()
    } else {
        format!("{component}, {host}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn views_convert_both_ways() {
        let view = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n", "regarding": {"name": "p"},
            "reportingController": "c", "reportingInstance": "i", "reason": "r"});
        let mut event = view.clone();
        to_core(&mut event);
        assert_eq!(
            event,
            json!({"apiVersion": "v1", "kind": "Event", "message": "n", "involvedObject": {"name": "p"},
                "reportingComponent": "c", "reportingInstance": "i", "reason": "r"})
        );
        from_core(&mut event);
        assert_eq!(event, view);
    }

    #[test]
    fn rows_of_old_and_new_events() {
        let now = "2024-01-01T00:10:00Z".parse().unwrap();
        let old = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"}, "type": "Normal",
            "reason": "Pulled", "message": "done\n", "firstTimestamp": "2024-01-01T00:00:00Z",
            "lastTimestamp": "2024-01-01T00:09:30Z", "count": 4, "source": {"component": "kubelet", "host": "n"}});
        assert_eq!(
            json!(row(&old, now)),
            json!([
                "30s",
                "Normal",
                "Pulled",
                "pod/p",
                "",
                "kubelet, n",
                "done",
                "10m",
                "4",
                "e"
            ])
        );
        let new = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Node"}, "eventTime": "2024-01-01T00:09:00.000000Z",
            "reportingComponent": "c", "reportingInstance": "i"});
        let cells = row(&new, now);
        assert_eq!(
            (&cells[0], &cells[3], &cells[5], &cells[8]),
            (&json!("60s"), &json!("node"), &json!("c, i"), &json!("1"))
        );
    }
}
