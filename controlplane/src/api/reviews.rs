//! Answers to reviews: who somebody is, and what he may do.

use http::StatusCode;
use serde_json::{Value, json};

use super::Api;
use super::answer::Answer;
use super::call::Call;
use super::decode;
use super::object;
use super::query::FieldValidation;
use super::status::ApiError;
use crate::auth::authorize::{self, Attributes};
use crate::auth::{UserInfo, tokens};

impl Api {
    pub(super) fn review(&self, call: &Call, body: &[u8]) -> Result<Answer, ApiError> {
        let validation = FieldValidation::Ignore;
        let decoded = decode::object(&call.resource, call.content_type(), body, validation)?;
        let mut review = decoded.object;
        let spec = review.get("spec").cloned().unwrap_or_default();
        review["status"] = match call.resource.kind {
            "SelfSubjectReview" => json!({"userInfo": user_info(&call.user)}),
            "SelfSubjectAccessReview" => self.access(&call.user, &spec)?,
            "SubjectAccessReview" | "LocalSubjectAccessReview" => {
                self.access(&subject(&spec)?, &spec)?
            }
            "SelfSubjectRulesReview" => self.rules(&call.user, &spec),
            "TokenReview" => self.token(&spec),
            other => return Err(ApiError::internal(format!("nobody answers a {other}"))),
        };
        Answer::shaped(call, StatusCode::CREATED, &review)
    }

    fn access(&self, user: &UserInfo, spec: &Value) -> Result<Value, ApiError> {
        let text = |path: &str| {
            object::at(spec, path)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let attributes = match (
            spec.get("resourceAttributes"),
            spec.get("nonResourceAttributes"),
        ) {
            (Some(_), None) => Attributes {
                verb: text("resourceAttributes.verb"),
                group: text("resourceAttributes.group"),
                version: text("resourceAttributes.version"),
                resource: text("resourceAttributes.resource"),
                subresource: text("resourceAttributes.subresource"),
                namespace: text("resourceAttributes.namespace"),
                name: text("resourceAttributes.name"),
                field_selector: text("resourceAttributes.fieldSelector.rawSelector"),
                path: None,
            },
            (None, Some(_)) => Attributes {
                verb: text("nonResourceAttributes.verb"),
                path: Some(text("nonResourceAttributes.path")),
                ..Attributes::default()
            },
            _ => {
                return Err(ApiError::bad_request(
                    "exactly one of nonResourceAttributes or resourceAttributes must be specified",
                ));
            }
        };
        let allowed = authorize::is_allowed(user, &attributes, &*self.cache);
        Ok(json!({"allowed": allowed}))
    }

    fn rules(&self, user: &UserInfo, spec: &Value) -> Value {
        let namespace = spec["namespace"].as_str().unwrap_or_default();
        let (mut resources, mut paths) = (Vec::new(), Vec::new());
        for rule in authorize::rules_for(user, namespace, &*self.cache) {
            if rule.non_resource_urls.is_empty() {
                let mut entry = json!({
                    "verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources,
                });
                if !rule.resource_names.is_empty() {
                    entry["resourceNames"] = json!(rule.resource_names);
                }
                resources.push(entry);
            } else {
                paths.push(json!({
                    "verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls,
                }));
            }
        }
        json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
    }

    fn token(&self, spec: &Value) -> Value {
        let token = spec["token"].as_str().unwrap_or_default();
        let asked: Vec<&str> = spec["audiences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let audiences = if asked.is_empty() {
            vec![tokens::ISSUER]
        } else {
            asked
        };
        let checked = match &self.credentials {
            Some(own) => own.tokens.check(token, &audiences, &*self.cache),
            None => Err(tokens::TokenError::Invalid("no tokens are issued".into())),
        };
        match checked {
            Ok((user, audiences)) => json!({
                "authenticated": true, "user": user_info(&user), "audiences": audiences,
            }),
            Err(error) => json!({"user": {}, "error": error.to_string()}),
        }
    }
}

fn user_info(user: &UserInfo) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    info
}

/// Whom a SubjectAccessReview is about.
fn subject(spec: &Value) -> Result<UserInfo, ApiError> {
    let name = spec["user"].as_str().unwrap_or_default();
    let groups: Vec<String> = spec["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|group| group.as_str().map(str::to_string))
        .collect();
    if name.is_empty() && groups.is_empty() {
        return Err(ApiError::bad_request(
            "at least one of user or group must be specified",
        ));
    }
    Ok(UserInfo {
        name: name.to_string(),
        uid: String::new(),
        groups,
    })
}
