//! How many drills are remembered.

use std::sync::Arc;

use kube::{Api, Client};
use skiff_dev::{Drill, DrillPhase};

use crate::controllers::writes::{only, unless_gone};

/// Drills that are over and still there; older ones are removed.
const KEPT: usize = 100;

/// Removes the oldest of too many drills that are over.
pub(super) async fn trim(client: &Client, drills: Vec<Arc<Drill>>) -> Result<(), kube::Error> {
    let api: Api<Drill> = Api::all(client.clone());
    for old in superfluous(drills) {
        let name = old.metadata.name.as_deref().unwrap_or_default();
        unless_gone(api.delete(name, &only(old.metadata.uid.as_deref())).await)?;
    }
    Ok(())
}

fn superfluous(drills: Vec<Arc<Drill>>) -> Vec<Arc<Drill>> {
    let is_over = |drill: &Arc<Drill>| {
        let phase = drill.status.as_ref().map(|status| status.phase);
        phase == Some(DrillPhase::Completed) && drill.metadata.deletion_timestamp.is_none()
    };
    let mut over: Vec<Arc<Drill>> = drills.into_iter().filter(is_over).collect();
    over.sort_by_key(|drill| {
        let completed = drill.status.as_ref().and_then(|s| s.completed_at.as_ref());
        completed.map(|at| at.0)
    });
    over.truncate(over.len().saturating_sub(KEPT));
    over
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use skiff_dev::DrillStatus;

    use super::*;

    fn drill(second: i64, phase: DrillPhase) -> Arc<Drill> {
        let completed = Timestamp::from_second(second).unwrap();
        Arc::new(Drill {
            status: Some(DrillStatus {
                phase,
                completed_at: (phase == DrillPhase::Completed).then_some(MicroTime(completed)),
                ..DrillStatus::default()
            }),
            ..Drill::default()
        })
    }

    #[test]
    fn only_the_oldest_that_are_over_go() {
        let mut drills: Vec<_> = (0..103).map(|s| drill(s, DrillPhase::Completed)).collect();
        drills.reverse();
        drills.push(drill(0, DrillPhase::Running));
        let gone = superfluous(drills);
        let seconds: Vec<i64> = gone
            .iter()
            .filter_map(|drill| drill.status.as_ref()?.completed_at.as_ref())
            .map(|at| at.0.as_second())
            .collect();
        assert_eq!(seconds, [0, 1, 2]);
    }
}
