//! What happens when `spec.replicas` changes during a rollout: every set that has pods grows
//! or shrinks in proportion, so that the new size doesn't bet on a template that may be bad.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::revision::{self, DESIRED_REPLICAS, MAX_REPLICAS};
use super::rolling::max_surge;
use super::{Rollout, available, replicas, wanted_replicas};

/// Whether `spec.replicas` changed since the sets were sized.
pub(super) fn was_scaled(rollout: &Rollout) -> bool {
    rollout
        .all()
        .iter()
        .filter(|set| replicas(set) > 0)
        .filter_map(|set| number(set, DESIRED_REPLICAS))
        .any(|desired| desired != wanted_replicas(&rollout.deployment))
}

/// The size of each set that has to change, by name.
pub(super) fn sizes(rollout: &Rollout) -> Vec<(String, i32)> {
    let deployment = &rollout.deployment;
    let wanted = wanted_replicas(deployment);
    if let Some(only) = only_active_or_latest(rollout) {
        return if replicas(only) == wanted {
            Vec::new()
        } else {
            vec![(name(only), wanted)]
        };
    }
    let active_old = || rollout.old.iter().filter(|set| replicas(set) > 0);
    if rollout
        .new
        .as_ref()
        .is_some_and(|new| is_saturated(deployment, new))
    {
        return active_old().map(|set| (name(set), 0)).collect();
    }
    if is_recreate(deployment) {
        return Vec::new();
    }
    let active: Vec<&ReplicaSet> = rollout
        .all()
        .into_iter()
        .filter(|set| replicas(set) > 0)
        .collect();
    spread(deployment, active)
}

fn spread(deployment: &Deployment, mut active: Vec<&ReplicaSet>) -> Vec<(String, i32)> {
    let wanted = wanted_replicas(deployment);
    let allowed = if wanted > 0 {
        wanted + max_surge(deployment)
    } else {
        0
    };
    let total: i32 = active.iter().map(|set| replicas(set)).sum();
    let to_add = allowed - total;
    // The largest first; among equals the newer one grows and the older one shrinks.
    active.sort_by(|a, b| {
        let by_age = revision::age_order(a).cmp(&revision::age_order(b));
        let by_age = if to_add > 0 { by_age.reverse() } else { by_age };
        replicas(b).cmp(&replicas(a)).then(by_age)
    });
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::with_capacity(active.len());
    for set in &active {
        let share = if to_add == 0 {
            0
        } else {
            proportion(deployment, set, to_add, added)
        };
        added += share;
        sizes.push(replicas(set) + share);
    }
    if let Some(largest) = sizes.first_mut()
        && to_add != 0
    {
        // Rounding leaves a rest, which the largest set takes.
        *largest = (*largest + to_add - added).max(0);
    }
    active.iter().map(|set| name(set)).zip(sizes).collect()
}

/// How many of `to_add` replicas one set gets, when others have got `added`.
fn proportion(deployment: &Deployment, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    let allowed = to_add - added;
    if replicas(set) == 0 || allowed == 0 {
        return 0;
    }
    let fraction = fraction(deployment, set);
    if to_add > 0 {
        fraction.min(allowed)
    } else {
        fraction.max(allowed)
    }
}

/// How much larger the set would be if it kept its share of all pods.
fn fraction(deployment: &Deployment, set: &ReplicaSet) -> i32 {
    let wanted = wanted_replicas(deployment);
    if wanted == 0 {
        return -replicas(set);
    }
    let before = number(set, MAX_REPLICAS)
        .or_else(|| {
            deployment
                .status
                .as_ref()
                .and_then(|status| status.replicas)
        })
        .filter(|before| *before > 0);
    let Some(before) = before else { return 0 };
    let now = wanted + max_surge(deployment);
    let size = f64::from(replicas(set)) * f64::from(now) / f64::from(before);
    size.round() as i32 - replicas(set)
}

/// The only set that has pods; if none has, the new one or the newest.
fn only_active_or_latest(rollout: &Rollout) -> Option<&ReplicaSet> {
    let all = rollout.all();
    let mut active = all.iter().filter(|set| replicas(set) > 0);
    match (active.next(), active.next()) {
        (Some(only), None) => Some(*only),
        (Some(_), Some(_)) => None,
        (None, _) => rollout.new.as_ref().or_else(|| {
            let old = rollout.old.iter();
            old.max_by_key(|set| revision::age_order(set))
        }),
    }
}

/// Whether the new set has all the pods that are wanted, and all are available.
fn is_saturated(deployment: &Deployment, new: &ReplicaSet) -> bool {
    let wanted = wanted_replicas(deployment);
    replicas(new) == wanted
        && number(new, DESIRED_REPLICAS) == Some(wanted)
        && available(new) == wanted
}

fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.strategy.as_ref();
    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

fn number(set: &ReplicaSet, annotation: &str) -> Option<i32> {
    let annotations = set.metadata.annotations.as_ref()?;
    annotations.get(annotation)?.parse().ok()
}

fn name(set: &ReplicaSet) -> String {
    set.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::super::rolling::tests::{deployment, set};
    use super::*;

    /// Sets named a, b, c ... from the oldest, sized when the deployment wanted `before`.
    fn rollout(wanted: i32, surge: &str, before: i32, old: &[i32], new: i32) -> Rollout {
        let deployment = deployment(wanted, surge, "0");
        let mut was = deployment.clone();
        was.spec.replicas = Some(before);
        let mut sets: Vec<ReplicaSet> = old.iter().chain([&new]).map(|n| set(*n, 0)).collect();
        for (index, set) in sets.iter_mut().enumerate() {
            set.metadata.name = Some(((b'a' + index as u8) as char).to_string());
            set.metadata.creation_timestamp =
                Some(Time(Timestamp::from_second(index as i64).unwrap()));
            revision::annotate_sizes(&mut set.metadata, &was);
        }
        let new = sets.pop();
        Rollout {
            deployment,
            stored_status: Default::default(),
            new,
            old: sets,
            now: Timestamp::UNIX_EPOCH,
        }
    }

    fn sizes_of(rollout: &Rollout) -> Vec<i32> {
        let changed = sizes(rollout);
        rollout
            .all()
            .iter()
            .map(|set| {
                let change = changed.iter().find(|(other, _)| *other == name(set));
                change.map_or(replicas(set), |(_, size)| *size)
            })
            .collect()
    }

    #[test]
    fn a_single_set_takes_the_whole_change() {
        assert_eq!(sizes_of(&rollout(12, "0", 10, &[0], 10)), [0, 12]);
        assert_eq!(sizes_of(&rollout(5, "0", 10, &[10], 0)), [5, 0]);
    }

    #[test]
    fn several_sets_share_the_change_in_proportion() {
        for (wanted, surge, before, old, new, expected) in [
            // 5 and 5 of 10, scaled to 12.
            (12, "0", 10, &[5][..], 5, &[6, 6][..]),
            (20, "0", 10, &[5], 5, &[10, 10]),
            (5, "0", 10, &[5], 5, &[2, 3]),
            (0, "0", 10, &[7], 3, &[0, 0]),
            // With a surge: 8 and 4 were 10 + 2.
            (20, "2", 10, &[8], 4, &[15, 7]),
            (15, "0", 10, &[3, 3], 4, &[4, 5, 6]),
        ] {
            let rollout = rollout(wanted, surge, before, old, new);
            let got = sizes_of(&rollout);
            let limit = if wanted == 0 {
                0
            } else {
                wanted + max_surge(&rollout.deployment)
            };
            assert_eq!(
                got.iter().sum::<i32>(),
                limit,
                "{wanted} {old:?} {new}: {got:?}"
            );
            assert_eq!(got, expected, "{wanted} {old:?} {new}");
        }
    }

    #[test]
    fn scaling_is_told_from_the_annotation() {
        assert!(was_scaled(&rollout(12, "0", 10, &[], 10)));
        assert!(!was_scaled(&rollout(10, "0", 10, &[], 10)));
        // A set without pods says nothing.
        assert!(!was_scaled(&rollout(12, "0", 10, &[], 0)));
    }
}
