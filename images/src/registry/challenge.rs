//! What a registry wants to see: the `WWW-Authenticate` headers of a 401 (RFC 9110, 11.6.1).

use http::header::{HeaderMap, WWW_AUTHENTICATE};

/// One way to prove who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer(Bearer),
}

/// Where to get a token, and for what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Bearer {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    /// Several are separated by spaces.
    pub(super) scope: Option<String>,
    /// Why the token that was shown did not do.
    pub(super) error: Option<String>,
}

/// The challenges that can be met, in the registry's order.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts.flat_map(parse).filter_map(known).collect()
}

/// A scheme and its parameters.
type Raw = (String, Vec<(String, String)>);

fn known((scheme, parameters): Raw) -> Option<Challenge> {
    match scheme.to_ascii_lowercase().as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => {
            let get = |name: &str| {
                let mut found = parameters.iter().filter(|(key, _)| key == name);
                found.next().map(|(_, value)| value.clone())
            };
            Some(Challenge::Bearer(Bearer {
                realm: get("realm")?,
                service: get("service").filter(|text| !text.is_empty()),
                scope: get("scope").filter(|text| !text.is_empty()),
                error: get("error").filter(|text| !text.is_empty()),
            }))
        }
        _ => None,
    }
}

/// Reads `scheme key=value, key="value", scheme ...`; passes over what makes no sense.
fn parse(text: &str) -> Vec<Raw> {
    let mut found: Vec<Raw> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() {
            // The rest of a token such as Negotiate's, or nothing at all.
            match rest.find(',') {
                Some(comma) => rest = &rest[comma..],
                None => return found,
            }
            continue;
        }
        let value = after.trim_start_matches([' ', '\t']).strip_prefix('=');
        let (Some(value), Some((_, parameters))) = (value, found.last_mut()) else {
            found.push((word.to_owned(), Vec::new()));
            rest = after;
            continue;
        };
        let Some((value, after)) = parameter_value(value.trim_start_matches([' ', '\t'])) else {
            return found;
        };
        parameters.push((word.to_ascii_lowercase(), value));
        rest = after;
    }
}

fn token(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)))
        .unwrap_or(text.len());
    text.split_at(end)
}

/// A token or a quoted string, and what follows it.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, after) = text.split_at(end);
        return Some((value.to_owned(), after));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(c),
        }
    }
    // The quote is never closed.
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        challenges(&headers)
    }

    fn bearer(realm: &str, service: &str, scope: &str) -> Challenge {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Challenge::Bearer(Bearer {
            realm: realm.to_owned(),
            service: text(service),
            scope: text(scope),
            error: None,
        })
    }

    #[test]
    fn what_registries_send_is_understood() {
        let hub = "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",\
                   scope=\"repository:library/a:pull,push repository:b:pull\"";
        assert_eq!(
            read(&[hub]),
            [bearer(
                "https://auth.docker.io/token",
                "registry.docker.io",
                "repository:library/a:pull,push repository:b:pull"
            )]
        );
        assert_eq!(
            read(&["Basic realm=\"Registry Realm\""]),
            [Challenge::Basic]
        );
        assert_eq!(read(&["basic"]), [Challenge::Basic]);
        assert_eq!(
            read(&["BEARER Realm = https://a/t , SERVICE=s"]),
            [bearer("https://a/t", "s", "")]
        );
    }

    #[test]
    fn several_challenges_in_one_header_or_in_many() {
        let expected = [Challenge::Basic, bearer("https://a/t", "s", "")];
        assert_eq!(
            read(&[
                "Basic realm=\"x, Bearer y=\\\"z\\\"\", Bearer realm=\"https://a/t\",service=s"
            ]),
            expected
        );
        assert_eq!(
            read(&[
                "Basic realm=x",
                "Bearer realm=\"https://a/t\", service=\"s\""
            ]),
            expected
        );
        assert_eq!(
            read(&[
                "Negotiate dG9/rZ+W4==, Negotiate, Basic, Bearer realm=\"https://a/t\",service=s"
            ]),
            expected
        );
    }

    #[test]
    fn an_error_is_kept() {
        let value = "Bearer realm=\"https://a/t\",error=\"insufficient_scope\"";
        let Challenge::Bearer(bearer) = &read(&[value])[0] else {
            panic!("not a bearer challenge");
        };
        assert_eq!(bearer.error.as_deref(), Some("insufficient_scope"));
    }

    #[test]
    fn nonsense_is_no_challenge() {
        for value in [
            "",
            ",,,",
            "=",
            "\"",
            "Bearer",
            "Bearer service=\"s\"",
            "Bearer realm=\"never closed",
            "Bearer realm=\"ends in a backslash\\",
            "Digest realm=\"x\"",
            "realm=\"x\"",
        ] {
            assert_eq!(read(&[value]), [], "{value}");
        }
    }

    /// Whatever is cut out of a challenge, or put into it, reading it comes to an end.
    #[test]
    fn damaged_challenges_are_survived() {
        let sound = "Negotiate dG9/=, Bearer realm=\"https://a/t\",service=\"a \\\"b\",scope=x";
        for start in 0..sound.len() {
            for end in start..=sound.len() {
                parse(&sound[start..end]);
                for extra in ["\"", "\\", "=", ",", " ", "/", "ä"] {
                    parse(&format!("{}{extra}{}", &sound[..start], &sound[end..]));
                }
            }
        }
    }
}
