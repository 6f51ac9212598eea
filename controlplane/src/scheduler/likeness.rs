//! What rules about pods among pods see of one: its namespace, its labels, and whom it wants
//! near or far (pod affinity and anti-affinity).
//!
//! The replicas of a set are all alike in this, so rules look at [`super::groups`] of pods that
//! are alike instead of at every pod.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Affinity, Pod, PodAffinityTerm, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};

pub(super) type Labels = BTreeMap<String, String>;

/// The labels of every namespace.
pub(super) type Namespaces = HashMap<Arc<str>, Labels>;

/// Pods that are equal in this can't be told apart by rules about pods among pods.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Likeness {
    pub(super) namespace: Arc<str>,
    pub(super) labels: Labels,
    pub(super) affinity: PodAffinity,
    /// Of namespace and labels, so that looking for its equal is cheap.
    digest: u64,
}

/// Whom a pod wants in the same place, and whom not.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PodAffinity {
    pub(super) required: Vec<Term>,
    pub(super) required_anti: Vec<Term>,
    /// With the weight of each; what is not wanted near has a negative one.
    pub(super) preferred: Vec<(i64, Term)>,
}

/// Some pods, and what "the same place" is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Term {
    pub(super) selector: PodSelector,
    namespaces: Vec<Arc<str>>,
    namespace_selector: Option<Selector>,
    /// Nodes are one place that have the same value of this label.
    pub(super) topology_key: String,
}

/// Selects pods by their labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PodSelector {
    /// `None` selects nothing.
    selector: Option<Selector>,
    /// `key=value` of a label that every selected pod has, if there is one.
    certain: Option<String>,
}

impl Likeness {
    pub(super) fn of(pod: &Pod) -> Arc<Self> {
        let namespace: Arc<str> = pod.metadata.namespace.as_deref().unwrap_or_default().into();
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        (&namespace, &labels).hash(&mut hasher);
        let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
        Arc::new(Self {
            affinity: affinity
                .map(|affinity| PodAffinity::of(affinity, &namespace))
                .unwrap_or_default(),
            digest: hasher.finish(),
            namespace,
            labels,
        })
    }
}

impl Hash for Likeness {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.digest);
    }
}

impl PodAffinity {
    fn of(affinity: &Affinity, namespace: &Arc<str>) -> Self {
        let near = affinity.pod_affinity.clone().unwrap_or_default();
        let far = affinity.pod_anti_affinity.clone().unwrap_or_default();
        let terms = |terms: Option<Vec<PodAffinityTerm>>| {
            let terms = terms.unwrap_or_default().into_iter();
            terms.map(|term| Term::of(&term, namespace)).collect()
        };
        let weighted = |terms: Option<Vec<WeightedPodAffinityTerm>>, sign: i64| {
            terms.unwrap_or_default().into_iter().map(move |weighted| {
                let term = Term::of(&weighted.pod_affinity_term, namespace);
                (sign * i64::from(weighted.weight), term)
            })
        };
        let wanted = weighted(near.preferred_during_scheduling_ignored_during_execution, 1);
        let unwanted = weighted(far.preferred_during_scheduling_ignored_during_execution, -1);
        Self {
            required: terms(near.required_during_scheduling_ignored_during_execution),
            required_anti: terms(far.required_during_scheduling_ignored_during_execution),
            preferred: wanted.chain(unwanted).collect(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.required.is_empty() && self.required_anti.is_empty() && self.preferred.is_empty()
    }
}

impl Term {
    /// A term that names no namespaces means those of the pod that has it.
    fn of(term: &PodAffinityTerm, own_namespace: &Arc<str>) -> Self {
        let named = term.namespaces.iter().flatten();
        let mut namespaces: Vec<Arc<str>> = named.map(|name| name.as_str().into()).collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(own_namespace.clone());
        }
        let by_labels = term.namespace_selector.clone();
        Self {
            selector: PodSelector::of(term.label_selector.as_ref()),
            namespaces,
            namespace_selector: by_labels.and_then(|selector| selector.try_into().ok()),
            topology_key: term.topology_key.clone(),
        }
    }

    pub(super) fn selects(&self, pod: &Likeness, namespaces: &Namespaces) -> bool {
        self.covers(&pod.namespace, namespaces) && self.selector.matches(&pod.labels)
    }

    fn covers(&self, namespace: &Arc<str>, namespaces: &Namespaces) -> bool {
        if self.namespaces.contains(namespace) {
            return true;
        }
        let Some(selector) = &self.namespace_selector else {
            return false;
        };
        match namespaces.get(namespace) {
            Some(labels) => selector.matches(labels),
            None => selector.selects_all(),
        }
    }

    /// The namespaces whose pods it may select.
    pub(super) fn covered<'a>(
        &'a self,
        namespaces: &'a Namespaces,
    ) -> impl Iterator<Item = &'a Arc<str>> {
        let by_labels = self.namespace_selector.iter().flat_map(move |selector| {
            let all = namespaces.iter();
            all.filter(move |(name, labels)| {
                selector.matches(labels) && !self.namespaces.contains(name)
            })
        });
        self.namespaces
            .iter()
            .chain(by_labels.map(|(name, _)| name))
    }
}

impl PodSelector {
    /// No selector selects nothing, an empty one everything.
    pub(super) fn of(selector: Option<&LabelSelector>) -> Self {
        let Some(selector) = selector else {
            return Self::default();
        };
        let equal = selector.match_labels.iter().flatten().next();
        let listed = selector.match_expressions.iter().flatten();
        let mut listed = listed.filter_map(|requirement| {
            match (requirement.operator.as_str(), requirement.values.as_deref()) {
                ("In", Some([only])) => Some((&requirement.key, only)),
                _ => None,
            }
        });
        Self {
            certain: equal
                .or_else(|| listed.next())
                .map(|(key, value)| pair(key, value)),
            selector: Selector::try_from(selector.clone()).ok(),
        }
    }

    pub(super) fn matches(&self, labels: &Labels) -> bool {
        self.selector
            .as_ref()
            .is_some_and(|selector| selector.matches(labels))
    }

    pub(super) fn selects_all(&self) -> bool {
        self.selector.as_ref().is_some_and(Selector::selects_all)
    }

    pub(super) fn certain_label(&self) -> Option<&str> {
        self.certain.as_deref()
    }
}

/// A label as one text: neither part can have an equals sign.
pub(super) fn pair(key: &str, value: &str) -> String {
    format!("{key}={value}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(namespace: &str, labels: Value, affinity: Value) -> Arc<Likeness> {
        let pod = json!({
            "metadata": {"name": "p", "namespace": namespace, "labels": labels},
            "spec": {"containers": [], "affinity": affinity},
        });
        Likeness::of(&serde_json::from_value(pod).unwrap())
    }

    fn term(term: Value) -> Term {
        let term: PodAffinityTerm = serde_json::from_value(term).unwrap();
        Term::of(&term, &"default".into())
    }

    #[test]
    fn replicas_are_alike() {
        let affinity = json!({"podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}},
            ],
        }});
        let one = pod("default", json!({"a": "b"}), affinity.clone());
        assert_eq!(one, pod("default", json!({"a": "b"}), affinity.clone()));
        assert_ne!(one, pod("other", json!({"a": "b"}), affinity));
        assert_ne!(one, pod("default", json!({"a": "b"}), Value::Null));
    }

    #[test]
    fn terms_select_by_namespace_and_labels() {
        let namespaces: Namespaces = [("blue", "1"), ("red", "2")]
            .map(|(name, tier)| (name.into(), [("tier".to_string(), tier.to_string())].into()))
            .into();
        let web = |namespace| pod(namespace, json!({"app": "web"}), Value::Null);
        let selector = json!({"matchLabels": {"app": "web"}});
        let own = term(json!({"topologyKey": "z", "labelSelector": selector}));
        assert!(own.selects(&web("default"), &namespaces));
        assert!(!own.selects(&web("blue"), &namespaces));
        let named = term(json!({
            "topologyKey": "z", "labelSelector": selector, "namespaces": ["red"],
            "namespaceSelector": {"matchLabels": {"tier": "1"}},
        }));
        assert!(named.selects(&web("red"), &namespaces));
        assert!(named.selects(&web("blue"), &namespaces));
        assert!(!named.selects(&web("default"), &namespaces));
        assert_eq!(named.covered(&namespaces).count(), 2);
        let everywhere = term(json!({
            "topologyKey": "z", "labelSelector": selector, "namespaceSelector": {},
        }));
        assert!(everywhere.selects(&web("default"), &namespaces));
        let nobody = term(json!({"topologyKey": "z"}));
        assert!(!nobody.selects(&web("default"), &namespaces));
    }

    #[test]
    fn a_selector_knows_a_label_that_is_certain() {
        let certain = |selector: Value| {
            let selector: LabelSelector = serde_json::from_value(selector).unwrap();
            let selector = PodSelector::of(Some(&selector));
            selector.certain_label().map(String::from)
        };
        assert_eq!(
            certain(json!({"matchLabels": {"a": "b"}})).as_deref(),
            Some("a=b")
        );
        let one = json!({"matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]});
        assert_eq!(certain(one).as_deref(), Some("k=v"));
        let two =
            json!({"matchExpressions": [{"key": "k", "operator": "In", "values": ["v", "w"]}]});
        assert_eq!(certain(two), None);
        assert!(!PodSelector::of(None).selects_all());
        assert!(PodSelector::of(Some(&LabelSelector::default())).selects_all());
    }
}
