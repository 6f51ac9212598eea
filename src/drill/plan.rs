//! What a command is to do: one drill, or the steps of a game day.

use serde_json::{Value, json};
use skiff_dev::{DrillKind, DrillSpec, GoDuration, Target, TargetKind};

/// On the drills of a game day, the game day's name.
pub const GAME_DAY_LABEL: &str = "skiff.dev/game-day";

#[derive(Debug)]
pub struct Plan {
    /// The game day's name; none for drills alone.
    pub title: Option<String>,
    pub description: Option<String>,
    pub steps: Vec<Step>,
}

#[derive(Debug)]
pub enum Step {
    Drill(Box<PlannedDrill>),
    Pause(GoDuration),
}

/// A drill that is to be made.
#[derive(Debug)]
pub struct PlannedDrill {
    /// What it is called in messages and reports.
    pub title: String,
    pub kind: DrillKind,
    pub target: Target,
    /// What is sent, with fields that this program doesn't know as well: the API is to judge those.
    pub object: Value,
}

impl Plan {
    pub fn of_one(drill: PlannedDrill) -> Self {
        Self {
            title: None,
            description: None,
            steps: vec![Step::Drill(Box::new(drill))],
        }
    }

    pub fn drills(&self) -> impl Iterator<Item = &PlannedDrill> {
        self.steps.iter().filter_map(|step| match step {
            Step::Drill(drill) => Some(drill.as_ref()),
            Step::Pause(_) => None,
        })
    }

    fn drills_mut(&mut self) -> impl Iterator<Item = &mut PlannedDrill> {
        self.steps.iter_mut().filter_map(|step| match step {
            Step::Drill(drill) => Some(drill.as_mut()),
            Step::Pause(_) => None,
        })
    }

    /// Puts targets into a namespace that say nothing of theirs.
    pub fn default_namespace(&mut self, namespace: &str) {
        for drill in self.drills_mut() {
            for side in ["target", "peer"] {
                let Some(target) = drill.object["spec"].get_mut(side) else {
                    continue;
                };
                if target["kind"] != "Node" && target["namespace"].is_null() {
                    target["namespace"] = namespace.into();
                }
            }
            if drill.target.kind != TargetKind::Node && drill.target.namespace.is_none() {
                drill.target.namespace = Some(namespace.to_owned());
            }
        }
    }

    /// Has every drill choose its victims only.
    pub fn touch_nothing(&mut self) {
        for drill in self.drills_mut() {
            drill.object["spec"]["dryRun"] = true.into();
        }
    }
}

impl PlannedDrill {
    /// A drill with a given name, or one that is made up from its kind.
    pub fn new(name: Option<String>, spec: DrillSpec) -> serde_json::Result<Self> {
        let metadata = match &name {
            Some(name) => json!({ "name": name }),
            None => json!({ "generateName": format!("{}-", spec.drill) }),
        };
        Ok(Self {
            title: name.unwrap_or_else(|| spec.drill.to_string()),
            kind: spec.drill,
            object: json!({
                "apiVersion": "skiff.dev/v1",
                "kind": "Drill",
                "metadata": metadata,
                "spec": serde_json::to_value(&spec)?,
            }),
            target: spec.target,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drill(kind: TargetKind) -> PlannedDrill {
        let target = Target {
            kind,
            name: Some("x".into()),
            ..Target::default()
        };
        let spec = DrillSpec {
            peer: Some(Target {
                namespace: Some("db".into()),
                ..target.clone()
            }),
            target,
            ..DrillSpec::default()
        };
        PlannedDrill::new(None, spec).unwrap()
    }

    #[test]
    fn a_namespace_is_for_those_without_one() {
        let mut plan = Plan::of_one(drill(TargetKind::Pod));
        plan.default_namespace("shop");
        let object = &plan.drills().next().unwrap().object;
        assert_eq!(object["spec"]["target"]["namespace"], "shop");
        assert_eq!(object["spec"]["peer"]["namespace"], "db");
        assert_eq!(object["metadata"]["generateName"], "container-kill-");

        let mut plan = Plan::of_one(drill(TargetKind::Node));
        plan.default_namespace("shop");
        let object = &plan.drills().next().unwrap().object;
        assert!(object["spec"]["target"].get("namespace").is_none());
    }

    #[test]
    fn a_dry_run_is_one_of_every_step() {
        let mut plan = Plan::of_one(drill(TargetKind::Pod));
        plan.steps
            .push(Step::Drill(Box::new(drill(TargetKind::Pod))));
        plan.touch_nothing();
        assert!(
            plan.drills()
                .all(|drill| drill.object["spec"]["dryRun"] == true)
        );
    }
}
