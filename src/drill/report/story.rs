//! A drill told in sentences, for those who were not there.

use skiff_dev::{Drill, DrillKind, DrillStatus, Target, TargetKind};

use super::figures::{count, failures, first, mended, percent, span};
use super::verdict::{Verdict, status};

/// What is known of a kind of drill before it is run.
struct Lesson {
    /// Follows "Skiff".
    deed: &'static str,
    /// Which misfortune of real life it stands for.
    like: &'static str,
    /// What a healthy cluster does about it.
    answer: &'static str,
}

/// A paragraph each.
pub fn paragraphs(drill: &Drill) -> Vec<String> {
    let status = status(drill);
    let verdict = Verdict::of(drill);
    let lesson = lesson(drill.spec.drill);
    if verdict == Verdict::DryRun {
        return vec![format!(
            "This was a dry run: victims were chosen, and nothing was touched. A real run with the same seed hits the same ones, as long as the candidates are the same. It would be as if {}.",
            lesson.like
        )];
    }
    if let (Verdict::Refused, Some(_), Some(why)) = (verdict, &status.injected_at, &status.message)
    {
        return vec![format!(
            "The drill could not be carried out: {why}. Whatever had been done for it was undone."
        )];
    }
    if status.injected_at.is_none() {
        let why = status.message.as_deref().unwrap_or("it has not begun yet");
        return vec![format!("Nothing was broken: {why}.").replace("..", ".")];
    }
    let mut told = vec![what_was_done(drill, &status, &lesson)];
    told.push(what_the_cluster_did(drill, &status, verdict));
    told.extend(what_users_saw(&status));
    told.extend(what_was_lost(&status));
    told.extend(what_was_expected(&status));
    told
}

fn what_was_done(drill: &Drill, status: &DrillStatus, lesson: &Lesson) -> String {
    let mut text = match &status.injected_at {
        Some(at) => format!(
            "At {} UTC on {}, ",
            at.0.strftime("%T%.3f"),
            at.0.strftime("%-d %B %Y")
        ),
        None => String::new(),
    };
    text.push_str("Skiff ");
    text.push_str(lesson.deed);
    text.push_str(": ");
    text.push_str(&list(&status.victims));
    let chosen =
        !drill.spec.drill.hits_control_plane() && drill.spec.target.kind != TargetKind::Pod;
    if let (true, Some(seed)) = (chosen, status.seed) {
        text.push_str(&format!(
            " (chosen among those of {} with seed {seed})",
            target(&drill.spec.target)
        ));
    }
    text.push_str(&format!(". It is as if {}. {}", lesson.like, lesson.answer));
    text
}

fn what_the_cluster_did(drill: &Drill, status: &DrillStatus, verdict: Verdict) -> String {
    let mut text = match status.time_to_detect {
        Some(seconds) => format!("The cluster noticed after {}", span(seconds)),
        None => "The cluster showed no sign of having noticed".to_owned(),
    };
    match (status.recovered, status.time_to_recover, mended(status)) {
        (Some(true), Some(seconds), _) => text.push_str(&format!(
            ", and {} was whole again {} after the injection: as many Ready pods in service as before, and nothing failing any more.",
            target(&drill.spec.target),
            span(seconds)
        )),
        (Some(false), _, Some(healed)) => text.push_str(&format!(
            ", and {} did not recover by itself: it was whole again {} after the injection, because the fault was undone.",
            target(&drill.spec.target),
            span(healed)
        )),
        (Some(false), _, None) => {
            let timeout = drill.spec.timeout.map_or(120.0, |time| time.0.as_secs_f64());
            text.push_str(&format!(
                ", and {} did not recover within the {} that it was given.",
                target(&drill.spec.target),
                span(timeout)
            ));
        }
        _ if verdict == Verdict::Cancelled => text.push_str(". The drill was cancelled before it had recovered."),
        _ => text.push_str(". Whether it recovered is not known."),
    }
    let restarts = status.restarts.filter(|number| *number > 0);
    let moved = status.pods_moved.filter(|number| *number > 0);
    match (restarts, moved) {
        (Some(restarts), Some(moved)) => text.push_str(&format!(
            " On the way, {} started anew and {} replaced on another node.",
            was(restarts, "container"),
            was(moved, "pod")
        )),
        (Some(restarts), None) => {
            text.push_str(&format!(
                " On the way, {} started anew.",
                was(restarts, "container")
            ));
        }
        (None, Some(moved)) => text.push_str(&format!(
            " On the way, {} replaced on another node.",
            was(moved, "pod")
        )),
        (None, None) => {}
    }
    if let Some(undone) = first(&status.timeline, "undone") {
        text.push_str(&format!(
            " What Skiff had done was undone after {}.",
            span(undone.at)
        ));
    }
    text
}

fn what_users_saw(status: &DrillStatus) -> Option<String> {
    let requests = status.requests.as_ref()?;
    if requests.sent == 0 {
        return Some("A probe was to ask meanwhile, but sent nothing: what users would have seen is not known.".to_owned());
    }
    let mut text = format!("Meanwhile {} sent", was(requests.sent, "request"));
    if !requests.target.is_empty() {
        text.push_str(&format!(" to {}", requests.target));
    }
    if !requests.from.is_empty() {
        text.push_str(&format!(" from {}", requests.from));
    }
    text.push_str(", as a user would: ");
    text.push_str(&failures(requests));
    text.push_str(&match requests.failed {
        0 => ". Nobody would have noticed".to_owned(),
        _ => format!(
            ", and the longest time without a good answer was {}",
            span(requests.longest_gap)
        ),
    });
    if let Some(latency) = &requests.latency {
        text.push_str(&format!(
            ". Of the good answers, half came within {} and 99% within {}",
            span(latency.p50),
            span(latency.p99)
        ));
    }
    text.push('.');
    if requests.late > 0 {
        text.push_str(&format!(
            " {} sent later than it was due, because the node that asked was too busy.",
            was(requests.late, "request")
        ));
    }
    Some(text)
}

fn what_was_lost(status: &DrillStatus) -> Option<String> {
    let writes = status.writes.as_ref()?;
    let lost = match writes.lost {
        0 => "None of them was lost".to_owned(),
        lost => format!(
            "{lost} of them ({}) were lost",
            percent(lost, writes.acknowledged)
        ),
    };
    Some(format!(
        "Objects were written all the while: {} acknowledged of {} sent. {lost}. The longest time without an acknowledgement was {}.",
        count(writes.acknowledged, "write"),
        writes.sent,
        span(writes.longest_gap)
    ))
}

fn what_was_expected(status: &DrillStatus) -> Option<String> {
    let all = &status.expectations;
    let missed: Vec<String> = all
        .iter()
        .filter(|result| !result.met)
        .map(|result| match result.actual.as_str() {
            "" => result.text.clone(),
            actual => format!("{} (measured {actual})", result.text),
        })
        .collect();
    match (all.len(), missed.len()) {
        (0, _) => None,
        (1, 0) => Some("The one expectation was met.".to_owned()),
        (number, 0) => Some(format!("All {number} expectations were met.")),
        (number, failed) => Some(format!(
            "Of {} {failed} {} not met: {}.",
            count(number as i64, "expectation"),
            if failed == 1 { "was" } else { "were" },
            list(&missed)
        )),
    }
}

/// `deployment web`
pub fn target(target: &Target) -> String {
    let text = target.to_string();
    let (kind, name) = text.split_once('/').unwrap_or(("", &text));
    match target.kind {
        TargetKind::Selector => format!("the pods with {name}"),
        _ => format!("{kind} {name}"),
    }
}

/// `1 pod was`, `2 pods were`
fn was(number: i64, noun: &str) -> String {
    let verb = if number == 1 { "was" } else { "were" };
    format!("{} {verb}", count(number, noun))
}

/// `a, b and c`; of many, the first few.
fn list(items: &[String]) -> String {
    const SHOWN: usize = 4;
    match items {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [most @ .., last] if items.len() <= SHOWN => format!("{} and {last}", most.join(", ")),
        _ => format!(
            "{} and {} more",
            items[..SHOWN].join(", "),
            items.len() - SHOWN
        ),
    }
}

fn lesson(kind: DrillKind) -> Lesson {
    let (deed, like, answer) = match kind {
        DrillKind::ContainerKill => (
            "killed the main process of a container with SIGKILL",
            "the program had crashed",
            "The node is to start the container again in its place.",
        ),
        DrillKind::ContainerOom => (
            "used up a container's memory until the kernel killed its main process",
            "the program had a memory leak",
            "The node is to start the container again, and its status is to say OOMKilled.",
        ),
        DrillKind::ContainerHang => (
            "stopped every process of a container with SIGSTOP",
            "the program were stuck: it keeps its connections, and answers nothing",
            "Only a liveness or readiness probe can notice this.",
        ),
        DrillKind::PodDelete => (
            "deleted a pod",
            "somebody, or a rollout, had removed it",
            "Requests are to go elsewhere before it stops, and its owner is to make another.",
        ),
        DrillKind::PodEvict => (
            "evicted a pod through the eviction API",
            "a node were being emptied for maintenance",
            "The disruption budget decides when, and its owner is to make another.",
        ),
        DrillKind::NodeDrain => (
            "cordoned a node and evicted its pods",
            "an operator took the node out for maintenance",
            "The pods are to be replaced on other nodes, no faster than their disruption budgets allow.",
        ),
        DrillKind::NodeCrash => (
            "ended a node's agent, containers and network at once",
            "its power had failed",
            "The cluster is to notice, take its pods out of service at once, and replace them elsewhere when their toleration ends.",
        ),
        DrillKind::NodePartition => (
            "cut a node off from the control plane",
            "a switch between them had failed",
            "Its pods are to go on serving; when it stays away, they are replaced elsewhere.",
        ),
        DrillKind::PodPartition => (
            "cut pods off from each other",
            "a network policy, or the network itself, were wrong",
            "Nothing but the programs themselves can answer this: they are to fail clearly, and to come back by themselves.",
        ),
        DrillKind::DnsOutage => (
            "let nobody answer the pods' DNS queries",
            "the name servers were down",
            "Programs are to live on the connections and names that they have, and to come back by themselves.",
        ),
        DrillKind::RegistryOutage => (
            "made image registries unreachable for a node",
            "the registry were down",
            "What runs is to go on; only pods whose image is not on the node have to wait.",
        ),
        DrillKind::DiskFull => (
            "filled the file system that a node keeps its pods on",
            "logs or images had filled it",
            "The node is to say DiskPressure, to remove what it can spare, and to take no more pods.",
        ),
        DrillKind::CpuStress => (
            "used up the CPU time",
            "a neighbour had run wild",
            "Limits and shares are to keep the others going.",
        ),
        DrillKind::MemoryPressure => (
            "took most of the memory",
            "something used more memory than it was thought to",
            "Nothing is to be killed while its limit is not reached.",
        ),
        DrillKind::PacketLoss => (
            "lost some of the packets",
            "a cable or a link were bad",
            "Connections are to survive, more slowly.",
        ),
        DrillKind::Latency => (
            "held every packet for a while",
            "the network were far away, or crowded",
            "Timeouts are to be long enough.",
        ),
        DrillKind::AgentRestart => (
            "restarted a node's agent",
            "it were upgraded",
            "No container is to stop, and no request to fail.",
        ),
        DrillKind::ControlplaneRestart => (
            "restarted the control plane in an orderly way",
            "it were upgraded",
            "No container is to stop, and no request to fail.",
        ),
        DrillKind::ControlplaneKill => (
            "ended the control plane at once",
            "it had crashed",
            "No container is to stop, no request to fail, and no write to be lost that was acknowledged.",
        ),
    };
    Lesson { deed, like, answer }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn a_recovery_is_told_from_beginning_to_end() {
        let told = paragraphs(&samples::recovered());
        assert_eq!(
            told[0],
            "At 04:12:20.123 UTC on 23 November 2026, Skiff killed the main process of a container with SIGKILL: \
             pod/web-6f7b9c-4xk2p (node-1) (chosen among those of deployment web with seed 42). It is as if the \
             program had crashed. The node is to start the container again in its place."
        );
        assert!(
            told[1]
                .contains("noticed after 12 ms, and deployment web was whole again 411 ms after"),
            "{}",
            told[1]
        );
        assert!(
            told[1].contains("1 container was started anew"),
            "{}",
            told[1]
        );
        assert!(told[2].contains(
            "2 of 63 failed (3.2%), and the longest time without a good answer was 210 ms"
        ));
        assert_eq!(told[3], "All 2 expectations were met.");
    }

    #[test]
    fn what_went_wrong_is_told_plainly() {
        let told = paragraphs(&samples::never_recovered()).join("\n");
        assert!(told.contains("showed no sign"), "{told}");
        assert!(
            told.contains("did not recover within the 2 min 0.0 s"),
            "{told}"
        );
        assert!(
            told.contains("1 was not met: recovery<5s (measured never)"),
            "{told}"
        );
    }

    #[test]
    fn what_the_undo_mended_is_not_called_a_recovery() {
        let told = paragraphs(&samples::mended()).join("\n");
        assert!(
            told.contains("did not recover by itself: it was whole again 6.400 s after the injection, because the fault was undone."),
            "{told}"
        );
    }

    #[test]
    fn a_refusal_is_short() {
        let told = paragraphs(&samples::refused());
        assert_eq!(
            told,
            ["Nothing was broken: the kernel of node-1 has no netem (sch_netem)."]
        );
    }

    #[test]
    fn many_victims_are_a_few_and_a_number() {
        let told = paragraphs(&samples::crowded());
        assert!(told[0].contains("and 37 more"), "{}", told[0]);
    }
}
