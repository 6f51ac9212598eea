//! Writes of Services take their cluster address and node ports together with the write.

use serde_json::Value;

use super::Api;
use super::call::Call;
use super::object::Object;
use super::status::ApiError;
use crate::allocation::{Refusal, Reservation};
use crate::store::{CommitError, Expect, Key, Op, Revision};

impl Api {
    /// Completes a Service with what no other can have; of every other kind nothing. What is
    /// taken is reserved until the write that it is for has ended.
    ///
    /// # Errors
    /// 422 when it asks for what is taken or out of range, 500 when nothing is left.
    pub(super) fn allocate(
        &self,
        call: &Call,
        old: Option<&Value>,
        new: &mut Value,
    ) -> Result<Option<Reservation>, ApiError> {
        if !call.stored.group.is_empty() || call.stored.plural != "services" {
            return Ok(None);
        }
        match self.services.allocate(old, new) {
            Ok(reservation) => Ok(Some(reservation)),
            Err(Refusal::Invalid(error)) => Err(call.invalid(new.name(), &[error])),
            Err(Refusal::Exhausted(why)) => Err(ApiError::internal(why)),
        }
    }

    /// Commits a write together with what it reserved: should the client hang up, the write
    /// goes on, and so does the reservation.
    pub(super) async fn commit(
        &self,
        key: Key,
        expected: Expect,
        op: Op,
        reservation: Option<Reservation>,
    ) -> Result<Revision, CommitError> {
        let Some(reservation) = reservation else {
            return self.store.commit(key, expected, op).await;
        };
        let store = self.store.clone();
        let writing = tokio::spawn(async move {
            let written = store.commit(key, expected, op).await;
            drop(reservation);
            written
        });
        writing
            .await
            .unwrap_or_else(|error| Err(CommitError::Failed(error.to_string())))
    }
}
