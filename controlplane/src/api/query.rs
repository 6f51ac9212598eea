//! The options that a request's query string carries.

use super::status::ApiError;
use crate::resources::FieldError;

/// A query string, decoded.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

/// `fieldValidation`: what happens to fields that the kind does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// A query string with its `?`; empty when there are no parameters.
pub fn encode<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs);
    match query.finish() {
        empty if empty.is_empty() => empty,
        query => format!("?{query}"),
    }
}

impl Query {
    pub fn parse(text: Option<&str>) -> Self {
        let pairs = form_urlencoded::parse(text.unwrap_or_default().as_bytes());
        Self(pairs.into_owned().collect())
    }

    /// The first value of a parameter; an empty one counts as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, value)| key == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// Every value of a parameter, empty ones too.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// The query string again, with its `?`; empty when there are no parameters.
    pub fn encode(&self) -> String {
        let pairs = self.0.iter();
        encode(pairs.map(|(name, value)| (name.as_str(), value.as_str())))
    }

    pub fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// Absent, empty, `0` and `false` are false, as in Kubernetes' conversion.
    pub fn flag(&self, name: &str) -> bool {
        self.optional_flag(name).unwrap_or_default()
    }

    pub fn optional_flag(&self, name: &str) -> Option<bool> {
        self.get(name)
            .map(|value| !matches!(value, "0" | "false" | "False" | "FALSE" | "f" | "F"))
    }

    /// # Errors
    /// 400 when the parameter is there and no number.
    pub fn number(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            ApiError::bad_request(format!(
                "strconv.ParseInt: parsing {text:?}: invalid syntax"
            ))
        })
    }

    /// Whether nothing is to be stored.
    ///
    /// # Errors
    /// 422 when `dryRun` has another value than `All`.
    pub fn dry_run(&self) -> Result<bool, FieldError> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(FieldError {
                reason: "FieldValueNotSupported",
                field: "dryRun".to_string(),
                message: format!("Unsupported value: {other:?}: supported values: \"All\""),
            }),
        }
    }

    /// # Errors
    /// 422 when the value is none of the three.
    pub fn field_validation(&self) -> Result<FieldValidation, FieldError> {
        match self.text("fieldValidation") {
            "" | "Warn" => Ok(FieldValidation::Warn),
            "Strict" => Ok(FieldValidation::Strict),
            "Ignore" => Ok(FieldValidation::Ignore),
            other => Err(FieldError {
                reason: "FieldValueNotSupported",
                field: "fieldValidation".to_string(),
                message: format!(
                    "Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
                ),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let query = Query::parse(Some(
            "labelSelector=a%3Db%2Cc&watch=1&limit=5&x=&dryRun=All",
        ));
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert!(query.flag("watch") && !query.flag("x") && !query.flag("follow"));
        assert_eq!(query.number("limit"), Ok(Some(5)));
        assert_eq!(query.dry_run(), Ok(true));
        assert!(Query::parse(Some("limit=a")).number("limit").is_err());
        assert!(
            Query::parse(Some("fieldValidation=no"))
                .field_validation()
                .is_err()
        );
    }
}
