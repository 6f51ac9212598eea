//! `skiff drill run`: the options, and the drill that they describe.

use std::path::PathBuf;

use clap::Args;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use skiff_dev::{DrillKind, DrillSpec, Expectation, GoDuration, InvalidExpectation, Parameters};

use super::UsageError;
use super::probe::ProbeArgs;
use super::report::OutputArgs;
use super::target::TargetName;
use crate::api_client::ApiArgs;

#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub api: ApiArgs,
    /// Which failure: see `skiff drill list`
    #[arg(value_name = "NAME", required_unless_present = "file")]
    kind: Option<DrillKind>,
    /// What is hit and has to recover: pod/NAME, deployment/NAME, replicaset/NAME, node/NAME
    #[arg(value_name = "TARGET", required_unless_present_any = ["file", "selector"])]
    target: Option<TargetName>,
    /// Run a Drill, several of them, or a GameDay out of a YAML file; `-` reads standard input
    #[arg(short, long, value_name = "FILE", conflicts_with_all = [
        "kind", "target", "selector", "count", "percent", "seed", "duration", "timeout", "container", "peer",
        "loss", "delay", "workers", "memory", "leave", "shared_disk", "down", "probe", "service", "port", "path",
        "rate", "probe_timeout", "expect", "name",
    ])]
    pub file: Option<PathBuf>,
    /// The pods with these labels as the target, as for kubectl
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with = "target")]
    selector: Option<String>,
    /// The target's namespace [default: the kubeconfig's, else `default`]
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// How many victims [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..), conflicts_with = "percent")]
    count: Option<i32>,
    /// How many of a hundred candidates become victims, rounded up
    #[arg(long, value_name = "N", value_parser = percent)]
    percent: Option<i32>,
    /// Choose the same victims again: the seed that an earlier report told
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<i64>,
    /// How long the fault lasts [default: see `skiff drill list`]
    #[arg(long, value_name = "DURATION")]
    duration: Option<GoDuration>,
    /// How long the recovery may take [default: 2m]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<GoDuration>,
    /// Which container of a pod [default: its first]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// pod-partition: the other side [default: everyone else]
    #[arg(long, value_name = "TARGET")]
    peer: Option<TargetName>,
    /// packet-loss: how many of a hundred packets are lost [default: 30]
    #[arg(long, value_name = "N", value_parser = percent)]
    loss: Option<i32>,
    /// latency: how long each packet is held [default: 100ms]
    #[arg(long, value_name = "DURATION")]
    delay: Option<GoDuration>,
    /// cpu-stress: how many threads spin [default: one for each CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    workers: Option<i32>,
    /// memory-pressure: how many percent of the memory are to be in use [default: 90]
    #[arg(long, value_name = "N", value_parser = percent)]
    memory: Option<i32>,
    /// disk-full: how much space is left, as 10Mi [default: none]
    #[arg(long, value_name = "SIZE")]
    leave: Option<String>,
    /// disk-full: fill the disk although other things than the node's data are on it
    #[arg(long)]
    shared_disk: bool,
    /// controlplane-restart, controlplane-kill: how long it stays away [default: no longer than it takes]
    #[arg(long, value_name = "DURATION")]
    down: Option<GoDuration>,
    #[command(flatten)]
    probe: ProbeArgs,
    /// What must hold of the report, as recovery<5s, failed<1%, restarts=0; may be given again
    #[arg(long, value_name = "METRIC OP VALUE", value_parser = expectation)]
    expect: Vec<String>,
    /// Say who the victims would be, and touch nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The name of the drill in the history [default: made up]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl RunArgs {
    /// The drill that the options describe; its target's namespace is left open.
    ///
    /// # Errors
    /// When options contradict each other.
    pub fn spec(self) -> anyhow::Result<DrillSpec> {
        let selected = self.selector.as_deref().map(TargetName::matching);
        // The parser lets nobody through without them.
        let (Some(drill), Some(target)) = (self.kind, self.target.or(selected)) else {
            return Err(UsageError::of("a drill takes a NAME and a TARGET"));
        };
        let parameters = Parameters {
            loss: self.loss,
            delay: self.delay,
            workers: self.workers,
            memory: self.memory,
            leave: self.leave.map(Quantity),
            shared_disk: self.shared_disk,
            down: self.down,
        };
        Ok(DrillSpec {
            drill,
            target: target.target(),
            peer: self.peer.map(TargetName::target),
            count: self.count,
            percent: self.percent,
            seed: self.seed,
            duration: self.duration,
            timeout: self.timeout,
            container: self.container,
            parameters: (parameters != Parameters::default()).then_some(parameters),
            probe: self.probe.spec().map_err(UsageError::of)?,
            expect: self.expect,
            dry_run: self.dry_run,
            cancel: false,
        })
    }
}

/// It has to be one, and stays as it was written: the report will show it so.
fn expectation(text: &str) -> Result<String, InvalidExpectation> {
    text.parse::<Expectation>().map(|_| text.to_owned())
}

/// `30` or `30%`.
fn percent(text: &str) -> Result<i32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse();
    let valid = number.ok().filter(|number| (1..=100).contains(number));
    valid.ok_or_else(|| "it takes 1 to 100".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use clap::error::ErrorKind;
    use skiff_dev::TargetKind;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(line: &str) -> Result<DrillSpec, clap::Error> {
        let words = std::iter::once("run").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.run.spec().unwrap())
    }

    fn refusal(line: &str) -> ErrorKind {
        parse(line).expect_err(line).kind()
    }

    #[test]
    fn a_short_line_is_enough() {
        let spec = parse("container-kill deploy/web").unwrap();
        assert_eq!(spec.drill, DrillKind::ContainerKill);
        assert_eq!(spec.target.to_string(), "deployment/web");
        assert_eq!((spec.parameters, spec.probe), (None, None));
    }

    #[test]
    fn options_become_the_drills_fields() {
        let spec = parse(
            "packet-loss -l app=web --percent 50% --seed -7 --duration 5s --timeout 1m30s --loss 40 \
             --rate 100 --expect failed<1% --expect recovery<5s --dry-run",
        )
        .unwrap();
        assert_eq!(spec.target.kind, TargetKind::Selector);
        assert_eq!((spec.percent, spec.seed), (Some(50), Some(-7)));
        assert_eq!(spec.timeout, Some(GoDuration::from_secs(90)));
        assert_eq!(spec.parameters.and_then(|given| given.loss), Some(40));
        assert_eq!(spec.probe.and_then(|probe| probe.rate), Some(100));
        assert_eq!(spec.expect, ["failed<1%", "recovery<5s"]);
        assert!(spec.dry_run);
    }

    #[test]
    fn wrong_lines_are_refused_by_the_parser() {
        for line in [
            "container-hug pod/x",
            "container-kill x",
            "container-kill job/x",
            "container-kill pod/x --count 0",
            "container-kill pod/x --percent 101",
            "container-kill pod/x --duration 5",
            "container-kill pod/x --rate 0",
            "container-kill pod/x --rate 1001",
            "container-kill pod/x --port 0",
            "container-kill pod/x --expect recovery",
            "container-kill pod/x --expect happiness>5",
        ] {
            assert_eq!(refusal(line), ErrorKind::ValueValidation, "{line}");
        }
        for line in ["", "container-kill"] {
            assert_eq!(refusal(line), ErrorKind::MissingRequiredArgument, "{line}");
        }
        for line in [
            "container-kill pod/x -l app=web",
            "pod-delete rs/x --count 2 --percent 50",
            "-f day.yaml pod-delete",
            "-f day.yaml --count 2",
            "-f day.yaml --rate 2",
        ] {
            assert_eq!(refusal(line), ErrorKind::ArgumentConflict, "{line}");
        }
    }

    #[test]
    fn a_file_stands_for_all_options() {
        assert!(Line::try_parse_from(["run", "-f", "day.yaml", "--dry-run"]).is_ok());
    }
}
