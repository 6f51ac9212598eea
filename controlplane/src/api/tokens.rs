//! `serviceaccounts/<name>/token`: tokens for service accounts, and who shows one.

use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};

use super::Api;
use super::answer::Answer;
use super::call::{Call, object_of, text_header};
use super::decode;
use super::object::{self, Object};
use super::status::ApiError;
use k8s_openapi::api::core::v1::Secret;

use crate::auth::UserInfo;
use crate::auth::bootstrap_tokens::{self, BootstrapToken, Refused};
use crate::auth::tokens::{self, Bound, Claims, Kubernetes, Reference};
use crate::cache::Cache;
use crate::store::Key;

const DEFAULT_SECONDS: i64 = 3600;
const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;

impl Api {
    /// The user of a bearer token; `None` when there is no token.
    ///
    /// # Errors
    /// 401 when the token is no good.
    pub(super) fn bearer(&self, headers: &HeaderMap) -> Result<Option<UserInfo>, ApiError> {
        let header = text_header(headers, header::AUTHORIZATION);
        let Some((scheme, token)) = header.split_once(' ') else {
            return Ok(None);
        };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Ok(None);
        }
        let token = token.trim();
        if let Some(bootstrap) = BootstrapToken::parse(token) {
            return self.bootstrap_user(&bootstrap).map(Some);
        }
        let own = self
            .credentials
            .as_ref()
            .ok_or_else(ApiError::unauthorized)?;
        match own.tokens.check(token, &[tokens::ISSUER], &*self.cache) {
            Ok((user, _)) => Ok(Some(user)),
            Err(error) => {
                tracing::debug!(%error, "a bearer token was refused");
                Err(ApiError::unauthorized())
            }
        }
    }

    fn bootstrap_user(&self, token: &BootstrapToken<'_>) -> Result<UserInfo, ApiError> {
        let key = Key::new(
            "",
            "secrets",
            bootstrap_tokens::NAMESPACE,
            &token.secret_name(),
        );
        let secret = self.cache.get(&key);
        let secret = secret.and_then(|entry| serde_json::from_slice::<Secret>(&entry.bytes).ok());
        let checked = match secret {
            Some(secret) => token.user(&secret, jiff::Timestamp::now()),
            None => Err(Refused::Unknown),
        };
        checked.map_err(|refused| {
            tracing::debug!(id = token.id, %refused, "a bootstrap token was refused");
            match refused {
                Refused::Unknown => ApiError::unauthorized(),
                told => ApiError {
                    message: format!("Unauthorized: {told}"),
                    ..ApiError::unauthorized()
                },
            }
        })
    }

    pub(super) fn create_token(&self, call: &Call, body: &[u8]) -> Result<Answer, ApiError> {
        let mut request = decode::any(call.content_type(), body)?;
        let entry = self.cache.get(&call.key(&call.name));
        let account = object_of(&*entry.ok_or_else(|| call.not_found())?)?;
        let seconds = expiration(&request)?;
        let audiences: Vec<String> = object::at(&request, "spec.audiences")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|audience| audience.as_str().map(str::to_string))
            .collect();
        let audiences = if audiences.is_empty() {
            vec![tokens::ISSUER.to_string()]
        } else {
            audiences
        };
        let (pod, node) = self.bound_to(call, &request)?;
        let now = jiff::Timestamp::now().as_second();
        let claims = Claims {
            aud: audiences.clone(),
            exp: now + seconds,
            iat: now,
            iss: tokens::ISSUER.to_string(),
            jti: uuid::Uuid::new_v4().to_string(),
            kubernetes: Kubernetes {
                namespace: call.namespace().to_string(),
                node,
                pod,
                serviceaccount: reference(&account),
            },
            nbf: now,
            sub: tokens::user_name(call.namespace(), &call.name),
        };
        let own = self
            .credentials
            .as_ref()
            .ok_or_else(|| ApiError::internal("no tokens are issued"))?;
        let token = own.tokens.sign(&claims).map_err(ApiError::internal)?;
        let expires = jiff::Timestamp::from_second(claims.exp).map_err(ApiError::internal)?;
        request["apiVersion"] = json!("authentication.k8s.io/v1");
        request["kind"] = json!("TokenRequest");
        request.set_meta("name", call.name.as_str());
        request.set_meta("namespace", call.namespace());
        object::set_at(&mut request, "spec.audiences", json!(audiences));
        object::set_at(&mut request, "spec.expirationSeconds", json!(seconds));
        request["status"] = json!({
            "token": token, "expirationTimestamp": object::timestamp(expires),
        });
        Answer::shaped(call, StatusCode::CREATED, &request)
    }

    /// The pod to which the token is bound, and that pod's node.
    fn bound_to(
        &self,
        call: &Call,
        request: &Value,
    ) -> Result<(Option<Reference>, Option<Reference>), ApiError> {
        let Some(wanted) = object::at(request, "spec.boundObjectRef").filter(|r| !r.is_null())
        else {
            return match call.user.node() {
                None => Ok((None, None)),
                Some(_) => Err(ApiError::forbidden(
                    &call.resource,
                    &call.name,
                    "node requested token not bound to a pod",
                )),
            };
        };
        let text = |field: &str| wanted[field].as_str().unwrap_or_default();
        if text("kind") != "Pod" {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to kind {:?}: only Pod is supported",
                call.name,
                text("kind")
            )));
        }
        let name = text("name");
        let missing = || ApiError::with_code(404, &format!("pods {name:?} not found"));
        let key = Key::new("", "pods", call.namespace(), name);
        let pod = object_of(&*self.cache.get(&key).ok_or_else(missing)?)?;
        if !text("uid").is_empty() && text("uid") != pod.uid() {
            return Err(ApiError::conflict(
                &call.resource,
                &call.name,
                &format!(
                    "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                    text("uid")
                ),
            ));
        }
        if call
            .user
            .node()
            .is_some_and(|node| pod["spec"]["nodeName"] != node)
        {
            return Err(ApiError::forbidden(
                &call.resource,
                &call.name,
                "node requested token bound to a pod scheduled on a different node",
            ));
        }
        if pod["spec"]["serviceAccountName"] != call.name.as_str() {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                call.name
            )));
        }
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        let node = self.cache.get(&Key::new("", "nodes", "", node));
        let node = node.and_then(|entry| object_of(&entry).ok());
        Ok((Some(reference(&pod)), node.map(|node| reference(&node))))
    }
}

fn reference(object: &Value) -> Reference {
    Reference {
        name: object.name().to_string(),
        uid: object.uid().to_string(),
    }
}

fn expiration(request: &Value) -> Result<i64, ApiError> {
    let asked = object::at(request, "spec.expirationSeconds").and_then(Value::as_i64);
    let why = match asked {
        None => return Ok(DEFAULT_SECONDS),
        Some(seconds) if seconds < SHORTEST => "may not specify a duration less than 10 minutes",
        Some(seconds) if seconds > LONGEST => "may not specify a duration larger than 2^32 seconds",
        Some(seconds) => return Ok(seconds),
    };
    let seconds = asked.unwrap_or_default();
    let what = format!("Invalid value: {seconds}: {why}");
    let error = ApiError::with_code(
        422,
        &format!(
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: {what}"
        ),
    );
    Err(error.with_cause("FieldValueInvalid", &what, "spec.expirationSeconds"))
}

impl Bound for Cache {
    fn exists(&self, plural: &str, namespace: &str, object: &Reference) -> bool {
        let entry = self.get(&Key::new("", plural, namespace, &object.name));
        entry.is_some_and(|entry| object_of(&entry).is_ok_and(|stored| stored.uid() == object.uid))
    }
}
