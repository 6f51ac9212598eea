//! CertificateSigningRequests: a public key that asks for a certificate.
//!
//! Who asks is written in by the server (`crate::admission`). What is asked for never changes;
//! the subresource `approval` decides, and `status` takes the certificate.

use jiff::Timestamp;
use serde_json::{Value, json};
use x509_parser::pem::parse_x509_pem;

use super::error::{forbidden, invalid, required};
use super::object::{at, carry_over, list, text};
use super::print::{NAME, age, column, human_duration, name};
use super::{Column, FieldError, Hooks, Resource, SelectableField, metadata, print};

pub(crate) const GROUP: &str = "certificates.k8s.io";
/// Conditions that only the subresource `approval` sets.
pub(crate) const DECISIONS: [&str; 2] = ["Approved", "Denied"];
/// Ten minutes: no certificate is asked for with less.
const SHORTEST_SECONDS: i64 = 600;

const COLUMNS: &[Column] = &[
    NAME,
    print::AGE,
    column("SignerName", "string", "Who is asked to sign."),
    column("Requestor", "string", "Who asks."),
    column("RequestedDuration", "string", "How long it should be good."),
    column("Condition", "string", "What was decided."),
];

const SELECTABLE: &[SelectableField] = &[SelectableField::text("spec.signerName")];

pub(super) fn resource() -> Resource {
    Resource {
        singular: "certificatesigningrequest",
        short_names: &["csr"],
        has_status: true,
        has_approval: true,
        hooks: Hooks {
            prepare_create: |request| {
                if let Some(fields) = request.as_object_mut() {
                    fields.remove("status");
                }
            },
            prepare_update: |new, old| {
                carry_over(new, old, "spec");
                carry_over(new, old, "status");
            },
            validate,
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row,
        selectable_fields: SELECTABLE,
        ..Resource::cluster_scoped(
            GROUP,
            "v1",
            "CertificateSigningRequest",
            "certificatesigningrequests",
            "io.k8s.api.certificates.v1.CertificateSigningRequest",
        )
    }
}

fn row(request: &Value, now: Timestamp) -> Vec<Value> {
    let seconds = at(request, "spec.expirationSeconds").as_i64();
    let duration = seconds.map_or("<none>".to_string(), |s| human_duration(s as f64));
    vec![
        name(request),
        age(request, now),
        text(request, "spec.signerName").into(),
        text(request, "spec.username").into(),
        duration.into(),
        condition(request).into(),
    ]
}

fn condition(request: &Value) -> String {
    let has = |kind: &str| has_condition(request, kind);
    let mut said = Vec::new();
    for kind in ["Approved", "Denied", "Failed"] {
        if has(kind) {
            said.push(kind);
        }
    }
    if said.is_empty() {
        said.push("Pending");
    }
    if !text(request, "status.certificate").is_empty() {
        said.push("Issued");
    }
    said.join(",")
}

pub(crate) fn has_condition(request: &Value, kind: &str) -> bool {
    let conditions = list(request, "status.conditions");
    conditions.iter().any(|c| text(c, "type") == kind)
}

fn validate(request: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(request);
    let signer = text(request, "spec.signerName");
    if signer.is_empty() {
        errors.push(required("spec.signerName", ""));
    } else if !is_signer_name(signer) {
        errors.push(invalid(
            "spec.signerName",
            &signer.into(),
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        ));
    }
    if list(request, "spec.usages").is_empty() {
        errors.push(required("spec.usages", ""));
    }
    if let Some(why) = unreadable(text(request, "spec.request")) {
        errors.push(invalid(
            "spec.request",
            at(request, "spec.request"),
            &format!("unable to parse certificate request: {why}"),
        ));
    }
    let seconds = at(request, "spec.expirationSeconds");
    if seconds.as_i64().is_some_and(|s| s < SHORTEST_SECONDS) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(invalid("spec.expirationSeconds", seconds, why));
    }
    errors
}

fn is_signer_name(name: &str) -> bool {
    let Some((domain, path)) = name.split_once('/') else {
        return false;
    };
    domain.contains('.') && !path.is_empty() && !path.contains("//") && name.len() <= 571
}

/// Why the base64 text does not hold a request in PEM.
fn unreadable(request: &str) -> Option<String> {
    use base64::Engine;
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::FromDer;
    let Ok(pem) = base64::engine::general_purpose::STANDARD.decode(request) else {
        return Some("it is not base64".into());
    };
    let Ok((_, block)) = parse_x509_pem(&pem) else {
        return Some("PEM block type must be CERTIFICATE REQUEST".into());
    };
    if block.label != "CERTIFICATE REQUEST" {
        return Some("PEM block type must be CERTIFICATE REQUEST".into());
    }
    let parsed = X509CertificationRequest::from_der(&block.contents);
    parsed.err().map(|error| error.to_string())
}

/// What a change of the status must keep, and completes times. `decides` tells whether it came by
/// the subresource `approval`.
pub(crate) fn settle(
    new: &mut Value,
    old: &Value,
    decides: bool,
    now: Timestamp,
) -> Vec<FieldError> {
    let field = "status.conditions";
    let mut errors = Vec::new();
    if decides {
        // The certificate is the signer's to write.
        let certificate = at(old, "status.certificate").clone();
        if certificate.is_null() {
            if let Some(status) = new.get_mut("status").and_then(Value::as_object_mut) {
                status.remove("certificate");
            }
        } else {
            new["status"]["certificate"] = certificate;
        }
    } else {
        keep_decisions(new, old);
        let (was, is) = (at(old, "status.certificate"), at(new, "status.certificate"));
        if !was.is_null() && was != is {
            errors.push(forbidden(
                "status.certificate",
                "certificate is immutable once set",
            ));
        }
    }
    for kind in ["Approved", "Denied", "Failed"] {
        if has_condition(old, kind) && !has_condition(new, kind) {
            let why = format!("updates may not remove a condition of type {kind:?}");
            errors.push(forbidden(field, &why));
        }
    }
    if DECISIONS.iter().all(|kind| has_condition(new, kind)) {
        let why = "Approved and Denied conditions are mutually exclusive";
        errors.push(invalid(field, &json!("Denied"), why));
    }
    let stamp = crate::api::object::timestamp(now);
    let conditions = new.get_mut("status").and_then(|s| s.get_mut("conditions"));
    let conditions = conditions.and_then(Value::as_array_mut);
    for (index, condition) in conditions.into_iter().flatten().enumerate() {
        if text(condition, "status").is_empty() {
            condition["status"] = json!("True");
        }
        let kind = text(condition, "type").to_string();
        let known = [DECISIONS[0], DECISIONS[1], "Failed"].contains(&kind.as_str());
        if known && text(condition, "status") != "True" {
            let why = format!("Unsupported value for a condition of type {kind}: must be True");
            let at = format!("{field}[{index}].status");
            errors.push(invalid(&at, &condition["status"], &why));
        }
        if text(condition, "lastUpdateTime").is_empty() {
            condition["lastUpdateTime"] = json!(stamp);
        }
        if text(condition, "lastTransitionTime").is_empty() {
            condition["lastTransitionTime"] = json!(stamp);
        }
    }
    errors
}

/// A signer neither approves nor denies.
fn keep_decisions(new: &mut Value, old: &Value) {
    let decided = |c: &Value| DECISIONS.contains(&text(c, "type"));
    let kept = list(old, "status.conditions").iter().filter(|c| decided(c));
    let others = list(new, "status.conditions").iter();
    let others = others.filter(|c| !decided(c));
    let conditions: Vec<Value> = kept.chain(others).cloned().collect();
    if !conditions.is_empty() {
        new["status"]["conditions"] = Value::Array(conditions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(conditions: Value) -> Value {
        json!({"status": {"conditions": conditions}})
    }

    #[test]
    fn what_was_decided_stays() {
        let now = Timestamp::UNIX_EPOCH;
        let pending = json!({"spec": {}});
        let mut approved = with(json!([{"type": "Approved", "status": "True"}]));
        assert_eq!(settle(&mut approved, &pending, true, now), []);
        assert_eq!(
            approved["status"]["conditions"][0]["lastUpdateTime"],
            "1970-01-01T00:00:00Z"
        );
        let mut withdrawn = with(json!([]));
        assert_eq!(settle(&mut withdrawn, &approved, true, now).len(), 1);
        let mut both = with(json!([{"type": "Approved"}, {"type": "Denied"}]));
        assert_eq!(settle(&mut both, &approved, true, now).len(), 1);
    }

    #[test]
    fn a_signer_does_not_approve_and_an_approver_does_not_sign() {
        let now = Timestamp::UNIX_EPOCH;
        let pending = json!({"spec": {}});
        let mut signed = json!({"status": {"certificate": "x",
            "conditions": [{"type": "Approved", "status": "True"}]}});
        settle(&mut signed, &pending, false, now);
        assert!(!has_condition(&signed, "Denied") && signed["status"]["certificate"] == "x");
        let mut approved = signed.clone();
        settle(&mut approved, &pending, true, now);
        assert!(approved["status"]["certificate"].is_null());
    }

    #[test]
    fn nonsense_is_not_signed() {
        let request = json!({"metadata": {"name": "r"}, "spec": {
            "signerName": "nobody", "usages": [], "request": "bm9uc2Vuc2U=", "expirationSeconds": 5}});
        let fields: Vec<String> = validate(&request).into_iter().map(|e| e.field).collect();
        assert_eq!(
            fields,
            [
                "spec.signerName",
                "spec.usages",
                "spec.request",
                "spec.expirationSeconds"
            ]
        );
    }
}
