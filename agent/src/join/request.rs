//! Asking the cluster for a certificate, and waiting until it is given.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};

use super::certificate::{KeyAndCertificate, KeyAndRequest};
use super::{JoinError, reason_of};

/// After this long without an answer it is told who is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Client,
    Serving,
}

impl Purpose {
    fn signer(self) -> &'static str {
        match self {
            Self::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::Serving => "kubernetes.io/kubelet-serving",
        }
    }

    fn usage(self) -> &'static str {
        match self {
            Self::Client => "client auth",
            Self::Serving => "server auth",
        }
    }
}

/// Has the cluster sign a new key.
pub(super) async fn request(
    client: &Client,
    purpose: Purpose,
    made: KeyAndRequest,
) -> Result<KeyAndCertificate, JoinError> {
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let asked = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some("csr-".into()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(made.request.into_bytes()),
            signer_name: purpose.signer().into(),
            usages: Some(vec!["digital signature".into(), purpose.usage().into()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let created = requests.create(&PostParams::default(), &asked).await;
    let created = created.map_err(refused)?;
    let name = created.metadata.name.unwrap_or_default();
    let answer = await_condition(requests, &name, is_answered);
    tokio::pin!(answer);
    let answered = match tokio::time::timeout(PATIENCE, answer.as_mut()).await {
        Ok(answered) => answered,
        Err(_) => {
            tracing::warn!(
                request = name,
                "the certificate request is not approved yet: see `kubectl get csr`, `kubectl certificate approve`"
            );
            answer.await
        }
    };
    let answered = answered.map_err(|e| JoinError::Certificate(e.to_string()))?;
    let answered = answered.ok_or_else(|| {
        JoinError::Certificate(format!("somebody removed the certificate request {name}"))
    })?;
    let certificate = certificate(&answered)?;
    let pair = KeyAndCertificate {
        key: made.key,
        certificate,
    };
    let validity = pair.validity();
    let validity = validity
        .ok_or_else(|| JoinError::Certificate("what was signed is no certificate".into()))?;
    let ahead = validity.from - Timestamp::now().as_second();
    if ahead > 0 {
        return Err(JoinError::ClockSkew {
            seconds: ahead.unsigned_abs(),
            direction: "behind",
        });
    }
    Ok(pair)
}

fn is_answered(request: Option<&CertificateSigningRequest>) -> bool {
    let Some(status) = request.and_then(|r| r.status.as_ref()) else {
        return false;
    };
    let mut conditions = status.conditions.iter().flatten();
    status.certificate.is_some()
        || conditions.any(|c| matches!(c.type_.as_str(), "Denied" | "Failed"))
}

fn certificate(answered: &CertificateSigningRequest) -> Result<String, JoinError> {
    let status = answered.status.as_ref();
    let conditions = status.and_then(|s| s.conditions.as_ref());
    for condition in conditions.into_iter().flatten() {
        let message = condition.message.clone().unwrap_or_default();
        match (condition.type_.as_str(), condition.reason.as_deref()) {
            ("Denied", Some("NodeNameInUse")) => return Err(JoinError::NameInUse(message)),
            ("Denied" | "Failed", _) => return Err(JoinError::Certificate(message)),
            _ => {}
        }
    }
    let bytes = status.and_then(|s| s.certificate.as_ref());
    let text = bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
    text.ok_or_else(|| JoinError::Certificate("what was signed is no certificate".into()))
}

fn refused(error: kube::Error) -> JoinError {
    match &error {
        kube::Error::Api(status) if matches!(status.code, 401 | 403) => {
            JoinError::TokenRefused(status.message.clone())
        }
        _ => JoinError::Certificate(reason_of(&error)),
    }
}
