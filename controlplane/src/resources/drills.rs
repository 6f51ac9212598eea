//! Drills: rehearsals of one failure, and their reports (`skiff.dev/v1`).
//!
//! What can be told to be wrong without looking at the cluster is refused here; whom a drill would
//! hit, and whether the hosts can do it, only the drill controller knows.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_dev::{Drill, DrillKind, Expectation, GoDuration};

use super::error::{forbidden, invalid, not_supported, required};
use super::object::{at, carry_over, default, ensure, is_set, list, text, truth};
use super::print::{AGE, NAME, age, column, name, wide};
use super::{Column, FieldError, Hooks, Resource, metadata, syntax};
use crate::cache::Selector;

const TARGETS: [&str; 5] = ["Pod", "Deployment", "ReplicaSet", "Node", "Selector"];
const SCHEMES: [&str; 2] = ["HTTP", "TCP"];
/// Nothing in a drill lasts longer.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// No answer is waited for longer.
const LONGEST_ANSWER: Duration = Duration::from_secs(60);
const DEFAULT_TIMEOUT: GoDuration = GoDuration::from_secs(120);
/// Expectations of one drill.
const EXPECTATIONS: usize = 64;

const COLUMNS: &[Column] = &[
    NAME,
    column("Drill", "string", "Which failure is rehearsed."),
    column("Target", "string", "What is hit."),
    column("Phase", "string", "How far it is."),
    column("Result", "string", "What came of it."),
    column(
        "Detect",
        "string",
        "Time from the failure to the first status that shows it.",
    ),
    column(
        "Recovery",
        "string",
        "Time from the failure until the target was whole again.",
    ),
    AGE,
    wide("Failed", "string", "Requests that failed, of those sent."),
    wide(
        "Seed",
        "string",
        "The seed that the victims were chosen with.",
    ),
];

pub(super) fn resource() -> Resource {
    Resource {
        singular: "drill",
        has_status: true,
        has_generation: true,
        hooks: Hooks {
            default: complete,
            prepare_create: |drill| {
                if let Some(fields) = drill.as_object_mut() {
                    fields.remove("status");
                }
            },
            prepare_update: |new, old| carry_over(new, old, "status"),
            validate,
            validate_update,
            validate_status: unreadable_status::<Drill>,
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row,
        ..Resource::cluster_scoped(
            skiff_dev::GROUP,
            skiff_dev::VERSION,
            "Drill",
            "drills",
            "dev.skiff.v1.Drill",
        )
    }
}

fn row(drill: &Value, now: Timestamp) -> Vec<Value> {
    let requests = at(drill, "status.requests");
    let failed = match (requests["failed"].as_i64(), requests["sent"].as_i64()) {
        (Some(failed), Some(sent)) => format!("{failed}/{sent}"),
        _ => String::new(),
    };
    let seed = at(drill, "status.seed")
        .as_i64()
        .or(at(drill, "spec.seed").as_i64());
    vec![
        name(drill),
        text(drill, "spec.drill").into(),
        target(at(drill, "spec.target")).into(),
        or_pending(text(drill, "status.phase")).into(),
        text(drill, "status.result").into(),
        seconds(at(drill, "status.timeToDetect")).into(),
        seconds(at(drill, "status.timeToRecover")).into(),
        age(drill, now),
        failed.into(),
        seed.map_or(String::new(), |seed| seed.to_string()).into(),
    ]
}

/// As `deployment/web`, the form in which people name it.
fn target(target: &Value) -> String {
    match serde_json::from_value::<skiff_dev::Target>(target.clone()) {
        Ok(target) => target.to_string(),
        Err(_) => String::new(),
    }
}

/// An object that nobody has looked at yet has no phase.
pub(super) fn or_pending(phase: &str) -> &str {
    if phase.is_empty() { "Pending" } else { phase }
}

/// To the millisecond, as `0.012s`; empty where nothing was measured.
fn seconds(value: &Value) -> String {
    match value.as_f64() {
        Some(seconds) => format!("{seconds:.3}s"),
        None => String::new(),
    }
}

/// Writes down what holds where nothing was said, so that the object tells what will be done.
fn complete(drill: &mut Value) {
    let spec = ensure(drill, "spec");
    let kind: Option<DrillKind> = text(spec, "drill").parse().ok();
    if !is_set(spec, "count") && !is_set(spec, "percent") {
        default(spec, "count", 1);
    }
    default(spec, "timeout", DEFAULT_TIMEOUT.to_string());
    if let Some(lasts) = kind.and_then(DrillKind::default_duration) {
        default(spec, "duration", lasts.to_string());
    }
    for side in ["target", "peer"] {
        if is_set(spec, side) && text(&spec[side], "kind") != "Node" {
            default(&mut spec[side], "namespace", "default");
        }
    }
    match kind {
        Some(DrillKind::PacketLoss) => default(ensure(spec, "parameters"), "loss", 30),
        Some(DrillKind::Latency) => default(ensure(spec, "parameters"), "delay", "100ms"),
        Some(DrillKind::MemoryPressure) => default(ensure(spec, "parameters"), "memory", 90),
        _ => {}
    }
}

fn validate(drill: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(drill);
    let spec = at(drill, "spec");
    let named = text(spec, "drill");
    let kind: Option<DrillKind> = named.parse().ok();
    match kind {
        Some(kind) => errors.extend(of_kind(spec, kind)),
        None if named.is_empty() => errors.push(required("spec.drill", "")),
        None => {
            let known = DrillKind::ALL.map(DrillKind::name);
            errors.push(not_supported("spec.drill", named, &known));
        }
    }
    errors.extend(side(spec, "target"));
    if is_set(spec, "peer") {
        errors.extend(side(spec, "peer"));
    }
    errors.extend(victims(spec));
    errors.extend(length("spec.timeout", at(spec, "timeout"), LONGEST));
    errors.extend(parameters(at(spec, "parameters"), kind));
    errors.extend(probe(at(spec, "probe")));
    errors.extend(expectations(list(spec, "expect")));
    if errors.is_empty() {
        errors.extend(unreadable::<Drill>(drill, "spec"));
    }
    errors
}

/// What only some drills take.
fn of_kind(spec: &Value, kind: DrillKind) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match kind.default_duration() {
        Some(_) => errors.extend(length("spec.duration", at(spec, "duration"), LONGEST)),
        None if is_set(spec, "duration") => {
            let why = format!("{kind} is over the moment that it has happened");
            errors.push(forbidden("spec.duration", &why));
        }
        None => {}
    }
    if is_set(spec, "peer") && kind != DrillKind::PodPartition {
        let why = format!("only pod-partition has another side, not {kind}");
        errors.push(forbidden("spec.peer", &why));
    }
    let has_container = matches!(
        kind,
        DrillKind::ContainerKill
            | DrillKind::ContainerOom
            | DrillKind::ContainerHang
            | DrillKind::CpuStress
            | DrillKind::MemoryPressure
    );
    if is_set(spec, "container") && !has_container {
        let why = format!("{kind} does not choose among a pod's containers");
        errors.push(forbidden("spec.container", &why));
    }
    errors
}

fn side(spec: &Value, field: &str) -> Vec<FieldError> {
    let (target, path) = (at(spec, field), format!("spec.{field}"));
    let mut errors = Vec::new();
    if target.is_null() {
        return vec![required(&path, "")];
    }
    let kind = text(target, "kind");
    if kind.is_empty() {
        errors.push(required(&format!("{path}.kind"), ""));
    } else if !TARGETS.contains(&kind) {
        errors.push(not_supported(&format!("{path}.kind"), kind, &TARGETS));
    }
    if kind == "Node" && is_set(target, "namespace") {
        let why = "nodes are in no namespace";
        errors.push(forbidden(&format!("{path}.namespace"), why));
    }
    if kind == "Node" && field == "peer" {
        let why = "the other side of a pod-partition are pods";
        errors.push(invalid(&format!("{path}.kind"), &target["kind"], why));
    }
    let namespace = text(target, "namespace");
    if !namespace.is_empty() {
        let faults = syntax::dns_label(namespace);
        let why = |why: &String| invalid(&format!("{path}.namespace"), &json!(namespace), why);
        errors.extend(faults.iter().map(why));
    }
    errors.extend(identity(target, &path, kind));
    errors
}

/// Exactly one of a name and a selector, as the kind asks for.
fn identity(target: &Value, path: &str, kind: &str) -> Vec<FieldError> {
    let (name, selector) = (text(target, "name"), text(target, "selector"));
    let mut errors = Vec::new();
    if kind == "Selector" {
        if !name.is_empty() {
            let why = "may not be set when `kind` is Selector";
            errors.push(forbidden(&format!("{path}.name"), why));
        }
        if selector.is_empty() {
            let why = "must be set when `kind` is Selector";
            errors.push(required(&format!("{path}.selector"), why));
        } else if let Err(error) = Selector::parse(selector, "", &[]) {
            let field = format!("{path}.selector");
            errors.push(invalid(&field, &json!(selector), &error.to_string()));
        }
        return errors;
    }
    if !selector.is_empty() {
        let why = "may only be set when `kind` is Selector";
        errors.push(forbidden(&format!("{path}.selector"), why));
    }
    let field = format!("{path}.name");
    if name.is_empty() {
        errors.push(required(&field, ""));
    } else {
        let faults = syntax::dns_subdomain(name);
        errors.extend(faults.iter().map(|why| invalid(&field, &json!(name), why)));
    }
    errors
}

fn victims(spec: &Value) -> Vec<FieldError> {
    let (count, percent) = (at(spec, "count"), at(spec, "percent"));
    let mut errors = Vec::new();
    if !count.is_null() && !percent.is_null() {
        let why = "may not be set together with `count`";
        errors.push(forbidden("spec.percent", why));
    }
    errors.extend(between("spec.count", count, 1, i64::from(i32::MAX)));
    errors.extend(between("spec.percent", percent, 1, 100));
    errors
}

/// Each parameter belongs to some kinds.
fn parameters(parameters: &Value, kind: Option<DrillKind>) -> Vec<FieldError> {
    let owners: [(&str, &[DrillKind]); 7] = [
        ("loss", &[DrillKind::PacketLoss]),
        ("delay", &[DrillKind::Latency]),
        ("workers", &[DrillKind::CpuStress]),
        ("memory", &[DrillKind::MemoryPressure]),
        ("leave", &[DrillKind::DiskFull]),
        ("sharedDisk", &[DrillKind::DiskFull]),
        (
            "down",
            &[DrillKind::ControlplaneRestart, DrillKind::ControlplaneKill],
        ),
    ];
    let mut errors = Vec::new();
    for (parameter, owners) in owners {
        let is_given = is_set(parameters, parameter) && at(parameters, parameter) != false;
        if let Some(kind) = kind
            && is_given
            && !owners.contains(&kind)
        {
            let names: Vec<&str> = owners.iter().map(|owner| owner.name()).collect();
            let why = format!("a parameter of {}, not of {kind}", names.join(" and "));
            errors.push(forbidden(&format!("spec.parameters.{parameter}"), &why));
        }
    }
    let of = |parameter: &str| at(parameters, parameter);
    errors.extend(between("spec.parameters.loss", of("loss"), 1, 100));
    errors.extend(between("spec.parameters.workers", of("workers"), 1, 1024));
    errors.extend(between("spec.parameters.memory", of("memory"), 1, 99));
    errors.extend(length("spec.parameters.delay", of("delay"), LONGEST_ANSWER));
    errors.extend(length("spec.parameters.down", of("down"), LONGEST));
    if text(parameters, "leave").starts_with('-') {
        let why = "must be greater than or equal to 0";
        errors.push(invalid("spec.parameters.leave", of("leave"), why));
    }
    errors
}

fn probe(probe: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (service, host) = (text(probe, "service"), text(probe, "host"));
    if truth(probe, "off") {
        let others = [
            "service", "host", "port", "scheme", "path", "rate", "timeout",
        ];
        for field in others.into_iter().filter(|field| is_set(probe, field)) {
            let why = "may not be set when the probe is off";
            errors.push(forbidden(&format!("spec.probe.{field}"), why));
        }
    }
    if !service.is_empty() && !host.is_empty() {
        let why = "may not be set together with `service`";
        errors.push(forbidden("spec.probe.host", why));
    }
    if !service.is_empty() {
        let (namespace, name) = match service.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, service),
        };
        let mut faults = syntax::dns_1035_label(name);
        faults.extend(namespace.into_iter().flat_map(syntax::dns_label));
        let why = |why: &String| invalid("spec.probe.service", &json!(service), why);
        errors.extend(faults.iter().map(why));
    }
    if !host.is_empty() && !is_set(probe, "port") {
        let why = "must be set together with `host`";
        errors.push(required("spec.probe.port", why));
    }
    if !host.is_empty() && !is_host(host) {
        let why = "must be an IP address or a DNS name";
        errors.push(invalid("spec.probe.host", &json!(host), why));
    }
    errors.extend(between("spec.probe.port", at(probe, "port"), 1, 65535));
    errors.extend(between("spec.probe.rate", at(probe, "rate"), 1, 1000));
    let timeout = at(probe, "timeout");
    errors.extend(length("spec.probe.timeout", timeout, LONGEST_ANSWER));
    let scheme = text(probe, "scheme");
    if !scheme.is_empty() && !SCHEMES.contains(&scheme) {
        errors.push(not_supported("spec.probe.scheme", scheme, &SCHEMES));
    }
    errors.extend(probe_path(text(probe, "path"), scheme));
    errors
}

fn probe_path(path: &str, scheme: &str) -> Option<FieldError> {
    let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic());
    if path.is_empty() {
        None
    } else if scheme == "TCP" {
        let why = "may not be set when `scheme` is TCP";
        Some(forbidden("spec.probe.path", why))
    } else if !path.starts_with('/') || !is_plain {
        let why = "must begin with '/' and have no blanks; escape others as %20";
        Some(invalid("spec.probe.path", &json!(path), why))
    } else {
        None
    }
}

fn is_host(host: &str) -> bool {
    host.parse::<std::net::IpAddr>().is_ok() || syntax::dns_subdomain(host).is_empty()
}

fn expectations(expectations: &[Value]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if expectations.len() > EXPECTATIONS {
        let why = format!("must have at most {EXPECTATIONS} items");
        errors.push(invalid("spec.expect", &json!(expectations.len()), &why));
    }
    for (index, expectation) in expectations.iter().enumerate() {
        let parsed = expectation
            .as_str()
            .unwrap_or_default()
            .parse::<Expectation>();
        if let Err(error) = parsed {
            let field = format!("spec.expect[{index}]");
            errors.push(invalid(&field, expectation, &error.to_string()));
        }
    }
    errors
}

/// A number that may be absent.
fn between(field: &str, value: &Value, least: i64, most: i64) -> Option<FieldError> {
    let number = value.as_i64()?;
    let why = format!("must be between {least} and {most}, inclusive");
    (!(least..=most).contains(&number)).then(|| invalid(field, value, &why))
}

/// A duration that may be absent: longer than nothing, and not longer than `longest`.
fn length(field: &str, value: &Value, longest: Duration) -> Option<FieldError> {
    let given = value.as_str()?;
    match given.parse::<GoDuration>() {
        Err(error) => Some(invalid(field, value, &error.to_string())),
        Ok(duration) if duration.0.is_zero() => {
            Some(invalid(field, value, "must be greater than 0s"))
        }
        Ok(duration) if duration.0 > longest => {
            let why = format!("must not be longer than {}", GoDuration(longest));
            Some(invalid(field, value, &why))
        }
        Ok(_) => None,
    }
}

/// A drill is one experiment: what was asked for stays, and it may only be called off.
fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    only_ever_sets(new, old, "cancel")
}

/// `spec` is immutable but for one switch, which is never taken back.
pub(super) fn only_ever_sets(new: &Value, old: &Value, switch: &str) -> Vec<FieldError> {
    let without = |object: &Value| {
        let mut spec = at(object, "spec").clone();
        if let Some(fields) = spec.as_object_mut() {
            fields.remove(switch);
        }
        spec
    };
    let path = format!("spec.{switch}");
    let mut errors = Vec::new();
    if without(new) != without(old) {
        let why = format!("field is immutable, but for `{switch}`");
        errors.push(forbidden("spec", &why));
    }
    if truth(old, &path) && !truth(new, &path) {
        errors.push(forbidden(&path, "may not be taken back"));
    }
    errors
}

/// What the checks above let pass and its readers could not read would stop all of them.
pub(super) fn unreadable<T>(object: &Value, field: &str) -> Option<FieldError>
where
    T: serde::de::DeserializeOwned,
{
    let read = serde_json::from_value::<T>(object.clone());
    let error = read.err()?;
    Some(invalid(field, at(object, field), &error.to_string()))
}

pub(super) fn unreadable_status<T>(object: &Value) -> Vec<FieldError>
where
    T: serde::de::DeserializeOwned,
{
    unreadable::<T>(object, "status").into_iter().collect()
}

#[cfg(test)]
mod tests;
