//! Label and field selectors, as query strings write them.

use super::entry::Entry;
use crate::resources::SelectableField;

/// What a list or a watch selects beside its namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldRequirement {
    field: Field,
    value: String,
    equal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
    /// A place in the resource's declaration.
    Selectable(usize),
}

/// Why a selector can't be used, in Kubernetes' words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

impl Selector {
    /// Parses `labelSelector` and `fieldSelector`. `selectable` are the resource's.
    ///
    /// # Errors
    /// When a selector is malformed, or names a field that the resource does not offer.
    pub fn parse(
        labels: &str,
        fields: &str,
        selectable: &[SelectableField],
    ) -> Result<Self, SelectorError> {
        Ok(Self {
            labels: parse_labels(labels)?,
            fields: parse_fields(fields, selectable)?,
        })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, entry: &Entry) -> bool {
        self.fields.iter().all(|field| field.matches(entry))
            && self.matches_labels(|key| entry.label(key))
    }

    /// Whether labels, looked up by key, are selected.
    pub fn matches_labels<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.labels
            .iter()
            .all(|requirement| requirement.operator.matches(label(&requirement.key)))
    }

    /// The one name that can match, when the selector says so.
    pub fn name(&self) -> Option<&str> {
        self.fields
            .iter()
            .find(|f| f.field == Field::Name && f.equal)
            .map(|f| f.value.as_str())
    }
}

impl Operator {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
            Self::NotIn(values) => value.is_none_or(|v| values.iter().all(|x| x != v)),
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::Greater(bound) => number().is_some_and(|n| n > *bound),
            Self::Less(bound) => number().is_some_and(|n| n < *bound),
        }
    }
}

impl FieldRequirement {
    fn matches(&self, entry: &Entry) -> bool {
        let value = match self.field {
            Field::Name => entry.name(),
            Field::Namespace => entry.namespace(),
            Field::Selectable(at) => entry.field(at),
        };
        (value == self.value) == self.equal
    }
}

fn parse_fields(
    text: &str,
    selectable: &[SelectableField],
) -> Result<Vec<FieldRequirement>, SelectorError> {
    let mut requirements = Vec::new();
    for term in split_escaped(text) {
        if term.is_empty() {
            continue;
        }
        let (path, value, equal) = split_field_term(term).ok_or_else(|| {
            SelectorError(format!(
                "invalid selector: '{text}'; can't understand '{term}'"
            ))
        })?;
        let field = match path {
            "metadata.name" => Field::Name,
            "metadata.namespace" => Field::Namespace,
            _ => selectable
                .iter()
                .position(|field| field.name == path)
                .map(Field::Selectable)
                .ok_or_else(|| SelectorError(format!("field label not supported: {path}")))?,
        };
        requirements.push(FieldRequirement {
            field,
            value: unescape(value),
            equal,
        });
    }
    Ok(requirements)
}

fn split_field_term(term: &str) -> Option<(&str, &str, bool)> {
    for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((path, value)) = term.split_once(operator) {
            return Some((path, value, equal));
        }
    }
    None
}

/// Splits at commas that no backslash precedes.
fn split_escaped(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        if c == ',' && !escaped {
            terms.push(&text[start..at]);
            start = at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    terms.push(&text[start..]);
    terms
}

fn unescape(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut escaped = false;
    for c in value.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            plain.push(c);
            escaped = false;
        }
    }
    plain
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut parser = LabelParser { text, rest: text };
    parser.requirements()
}

/// A recursive descent over `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
struct LabelParser<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> LabelParser<'a> {
    fn requirements(&mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        self.skip_space();
        if self.rest.is_empty() {
            return Ok(requirements);
        }
        loop {
            requirements.push(self.requirement()?);
            self.skip_space();
            if self.rest.is_empty() {
                return Ok(requirements);
            }
            if !self.take(",") {
                return Err(self.unexpected("',' or 'end of string'"));
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        self.skip_space();
        let absent = self.take("!");
        let key = self.word();
        if key.is_empty() {
            return Err(self.unexpected("identifier"));
        }
        check_label_key(key)?;
        let operator = if absent {
            Operator::Absent
        } else {
            self.operator(key)?
        };
        Ok(Requirement {
            key: key.to_string(),
            operator,
        })
    }

    fn operator(&mut self, key: &str) -> Result<Operator, SelectorError> {
        self.skip_space();
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok(Operator::Exists);
        }
        if self.take("!=") {
            return Ok(Operator::NotIn(vec![self.value()?]));
        }
        if self.take("==") || self.take("=") {
            return Ok(Operator::In(vec![self.value()?]));
        }
        if self.take(">") {
            return self.number(key).map(Operator::Greater);
        }
        if self.take("<") {
            return self.number(key).map(Operator::Less);
        }
        match self.word() {
            "in" => self.values().map(Operator::In),
            "notin" => self.values().map(Operator::NotIn),
            other => Err(SelectorError(format!(
                "unable to parse requirement: found '{other}', expected: in, notin, =, ==, !=, gt, lt"
            ))),
        }
    }

    fn number(&mut self, key: &str) -> Result<i64, SelectorError> {
        let value = self.value()?;
        value.parse().map_err(|_| {
            SelectorError(format!(
                "values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            ))
        })
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        self.skip_space();
        if !self.take("(") {
            return Err(self.unexpected("'('"));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value()?);
            self.skip_space();
            if self.take(")") {
                return Ok(values);
            }
            if !self.take(",") {
                return Err(self.unexpected("',' or ')'"));
            }
        }
    }

    fn value(&mut self) -> Result<String, SelectorError> {
        self.skip_space();
        let value = self.word();
        check_label_value(value)?;
        Ok(value.to_string())
    }

    fn word(&mut self) -> &'a str {
        let end = self
            .rest
            .find(|c: char| c.is_whitespace() || "!=<>(),".contains(c))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn unexpected(&self, wanted: &str) -> SelectorError {
        let found: String = self.rest.chars().take(1).collect();
        SelectorError(format!(
            "unable to parse requirement: found '{found}', expected: {wanted} in {:?}",
            self.text
        ))
    }
}

fn check_label_key(key: &str) -> Result<(), SelectorError> {
    let (prefix, name) = key.rsplit_once('/').unwrap_or(("", key));
    let plain = |text: &str, more: &str| {
        text.chars()
            .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let ends = |text: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        edge(text.chars().next()) && edge(text.chars().next_back())
    };
    let name_ok = name.len() <= 63 && ends(name) && plain(name, "-_.");
    let prefix_ok =
        prefix.is_empty() && !key.starts_with('/') || ends(prefix) && plain(prefix, "-.");
    if name_ok && prefix_ok {
        return Ok(());
    }
    Err(SelectorError(format!(
        "unable to parse requirement: <nil>: Invalid value: {key:?}: name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
    )))
}

fn check_label_value(value: &str) -> Result<(), SelectorError> {
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    let fine = value.len() <= 63
        && edge(value.chars().next())
        && edge(value.chars().next_back())
        && value
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if fine {
        return Ok(());
    }
    Err(SelectorError(format!(
        "unable to parse requirement: values[0]: Invalid value: {value:?}: a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(selector: &str, labels: &[(&str, &str)]) -> bool {
        let selector = Selector::parse(selector, "", &[]).unwrap();
        selector.matches_labels(|key| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v))
    }

    #[test]
    fn labels_match_by_equality_and_by_set() {
        let web = [("app", "web"), ("tier", "front"), ("n", "5")];
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app == web, tier=front", true),
            ("app!=web", false),
            ("other!=x", true),
            ("app in (web, db)", true),
            ("app notin (web,db)", false),
            ("other notin (a)", true),
            ("app", true),
            ("other", false),
            ("!other", true),
            ("!app", false),
            ("n>4", true),
            ("n<5", false),
            ("app in (db),tier", false),
            ("app=", false),
        ] {
            assert_eq!(selects(selector, &web), expected, "{selector}");
        }
    }

    #[test]
    fn malformed_selectors_are_refused() {
        for selector in [
            "app=web=db",
            "app in web",
            "=x",
            "a,,b",
            "app in (a",
            "a b",
            "-a=b",
            "a=-b",
        ] {
            assert!(Selector::parse(selector, "", &[]).is_err(), "{selector}");
        }
    }

    #[test]
    fn fields_are_those_of_the_declaration() {
        let selectable = [SelectableField::text("spec.nodeName")];
        let parsed = Selector::parse("", "metadata.name=a,spec.nodeName!=n", &selectable).unwrap();
        assert_eq!(parsed.name(), Some("a"));
        let refused = Selector::parse("", "spec.color=red", &selectable).unwrap_err();
        assert_eq!(refused.to_string(), "field label not supported: spec.color");
    }
}
