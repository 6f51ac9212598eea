//! A pod as `kubectl get pods` prints it: one word for the state of all its containers.

use jiff::Timestamp;
use serde_json::Value;

use super::super::object::{at, integer, is_set, list, text, truth};
use super::super::print::{age, human_duration, name, or_none};

pub(super) fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts != 0 => {
            format!(
                "{} ({} ago)",
                summary.restarts,
                human_duration(now.duration_since(at).as_secs_f64())
            )
        }
        _ => summary.restarts.to_string(),
    };
    let address = match list(pod, "status.podIPs").first() {
        Some(first) => text(first, "ip"),
        None => text(pod, "status.podIP"),
    };
    vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(pod, now),
        or_none(address),
        or_none(text(pod, "spec.nodeName")),
        or_none(text(pod, "status.nominatedNodeName")),
        readiness_gates(pod),
    ]
}

struct Summary {
    reason: String,
    ready: i64,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let sidecars = list(pod, "spec.initContainers")
            .iter()
            .filter(|c| is_sidecar(c))
            .count();
        let phase = text(pod, "status.phase");
        let mut summary = Self {
            reason: match text(pod, "status.reason") {
                "" => phase.to_string(),
                reason => reason.to_string(),
            },
            ready: 0,
            total: list(pod, "spec.containers").len() + sidecars,
            restarts: 0,
            last_restart: None,
        };
        if condition(pod, "PodScheduled").is_some_and(|c| text(c, "reason") == "SchedulingGated") {
            summary.reason = "SchedulingGated".into();
        }

        let (sidecar_restarts, initializing) = summary.read_init_containers(pod);
        if !initializing || is_true(pod, "Initialized") {
            summary.restarts = sidecar_restarts.count;
            summary.last_restart = sidecar_restarts.last;
            summary.read_containers(pod);
        }
        if is_set(pod, "metadata.deletionTimestamp") {
            if text(pod, "status.reason") == "NodeLost" {
                summary.reason = "Unknown".into();
            } else if !matches!(phase, "Succeeded" | "Failed") {
                summary.reason = "Terminating".into();
            }
        }
        summary
    }

    /// Gives the sidecars' restarts, and whether the pod is still held up by its init containers.
    fn read_init_containers(&mut self, pod: &Value) -> (Restarts, bool) {
        let specs = list(pod, "spec.initContainers");
        let mut sidecars = Restarts::default();
        for (index, status) in list(pod, "status.initContainerStatuses").iter().enumerate() {
            let spec = specs
                .iter()
                .find(|c| text(c, "name") == text(status, "name"));
            let sidecar = spec.is_some_and(is_sidecar);
            self.add_restarts(status);
            if sidecar {
                sidecars.add(status);
            }

            let terminated = at(status, "state.terminated");
            let waiting = text(status, "state.waiting.reason");
            if terminated.is_object() && integer(terminated, "exitCode") == 0 {
                continue;
            }
            if sidecar && truth(status, "started") {
                self.ready += i64::from(truth(status, "ready"));
                continue;
            }
            self.reason = if terminated.is_object() {
                format!("Init:{}", ended(terminated))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{}", specs.len())
            };
            return (sidecars, true);
        }
        (sidecars, false)
    }

    fn read_containers(&mut self, pod: &Value) {
        let mut has_running = false;
        for status in list(pod, "status.containerStatuses").iter().rev() {
            self.add_restarts(status);
            let waiting = text(status, "state.waiting.reason");
            let terminated = at(status, "state.terminated");
            if !waiting.is_empty() {
                self.reason = waiting.to_string();
            } else if terminated.is_object() {
                self.reason = ended(terminated);
            } else if truth(status, "ready") && is_set(status, "state.running") {
                has_running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && has_running {
            let ready = is_true(pod, "Ready");
            self.reason = if ready { "Running" } else { "NotReady" }.into();
        }
    }

    fn add_restarts(&mut self, status: &Value) {
        let mut restarts = Restarts {
            count: self.restarts,
            last: self.last_restart,
        };
        restarts.add(status);
        (self.restarts, self.last_restart) = (restarts.count, restarts.last);
    }
}

#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += integer(status, "restartCount");
        let finished = text(status, "lastState.terminated.finishedAt").parse().ok();
        self.last = self.last.max(finished);
    }
}

/// Why a container ended: its reason, else its signal, else its exit code.
fn ended(terminated: &Value) -> String {
    match (text(terminated, "reason"), integer(terminated, "signal")) {
        ("", 0) => format!("ExitCode:{}", integer(terminated, "exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_string(),
    }
}

fn is_sidecar(container: &Value) -> bool {
    text(container, "restartPolicy") == "Always"
}

fn condition<'p>(pod: &'p Value, kind: &str) -> Option<&'p Value> {
    list(pod, "status.conditions")
        .iter()
        .find(|c| text(c, "type") == kind)
}

fn is_true(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|c| text(c, "status") == "True")
}

fn readiness_gates(pod: &Value) -> Value {
    let gates = list(pod, "spec.readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let holding = gates
        .iter()
        .filter(|gate| is_true(pod, text(gate, "conditionType")))
        .count();
    format!("{holding}/{}", gates.len()).into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::row;

    /// READY, STATUS and RESTARTS of a pod that was created 65 s ago.
    fn printed(spec: Value, status: Value) -> [String; 3] {
        printed_with(json!({}), spec, status)
    }

    fn printed_with(metadata: Value, spec: Value, status: Value) -> [String; 3] {
        let mut pod = json!({"metadata": {"name": "p", "creationTimestamp": "2024-01-01T00:00:00Z"}, "spec": spec, "status": status});
        pod["metadata"]
            .as_object_mut()
            .unwrap()
            .extend(metadata.as_object().unwrap().clone());
        let cells = row(&pod, "2024-01-01T00:01:05Z".parse().unwrap());
        assert_eq!(cells.len(), super::super::COLUMNS.len());
        assert_eq!(cells[4], "65s");
        [1, 2, 3].map(|i| cells[i].as_str().unwrap().to_string())
    }

    fn one() -> Value {
        json!({"containers": [{"name": "a"}]})
    }

    fn two() -> Value {
        json!({"containers": [{"name": "a"}, {"name": "b"}]})
    }

    fn status(phase: &str, containers: Value) -> Value {
        json!({"phase": phase, "containerStatuses": containers})
    }

    #[test]
    fn the_life_of_a_pod() {
        assert_eq!(
            printed(one(), json!({"phase": "Pending"})),
            ["0/1", "Pending", "0"]
        );
        let creating = status(
            "Pending",
            json!([{"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}}]),
        );
        assert_eq!(printed(one(), creating), ["0/1", "ContainerCreating", "0"]);
        let running = status(
            "Running",
            json!([{"name": "a", "ready": true, "state": {"running": {}}}]),
        );
        assert_eq!(printed(one(), running.clone()), ["1/1", "Running", "0"]);
        let deleted = json!({"deletionTimestamp": "2024-01-01T00:01:00Z"});
        assert_eq!(
            printed_with(deleted.clone(), one(), running),
            ["1/1", "Terminating", "0"]
        );
        let done = status(
            "Succeeded",
            json!([{"name": "a", "state": {"terminated": {"reason": "Completed", "exitCode": 0}}}]),
        );
        assert_eq!(printed(one(), done.clone()), ["0/1", "Completed", "0"]);
        assert_eq!(
            printed_with(deleted, one(), done),
            ["0/1", "Completed", "0"]
        );
    }

    #[test]
    fn restarts_carry_their_age() {
        let status = status(
            "Running",
            json!([{"name": "a", "ready": true, "restartCount": 3, "state": {"running": {}},
            "lastState": {"terminated": {"finishedAt": "2024-01-01T00:01:00Z"}}}]),
        );
        assert_eq!(printed(one(), status), ["1/1", "Running", "3 (5s ago)"]);
    }

    #[test]
    fn crashes() {
        let waiting = |reason: &str| {
            status(
                "Running",
                json!([{"name": "a", "restartCount": 1, "state": {"waiting": {"reason": reason}}}]),
            )
        };
        assert_eq!(
            printed(one(), waiting("CrashLoopBackOff")),
            ["0/1", "CrashLoopBackOff", "1"]
        );
        assert_eq!(
            printed(one(), waiting("ImagePullBackOff")),
            ["0/1", "ImagePullBackOff", "1"]
        );
        let ended = |terminated: Value| {
            status(
                "Failed",
                json!([{"name": "a", "state": {"terminated": terminated}}]),
            )
        };
        assert_eq!(
            printed(
                one(),
                ended(json!({"reason": "OOMKilled", "exitCode": 137}))
            )[1],
            "OOMKilled"
        );
        assert_eq!(
            printed(one(), ended(json!({"signal": 9, "exitCode": 137})))[1],
            "Signal:9"
        );
        assert_eq!(
            printed(one(), ended(json!({"exitCode": 3})))[1],
            "ExitCode:3"
        );
    }

    #[test]
    fn one_of_two_completed() {
        let containers = json!([{"name": "a", "ready": true, "state": {"running": {}}},
            {"name": "b", "state": {"terminated": {"reason": "Completed", "exitCode": 0}}}]);
        let mut status = status("Running", containers);
        assert_eq!(printed(two(), status.clone()), ["1/2", "NotReady", "0"]);
        status["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        assert_eq!(printed(two(), status), ["1/2", "Running", "0"]);
    }

    #[test]
    fn init_containers() {
        let spec = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
        let init = |first: Value, second: Value| {
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": first}, {"name": "j", "state": second}],
                "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "PodInitializing"}}}]})
        };
        let (done, running) = (
            json!({"terminated": {"exitCode": 0}}),
            json!({"running": {}}),
        );
        let waiting = json!({"waiting": {"reason": "PodInitializing"}});
        assert_eq!(
            printed(spec.clone(), init(running.clone(), waiting))[1],
            "Init:0/2"
        );
        assert_eq!(
            printed(spec.clone(), init(done.clone(), running))[1],
            "Init:1/2"
        );
        let failed = json!({"terminated": {"exitCode": 2}});
        assert_eq!(
            printed(spec.clone(), init(failed, json!({})))[1],
            "Init:ExitCode:2"
        );
        let error = json!({"terminated": {"exitCode": 2, "reason": "Error"}});
        assert_eq!(
            printed(spec.clone(), init(error, json!({})))[1],
            "Init:Error"
        );
        let backoff = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        assert_eq!(
            printed(spec.clone(), init(backoff, json!({})))[1],
            "Init:CrashLoopBackOff"
        );
        assert_eq!(
            printed(spec, init(done.clone(), done))[1],
            "PodInitializing"
        );
    }

    #[test]
    fn sidecars_count() {
        let spec = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]});
        let status = json!({"phase": "Running",
            "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "restartCount": 2, "state": {"running": {}}}],
            "containerStatuses": [{"name": "a", "ready": true, "restartCount": 1, "state": {"running": {}}}]});
        assert_eq!(printed(spec, status), ["2/2", "Running", "3"]);
    }

    #[test]
    fn gates_and_lost_nodes() {
        let gated = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]});
        assert_eq!(printed(one(), gated)[1], "SchedulingGated");
        let deleted = json!({"deletionTimestamp": "2024-01-01T00:01:00Z"});
        assert_eq!(
            printed_with(
                deleted,
                one(),
                json!({"phase": "Running", "reason": "NodeLost"})
            )[1],
            "Unknown"
        );
        assert_eq!(
            printed(one(), json!({"phase": "Failed", "reason": "Evicted"}))[1],
            "Evicted"
        );
    }

    #[test]
    fn wide_columns() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"readinessGates": [{"conditionType": "x"}], "nodeName": "n"},
            "status": {"podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "x", "status": "True"}]}});
        let cells = row(&pod, "2024-01-01T00:01:05Z".parse().unwrap());
        assert_eq!(
            cells[4..],
            [
                json!("<unknown>"),
                json!("10.0.0.1"),
                json!("n"),
                json!("<none>"),
                json!("1/1")
            ]
        );
    }
}
