//! Carrying out a plan: each drill is made and followed to its end; the first that does not pass ends
//! a game day.

use std::process::ExitCode;

use anyhow::Context;
use kube::{Api, Client};
use skiff_dev::{Drill, GoDuration};

use super::follow::{Followed, follow};
use super::options::RunArgs;
use super::plan::{Plan, PlannedDrill, Step};
use super::progress::Progress;
use super::report::verdict::Verdict;
use super::report::{Entry, Report};
use super::{manifest, submit};
use crate::serving::StopSignals;

pub async fn run(mut args: RunArgs) -> anyhow::Result<ExitCode> {
    let output = std::mem::take(&mut args.output);
    output.check()?;
    let api = args.api.clone();
    let namespace = args.namespace.take();
    let mut plan = planned(args)?;
    let client = api.client().await?;
    plan.default_namespace(namespace.as_deref().unwrap_or(client.default_namespace()));
    if plan.steps.len() > 1 {
        // A wrong step at the end is to be known before the first one breaks something.
        for drill in plan.drills() {
            let checked = submit::check(&client, drill).await;
            checked.with_context(|| format!("drill {:?}", drill.title))?;
        }
    }
    let conductor = Conductor {
        signals: StopSignals::listen()?,
        progress: Progress::default(),
        client,
    };
    let Some(report) = conductor.run(plan).await? else {
        return Ok(ExitCode::FAILURE);
    };
    output.give(&report)?;
    Ok(match report.passed() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn planned(args: RunArgs) -> anyhow::Result<Plan> {
    let (file, name, dry_run) = (args.file.clone(), args.name.clone(), args.dry_run);
    let mut plan = match file {
        Some(file) => manifest::read(&file)?,
        None => Plan::of_one(PlannedDrill::new(name, args.spec()?)?),
    };
    if dry_run {
        plan.touch_nothing();
    }
    Ok(plan)
}

struct Conductor {
    client: Client,
    signals: StopSignals,
    progress: Progress,
}

/// How a step ended.
enum Ended {
    GoOn(Entry),
    /// What follows is not to be done.
    Stop(Entry),
    /// Whoever waited is gone.
    Left,
}

impl Conductor {
    /// The report; `None` when it was not waited for.
    async fn run(mut self, plan: Plan) -> anyhow::Result<Option<Report>> {
        let count = plan.steps.len();
        let mut report = Report {
            title: plan.title,
            description: plan.description,
            entries: Vec::with_capacity(count),
        };
        let mut stopped = false;
        for (index, step) in plan.steps.into_iter().enumerate() {
            if stopped {
                report.entries.extend(not_run(step));
                continue;
            }
            match self.step(step, index + 1, count).await? {
                Ended::GoOn(entry) => report.entries.push(entry),
                Ended::Stop(entry) => {
                    report.entries.push(entry);
                    stopped = true;
                }
                Ended::Left => return Ok(None),
            }
        }
        Ok(Some(report))
    }

    async fn step(&mut self, step: Step, number: usize, count: usize) -> anyhow::Result<Ended> {
        let planned = match step {
            Step::Pause(time) => return Ok(self.pause(time, number, count).await),
            Step::Drill(planned) => planned,
        };
        let made = match submit::create(&self.client, &planned).await {
            Ok(made) => made,
            // What was done before is still to be reported.
            Err(error) if count > 1 => {
                return Ok(Ended::Stop(Entry::NotRun {
                    title: planned.title,
                    kind: planned.kind,
                    target: planned.target,
                    why: Some(format!("{error:#}")),
                }));
            }
            Err(error) => return Err(error),
        };
        self.progress.begin(&made, &planned, number, count);
        let name = made
            .metadata
            .name
            .context("the API gave the drill no name")?;
        let drills: Api<Drill> = Api::all(self.client.clone());
        match follow(&drills, &name, &mut self.progress, &mut self.signals).await? {
            Followed::Left => Ok(Ended::Left),
            Followed::Ended(drill) => {
                let good = Verdict::of(&drill).is_good();
                let entry = Entry::Drill {
                    title: planned.title,
                    drill,
                };
                Ok(if good {
                    Ended::GoOn(entry)
                } else {
                    Ended::Stop(entry)
                })
            }
        }
    }

    async fn pause(&mut self, time: GoDuration, number: usize, count: usize) -> Ended {
        self.progress.pause(time, number, count);
        tokio::select! {
            () = tokio::time::sleep(time.0) => Ended::GoOn(Entry::Pause(time)),
            signal = self.signals.next() => {
                self.progress.note(&format!("{signal}: no further step is begun"));
                Ended::Stop(Entry::Pause(time))
            }
        }
    }
}

fn not_run(step: Step) -> Option<Entry> {
    match step {
        Step::Pause(_) => None,
        Step::Drill(drill) => Some(Entry::NotRun {
            title: drill.title,
            kind: drill.kind,
            target: drill.target,
            why: None,
        }),
    }
}
