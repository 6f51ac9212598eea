//! Requests for certificates: nodes' own are approved by the kubelet's rules, what is approved is
//! signed by the cluster's authority, and what is over is removed.
//!
//!     created -> rules (is it a node's?) -> may the asker have it? -> Approved or Denied
//!     Approved -> signed -> the certificate in its status
//!     decided, or waiting for too long -> removed
//!
//! The signers are Kubernetes' `kubernetes.io/kube-apiserver-client`,
//! `kubernetes.io/kube-apiserver-client-kubelet` and `kubernetes.io/kubelet-serving`.

mod clean;
mod rules;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::{Api, Client};

use super::Informers;
use super::informer::{Change, Informer, ObjectKey};
use super::queue::WorkQueue;
use super::runner::{self, Controller, Next};
use super::tasks::Tasks;
use crate::auth::pki::Pki;
use crate::auth::signing::{self, SigningError};
use rules::{Rule, Verdict};

const WORKERS: usize = 4;

/// Starts the controllers of requests.
pub(super) fn start(
    client: Client,
    informers: &Informers,
    pki: Arc<Pki>,
    longest: Duration,
    tasks: &Tasks,
) {
    let queue = WorkQueue::default();
    let changed = queue.clone();
    informers.certificate_requests.subscribe(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            changed.add(ObjectKey::of(&**change.object()));
        }
    });
    let controller = Arc::new(CertificateController {
        client,
        requests: informers.certificate_requests.clone(),
        nodes: informers.nodes.clone(),
        pki,
        longest,
    });
    runner::run(controller, &queue, WORKERS, tasks);
}

struct CertificateController {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
    pki: Arc<Pki>,
    /// The longest life of a certificate.
    longest: Duration,
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Pending,
    Approved,
    Issued,
    /// Denied, or failed.
    Refused,
}

impl Controller for CertificateController {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "certificate-controller";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        self.nodes.synced().await;
        let Some(request) = self.requests.get(key) else {
            return Ok(Next::Wait);
        };
        match state(&request) {
            State::Pending => self.decide(&request).await?,
            State::Approved => self.sign(&request).await?,
            State::Issued | State::Refused => {}
        }
        self.tidy(&request).await
    }
}

impl CertificateController {
    /// Approves or denies what nodes ask for; everything else waits for a person.
    async fn decide(&self, request: &CertificateSigningRequest) -> Result<(), kube::Error> {
        let Ok(subject) = signing::subject_of(&request.spec.request.0) else {
            return Ok(());
        };
        let verdict = rules::judge(&request.spec, &subject, &self.nodes.list());
        match verdict {
            Verdict::NotANodes => Ok(()),
            Verdict::Deny { reason, message } => {
                self.conclude(request, condition("Denied", reason, message))
                    .await
            }
            Verdict::Ask(rule) if self.is_allowed(&request.spec, rule).await? => {
                let message = rule.message().to_string();
                self.conclude(request, condition("Approved", "AutoApproved", message))
                    .await
            }
            Verdict::Ask(_) => Ok(()),
        }
    }

    async fn is_allowed(
        &self,
        spec: &CertificateSigningRequestSpec,
        rule: Rule,
    ) -> Result<bool, kube::Error> {
        let Some(subresource) = rule.permission() else {
            return Ok(true);
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                groups: spec.groups.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".into()),
                    resource: Some("certificatesigningrequests".into()),
                    subresource: Some(subresource.into()),
                    verb: Some("create".into()),
                    version: Some("*".into()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    async fn conclude(
        &self,
        request: &CertificateSigningRequest,
        condition: CertificateSigningRequestCondition,
    ) -> Result<(), kube::Error> {
        let mut decided = request.clone();
        let status = decided.status.get_or_insert_default();
        status.conditions.get_or_insert_default().push(condition);
        let name = request.metadata.name.as_deref().unwrap_or_default();
        let requests: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let params = PostParams::default();
        requests
            .replace_subresource("approval", name, &params, &decided)
            .await?;
        Ok(())
    }

    async fn sign(&self, request: &CertificateSigningRequest) -> Result<(), kube::Error> {
        let Some(usages) = rules::signable(&request.spec) else {
            return Ok(());
        };
        let asked = request.spec.expiration_seconds;
        let asked = asked.and_then(|seconds| u64::try_from(seconds).ok());
        let lifetime = asked.map_or(self.longest, Duration::from_secs);
        let lifetime = lifetime.min(self.longest);
        let (pki, pem) = (self.pki.clone(), request.spec.request.0.clone());
        let signed = tokio::task::spawn_blocking(move || pki.sign(&pem, &usages, lifetime)).await;
        let signed = signed.unwrap_or_else(|_| Err(SigningError::Unreadable("lost".into())));
        let mut answered = request.clone();
        let status = answered.status.get_or_insert_default();
        match signed {
            Ok(certificate) => status.certificate = Some(ByteString(certificate.into_bytes())),
            Err(error) => {
                let failed = condition("Failed", "SignerValidationFailure", error.to_string());
                status.conditions.get_or_insert_default().push(failed);
            }
        }
        let name = request.metadata.name.as_deref().unwrap_or_default();
        let requests: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        requests
            .replace_status(name, &PostParams::default(), &answered)
            .await?;
        Ok(())
    }

    /// Removes the request when its time is over, and says when that is.
    async fn tidy(&self, request: &CertificateSigningRequest) -> Result<Next, kube::Error> {
        let Some(left) = clean::time_left(request, Timestamp::now()) else {
            return Ok(Next::Wait);
        };
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        let requests: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let name = request.metadata.name.as_deref().unwrap_or_default();
        let only = super::writes::only(request.metadata.uid.as_deref());
        super::writes::unless_gone(requests.delete(name, &only).await)?;
        Ok(Next::Wait)
    }
}

fn state(request: &CertificateSigningRequest) -> State {
    let status = request.status.as_ref();
    let has = |kind: &str| {
        let conditions = status.and_then(|s| s.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == kind))
    };
    match () {
        () if status.is_some_and(|s| s.certificate.is_some()) => State::Issued,
        () if has("Denied") || has("Failed") => State::Refused,
        () if has("Approved") => State::Approved,
        () => State::Pending,
    }
}

fn condition(kind: &str, reason: &str, message: String) -> CertificateSigningRequestCondition {
    CertificateSigningRequestCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message),
        ..CertificateSigningRequestCondition::default()
    }
}
