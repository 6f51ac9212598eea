//! `skiff drill` from the outside: what it says, how it ends, and that it undoes when it is interrupted.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::{Cluster, condition};
use crate::wait;

impl Cluster {
    /// `skiff drill ARGS` of this cluster, not started.
    fn drill_command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skiff"));
        command
            .arg("drill")
            .args(args.split_whitespace())
            .env("KUBECONFIG", self.kubeconfig())
            .current_dir(self.scratch())
            .stdin(Stdio::null());
        command
    }

    fn skiff_drill(&self, args: &str) -> Output {
        self.drill_command(args).output().expect("skiff starts")
    }

    /// Starts a drill, and returns when its progress has a line with these words.
    fn drill_until(&self, args: &str, words: &str) -> Follower {
        let mut child = self
            .drill_command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("skiff starts");
        let progress = BufReader::new(child.stderr.take().expect("piped"));
        let mut follower = Follower { child, progress };
        follower.until(words);
        follower
    }
}

/// A `skiff drill run` that goes on.
struct Follower {
    child: Child,
    progress: BufReader<std::process::ChildStderr>,
}

impl Follower {
    fn until(&mut self, words: &str) {
        let mut told = String::new();
        while !told.lines().last().is_some_and(|line| line.contains(words)) {
            let read = self.progress.read_line(&mut told).expect("its progress");
            assert!(read > 0, "it never said {words:?}:\n{told}");
        }
    }

    fn interrupt(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).expect("SIGINT");
    }

    /// Its exit code and its report.
    fn end(mut self) -> (Option<i32>, String) {
        let mut report = String::new();
        let mut rest = String::new();
        self.child
            .stdout
            .take()
            .expect("piped")
            .read_to_string(&mut report)
            .expect("its report");
        self.progress
            .read_to_string(&mut rest)
            .expect("its progress");
        (self.child.wait().expect("its end").code(), report)
    }
}

fn with_web(mut cluster: Cluster) -> Cluster {
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/web.yaml");
    cluster.apply(&std::fs::read_to_string(web).expect("the workload"));
    cluster.until_all_ready("app=web", 3);
    cluster
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)))
}

#[test]
fn a_drill_is_run_reported_and_remembered() {
    let cluster = with_web(Cluster::start());
    let output = cluster.skiff_drill(
        "run container-kill deploy/web --name first --seed 7 --expect recovery<60s --expect restarts=1 \
         --report page.html --junit drill.xml -o json",
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report = json(&output);
    assert_eq!(report["drill"], "container-kill");
    assert_eq!(report["target"], "deployment/web");
    assert_eq!(
        (&report["seed"], &report["recovered"]),
        (&7.into(), &true.into())
    );
    assert_eq!(report["restarts"], 1);
    assert!(report["timeToRecover"].as_f64() > report["timeToDetect"].as_f64());
    assert!(report["requests"]["sent"].as_i64() > Some(0), "{report:#}");
    assert!(
        report["timeline"]
            .as_array()
            .expect("a timeline")
            .iter()
            .any(|e| e["event"] == "injected")
    );
    assert!(
        report["expectations"]
            .as_array()
            .expect("a list")
            .iter()
            .all(|e| e["met"] == true)
    );
    let progress = text(&output.stderr);
    assert!(
        progress.contains("drill first: container-kill on deployment/web"),
        "{progress}"
    );
    assert!(progress.contains("+0.000s injected pod/web-"), "{progress}");
    assert!(
        progress.contains("wrote page.html\n") && progress.contains("wrote drill.xml\n"),
        "{progress}"
    );

    let read = |file: &str| std::fs::read_to_string(cluster.scratch().join(file)).expect(file);
    let page = read("page.html");
    assert!(page.contains("container-kill on deployment/web: PASSED") && page.contains("<svg"));
    assert!(read("drill.xml").contains("<testcase classname=\"first\" name=\"recovery&lt;60s\""));

    // The same seed hits the same pod, and says so without touching it.
    let dry =
        json(&cluster.skiff_drill("run container-kill deploy/web --seed 7 --dry-run -o json"));
    assert_eq!(dry["victims"], report["victims"]);
    assert_eq!(
        (&dry["dryRun"], &dry["timeline"]),
        (&true.into(), &Value::Array(Vec::new()))
    );

    let again = cluster.skiff_drill("report first -o json");
    assert_eq!(json(&again), report);
    let table = text(&cluster.skiff_drill("report first").stdout);
    assert!(
        table.starts_with("container-kill on deployment/web: PASSED (drill first)\n"),
        "{table}"
    );
    assert!(table.contains("ok   recovery<60s"), "{table}");
    assert!(cluster.kubectl("get drills first").contains("Passed"));
    let taken = cluster.skiff_drill("run container-kill deploy/web --name first");
    assert_eq!(taken.status.code(), Some(1));
    assert!(
        text(&taken.stderr).contains("a drill first already"),
        "{}",
        text(&taken.stderr)
    );
}

#[test]
fn what_is_wrong_is_told_before_anything_is_touched() {
    let cluster = Cluster::start_empty();
    let ends = |args: &str, code: i32, words: &str| {
        let output = cluster.skiff_drill(args);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args}: {told}");
        assert!(told.contains(words), "{args}: {told}");
    };
    ends("run container-hug pod/x", 2, "skiff drill list");
    ends("run container-kill svc/x", 2, "deployment/NAME");
    ends(
        "run container-kill pod/x --expect speed>5",
        2,
        "latency.p99",
    );
    ends("run container-kill pod/x --duration 5s", 2, "spec.duration");
    ends(
        "run container-kill pod/x --report /nowhere/page.html",
        2,
        "/nowhere/page.html",
    );
    // Its directory is there, but takes no files.
    ends(
        "run container-kill pod/x --junit /proc/drill.xml",
        2,
        "cannot write /proc/drill.xml",
    );
    ends("report --report .", 2, "cannot write .");
    ends("run -f missing.yaml", 2, "missing.yaml");
    ends("report nobody", 1, "no drill nobody");
    ends("report", 1, "no drill was run yet");
    ends("run container-kill pod/nobody", 1, "nobody");
    let refused = cluster.skiff_drill("run pod-delete deploy/nobody -o json");
    assert_eq!(
        (refused.status.code(), &json(&refused)["result"]),
        (Some(1), &"Refused".into())
    );

    let wrong = "apiVersion: skiff.dev/v1\nkind: Drill\nmetadata: {name: typo}\n\
                 spec: {drill: pod-delete, target: {kind: Pod, name: x}, expects: [failed=0]}\n";
    std::fs::write(cluster.scratch().join("typo.yaml"), wrong).expect("a file");
    ends("run -f typo.yaml", 2, "unknown field \"spec.expects\"");

    let list = text(&cluster.skiff_drill("list").stdout);
    assert!(list.starts_with("NAME "), "{list}");
    assert_eq!(list.lines().count(), 20, "{list}");
    let list = json(&cluster.skiff_drill("list -o json"));
    assert_eq!(list.as_array().map(Vec::len), Some(19));
}

#[test]
fn an_interrupt_undoes_and_waits_for_it() {
    let mut cluster = with_web(Cluster::of_nodes(2));
    let mut follower = cluster.drill_until(
        "run node-drain deploy/web --duration 10m --timeout 20m -o json",
        "injected",
    );
    follower.interrupt();
    follower.until("cancelling");
    let (code, report) = follower.end();
    let report: Value = serde_json::from_str(&report).expect("a report");
    assert_eq!(
        (code, &report["result"]),
        (Some(1), &"Cancelled".into()),
        "{report:#}"
    );
    let nodes = cluster.get("/api/v1/nodes").expect("nodes");
    for node in nodes["items"].as_array().expect("a list") {
        assert_ne!(node["spec"]["unschedulable"], true, "still cordoned");
        assert_eq!(condition(node, "Ready")["status"], "True");
    }
    cluster.until_all_ready("app=web", 3);
}

#[test]
fn a_second_interrupt_leaves_at_once_and_the_undo_goes_on() {
    let mut cluster = with_web(Cluster::of_nodes(2));
    let mut follower = cluster.drill_until(
        "run cpu-stress node/node-2 --name stress --duration 10m --timeout 20m",
        "injected",
    );
    // Nobody is there to undo it.
    cluster.skiff(["node", "kill", "node-2"]);
    follower.interrupt();
    follower.until("cancelling");
    wait::until("the cancellation", || {
        let drill = cluster.get("/apis/skiff.dev/v1/drills/stress")?;
        (drill["spec"]["cancel"] == true).then_some(())
    });
    follower.interrupt();
    follower.until("left; drill stress goes on being undone");
    let (code, report) = follower.end();
    assert_eq!((code, report.as_str()), (Some(1), ""));

    cluster.skiff(["node", "start", "node-2"]);
    let healed = cluster.skiff_drill("heal --timeout 110s");
    assert!(healed.status.success(), "{}", text(&healed.stderr));
    let drill = cluster.get("/apis/skiff.dev/v1/drills/stress");
    let status = &drill.expect("the drill")["status"];
    assert_eq!(
        (&status["phase"], &status["result"]),
        (&"Completed".into(), &"Cancelled".into())
    );
    wait::until("the end of its tasks", || {
        let tasks = cluster.get("/apis/skiff.dev/v1/drilltasks")?;
        tasks["items"].as_array()?.is_empty().then_some(())
    });
}

#[test]
fn who_leaves_while_the_api_is_away_is_told_that_nothing_is_cancelled() {
    let mut cluster = with_web(Cluster::of_nodes(2));
    let mut follower = cluster.drill_until(
        "run node-drain deploy/web --name drain --duration 10m --timeout 20m",
        "injected",
    );
    cluster.crash();
    follower.until("the API does not answer");
    follower.interrupt();
    follower.until("cancelling");
    follower.interrupt();
    follower.until("left; the API could not be told to cancel drill drain");
    assert_eq!(follower.end().0, Some(1));

    cluster.up();
    let healed = cluster.skiff_drill("heal --timeout 110s");
    let told = text(&healed.stdout);
    assert!(healed.status.success(), "{told}{}", text(&healed.stderr));
    assert!(told.contains("drill drain cancelled"), "{told}");
    let nodes = cluster.get("/api/v1/nodes").expect("nodes");
    for node in nodes["items"].as_array().expect("a list") {
        assert_ne!(node["spec"]["unschedulable"], true, "still cordoned");
    }
}

#[test]
fn a_drill_that_is_left_alone_is_healed() {
    let mut cluster = with_web(Cluster::of_nodes(2));
    let mut follower = cluster.drill_until(
        "run node-drain deploy/web --name left --duration 10m --timeout 20m",
        "injected",
    );
    // As a terminal that is closed on it would.
    follower.child.kill().expect("SIGKILL");
    follower.child.wait().expect("its end");
    let healed = cluster.skiff_drill("heal");
    let told = text(&healed.stdout);
    assert_eq!(
        healed.status.code(),
        Some(0),
        "{told}{}",
        text(&healed.stderr)
    );
    assert!(
        told.contains("drill left cancelled") && told.contains("nothing is left"),
        "{told}"
    );
    wait::until("a node that takes pods again", || {
        let nodes = cluster.get("/api/v1/nodes")?;
        let cordoned = |node: &Value| node["spec"]["unschedulable"] == true;
        (!nodes["items"].as_array()?.iter().any(cordoned)).then_some(())
    });
    assert!(text(&cluster.skiff_drill("heal").stdout).starts_with("nothing is left"));
}

#[test]
fn a_game_day_stops_where_it_fails() {
    let cluster = with_web(Cluster::start());
    let day = "apiVersion: skiff.dev/v1\nkind: GameDay\nmetadata: {name: friday}\nspec:\n  steps:\n  \
               - drill: {name: crash, drill: container-kill, target: {kind: Deployment, name: web}, expect: [recovery<60s]}\n  \
               - pause: 10ms\n  \
               - drill: {name: magic, drill: pod-delete, target: {kind: Deployment, name: web}, expect: [recovery<1ms]}\n  \
               - drill: {name: never, drill: pod-delete, target: {kind: Deployment, name: web}}\n";
    std::fs::write(cluster.scratch().join("day.yaml"), day).expect("a file");
    let output = cluster.skiff_drill("run -f day.yaml --report day.html --junit day.xml");
    let told = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{told}{}",
        text(&output.stderr)
    );
    let summary = told
        .split_once("game day friday: FAILED\n")
        .expect("a summary")
        .1;
    let lines: Vec<&str> = summary.lines().filter(|line| !line.is_empty()).collect();
    assert!(
        lines[1].starts_with("1 crash") && lines[1].contains("PASSED"),
        "{told}"
    );
    assert!(
        lines[3].starts_with("3 magic") && lines[3].contains("FAILED"),
        "{told}"
    );
    assert!(
        lines[4].starts_with("4 never") && lines[4].contains("NOT RUN"),
        "{told}"
    );
    let read = |file: &str| std::fs::read_to_string(cluster.scratch().join(file)).expect(file);
    assert_eq!(read("day.xml").matches("<testsuite ").count(), 3);
    assert_eq!(read("day.html").matches("<article").count(), 2);
    let drills = cluster.kubectl("get drills -l skiff.dev/game-day=friday -o name");
    assert_eq!(drills.lines().count(), 2, "{drills}");

    // A wrong last step is known before the first one begins.
    std::fs::write(
        cluster.scratch().join("wrong.yaml"),
        day.replace("10ms", "1s")
            .replace("name: never, ", "name: never, count: 0, "),
    )
    .expect("a file");
    let output = cluster.skiff_drill("run -f wrong.yaml");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("never"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(cluster.kubectl("get drills -o name").lines().count(), 2);
}

#[test]
fn nodes_are_healed_without_the_control_plane() {
    let mut cluster = with_web(Cluster::of_nodes(2));
    let mut follower = cluster.drill_until(
        "run cpu-stress deploy/web --duration 10m --timeout 20m",
        "injected",
    );
    cluster.crash();
    follower.until("the API does not answer");
    follower.child.kill().expect("SIGKILL");
    follower.child.wait().expect("its end");
    let heal = || {
        Command::new(env!("CARGO_BIN_EXE_skiff"))
            .args(["drill", "heal", "--data-dir"])
            .arg(cluster.data_dir())
            .env_remove("KUBECONFIG")
            .output()
            .expect("skiff starts")
    };
    let healed = heal();
    let told = text(&healed.stdout);
    assert!(healed.status.success(), "{told}{}", text(&healed.stderr));
    assert!(
        told.contains(" undone") && told.contains("nothing is left"),
        "{told}"
    );
    assert!(text(&healed.stderr).contains("healing the nodes of this host alone"));
    assert!(
        text(&heal().stdout).starts_with("nothing is left"),
        "a second time there is nothing"
    );
}
