//! Handing drills to the API, and its refusals in words.

use http::Request;
use kube::Client;
use serde_json::Value;
use skiff_dev::Drill;

use super::UsageError;
use super::plan::PlannedDrill;

const DRILLS: &str = "/apis/skiff.dev/v1/drills";

/// Has the API say whether it would take the drill.
///
/// # Errors
/// As [`create`].
pub async fn check(client: &Client, drill: &PlannedDrill) -> anyhow::Result<()> {
    post(client, drill, "&dryRun=All").await.map(drop)
}

/// Makes the drill, which begins at once.
///
/// # Errors
/// A [`UsageError`] when the API finds something wrong in it.
pub async fn create(client: &Client, drill: &PlannedDrill) -> anyhow::Result<Drill> {
    Ok(serde_json::from_value(post(client, drill, "").await?)?)
}

async fn post(client: &Client, drill: &PlannedDrill, query: &str) -> anyhow::Result<Value> {
    // A field that nobody knows is a mistake, and a drill is no place for mistakes.
    let uri = format!("{DRILLS}?fieldManager=skiff-drill&fieldValidation=Strict{query}");
    let request = Request::post(uri)
        .header("Content-Type", "application/json")
        .body(serde_json::to_vec(&drill.object)?)?;
    let answer = client.request(request).await;
    answer.map_err(|error| refusal(error, &drill.title))
}

fn refusal(error: kube::Error, title: &str) -> anyhow::Error {
    let kube::Error::Api(status) = error else {
        return anyhow::Error::new(error).context("the API does not answer");
    };
    match status.code {
        400 | 422 => UsageError::of(status.message.clone()),
        404 => anyhow::anyhow!("this cluster knows no drills: is it a Skiff of this version?"),
        409 => anyhow::anyhow!(
            "there is a drill {title} already: see `skiff drill report {title}`, or `kubectl delete drill {title}`"
        ),
        _ => anyhow::anyhow!("the API refuses the drill: {}", status.message),
    }
}

/// What an error of the API says to people.
pub fn in_words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn answered(code: u16) -> anyhow::Error {
        let status = Status {
            code,
            message: "said".into(),
            ..Status::default()
        };
        refusal(kube::Error::Api(Box::new(status)), "d")
    }

    #[test]
    fn what_is_invalid_was_wrongly_used() {
        assert!(answered(422).is::<UsageError>());
        assert!(answered(400).is::<UsageError>());
        assert!(!answered(403).is::<UsageError>());
    }

    #[test]
    fn a_name_that_is_taken_says_so() {
        assert!(answered(409).to_string().contains("a drill d already"));
    }
}
