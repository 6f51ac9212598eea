//! Query strings as the kubelet reads them: names may repeat, flags are `true`, `1` or just there.

use std::str::FromStr;

use form_urlencoded::parse;

pub(super) struct Query(Vec<(String, String)>);

/// A parameter whose value makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("invalid value for query parameter {name}: {value:?}")]
pub(super) struct InvalidParameter {
    name: &'static str,
    value: String,
}

impl Query {
    pub(super) fn new(raw: Option<&str>) -> Self {
        let pairs = parse(raw.unwrap_or_default().as_bytes());
        Self(pairs.into_owned().collect())
    }

    pub(super) fn first(&self, name: &str) -> Option<&str> {
        self.values(name).next()
    }

    pub(super) fn all(&self, name: &str) -> Vec<String> {
        self.values(name).map(str::to_owned).collect()
    }

    fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        let name = name.to_owned();
        self.0
            .iter()
            .filter(move |(key, _)| *key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether any of the names is set.
    pub(super) fn flag(&self, names: &[&str]) -> bool {
        let set = |value: &str| !matches!(value, "0" | "f" | "F" | "false" | "False" | "FALSE");
        names.iter().any(|name| self.first(name).is_some_and(set))
    }

    pub(super) fn number<T: FromStr>(
        &self,
        name: &'static str,
    ) -> Result<Option<T>, InvalidParameter> {
        let Some(value) = self.first(name).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        let invalid = |_| InvalidParameter {
            name,
            value: value.to_owned(),
        };
        value.parse().map(Some).map_err(invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kubelet_reads() {
        let query = Query::new(Some(
            "command=sh&command=-c&command=echo+%26&tty=1&input=false&n=7",
        ));
        assert_eq!(query.all("command"), ["sh", "-c", "echo &"]);
        assert!(query.flag(&["tty"]));
        assert!(!query.flag(&["input", "stdin"]));
        assert_eq!(query.number::<u64>("n").unwrap(), Some(7));
        assert_eq!(query.number::<u64>("missing").unwrap(), None);
        let error = Query::new(Some("tailLines=-1")).number::<u64>("tailLines");
        assert!(error.unwrap_err().to_string().contains("tailLines"));
    }
}
