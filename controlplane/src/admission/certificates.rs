//! Who asks for a certificate is not the asker's to say.

use serde_json::{Value, json};

use super::Request;
use crate::resources::certificates::GROUP;

/// Writes the user into a new request.
pub(super) fn stamp(request: &Request<'_>, object: &mut Value) {
    if request.resource.group != GROUP || request.old.is_some() {
        return;
    }
    let user = request.user;
    let spec = &mut object["spec"];
    spec["username"] = json!(user.name);
    spec["groups"] = json!(user.groups);
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("extra");
        match user.uid.as_str() {
            "" => spec.remove("uid"),
            uid => spec.insert("uid".into(), json!(uid)),
        };
    }
}
