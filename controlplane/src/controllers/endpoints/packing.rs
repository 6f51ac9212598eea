//! How endpoints are spread over slices: with as few writes as possible.
//!
//! Endpoints stay in the slice that they are in. New ones go to slices that change anyway, then
//! to the fullest slice that has room for all of them, then to new slices. What would be
//! deleted while another is created becomes that one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

/// Endpoints that serve the same ports.
pub(super) struct Group {
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

/// What a slice has to hold.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    /// The slice that it is now; a new one is made otherwise.
    pub slice: Option<Arc<EndpointSlice>>,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

/// What has to be done to a Service's slices.
#[derive(Default)]
pub(super) struct Plan {
    /// Those to be created or updated.
    pub write: Vec<Draft>,
    pub delete: Vec<Arc<EndpointSlice>>,
}

/// Plans the slices of a Service. `existing` are those of its own; `labels` are what each must
/// carry, and `most` the number of endpoints that one may hold. A Service without endpoints has
/// one empty slice.
pub(super) fn plan(
    mut groups: Vec<Group>,
    existing: Vec<Arc<EndpointSlice>>,
    labels: &BTreeMap<String, String>,
    most: usize,
) -> Plan {
    groups.retain(|group| !group.endpoints.is_empty());
    if groups.is_empty() {
        groups.push(Group {
            ports: Vec::new(),
            endpoints: Vec::new(),
        });
    }
    let mut plan = Plan::default();
    let mut left = existing;
    for group in groups {
        let same = |slice: &Arc<EndpointSlice>| serves(slice, &group.ports);
        let (own, others): (Vec<_>, Vec<_>) = left.into_iter().partition(same);
        left = others;
        plan_group(group, own, (labels, most), &mut plan);
    }
    plan.delete.extend(left);
    reuse(&mut plan);
    plan
}

fn serves(slice: &EndpointSlice, ports: &[EndpointPort]) -> bool {
    let have = slice.ports.as_deref().unwrap_or_default();
    have.len() == ports.len() && ports.iter().all(|port| have.contains(port))
}

/// Which endpoint it is, whatever its state.
type Identity = (Vec<String>, Option<String>);

fn identity(endpoint: &Endpoint) -> Identity {
    let uid = endpoint.target_ref.as_ref().and_then(|r| r.uid.clone());
    (endpoint.addresses.clone(), uid)
}

fn plan_group(
    group: Group,
    own: Vec<Arc<EndpointSlice>>,
    (labels, most): (&BTreeMap<String, String>, usize),
    plan: &mut Plan,
) {
    let is_empty = group.endpoints.is_empty();
    let mut order: Vec<Identity> = group.endpoints.iter().map(identity).collect();
    let mut wanted: HashMap<Identity, Endpoint> =
        order.iter().cloned().zip(group.endpoints).collect();
    let (mut changed, mut same): (Vec<Draft>, Vec<Draft>) = Default::default();
    for slice in own {
        let kept: Vec<Endpoint> = slice
            .endpoints
            .iter()
            .flatten()
            .filter_map(|endpoint| wanted.remove(&identity(endpoint)))
            .collect();
        let is_spare = kept.is_empty() && !(is_empty && changed.is_empty() && same.is_empty());
        if is_spare {
            plan.delete.push(slice);
            continue;
        }
        let held = slice.endpoints.as_deref().unwrap_or_default();
        let is_same = kept == held && slice.metadata.labels.as_ref() == Some(labels);
        let draft = Draft {
            ports: group.ports.clone(),
            endpoints: kept,
            slice: Some(slice),
        };
        if is_same { &mut same } else { &mut changed }.push(draft);
    }
    order.retain(|identity| wanted.contains_key(identity));
    let mut new = order.iter().filter_map(|identity| wanted.remove(identity));
    changed.sort_by_key(|draft| std::cmp::Reverse(draft.endpoints.len()));
    for draft in &mut changed {
        let room = most.saturating_sub(draft.endpoints.len());
        draft.endpoints.extend(new.by_ref().take(room));
    }
    let mut new: Vec<Endpoint> = new.collect();
    while new.len() >= most {
        let rest = new.split_off(most);
        changed.push(draft(&group.ports, std::mem::replace(&mut new, rest)));
    }
    if !new.is_empty() {
        let fullest = same
            .iter()
            .enumerate()
            .filter(|(_, draft)| draft.endpoints.len() + new.len() <= most)
            .max_by_key(|(_, draft)| draft.endpoints.len());
        let mut filled = match fullest.map(|(at, _)| at) {
            Some(at) => same.swap_remove(at),
            None => draft(&group.ports, Vec::new()),
        };
        filled.endpoints.extend(new);
        changed.push(filled);
    }
    if is_empty && changed.is_empty() && same.is_empty() {
        changed.push(draft(&group.ports, Vec::new()));
    }
    plan.write.extend(changed);
}

fn draft(ports: &[EndpointPort], endpoints: Vec<Endpoint>) -> Draft {
    Draft {
        slice: None,
        ports: ports.to_vec(),
        endpoints,
    }
}

/// What would be deleted becomes what would be created.
fn reuse(plan: &mut Plan) {
    for draft in &mut plan.write {
        if draft.slice.is_none() {
            let reusable = plan
                .delete
                .iter()
                .position(|slice| slice.metadata.deletion_timestamp.is_none());
            draft.slice = reusable.map(|at| plan.delete.swap_remove(at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(number: usize, ready: bool) -> Endpoint {
        serde_json::from_value(serde_json::json!({
            "addresses": [format!("10.42.{}.{}", number / 250, number % 250)],
            "conditions": {"ready": ready},
            "targetRef": {"uid": number.to_string()},
        }))
        .unwrap()
    }

    fn group(numbers: impl IntoIterator<Item = usize>) -> Group {
        Group {
            ports: ports(80),
            endpoints: numbers.into_iter().map(|n| endpoint(n, true)).collect(),
        }
    }

    fn ports(number: i32) -> Vec<EndpointPort> {
        vec![EndpointPort {
            port: Some(number),
            ..Default::default()
        }]
    }

    fn slice(
        name: &str,
        ports: Vec<EndpointPort>,
        numbers: impl IntoIterator<Item = usize>,
    ) -> Arc<EndpointSlice> {
        let mut slice = EndpointSlice {
            endpoints: Some(numbers.into_iter().map(|n| endpoint(n, true)).collect()),
            ports: Some(ports),
            ..Default::default()
        };
        slice.metadata.name = Some(name.to_string());
        slice.metadata.labels = Some(BTreeMap::new());
        Arc::new(slice)
    }

    /// `(name of the slice, number of endpoints)` of what is written, and what is deleted.
    fn planned(
        groups: Vec<Group>,
        existing: Vec<Arc<EndpointSlice>>,
    ) -> (Vec<(String, usize)>, Vec<String>) {
        let plan = plan(groups, existing, &BTreeMap::new(), 100);
        let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap_or_default();
        let write = plan.write.iter().map(|draft| {
            (
                draft.slice.as_deref().map(name).unwrap_or_default(),
                draft.endpoints.len(),
            )
        });
        (
            write.collect(),
            plan.delete.iter().map(|slice| name(slice)).collect(),
        )
    }

    fn written(name: &str, count: usize) -> (String, usize) {
        (name.to_string(), count)
    }

    #[test]
    fn nothing_is_written_when_nothing_changes() {
        let (write, delete) = planned(vec![group(0..3)], vec![slice("a", ports(80), 0..3)]);
        assert!(write.is_empty() && delete.is_empty());
        let placeholder = slice("a", Vec::new(), []);
        let (write, delete) = planned(Vec::new(), vec![placeholder]);
        assert!(write.is_empty() && delete.is_empty());
    }

    #[test]
    fn a_service_without_endpoints_has_one_empty_slice() {
        assert_eq!(
            planned(Vec::new(), Vec::new()),
            (vec![written("", 0)], vec![])
        );
        assert_eq!(
            planned(
                vec![group([])],
                vec![slice("a", ports(80), 0..2), slice("b", ports(80), 2..4)]
            )
            .0
            .len(),
            1
        );
    }

    #[test]
    fn at_most_a_hundred_in_a_slice() {
        let (write, _) = planned(vec![group(0..250)], Vec::new());
        assert_eq!(write, [written("", 100), written("", 100), written("", 50)]);
    }

    #[test]
    fn new_endpoints_fill_the_fullest_slice_with_room() {
        let existing = || {
            vec![
                slice("a", ports(80), 0..40),
                slice("b", ports(80), 40..130),
                slice("c", ports(80), 130..230),
            ]
        };
        assert_eq!(
            planned(vec![group(0..235)], existing()),
            (vec![written("b", 95)], vec![])
        );
        assert_eq!(
            planned(vec![group(0..250)], existing()).0,
            [written("a", 60)]
        );
        // One that changes anyway comes first.
        assert_eq!(
            planned(vec![group(1..235)], existing()).0,
            [written("a", 44)]
        );
    }

    #[test]
    fn a_changed_endpoint_stays_where_it_is() {
        let existing = vec![slice("a", ports(80), 0..2), slice("b", ports(80), 2..4)];
        let mut wanted = group(0..4);
        wanted.endpoints[3] = endpoint(3, false);
        let plan = plan(vec![wanted], existing, &BTreeMap::new(), 100);
        assert_eq!(plan.write.len(), 1);
        assert_eq!(
            plan.write[0].endpoints,
            [endpoint(2, true), endpoint(3, false)]
        );
    }

    #[test]
    fn other_ports_need_other_slices() {
        let other = Group {
            ports: ports(81),
            endpoints: vec![endpoint(9, true)],
        };
        let (write, delete) = planned(vec![group(0..1), other], vec![slice("a", ports(82), 5..6)]);
        // The one that is not needed any more becomes one of the new ones.
        assert_eq!(write, [written("a", 1), written("", 1)]);
        assert!(delete.is_empty());
    }

    #[test]
    fn changed_labels_are_written() {
        let labels = BTreeMap::from([("a".to_string(), "b".to_string())]);
        let plan = plan(
            vec![group(0..1)],
            vec![slice("a", ports(80), 0..1)],
            &labels,
            100,
        );
        assert_eq!(plan.write.len(), 1);
    }
}
