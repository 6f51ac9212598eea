//! The arithmetic of a rolling update: how large each set may be next.
//!
//! Sizes never let the pods that are available fall below `replicas - maxUnavailable`, nor
//! the pods that exist rise above `replicas + maxSurge`.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{available, present, replicas, wanted_replicas};

/// How many pods more than wanted may exist; zero unless the strategy is RollingUpdate.
pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    limits(deployment).map_or(0, |(surge, _)| surge)
}

/// How many of the wanted pods may be missing.
pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    limits(deployment).map_or(0, |(_, unavailable)| {
        unavailable.min(wanted_replicas(deployment))
    })
}

/// maxSurge rounded up and maxUnavailable rounded down. If both come to nothing, one pod may
/// be missing: otherwise nothing could ever move.
fn limits(deployment: &Deployment) -> Option<(i32, i32)> {
    let strategy = deployment.spec.strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
        return None;
    }
    let wanted = wanted_replicas(deployment);
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".into());
    let surge = rolling
        .and_then(|r| r.max_surge.as_ref())
        .unwrap_or(&quarter);
    let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref());
    let surge = share(surge, wanted, Rounding::Up);
    let unavailable = share(unavailable.unwrap_or(&quarter), wanted, Rounding::Down);
    Some(match (surge, unavailable) {
        (0, 0) => (0, 1),
        limits => limits,
    })
}

#[derive(Clone, Copy)]
enum Rounding {
    Up,
    Down,
}

/// A number as it is, or a percentage of `total`. The API server refuses anything else.
fn share(value: &IntOrString, total: i32, rounding: Rounding) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent = text.strip_suffix('%').and_then(|p| p.parse::<i64>().ok());
            let hundredths = percent.unwrap_or(0) * i64::from(total);
            let rounded = match rounding {
                Rounding::Up => (hundredths + 99).div_euclid(100),
                Rounding::Down => hundredths.div_euclid(100),
            };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// How large the new set should be now. `all` includes it.
///
/// A set that was made smaller a moment ago counts with the pods that it still has, so that there are never more than
/// the surge allows, not even until its controller has deleted them.
pub(super) fn new_set_size(deployment: &Deployment, all: &[&ReplicaSet], new: &ReplicaSet) -> i32 {
    let wanted = wanted_replicas(deployment);
    let size = replicas(new);
    if size >= wanted || limits(deployment).is_none() {
        return wanted;
    }
    let existing: i32 = all.iter().map(|set| replicas(set).max(present(set))).sum();
    let room = wanted + max_surge(deployment) - existing;
    size + room.clamp(0, wanted - size)
}

/// The steps by which the old sets shrink now: the index of a set and its next size.
///
/// Pods that aren't available go first, because ending them costs nothing; then as many
/// available ones as the limit allows.
pub(super) fn old_set_sizes(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    old: &[ReplicaSet],
) -> Vec<(usize, i32)> {
    let mut sizes: Vec<i32> = old.iter().map(replicas).collect();
    let old_total: i32 = sizes.iter().sum();
    if old_total == 0 {
        return Vec::new();
    }
    let min_available = wanted_replicas(deployment) - max_unavailable(deployment);
    let new_size = new.map_or(0, replicas);
    let new_unavailable = new_size - new.map_or(0, available);
    let may_go = old_total + new_size - min_available - new_unavailable;
    if may_go <= 0 {
        return Vec::new();
    }
    let mut oldest_first: Vec<usize> = (0..old.len()).collect();
    oldest_first.sort_by_key(|index| super::revision::age_order(&old[*index]));

    let mut steps = Vec::new();
    let mut gone = 0;
    for &index in &oldest_first {
        let unavailable = sizes[index] - available(&old[index]);
        let going = unavailable.min(may_go - gone);
        if going > 0 {
            sizes[index] -= going;
            gone += going;
            steps.push((index, sizes[index]));
        }
    }
    let total_available: i32 = old.iter().chain(new).map(available).sum();
    let mut surplus = total_available - min_available;
    for &index in &oldest_first {
        let going = sizes[index].min(surplus);
        if going > 0 {
            sizes[index] -= going;
            surplus -= going;
            steps.push((index, sizes[index]));
        }
    }
    steps
}

#[cfg(test)]
pub(super) mod tests {
    use k8s_openapi::api::apps::v1::{
        DeploymentStrategy, ReplicaSetStatus, RollingUpdateDeployment,
    };

    use super::*;

    fn int_or_string(text: &str) -> IntOrString {
        match text.parse() {
            Ok(number) => IntOrString::Int(number),
            Err(_) => IntOrString::String(text.into()),
        }
    }

    pub(in crate::controllers::deployment) fn deployment(
        wanted: i32,
        surge: &str,
        unavailable: &str,
    ) -> Deployment {
        let mut deployment = Deployment::default();
        deployment.spec.replicas = Some(wanted);
        deployment.spec.strategy = Some(DeploymentStrategy {
            type_: Some("RollingUpdate".into()),
            rolling_update: Some(RollingUpdateDeployment {
                max_surge: Some(int_or_string(surge)),
                max_unavailable: Some(int_or_string(unavailable)),
            }),
        });
        deployment
    }

    pub(in crate::controllers::deployment) fn set(size: i32, available: i32) -> ReplicaSet {
        let mut set = ReplicaSet::default();
        set.spec.replicas = Some(size);
        set.status = Some(ReplicaSetStatus {
            replicas: size,
            available_replicas: Some(available),
            ..Default::default()
        });
        set
    }

    #[test]
    fn limits_round_towards_progress_and_never_both_to_nothing() {
        for (wanted, surge, unavailable, expected) in [
            (10, "25%", "25%", (3, 2)),
            (3, "25%", "25%", (1, 0)),
            (1, "25%", "25%", (1, 0)),
            (4, "0", "25%", (0, 1)),
            (3, "0%", "25%", (0, 1)),
            (10, "2", "0", (2, 0)),
            (10, "0", "0%", (0, 1)),
            (10, "100%", "100%", (10, 10)),
            (0, "25%", "25%", (0, 1)),
        ] {
            let deployment = deployment(wanted, surge, unavailable);
            assert_eq!(
                limits(&deployment),
                Some(expected),
                "{wanted} {surge} {unavailable}"
            );
        }
        assert_eq!(max_unavailable(&deployment(2, "1", "5")), 2);
        assert_eq!(max_unavailable(&deployment(0, "0", "0")), 0);
        let mut recreate = deployment(5, "1", "1");
        recreate.spec.strategy.as_mut().unwrap().type_ = Some("Recreate".into());
        assert_eq!((max_surge(&recreate), max_unavailable(&recreate)), (0, 0));
    }

    #[test]
    fn pods_that_are_still_there_take_up_room() {
        let (deployment, mut old, new) = (deployment(4, "1", "1"), set(4, 4), set(1, 0));
        old.spec.replicas = Some(3);
        assert_eq!(new_set_size(&deployment, &[&old, &new], &new), 1);
        old.status.get_or_insert_default().replicas = 3;
        assert_eq!(new_set_size(&deployment, &[&old, &new], &new), 2);
    }

    #[test]
    fn the_new_set_grows_into_the_surge() {
        for (wanted, surge, old, new, expected) in [
            // The first rollout: no old pods.
            (10, "2", 0, 0, 10),
            // Nothing but the surge fits beside all old pods.
            (10, "2", 10, 0, 2),
            (10, "0", 10, 0, 0),
            (10, "2", 6, 4, 6),
            // The last steps are limited by what is wanted.
            (10, "5", 1, 9, 10),
            // Scaled down meanwhile.
            (5, "1", 0, 8, 5),
            // Too many old pods: wait for them to go.
            (5, "1", 12, 2, 2),
            (3, "25%", 3, 0, 1),
        ] {
            let (deployment, old, new) = (deployment(wanted, surge, "0"), set(old, 0), set(new, 0));
            assert_eq!(
                new_set_size(&deployment, &[&old, &new], &new),
                expected,
                "{wanted} {surge} {old:?} {new:?}",
                old = replicas(&old),
                new = replicas(&new)
            );
        }
    }

    #[test]
    fn old_sets_shrink_within_the_limit() {
        // wanted, surge, unavailable, new (size, available), old (size, available), sizes
        type Case = (
            i32,
            &'static str,
            &'static str,
            (i32, i32),
            (i32, i32),
            &'static [i32],
        );
        let cases: [Case; 9] = [
            // Nothing old is left.
            (10, "0", "2", (10, 10), (0, 0), &[]),
            // All old pods are available and none of the new is there yet.
            (10, "0", "2", (0, 0), (10, 10), &[8]),
            (10, "0", "0", (0, 0), (10, 10), &[9]),
            // The new pods aren't available: they may not pay for old ones.
            (10, "2", "0", (2, 0), (10, 10), &[]),
            (10, "2", "0", (2, 1), (10, 10), &[9]),
            (10, "2", "0", (2, 2), (10, 10), &[8]),
            // Unavailable old pods go first, then available ones.
            (10, "0", "2", (0, 0), (10, 8), &[8]),
            (10, "2", "2", (2, 2), (10, 8), &[8, 6]),
            // The end of a rollout.
            (3, "1", "0", (3, 3), (1, 1), &[0]),
        ];
        for (wanted, surge, unavailable, new, old, expected) in cases {
            let deployment = deployment(wanted, surge, unavailable);
            let steps = old_set_sizes(&deployment, Some(&set(new.0, new.1)), &[set(old.0, old.1)]);
            let sizes: Vec<i32> = steps.iter().map(|(_, size)| *size).collect();
            assert_eq!(
                sizes, expected,
                "{wanted} {surge} {unavailable} {new:?} {old:?}"
            );
        }
    }

    #[test]
    fn a_rollout_that_takes_every_step_ends_and_keeps_its_limits() {
        for (wanted, surge, unavailable) in [
            (10, "25%", "25%"),
            (3, "1", "0"),
            (5, "0", "1"),
            (1, "0", "0"),
        ] {
            let deployment = deployment(wanted, surge, unavailable);
            let (mut old, mut new) = (set(wanted, wanted), set(0, 0));
            for _ in 0..100 {
                let grown = new_set_size(&deployment, &[&old, &new], &new);
                // Every pod that starts becomes available before the next step.
                new = set(grown, grown);
                let total = replicas(&old) + grown;
                assert!(total <= wanted + max_surge(&deployment));
                if let Some((_, size)) =
                    old_set_sizes(&deployment, Some(&new), &[old.clone()]).last()
                {
                    old = set(*size, *size);
                }
                assert!(available(&old) + available(&new) >= wanted - max_unavailable(&deployment));
            }
            assert_eq!((replicas(&old), replicas(&new)), (0, wanted));
        }
    }
}
