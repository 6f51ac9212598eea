//! The account that a stream of writes is made as, and what became of the writes.
//!
//! `controlplane-kill` creates Events while the control plane is ended: whatever it acknowledged has to be there
//! afterwards. They are created by an agent's child process, as a ServiceAccount that may do nothing else.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Event, ServiceAccount};
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use skiff_dev::{Action, Drill, DrillTaskStatus, Writes};

use super::tasks::writer_name;
use crate::controllers::ownership::new_controller_ref;
use crate::controllers::writes::unless_gone;

/// Where the Events are, out of everybody's way.
const NAMESPACE: &str = "kube-system";
/// Writes a second.
const RATE: i32 = 20;
/// As short as tokens may live, if the drill is no longer.
const SHORTEST: i64 = 600;
const AT_ONCE: usize = 16;

/// Makes the account and a token of it, and gives what is to be done with it.
pub(super) async fn prepare(
    client: &Client,
    drill: &Drill,
    seconds: i64,
) -> Result<Action, kube::Error> {
    let name = writer_name(drill);
    let metadata = || ObjectMeta {
        name: Some(name.clone()),
        namespace: Some(NAMESPACE.into()),
        // A drill that is deleted takes them with it.
        owner_references: Some(vec![new_controller_ref(drill)]),
        ..ObjectMeta::default()
    };
    let account = ServiceAccount {
        metadata: metadata(),
        ..ServiceAccount::default()
    };
    ensure(client, &account).await?;
    let role = Role {
        metadata: metadata(),
        rules: Some(vec![PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["events".into()]),
            verbs: vec!["create".into()],
            ..PolicyRule::default()
        }]),
    };
    ensure(client, &role).await?;
    let binding = RoleBinding {
        metadata: metadata(),
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "Role".into(),
            name: name.clone(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name: name.clone(),
            namespace: Some(NAMESPACE.into()),
            ..Subject::default()
        }]),
    };
    ensure(client, &binding).await?;
    Ok(Action::Write {
        namespace: NAMESPACE.into(),
        rate: RATE,
        token: token(client, &name, seconds).await?,
    })
}

async fn token(client: &Client, name: &str, seconds: i64) -> Result<String, kube::Error> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            expiration_seconds: Some(seconds.max(SHORTEST)),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let params = PostParams::default();
    let answer: TokenRequest = accounts
        .create_subresource("token", name, &params, &request)
        .await?;
    Ok(answer.status.and_then(|s| s.token).unwrap_or_default())
}

/// Which of the acknowledged writes are not there, added to what the writer itself says.
pub(super) async fn account(
    client: &Client,
    drill: &Drill,
    told: &DrillTaskStatus,
) -> Result<Writes, kube::Error> {
    let there = written(client, drill).await?;
    let prefix = format!("{}-", writer_name(drill));
    let acknowledged = told.acknowledged.iter();
    let acknowledged = acknowledged.flat_map(|range| range.first..=range.last);
    let lost = acknowledged.filter(|number| !there.contains(&format!("{prefix}{number}")));
    let lost = i64::try_from(lost.count()).unwrap_or(i64::MAX);
    Ok(Writes {
        lost,
        ..told.writes.clone().unwrap_or_default()
    })
}

/// The names of the Events that were written.
async fn written(client: &Client, drill: &Drill) -> Result<HashSet<String>, kube::Error> {
    let events: Api<Event> = Api::namespaced(client.clone(), NAMESPACE);
    let list = events.list_metadata(&ListParams::default()).await?;
    let prefix = format!("{}-", writer_name(drill));
    let names = list
        .items
        .into_iter()
        .filter_map(|event| event.metadata.name);
    Ok(names.filter(|name| name.starts_with(&prefix)).collect())
}

/// Removes the account and everything that was written.
pub(super) async fn remove(client: &Client, drill: &Drill) -> Result<(), kube::Error> {
    let name = writer_name(drill);
    discard::<RoleBinding>(client, &name).await?;
    discard::<Role>(client, &name).await?;
    discard::<ServiceAccount>(client, &name).await?;
    let events = written(client, drill).await?;
    futures::stream::iter(events)
        .map(|event| async move { discard::<Event>(client, &event).await })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

async fn ensure<K>(client: &Client, object: &K) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), NAMESPACE);
    match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        other => other.map(drop),
    }
}

async fn discard<K>(client: &Client, name: &str) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), NAMESPACE);
    unless_gone(api.delete(name, &DeleteParams::default()).await)
}
