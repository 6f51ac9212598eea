//! Reports of drills, in every form: for people at a terminal ([`text`]), scripts ([`json`]), CI systems
//! ([`junit`]), and as a page for those who were not there ([`html`]).
//!
//! All of them are made from the drills' objects alone, so that a drill of last week reads the same.

mod html;
mod json;
mod junit;
mod markup;
mod picture;
mod story;

pub mod figures;
pub mod text;
pub mod verdict;

#[cfg(test)]
mod browser;
#[cfg(test)]
mod samples;

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use kube::Api;
use kube::api::ListParams;
use skiff_dev::{Drill, DrillKind, GoDuration, Target};

use super::UsageError;
use super::submit::in_words;
use crate::api_client::ApiArgs;
use verdict::Verdict;

/// What was run: a drill, or the steps of a game day.
#[derive(Debug)]
pub struct Report {
    /// The game day's name.
    pub title: Option<String>,
    pub description: Option<String>,
    pub entries: Vec<Entry>,
}

#[derive(Debug)]
pub enum Entry {
    Drill {
        title: String,
        drill: Box<Drill>,
    },
    Pause(GoDuration),
    /// A drill whose turn never came, or (`why`) that could not be begun.
    NotRun {
        title: String,
        kind: DrillKind,
        target: Target,
        why: Option<String>,
    },
}

impl Report {
    pub fn of_one(drill: Drill) -> Self {
        let title = drill.metadata.name.clone().unwrap_or_default();
        Self {
            title: None,
            description: None,
            entries: vec![Entry::Drill {
                title,
                drill: Box::new(drill),
            }],
        }
    }

    /// Whether every drill was run and is good.
    pub fn passed(&self) -> bool {
        self.entries.iter().all(|entry| match entry {
            Entry::Drill { drill, .. } => Verdict::of(drill).is_good(),
            Entry::Pause(_) => true,
            Entry::NotRun { .. } => false,
        })
    }

    /// The only drill of a report that is no game day's.
    fn single(&self) -> Option<&Drill> {
        match (&self.title, &self.entries[..]) {
            (None, [Entry::Drill { drill, .. }]) => Some(drill),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For people
    #[default]
    Table,
    /// For scripts
    Json,
    /// For CI systems: JUnit's XML
    Junit,
}

/// Where reports go.
#[derive(Args, Debug, Default)]
pub struct OutputArgs {
    /// How to print the report
    #[arg(short, long, value_enum, default_value_t)]
    output: ReportFormat,
    /// Write the report as one HTML page too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the report as JUnit XML too
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

impl OutputArgs {
    /// Finds out that files can't be written before something is broken, not after.
    ///
    /// # Errors
    /// A [`UsageError`] when a file can't be written: that is to be known before something is broken.
    pub fn check(&self) -> anyhow::Result<()> {
        for file in [&self.report, &self.junit].into_iter().flatten() {
            let refused =
                |error| UsageError::of(format!("cannot write {}: {error}", file.display()));
            try_out(file).map_err(refused)?;
        }
        Ok(())
    }

    /// Prints and writes a report, and says on stderr where to.
    ///
    /// # Errors
    /// When a file can't be written after all; the report was printed then.
    pub fn give(&self, report: &Report) -> anyhow::Result<()> {
        let printed = match self.output {
            ReportFormat::Table => text::report(report, text::Marks::of_stdout()),
            ReportFormat::Json => {
                format!("{}\n", serde_json::to_string_pretty(&json::value(report)?)?)
            }
            ReportFormat::Junit => junit::document(report),
        };
        let mut stdout = std::io::stdout().lock();
        let done = stdout
            .write_all(printed.as_bytes())
            .and_then(|()| stdout.flush());
        // Who reads no further wants no more of it.
        let done = done.or_else(|error| match error.kind() {
            ErrorKind::BrokenPipe => Ok(()),
            _ => Err(error),
        });
        let page = self
            .report
            .as_ref()
            .map(|file| write(file, &html::page(report)));
        let suites = self
            .junit
            .as_ref()
            .map(|file| write(file, &junit::document(report)));
        done.context("cannot print the report")?;
        page.transpose().and(suites.transpose()).map(drop)
    }
}

/// Opens a file as it will be written, and leaves it as it was.
fn try_out(file: &Path) -> std::io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).open(file) {
        Ok(_) => std::fs::remove_file(file),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            OpenOptions::new().append(true).open(file).map(drop)
        }
        Err(error) => Err(error),
    }
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    eprintln!("wrote {}", file.display());
    Ok(())
}

#[derive(Args)]
pub struct ReportArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// The drill's name [default: the latest]
    name: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// `skiff drill report`
pub async fn run(args: ReportArgs) -> anyhow::Result<ExitCode> {
    args.output.check()?;
    let drills: Api<Drill> = Api::all(args.api.client().await?);
    let drill = match &args.name {
        Some(name) => match drills.get_opt(name).await {
            Ok(found) => found.with_context(|| {
                format!("there is no drill {name}: `kubectl get drills` shows them")
            })?,
            Err(error) => anyhow::bail!("cannot read drill {name}: {}", in_words(&error)),
        },
        None => latest(&drills).await?,
    };
    args.output.give(&Report::of_one(drill))?;
    Ok(ExitCode::SUCCESS)
}

async fn latest(drills: &Api<Drill>) -> anyhow::Result<Drill> {
    let all = drills.list(&ListParams::default()).await;
    let all =
        all.map_err(|error| anyhow::anyhow!("cannot list the drills: {}", in_words(&error)))?;
    let latest = all.items.into_iter().max_by_key(|drill| {
        let begun = drill
            .status
            .as_ref()
            .and_then(|status| status.started_at.as_ref());
        let made = drill.metadata.creation_timestamp.as_ref();
        begun.map(|time| time.0).max(made.map(|time| time.0))
    });
    latest.context("no drill was run yet: see `skiff drill list`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_no_directory_is_refused_before_anything_is_done() {
        let args = |file: &str| OutputArgs {
            report: Some(PathBuf::from(file)),
            ..OutputArgs::default()
        };
        assert!(
            args("/nowhere/at/all.html")
                .check()
                .unwrap_err()
                .is::<UsageError>()
        );
        assert!(args("/tmp").check().is_err());
        assert!(args("here.html").check().is_ok());
        assert!(args("/tmp/there.html").check().is_ok());
    }

    #[test]
    fn what_was_not_run_has_not_passed() {
        let mut report = Report::of_one(samples::recovered());
        assert!(report.passed());
        report.entries.push(Entry::Pause(GoDuration::from_secs(1)));
        assert!(report.passed());
        report.entries.push(Entry::NotRun {
            title: "last".into(),
            kind: DrillKind::PodDelete,
            target: Target::default(),
            why: None,
        });
        assert!(!report.passed());
    }
}
