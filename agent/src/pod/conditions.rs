//! The conditions that the node sets on a pod (kubelet `status/generate.go`).

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodCondition, PodStatus};
use k8s_openapi::jiff::Timestamp;

use super::phase::any_main_started;
use super::resources::is_sidecar;
use super::status::seconds;

/// What conditions are made of.
pub struct Facts<'a> {
    pub pod: &'a Pod,
    pub previous: Option<&'a PodStatus>,
    pub init: &'a [ContainerStatus],
    pub main: &'a [ContainerStatus],
    pub phase: &'a str,
    pub sandbox_ready: bool,
    pub now: Timestamp,
}

/// The types that are the node's to set, in the kubelet's order.
pub const OWNED: [&str; 4] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
];

/// Whether somebody set a condition of the node's later than the node did: the control plane, while
/// it could not hear the node. An older status of our own that comes back is none. Times are whole
/// seconds: what is as old may be either, and is said again.
pub fn were_overruled(ours: Option<&PodStatus>, theirs: Option<&PodStatus>) -> bool {
    let all = |status: Option<&PodStatus>| {
        let conditions = status.and_then(|s| s.conditions.clone());
        conditions.unwrap_or_default()
    };
    let theirs = all(theirs);
    all(ours).iter().any(|own| {
        let since = |c: &PodCondition| c.last_transition_time.as_ref().map(|time| time.0);
        OWNED.contains(&own.type_.as_str())
            && theirs.iter().any(|other| {
                other.type_ == own.type_ && other.status != own.status && since(other) >= since(own)
            })
    })
}

/// A condition's verdict: true, or false with a reason and a message.
#[derive(Clone)]
enum Verdict {
    True(Option<&'static str>),
    False(Option<&'static str>, String),
}

/// The node's conditions; each keeps its transition time while its status does not change.
pub fn all(facts: &Facts<'_>) -> Vec<PodCondition> {
    let containers_ready = containers_ready(facts);
    let sandbox = match facts.sandbox_ready {
        true => Verdict::True(None),
        false => Verdict::False(None, String::new()),
    };
    let verdicts = [
        sandbox,
        initialized(facts),
        ready(facts, &containers_ready),
        containers_ready,
    ];
    OWNED
        .iter()
        .zip(verdicts)
        .map(|(type_, verdict)| condition(facts, type_, verdict))
        .collect()
}

fn condition(facts: &Facts<'_>, type_: &str, verdict: Verdict) -> PodCondition {
    let (status, reason, message) = match verdict {
        Verdict::True(reason) => ("True", reason, String::new()),
        Verdict::False(reason, message) => ("False", reason, message),
    };
    let before = facts
        .previous
        .and_then(|p| p.conditions.as_ref())
        .and_then(|list| list.iter().find(|c| c.type_ == type_))
        .filter(|c| c.status == status);
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.map(str::to_owned),
        message: (!message.is_empty()).then_some(message),
        last_transition_time: before
            .and_then(|c| c.last_transition_time.clone())
            .or_else(|| Some(seconds(facts.now))),
        last_probe_time: None,
        observed_generation: facts.pod.metadata.generation,
    }
}

fn containers_ready(facts: &Facts<'_>) -> Verdict {
    match facts.phase {
        "Failed" => return Verdict::False(Some("PodFailed"), String::new()),
        "Succeeded" => return Verdict::False(Some("PodCompleted"), String::new()),
        _ => {}
    }
    let spec = facts.pod.spec.as_ref();
    let sidecars = spec
        .and_then(|s| s.init_containers.as_ref())
        .into_iter()
        .flatten()
        .filter(|c| is_sidecar(c));
    let main = spec.into_iter().flat_map(|s| &s.containers);
    let message = unready(
        "unready",
        sidecars.chain(main),
        facts.init.iter().chain(facts.main),
        |_, status| status.ready,
    );
    match message {
        None => Verdict::True(None),
        Some(message) => Verdict::False(Some("ContainersNotReady"), message),
    }
}

fn ready(facts: &Facts<'_>, containers_ready: &Verdict) -> Verdict {
    if let Verdict::False(..) = containers_ready {
        return containers_ready.clone();
    }
    // Gates are other parties' conditions: they are in the API's object, not in our status.
    let given = facts
        .pod
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_ref());
    let gates = facts
        .pod
        .spec
        .iter()
        .flat_map(|s| s.readiness_gates.iter().flatten());
    let closed: Vec<String> = gates
        .filter_map(|gate| {
            let name = &gate.condition_type;
            let found = given.and_then(|list| list.iter().find(|c| c.type_ == *name));
            match found {
                None => Some(format!(
                    "corresponding condition of pod readiness gate {name:?} does not exist."
                )),
                Some(c) if c.status != "True" => Some(format!(
                    "the status of pod readiness gate {name:?} is not \"True\", but {}",
                    c.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if closed.is_empty() {
        Verdict::True(None)
    } else {
        Verdict::False(Some("ReadinessGatesNotReady"), closed.join(", "))
    }
}

fn initialized(facts: &Facts<'_>) -> Verdict {
    if facts.phase == "Succeeded" {
        return Verdict::True(Some("PodCompleted"));
    }
    if any_main_started(facts.main) {
        return Verdict::True(None);
    }
    let init = facts
        .pod
        .spec
        .iter()
        .flat_map(|s| s.init_containers.iter().flatten());
    let message = unready(
        "incomplete",
        init,
        facts.init.iter(),
        |container, status| {
            if is_sidecar(container) {
                status.started == Some(true)
            } else {
                status.ready
            }
        },
    );
    match message {
        None => Verdict::True(None),
        Some(message) => Verdict::False(Some("ContainersNotInitialized"), message),
    }
}

/// Names the containers that are not as they should be, as Go prints a list.
fn unready<'a>(
    word: &str,
    containers: impl Iterator<Item = &'a Container>,
    statuses: impl Iterator<Item = &'a ContainerStatus> + Clone,
    good: impl Fn(&Container, &ContainerStatus) -> bool,
) -> Option<String> {
    let (mut unknown, mut bad) = (Vec::new(), Vec::new());
    for container in containers {
        match statuses.clone().find(|s| s.name == container.name) {
            None => unknown.push(container.name.as_str()),
            Some(status) if !good(container, status) => bad.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    let mut messages = Vec::new();
    if !unknown.is_empty() {
        messages.push(format!(
            "containers with unknown status: [{}]",
            unknown.join(" ")
        ));
    }
    if !bad.is_empty() {
        messages.push(format!(
            "containers with {word} status: [{}]",
            bad.join(" ")
        ));
    }
    (!messages.is_empty()).then(|| messages.join(", "))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn ready(status: &str, second: i64) -> PodStatus {
        PodStatus {
            conditions: Some(vec![PodCondition {
                type_: "Ready".into(),
                status: status.into(),
                last_transition_time: Some(Time(Timestamp::from_second(second).unwrap())),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        }
    }

    #[test]
    fn only_a_later_word_overrules() {
        let ours = ready("True", 100);
        let overruled = |theirs: &PodStatus| were_overruled(Some(&ours), Some(theirs));
        assert!(overruled(&ready("False", 110)));
        assert!(!overruled(&ready("False", 90)), "our own, from before");
        assert!(overruled(&ready("False", 100)), "in the same second");
        assert!(!overruled(&ready("True", 110)));
        assert!(!were_overruled(None, Some(&ours)));
    }
}
