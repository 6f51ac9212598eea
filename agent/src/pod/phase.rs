//! The phase of a pod, from the states of its containers (kubelet `getPhase`).

use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, PodSpec};

use super::resources::is_sidecar;

/// `Pending`, `Running`, `Succeeded` or `Failed`. `terminal` says that everything has
/// stopped and nothing will be started again.
pub fn phase(
    spec: &PodSpec,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    terminal: bool,
) -> &'static str {
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let started = any_main_started(main);
    let (mut pending_init, mut failed_init) = (0, 0);
    for container in spec.init_containers.iter().flatten() {
        let state = find(init, container).and_then(|s| s.state.as_ref().map(|state| (s, state)));
        match (is_sidecar(container), state) {
            (true, state) => pending_init += usize::from(!started && sidecar_pending(state)),
            (false, None) => pending_init += 1,
            (false, Some((status, state))) => match last_exit(status, state) {
                Some(0) => {}
                Some(_) => failed_init += 1,
                None => pending_init += 1,
            },
        }
    }
    if failed_init > 0 && policy == "Never" {
        return "Failed";
    }
    let (mut waiting, mut running, mut stopped, mut succeeded, mut unknown) = (0, 0, 0, 0, 0);
    for container in &spec.containers {
        let Some(status) = find(main, container) else {
            unknown += 1;
            continue;
        };
        match status.state.as_ref() {
            Some(state) if state.running.is_some() => running += 1,
            Some(ContainerState {
                terminated: Some(ended),
                ..
            }) => {
                stopped += 1;
                succeeded += usize::from(ended.exit_code == 0);
            }
            Some(state) if state.waiting.is_some() => {
                let ended = status
                    .last_state
                    .as_ref()
                    .and_then(|l| l.terminated.as_ref());
                if ended.is_some() {
                    stopped += 1;
                } else {
                    waiting += 1;
                }
            }
            _ => unknown += 1,
        }
    }
    if terminal {
        let all_succeeded = unknown + waiting + running == 0 && stopped == succeeded;
        return if all_succeeded && pending_init + failed_init == 0 {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    match policy {
        _ if pending_init + waiting > 0 => "Pending",
        _ if running > 0 && unknown == 0 => "Running",
        _ if stopped == 0 || unknown > 0 => "Pending",
        "Always" => "Running",
        _ if stopped == succeeded => "Succeeded",
        "Never" => "Failed",
        _ => "Running",
    }
}

/// Whether a main container ever ran: the pod was initialized then, whatever its sidecars do.
pub fn any_main_started(main: &[ContainerStatus]) -> bool {
    main.iter().any(|status| {
        let ran = |state: &ContainerState| state.running.is_some() || state.terminated.is_some();
        status.state.as_ref().is_some_and(ran) || status.last_state.as_ref().is_some_and(ran)
    })
}

fn find<'a>(statuses: &'a [ContainerStatus], container: &Container) -> Option<&'a ContainerStatus> {
    statuses.iter().find(|s| s.name == container.name)
}

fn sidecar_pending(state: Option<(&ContainerStatus, &ContainerState)>) -> bool {
    match state {
        None => true,
        Some((status, state)) if state.running.is_some() => status.started != Some(true),
        Some((_, state)) if state.terminated.is_some() => false,
        Some((status, _)) => status
            .last_state
            .as_ref()
            .is_none_or(|last| last.terminated.is_none()),
    }
}

/// How an init container ended, now or (when it waits to be tried again) the last time.
fn last_exit(status: &ContainerStatus, state: &ContainerState) -> Option<i32> {
    if let Some(ended) = &state.terminated {
        return Some(ended.exit_code);
    }
    state.waiting.as_ref()?;
    let ended = status.last_state.as_ref()?.terminated.as_ref()?;
    Some(ended.exit_code).filter(|code| *code != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn phase_of(
        policy: &str,
        init: &[(&str, Value)],
        main: &[Value],
        terminal: bool,
    ) -> &'static str {
        let named = |prefix: &str, i: usize| format!("{prefix}{i}");
        let spec: PodSpec = serde_json::from_value(json!({
            "restartPolicy": policy,
            "initContainers": init.iter().enumerate().map(|(i, (kind, _))| match *kind {
                "sidecar" => json!({"name": named("i", i), "restartPolicy": "Always"}),
                _ => json!({"name": named("i", i)}),
            }).collect::<Vec<_>>(),
            "containers": (0..main.len()).map(|i| json!({"name": named("c", i)})).collect::<Vec<_>>(),
        }))
        .unwrap();
        let status = |prefix: &str, i: usize, state: &Value| -> ContainerStatus {
            let mut status = json!({"name": named(prefix, i), "image": "", "imageID": "",
                "ready": false, "restartCount": 0});
            for (key, value) in state.as_object().unwrap() {
                status[key] = value.clone();
            }
            serde_json::from_value(status).unwrap()
        };
        let init: Vec<_> = init
            .iter()
            .enumerate()
            .map(|(i, s)| status("i", i, &s.1))
            .collect();
        let main: Vec<_> = main
            .iter()
            .enumerate()
            .map(|(i, s)| status("c", i, s))
            .collect();
        phase(&spec, &init, &main, terminal)
    }

    #[test]
    fn phases() {
        let waiting = || json!({"state": {"waiting": {"reason": "ContainerCreating"}}});
        let running = || json!({"state": {"running": {}}, "started": true});
        let ended = |code: i32| json!({"state": {"terminated": {"exitCode": code}}});
        let crashing = |code: i32| {
            json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": code}}})
        };
        type Case<'a> = (&'a str, Vec<(&'a str, Value)>, Vec<Value>, bool, &'a str);
        let cases: Vec<Case> = vec![
            ("Always", vec![], vec![waiting()], false, "Pending"),
            ("Always", vec![], vec![running()], false, "Running"),
            (
                "Always",
                vec![],
                vec![running(), waiting()],
                false,
                "Pending",
            ),
            (
                "Always",
                vec![],
                vec![running(), crashing(1)],
                false,
                "Running",
            ),
            ("Always", vec![], vec![crashing(1)], false, "Running"),
            ("Always", vec![], vec![ended(0)], false, "Running"),
            ("OnFailure", vec![], vec![ended(0)], false, "Succeeded"),
            (
                "OnFailure",
                vec![],
                vec![ended(0), ended(1)],
                false,
                "Running",
            ),
            ("Never", vec![], vec![ended(0), ended(1)], false, "Failed"),
            ("Never", vec![], vec![ended(0), running()], false, "Running"),
            ("Always", vec![], vec![ended(0)], true, "Succeeded"),
            ("Always", vec![], vec![ended(137)], true, "Failed"),
            (
                "Always",
                vec![("init", running())],
                vec![waiting()],
                false,
                "Pending",
            ),
            (
                "Always",
                vec![("init", crashing(1))],
                vec![waiting()],
                false,
                "Pending",
            ),
            (
                "Never",
                vec![("init", ended(1))],
                vec![waiting()],
                false,
                "Failed",
            ),
            (
                "Always",
                vec![("init", ended(0))],
                vec![running()],
                false,
                "Running",
            ),
            (
                "Always",
                vec![("sidecar", waiting())],
                vec![waiting()],
                false,
                "Pending",
            ),
            (
                "Always",
                vec![("sidecar", crashing(1))],
                vec![running()],
                false,
                "Running",
            ),
            (
                "Never",
                vec![("sidecar", running())],
                vec![ended(0)],
                false,
                "Succeeded",
            ),
        ];
        for (policy, init, main, terminal, expected) in cases {
            let got = phase_of(policy, &init, &main, terminal);
            assert_eq!(got, expected, "{policy} {init:?} {main:?} {terminal}");
        }
    }
}
