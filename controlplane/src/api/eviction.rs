//! `pods/<name>/eviction`: a delete that the pod's disruption budget may refuse.
//!
//! What the budget allows is counted down here, in one write that fails when somebody else's came
//! first, and counted anew by the disruption controller.

use serde_json::{Value, json};

use super::Api;
use super::answer::Answer;
use super::call::{Call, object_of};
use super::decode;
use super::object::{self, Object};
use super::status::ApiError;
use super::subresource::{created, selector_text};
use super::update::{Proposal, Surface};
use crate::cache::{Entry, Scope, Selector};

const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
/// Seconds after which it may be tried again.
const RETRY_AFTER: u32 = 10;
/// Evictions that a budget remembers at most until their pods show it.
const MAX_DISRUPTED: usize = 2000;

impl Api {
    pub(super) async fn create_eviction(
        &self,
        call: &Call,
        body: &[u8],
    ) -> Result<Answer, ApiError> {
        let eviction = decode::any(call.content_type(), body)?;
        let named = eviction.name();
        if !named.is_empty() && named != call.name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({named}) does not match the name on the URL ({})",
                call.name
            )));
        }
        let options = eviction.get("deleteOptions").unwrap_or(&Value::Null);
        let entry = self.cache.get(&call.key(&call.name));
        let entry = entry.ok_or_else(|| call.not_found())?;
        let pod = object_of(&entry)?;
        if !needs_no_budget(&pod)
            && let Some(budget) = self.budget_of(&entry)?
        {
            let dry = call.dry_run()? || options.get("dryRun").is_some_and(|d| d != &json!([]));
            self.spend(&budget, &pod, dry).await?;
        }
        self.evict(call, options).await?;
        Ok(created())
    }

    /// The budget that covers a pod.
    fn budget_of(&self, pod: &Entry) -> Result<Option<Value>, ApiError> {
        let shelf = self.cache.shelf("policy/poddisruptionbudgets");
        let mut found = None;
        for entry in shelf.all(&Scope::namespace(pod.namespace())) {
            let budget = object_of(&entry)?;
            let selector = object::at(&budget, "spec.selector").filter(|s| !s.is_null());
            // No selector selects nothing, an empty one everything.
            let Some(selector) = selector else { continue };
            let selector = Selector::parse(&selector_text(selector), "", &[]);
            if !selector.is_ok_and(|selector| selector.matches(pod)) {
                continue;
            }
            if found.replace(budget).is_some() {
                return Err(ApiError::internal_message(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        }
        Ok(found)
    }

    /// Takes one disruption from a budget.
    async fn spend(&self, budget: &Value, pod: &Value, dry_run: bool) -> Result<(), ApiError> {
        let mut call = self.own_call(budget)?;
        call.name = budget.name().to_string();
        let propose = |current: &Value| {
            let mut object = current.clone();
            if allows_unhealthy(current, pod) {
                return Ok(Proposal {
                    object,
                    managed: true,
                });
            }
            check(current)?;
            let left = number(current, "status.disruptionsAllowed") - 1;
            object["status"]["disruptionsAllowed"] = json!(left);
            let now = object::timestamp(jiff::Timestamp::now());
            object["status"]["disruptedPods"][pod.name()] = json!(now);
            Ok(Proposal {
                object,
                managed: true,
            })
        };
        if dry_run {
            return propose(budget).map(|_: Proposal| ());
        }
        self.write(&call, Surface::Internal, propose).await?;
        Ok(())
    }
}

/// A pod that has ended, never began or is going anyway disrupts nobody.
fn needs_no_budget(pod: &Value) -> bool {
    let phase = object::at(pod, "status.phase").and_then(Value::as_str);
    pod.is_terminating() || matches!(phase, Some("Succeeded" | "Failed" | "Pending"))
}

/// Whether the pod may go without counting, since it serves nobody as it is.
fn allows_unhealthy(budget: &Value, pod: &Value) -> bool {
    let conditions = object::at(pod, "status.conditions").and_then(Value::as_array);
    let mut conditions = conditions.into_iter().flatten();
    if conditions.any(|c| c["type"] == "Ready" && c["status"] == "True") {
        return false;
    }
    if object::at(budget, "spec.unhealthyPodEvictionPolicy") == Some(&json!("AlwaysAllow")) {
        return true;
    }
    let desired = number(budget, "status.desiredHealthy");
    desired > 0 && number(budget, "status.currentHealthy") >= desired
}

fn check(budget: &Value) -> Result<(), ApiError> {
    let name = budget.name();
    let refuse = |why: &str| {
        ApiError::too_many_requests(REFUSED, RETRY_AFTER).with_cause("DisruptionBudget", why, "")
    };
    if number(budget, "status.observedGeneration") < budget.generation() {
        return Err(refuse(&format!(
            "The disruption budget {name} is still being processed by the server."
        )));
    }
    let disrupted = object::at(budget, "status.disruptedPods").and_then(Value::as_object);
    if disrupted.is_some_and(|pods| pods.len() > MAX_DISRUPTED) {
        return Err(ApiError::forbidden_message(format!(
            "poddisruptionbudgets.policy {name:?} is forbidden: DisruptedPods map too big - too many evictions not confirmed by PDB controller"
        )));
    }
    if number(budget, "status.disruptionsAllowed") <= 0 {
        return Err(refuse(&format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number(budget, "status.desiredHealthy"),
            number(budget, "status.currentHealthy"),
        )));
    }
    Ok(())
}

fn number(object: &Value, path: &str) -> i64 {
    object::at(object, path)
        .and_then(Value::as_i64)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(allowed: i64, observed: i64) -> Value {
        json!({"metadata": {"name": "b", "generation": 2}, "spec": {}, "status": {
            "disruptionsAllowed": allowed, "observedGeneration": observed,
            "desiredHealthy": 2, "currentHealthy": 2}})
    }

    #[test]
    fn a_budget_is_refused_in_kubernetes_words() {
        assert!(check(&budget(1, 2)).is_ok());
        let spent = check(&budget(0, 2)).unwrap_err();
        assert_eq!((spent.code, spent.message.as_str()), (429, REFUSED));
        let cause = &spent.details.unwrap().causes[0].message;
        assert_eq!(
            cause,
            "The disruption budget b needs 2 healthy pods and has 2 currently"
        );
        assert_eq!(check(&budget(1, 1)).unwrap_err().code, 429);
    }

    #[test]
    fn who_serves_nobody_may_go() {
        let ready = json!({"status": {"phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}]}});
        let unready = json!({"status": {"phase": "Running"}});
        assert!(!allows_unhealthy(&budget(0, 2), &ready));
        assert!(allows_unhealthy(&budget(0, 2), &unready));
        let mut short = budget(0, 2);
        short["status"]["currentHealthy"] = json!(1);
        assert!(!allows_unhealthy(&short, &unready));
        short["spec"]["unhealthyPodEvictionPolicy"] = json!("AlwaysAllow");
        assert!(allows_unhealthy(&short, &unready));
        assert!(needs_no_budget(&json!({"status": {"phase": "Succeeded"}})));
        assert!(!needs_no_budget(&ready));
    }
}
