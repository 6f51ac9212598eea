//! What the tables' rows share: ages, label selectors, lists of containers and images.

use jiff::Timestamp;
use serde_json::Value;

use super::Column;
use super::object::{at, entries, list, text};

pub(crate) const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "Name of the object.",
    priority: 0,
};
pub(crate) const AGE: Column = column("Age", "string", "Time since the object was created.");

pub(crate) const fn column(
    name: &'static str,
    kind: &'static str,
    description: &'static str,
) -> Column {
    Column {
        name,
        kind,
        format: "",
        description,
        priority: 0,
    }
}

/// A column of `-o wide`.
pub(crate) const fn wide(
    name: &'static str,
    kind: &'static str,
    description: &'static str,
) -> Column {
    Column {
        name,
        kind,
        format: "",
        description,
        priority: 1,
    }
}

pub(crate) fn name(object: &Value) -> Value {
    text(object, "metadata.name").into()
}

pub(crate) fn age(object: &Value, now: Timestamp) -> Value {
    since(text(object, "metadata.creationTimestamp"), now).into()
}

/// The time since an RFC 3339 time, as [`human_duration`]; `<unknown>` when there is none.
pub(crate) fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => human_duration(now.duration_since(time).as_secs_f64()),
        Err(_) => "<unknown>".into(),
    }
}

/// A duration in two or three significant digits, as `kubectl` prints ages.
pub(crate) fn human_duration(duration: f64) -> String {
    let seconds = duration as i64;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |large: i64, unit: &str, small: i64, rest: &str| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{rest}"),
    };
    match () {
        () if seconds < -1 => "<invalid>".into(),
        () if seconds < 0 => "0s".into(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => two(days, "d", hours % 24, "h"),
        () if days < 365 * 2 => format!("{days}d"),
        () if days < 365 * 8 => two(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

/// A `LabelSelector` as one line: `app=nginx,tier in (a,b)`.
pub(crate) fn label_selector(selector: &Value) -> String {
    let mut parts: Vec<(String, String)> = entries(selector, "matchLabels")
        .map(|(key, value)| {
            (
                key.clone(),
                format!("{key}={}", value.as_str().unwrap_or_default()),
            )
        })
        .collect();
    for expression in list(selector, "matchExpressions") {
        let key = text(expression, "key");
        let mut values: Vec<&str> = list(expression, "values")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        values.sort_unstable();
        let values = values.join(",");
        let part = match text(expression, "operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_string(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".into(),
        };
        parts.push((key.to_string(), part));
    }
    if parts.is_empty() {
        return "<none>".into();
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    parts
        .into_iter()
        .map(|(_, part)| part)
        .collect::<Vec<_>>()
        .join(",")
}

/// A map of labels as one line: `app=nginx,tier=web`.
pub(crate) fn labels(map: &Value) -> String {
    let Some(map) = map.as_object().filter(|m| !m.is_empty()) else {
        return "<none>".into();
    };
    map.iter()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect::<Vec<_>>()
        .join(",")
}

/// Containers and images of a pod template, each joined by commas.
pub(crate) fn containers_and_images(template: &Value) -> (Value, Value) {
    let joined = |field| {
        let names: Vec<&str> = list(template, "spec.containers")
            .iter()
            .map(|c| text(c, field))
            .collect();
        Value::from(names.join(","))
    };
    (joined("name"), joined("image"))
}

/// A string, or `<none>`.
pub(crate) fn or_none(value: &str) -> Value {
    if value.is_empty() {
        "<none>".into()
    } else {
        value.into()
    }
}

/// How many entries a map or list has.
pub(crate) fn count(object: &Value, path: &str) -> i64 {
    let length = match at(object, path) {
        Value::Object(map) => map.len(),
        Value::Array(items) => items.len(),
        _ => 0,
    };
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_read_as_kubectl_prints_them() {
        const MINUTE: f64 = 60.0;
        const HOUR: f64 = 3600.0;
        const DAY: f64 = 86_400.0;
        for (seconds, want) in [
            (-5.0, "<invalid>"),
            (-1.5, "0s"),
            (0.9, "0s"),
            (119.0, "119s"),
            (120.0, "2m"),
            (121.0, "2m1s"),
            (9.0 * MINUTE + 59.0, "9m59s"),
            (10.0 * MINUTE + 59.0, "10m"),
            (179.0 * MINUTE, "179m"),
            (3.0 * HOUR, "3h"),
            (3.0 * HOUR + 5.0 * MINUTE, "3h5m"),
            (8.0 * HOUR + MINUTE, "8h"),
            (47.0 * HOUR, "47h"),
            (2.0 * DAY, "2d"),
            (2.0 * DAY + HOUR, "2d1h"),
            (8.0 * DAY + HOUR, "8d"),
            (729.0 * DAY, "729d"),
            (730.0 * DAY, "2y"),
            (731.0 * DAY, "2y1d"),
            (365.0 * 8.0 * DAY + DAY, "8y"),
        ] {
            assert_eq!(human_duration(seconds), want, "{seconds}");
        }
    }

    #[test]
    fn selectors_in_one_line() {
        let selector = json!({"matchLabels": {"b": "2", "a": "1"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["y", "x"]}, {"key": "d", "operator": "DoesNotExist"}]});
        assert_eq!(label_selector(&selector), "a=1,b=2,c in (x,y),!d");
        assert_eq!(label_selector(&json!({})), "<none>");
    }
}
