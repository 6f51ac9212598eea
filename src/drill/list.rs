//! `skiff drill list`: which drills there are.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use skiff_dev::{DrillKind, GoDuration};

use crate::output::{Format, Table};

#[derive(Args)]
pub struct ListArgs {
    /// How to print them
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// A kind of drill, as scripts see it.
#[derive(Debug, Serialize)]
struct Listed {
    name: &'static str,
    victims: &'static str,
    /// How long the fault lasts if nobody says; nothing for what is over at once.
    lasts: Option<GoDuration>,
    what: &'static str,
}

pub fn run(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let drills: Vec<Listed> = DrillKind::ALL.into_iter().map(listed).collect();
    match args.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&drills)?),
        Format::Table => {
            let mut table = Table::new(["NAME", "VICTIMS", "LASTS", "WHAT"]);
            for drill in drills {
                let lasts = drill
                    .lasts
                    .map_or_else(|| "a moment".to_owned(), |time| time.to_string());
                table.row([
                    drill.name.to_owned(),
                    drill.victims.to_owned(),
                    lasts,
                    drill.what.to_owned(),
                ]);
            }
            print!("{table}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn listed(kind: DrillKind) -> Listed {
    Listed {
        name: kind.name(),
        victims: victims(kind),
        lasts: kind.default_duration(),
        what: kind.summary(),
    }
}

fn victims(kind: DrillKind) -> &'static str {
    if kind.hits_control_plane() {
        "control plane"
    } else if kind.hits_nodes() {
        "nodes"
    } else if kind.name().starts_with("container-") {
        "containers"
    } else {
        "pods"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drill_says_whom_it_hits() {
        assert_eq!(victims(DrillKind::ContainerOom), "containers");
        assert_eq!(victims(DrillKind::DnsOutage), "pods");
        assert_eq!(victims(DrillKind::NodeCrash), "nodes");
        assert_eq!(victims(DrillKind::ControlplaneKill), "control plane");
    }

    #[test]
    fn scripts_get_durations_or_nothing() {
        let written = serde_json::to_value(listed(DrillKind::NodeCrash)).unwrap();
        assert_eq!(written["lasts"], "30s");
        let written = serde_json::to_value(listed(DrillKind::PodDelete)).unwrap();
        assert!(written["lasts"].is_null());
    }
}
