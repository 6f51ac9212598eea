//! Deciding about certificate requests, and signing them: who may, and what a decision leaves alone.

use serde_json::Value;

use super::Api;
use super::call::Call;
use super::object;
use super::status::ApiError;
use super::update::Surface;
use crate::auth::authorize::{self, Attributes};
use crate::resources::certificates::{self, settle};

impl Api {
    /// Checks a new status of a request for a certificate, and completes it.
    ///
    /// # Errors
    /// 403 when the user may not decide for the signer, 422 when a decision would be taken back.
    pub(super) fn settle_approval(
        &self,
        call: &Call,
        surface: Surface,
        next: &mut Value,
        current: &Value,
    ) -> Result<(), ApiError> {
        let signer = object::at(current, "spec.signerName").and_then(Value::as_str);
        let signer = signer.unwrap_or_default();
        let decides = surface == Surface::Approval;
        let verb = if decides { "approve" } else { "sign" };
        if !self.may_act_for(call, verb, signer) {
            let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
            return Err(ApiError::forbidden(&call.resource, &call.name, &why));
        }
        let errors = settle(next, current, decides, jiff::Timestamp::now());
        if errors.is_empty() {
            Ok(())
        } else {
            Err(call.invalid(&call.name, &errors))
        }
    }

    /// The permission is given for one signer, or for a whole domain (`example.com/*`).
    fn may_act_for(&self, call: &Call, verb: &str, signer: &str) -> bool {
        let domain = signer.split('/').next().unwrap_or_default();
        let whole = format!("{domain}/*");
        [signer, whole.as_str()].iter().any(|name| {
            let wanted = Attributes {
                verb,
                group: certificates::GROUP,
                version: "*",
                resource: "signers",
                name,
                ..Attributes::default()
            };
            authorize::is_allowed(&call.user, &wanted, &**self.cache())
        })
    }
}
