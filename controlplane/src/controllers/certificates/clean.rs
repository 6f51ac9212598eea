//! How long requests stay: as in Kubernetes an hour once they are decided, a day while nobody has.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

const DECIDED: Duration = Duration::from_secs(3600);
const PENDING: Duration = Duration::from_secs(24 * 3600);

/// Zero when it should go; `None` when its age is not known.
pub(super) fn time_left(request: &CertificateSigningRequest, now: Timestamp) -> Option<Duration> {
    let created = request.metadata.creation_timestamp.as_ref()?.0;
    let status = request.status.as_ref();
    let decided = status
        .and_then(|s| s.conditions.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|c| c.last_update_time.as_ref())
        .map(|time| time.0)
        .max();
    let (since, stays) = match decided {
        Some(decided) => (decided, DECIDED),
        None => (created, PENDING),
    };
    let age = now.duration_since(since);
    let age = Duration::try_from(age).unwrap_or(Duration::ZERO);
    Some(stays.saturating_sub(age))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::certificates::v1::{
        CertificateSigningRequestCondition, CertificateSigningRequestStatus,
    };
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn what_is_decided_goes_after_an_hour() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut request = CertificateSigningRequest::default();
        assert_eq!(time_left(&request, at(0)), None);
        request.metadata.creation_timestamp = Some(Time(at(0)));
        assert_eq!(time_left(&request, at(3600)), Some(PENDING - DECIDED));
        request.status = Some(CertificateSigningRequestStatus {
            conditions: Some(vec![CertificateSigningRequestCondition {
                last_update_time: Some(Time(at(10))),
                ..Default::default()
            }]),
            certificate: None,
        });
        assert_eq!(time_left(&request, at(10)), Some(DECIDED));
        assert_eq!(time_left(&request, at(4000)), Some(Duration::ZERO));
    }
}
