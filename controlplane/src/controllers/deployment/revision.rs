//! The sets of a deployment as its history: which is new, which revision each one is, and
//! which are too old to keep.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use std::sync::Arc;

use super::{replicas, wanted_replicas};
use crate::controllers::deployment::rolling::max_surge;

pub(super) const HASH_LABEL: &str = "pod-template-hash";
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a deployment that its sets don't inherit.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];
/// Characters that the history annotation may have.
const HISTORY_LIMIT: usize = 2000;
/// Letters and digits that spell no words and aren't mistaken for one another.
const SAFE_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// The set of the deployment's current template, if there is one, and all others.
pub(super) fn split(
    deployment: &Deployment,
    mut sets: Vec<Arc<ReplicaSet>>,
) -> (Option<ReplicaSet>, Vec<ReplicaSet>) {
    sets.sort_by_key(|set| age_order(set));
    let template = &deployment.spec.template;
    let new = sets.iter().position(|set| same_template(template, set));
    let new = new.map(|index| ReplicaSet::clone(&sets.remove(index)));
    let old = sets.iter().map(|set| ReplicaSet::clone(set)).collect();
    (new, old)
}

/// Orders sets from the oldest to the newest.
pub(super) fn age_order(set: &ReplicaSet) -> (Option<jiff::Timestamp>, String) {
    (
        set.metadata.creation_timestamp.as_ref().map(|time| time.0),
        set.metadata.name.clone().unwrap_or_default(),
    )
}

/// Whether a set was made from `template`: the hash label is the set's own addition.
pub(super) fn same_template(template: &PodTemplateSpec, set: &ReplicaSet) -> bool {
    let Some(other) = &set.spec.template else {
        return false;
    };
    without_hash(template) == without_hash(other)
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
        labels.remove(HASH_LABEL);
    }
    template
}

/// A short name for a template: the same template gives the same name, after `collisions`
/// that led to a name in use, another one.
pub(super) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    // Through a `Value`, so that keys are sorted and not in the order of a struct's fields.
    let canonical = serde_json::to_value(template)
        .unwrap_or_default()
        .to_string();
    let mut hash = Fnv32a::new();
    hash.write(canonical.as_bytes());
    if let Some(collisions) = collisions {
        hash.write(&collisions.to_le_bytes());
    }
    let digits = hash.0.to_string();
    digits
        .bytes()
        .map(|digit| SAFE_ALPHABET[usize::from(digit) % SAFE_ALPHABET.len()] as char)
        .collect()
}

/// The FNV-1a hash of 32 bits.
struct Fnv32a(u32);

impl Fnv32a {
    fn new() -> Self {
        Self(0x811c_9dc5)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
}

/// The revision that an object's annotation names; 0 if none.
pub(super) fn of(meta: &ObjectMeta) -> i64 {
    let annotations = meta.annotations.as_ref();
    annotations
        .and_then(|annotations| annotations.get(REVISION))
        .and_then(|revision| revision.parse().ok())
        .unwrap_or(0)
}

/// The revision that the new set has, given the old ones.
pub(super) fn next(old: &[ReplicaSet]) -> i64 {
    old.iter().map(|set| of(&set.metadata)).max().unwrap_or(0) + 1
}

/// Gives the new set the deployment's annotations and its revision. A set that had a lower
/// revision remembers it: a rollback has made it the newest again.
pub(super) fn annotate(set: &mut ObjectMeta, deployment: &Deployment, revision: i64) {
    let before = of(set);
    let annotations = set.annotations.get_or_insert_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    if before >= revision {
        return;
    }
    annotations.insert(REVISION.into(), revision.to_string());
    if before > 0 {
        let history = annotations.entry(REVISION_HISTORY.into()).or_default();
        *history = append_revision(history, before);
    }
}

fn append_revision(history: &str, revision: i64) -> String {
    let mut revisions: Vec<String> = history
        .split(',')
        .filter(|revision| !revision.is_empty())
        .map(String::from)
        .collect();
    revisions.push(revision.to_string());
    while revisions.join(",").len() > HISTORY_LIMIT {
        revisions.remove(0);
    }
    revisions.join(",")
}

/// Notes on a set for which size of the deployment it was sized. True if that changed.
pub(super) fn annotate_sizes(set: &mut ObjectMeta, deployment: &Deployment) -> bool {
    let desired = wanted_replicas(deployment);
    let numbers = [
        (DESIRED_REPLICAS, desired),
        (MAX_REPLICAS, desired + max_surge(deployment)),
    ];
    let annotations = set.annotations.get_or_insert_default();
    let mut changed = false;
    for (key, number) in numbers {
        let number = number.to_string();
        if annotations.get(key) != Some(&number) {
            annotations.insert(key.into(), number);
            changed = true;
        }
    }
    changed
}

/// The names of the old sets beyond the history limit, the oldest revisions first. Sets that
/// still have pods, or whose status is behind, stay until the next look.
pub(super) fn superfluous(deployment: &Deployment, old: &[ReplicaSet]) -> Vec<String> {
    let limit = match deployment.spec.revision_history_limit {
        Some(limit) if limit != i32::MAX => usize::try_from(limit).unwrap_or(0),
        _ => return Vec::new(),
    };
    let mut sets: Vec<&ReplicaSet> = old
        .iter()
        .filter(|set| set.metadata.deletion_timestamp.is_none())
        .collect();
    sets.sort_by_key(|set| (of(&set.metadata), age_order(set)));
    let surplus = sets.len().saturating_sub(limit);
    sets[..surplus]
        .iter()
        .filter(|set| is_empty_and_settled(set))
        .filter_map(|set| set.metadata.name.clone())
        .collect()
}

fn is_empty_and_settled(set: &ReplicaSet) -> bool {
    let status = set.status.as_ref();
    let observed = status.and_then(|s| s.observed_generation).unwrap_or(0);
    status.is_none_or(|status| status.replicas == 0)
        && replicas(set) == 0
        && set.metadata.generation.unwrap_or(0) <= observed
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, PodSpec};

    use super::super::rolling::tests::{deployment, set};
    use super::*;

    fn template(image: &str) -> PodTemplateSpec {
        PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some([("app".to_string(), "web".to_string())].into()),
                ..Default::default()
            }),
            spec: Some(PodSpec {
                containers: vec![Container {
                    name: "web".into(),
                    image: Some(image.into()),
                    ..Default::default()
                }],
                ..Default::default()
            }),
        }
    }

    #[test]
    fn fnv_is_the_published_function() {
        let mut hash = Fnv32a::new();
        hash.write(b"foobar");
        assert_eq!(hash.0, 0xbf9c_f968);
    }

    #[test]
    fn the_hash_is_stable_and_tells_templates_and_collisions_apart() {
        let hash = template_hash(&template("nginx"), None);
        // Pinned: another value would start a rollout of every deployment at an upgrade.
        assert_eq!(hash, PINNED);
        assert_ne!(hash, template_hash(&template("nginx:1.27"), None));
        assert_ne!(hash, template_hash(&template("nginx"), Some(1)));
        assert!(hash.bytes().all(|byte| SAFE_ALPHABET.contains(&byte)));
    }

    const PINNED: &str = "5776d5bb59";

    #[test]
    fn the_new_set_is_found_by_its_template() {
        let mut deployment = deployment(3, "1", "0");
        deployment.spec.template = template("nginx:2");
        let made_from = |image: &str, name: &str| {
            let mut template = template(image);
            let labels = template.metadata.as_mut().unwrap().labels.as_mut().unwrap();
            labels.insert(HASH_LABEL.into(), "x".into());
            let mut set = set(1, 1);
            set.metadata.name = Some(name.into());
            set.spec.template = Some(template);
            Arc::new(set)
        };
        let sets = vec![made_from("nginx:1", "old"), made_from("nginx:2", "new")];
        let (new, old) = split(&deployment, sets);
        assert_eq!(new.unwrap().metadata.name.as_deref(), Some("new"));
        assert_eq!(old.len(), 1);
    }

    #[test]
    fn a_rollback_moves_the_revision_and_keeps_the_history() {
        let mut deployment = deployment(3, "1", "0");
        deployment.metadata.annotations = Some(
            [
                ("team".to_string(), "web".to_string()),
                (NOT_COPIED[0].to_string(), "{}".to_string()),
                (REVISION.to_string(), "2".to_string()),
            ]
            .into(),
        );
        let mut meta = ObjectMeta::default();
        annotate(&mut meta, &deployment, 1);
        let annotations = meta.annotations.clone().unwrap();
        assert_eq!(annotations.get(REVISION).map(String::as_str), Some("1"));
        assert_eq!(annotations.get("team").map(String::as_str), Some("web"));
        assert!(!annotations.contains_key(NOT_COPIED[0]));
        assert!(!annotations.contains_key(REVISION_HISTORY));
        annotate(&mut meta, &deployment, 3);
        annotate(&mut meta, &deployment, 5);
        let annotations = meta.annotations.clone().unwrap();
        assert_eq!(annotations.get(REVISION).map(String::as_str), Some("5"));
        assert_eq!(
            annotations.get(REVISION_HISTORY).map(String::as_str),
            Some("1,3")
        );
        // A revision never goes down.
        annotate(&mut meta, &deployment, 4);
        assert_eq!(of(&meta), 5);
    }

    #[test]
    fn empty_sets_beyond_the_limit_are_superfluous() {
        let mut deployment = deployment(3, "1", "0");
        deployment.spec.revision_history_limit = Some(1);
        let old: Vec<ReplicaSet> = [(3, 0), (1, 0), (2, 1)]
            .iter()
            .map(|(revision, size)| {
                let mut set = set(*size, 0);
                set.metadata.name = Some(format!("r{revision}"));
                set.metadata.annotations =
                    Some([(REVISION.to_string(), revision.to_string())].into());
                set
            })
            .collect();
        assert_eq!(superfluous(&deployment, &old), ["r1"]);
        deployment.spec.revision_history_limit = None;
        assert!(superfluous(&deployment, &old).is_empty());
    }
}
