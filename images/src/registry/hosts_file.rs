//! containerd's `hosts.toml`: which servers stand for a registry, and how each is reached.
//!
//! The format is documented in containerd's `docs/hosts.md`. Every field of it that matters to
//! pulling is honoured. One difference is deliberate: a file that can't be understood fails the
//! pull, where containerd logs that and goes on without the file's mirrors.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Table;

/// A server that may be asked, as a `hosts.toml` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct HostConfig {
    /// Its URL, or nothing for the registry itself.
    pub(super) server: Option<Server>,
    pub(super) capabilities: Capabilities,
    pub(super) ca: Vec<PathBuf>,
    pub(super) client: Vec<ClientCertificate>,
    pub(super) skip_verify: Option<bool>,
    /// Sent with every request to this server.
    pub(super) headers: Vec<(String, String)>,
    pub(super) dial_timeout: Option<Duration>,
    /// The proxy to reach it through, whatever the environment says.
    pub(super) proxy: Option<String>,
}

impl HostConfig {
    /// Whether anything is said about TLS.
    pub(super) fn has_tls_settings(&self) -> bool {
        !self.ca.is_empty() || !self.client.is_empty() || self.skip_verify.is_some()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) tls: bool,
    /// Host and port.
    pub(super) authority: String,
    /// What precedes `/<repository>/manifests/...`: usually `/v2`.
    pub(super) path: String,
}

/// What a server is trusted with. Pushing is none of our business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// To give content by its digest.
    pub(super) pull: bool,
    /// To say which digest a tag stands for.
    pub(super) resolve: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            pull: true,
            resolve: true,
        }
    }
}

/// A certificate to show, and its key (in the same file if there is none of its own).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ClientCertificate {
    pub(super) certificate: PathBuf,
    pub(super) key: Option<PathBuf>,
}

/// The fields of a `[host."..."]` table, and of the file's top level.
#[derive(Deserialize)]
struct HostTable {
    #[serde(default)]
    capabilities: Vec<String>,
    ca: Option<OneOrMany>,
    client: Option<ClientField>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: Table,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
    proxy: Option<String>,
}

const HOST_FIELDS: &[&str] = &[
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "header",
    "override_path",
    "dial_timeout",
    "proxy",
];

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ClientField {
    One(String),
    Many(Vec<ClientEntry>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ClientEntry {
    Combined(String),
    Pair([String; 2]),
}

/// Reads a `hosts.toml`: the mirrors in the file's order, then the registry's own server. Relative
/// paths in it start at `dir`, its folder. The error says what is wrong with which entry.
pub(super) fn parse(text: &str, dir: &Path) -> Result<Vec<HostConfig>, String> {
    let mut file: Table = text
        .parse()
        .map_err(|error: toml::de::Error| error.to_string().trim_end().to_owned())?;
    let server = match file.remove("server") {
        None => None,
        Some(toml::Value::String(server)) => Some(server),
        Some(_) => return Err("server: not a string".to_owned()),
    };
    let mirrors = match file.remove("host") {
        None => Table::new(),
        Some(toml::Value::Table(mirrors)) => mirrors,
        Some(_) => return Err("host: not a table: write [host.\"https://...\"]".to_owned()),
    };
    let mut hosts = Vec::with_capacity(mirrors.len() + 1);
    for (url, value) in mirrors {
        let in_mirror = |error| format!("host.\"{url}\": {error}");
        let toml::Value::Table(table) = value else {
            return Err(in_mirror("not a table".to_owned()));
        };
        hosts.push(host(Some(&url), table, dir).map_err(in_mirror)?);
    }
    let server = server.as_deref().filter(|server| !server.is_empty());
    hosts.push(host(server, file, dir)?);
    Ok(hosts)
}

fn host(url: Option<&str>, table: Table, dir: &Path) -> Result<HostConfig, String> {
    for field in table.keys().filter(|k| !HOST_FIELDS.contains(&k.as_str())) {
        tracing::warn!(folder = %dir.display(), field, "hosts.toml has a field that has no meaning");
    }
    let table: HostTable = table
        .try_into()
        .map_err(|error: toml::de::Error| error.to_string().trim_end().to_owned())?;
    let server = url.map(|url| parse_server(url, table.override_path));
    Ok(HostConfig {
        server: server.transpose()?,
        capabilities: parse_capabilities(&table.capabilities)?,
        ca: table
            .ca
            .map_or_else(Vec::new, OneOrMany::into_vec)
            .iter()
            .map(|path| dir.join(path))
            .collect(),
        client: client_certificates(table.client, dir),
        skip_verify: table.skip_verify,
        headers: parse_headers(table.header)?,
        dial_timeout: match table.dial_timeout.as_deref() {
            None | Some("") => None,
            Some(text) => Some(parse_duration(text).ok_or_else(|| {
                format!("dial_timeout: '{text}' is not a duration such as '1s' or '500ms'")
            })?),
        },
        proxy: table.proxy.map(parse_proxy).transpose()?,
    })
}

fn parse_server(url: &str, override_path: bool) -> Result<Server, String> {
    let full = match url.contains("://") {
        true => url.to_owned(),
        false => format!("https://{url}"),
    };
    let fail = || format!("'{url}' is not the URL of a registry: https://host[:port][/path] is");
    let uri: http::Uri = full.parse().map_err(|_| fail())?;
    let tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(fail()),
    };
    let authority = uri.authority().ok_or_else(fail)?;
    if authority.as_str().contains('@') || authority.host().is_empty() || uri.query().is_some() {
        return Err(fail());
    }
    let path = uri.path().trim_end_matches('/');
    let path = match override_path || path.ends_with("/v2") {
        true => path.to_owned(),
        false => format!("{path}/v2"),
    };
    Ok(Server {
        tls,
        authority: authority.to_string(),
        path,
    })
}

fn parse_capabilities(names: &[String]) -> Result<Capabilities, String> {
    if names.is_empty() {
        return Ok(Capabilities::default());
    }
    let mut capabilities = Capabilities {
        pull: false,
        resolve: false,
    };
    for name in names {
        match name.to_ascii_lowercase().as_str() {
            "pull" => capabilities.pull = true,
            "resolve" => capabilities.resolve = true,
            "push" => {}
            _ => return Err(format!("capabilities: unknown capability '{name}'")),
        }
    }
    Ok(capabilities)
}

fn client_certificates(field: Option<ClientField>, dir: &Path) -> Vec<ClientCertificate> {
    let entries = match field {
        None => Vec::new(),
        Some(ClientField::One(one)) => vec![ClientEntry::Combined(one)],
        Some(ClientField::Many(many)) => many,
    };
    let certificates = entries.into_iter().map(|entry| match entry {
        ClientEntry::Combined(path) => (path, None),
        ClientEntry::Pair([certificate, key]) => (certificate, Some(key)),
    });
    certificates
        .map(|(certificate, key)| ClientCertificate {
            certificate: dir.join(certificate),
            key: key.filter(|key| !key.is_empty()).map(|key| dir.join(key)),
        })
        .collect()
}

fn parse_headers(table: Table) -> Result<Vec<(String, String)>, String> {
    let mut headers = Vec::new();
    for (name, value) in table {
        // The value may be a secret: it is not repeated.
        let wrong = || format!("header.{name}: not a header: a text or a list of texts is");
        let values: OneOrMany = value.try_into().map_err(|_| wrong())?;
        for value in values.into_vec() {
            let valid = http::HeaderName::from_bytes(name.as_bytes()).is_ok()
                && http::HeaderValue::from_str(&value).is_ok();
            if !valid {
                return Err(wrong());
            }
            headers.push((name.clone(), value));
        }
    }
    Ok(headers)
}

fn parse_proxy(proxy: String) -> Result<String, String> {
    let uri = proxy.parse::<http::Uri>().ok();
    let http = uri.is_some_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
    match http {
        true => Ok(proxy),
        // It may hold a password: it is not repeated.
        false => Err("proxy: only http://host[:port] is supported".to_owned()),
    }
}

/// Go's notation, as far as anyone uses it here: `1s`, `500ms`, `1m30s`, `1.5s`.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(number_end);
        let unit_end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_in(text: &str) -> Vec<HostConfig> {
        parse(text, Path::new("/certs.d/docker.io")).unwrap_or_else(|error| panic!("{error}"))
    }

    fn server(tls: bool, authority: &str, path: &str) -> Option<Server> {
        Some(Server {
            tls,
            authority: authority.to_owned(),
            path: path.to_owned(),
        })
    }

    #[test]
    fn mirrors_keep_the_order_of_the_file_and_the_server_comes_last() {
        let hosts = parse_in(
            r#"
            server = "https://registry-1.docker.io"

            [host."https://z-mirror.example.com"]
              capabilities = ["pull"]
            [host."http://127.0.0.1:5000/prefix"]
              capabilities = ["Pull", "resolve", "push"]
              skip_verify = true
            [host."a-mirror.example.com/api/docker"]
              override_path = true
            "#,
        );
        let servers: Vec<_> = hosts.iter().map(|host| host.server.clone()).collect();
        assert_eq!(
            servers,
            [
                server(true, "z-mirror.example.com", "/v2"),
                server(false, "127.0.0.1:5000", "/prefix/v2"),
                server(true, "a-mirror.example.com", "/api/docker"),
                server(true, "registry-1.docker.io", "/v2"),
            ]
        );
        assert!(hosts[0].capabilities.pull && !hosts[0].capabilities.resolve);
        assert_eq!(hosts[1].capabilities, Capabilities::default());
        assert_eq!(hosts[1].skip_verify, Some(true));
        assert_eq!(hosts[3].skip_verify, None);
    }

    #[test]
    fn every_form_of_every_field_is_read() {
        let hosts = parse_in(
            r#"
            ca = "own.pem"
            client = [["c.cert", "c.key"], ["both.pem", ""], "other.pem"]
            dial_timeout = "1m1.5s"
            proxy = "http://proxy.example.com:3128"
            [header]
              x-one = "1"
              x-two = ["2a", "2b"]
            [host."https://m"]
              ca = ["/abs.pem", "rel.pem"]
              client = "c.pem"
              dial_timeout = "250ms"
              [host."https://m".header]
                authorization = "Basic c2VjcmV0"
            "#,
        );
        let dir = Path::new("/certs.d/docker.io");
        let certificate = |certificate: &str, key: Option<&str>| ClientCertificate {
            certificate: dir.join(certificate),
            key: key.map(|key| dir.join(key)),
        };
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            hosts[0].ca,
            [PathBuf::from("/abs.pem"), dir.join("rel.pem")]
        );
        assert_eq!(hosts[0].client, [certificate("c.pem", None)]);
        assert_eq!(hosts[0].dial_timeout, Some(Duration::from_millis(250)));
        assert_eq!(
            hosts[0].headers,
            [header("authorization", "Basic c2VjcmV0")]
        );
        assert_eq!(hosts[1].server, None);
        assert_eq!(hosts[1].ca, [dir.join("own.pem")]);
        assert_eq!(
            hosts[1].client,
            [
                certificate("c.cert", Some("c.key")),
                certificate("both.pem", None),
                certificate("other.pem", None)
            ]
        );
        assert_eq!(hosts[1].dial_timeout, Some(Duration::from_millis(61_500)));
        assert_eq!(
            hosts[1].headers,
            [
                header("x-one", "1"),
                header("x-two", "2a"),
                header("x-two", "2b")
            ]
        );
        assert_eq!(
            hosts[1].proxy.as_deref(),
            Some("http://proxy.example.com:3128")
        );
    }

    #[test]
    fn an_empty_file_means_the_registry_itself() {
        assert_eq!(parse_in(""), [HostConfig::default()]);
        assert_eq!(parse_in("server = \"\""), [HostConfig::default()]);
    }

    #[test]
    fn what_is_wrong_is_named_and_secrets_are_not() {
        for (text, part) in [
            ("server = 1", "server"),
            ("server = \"ftp://x\"", "ftp://x"),
            ("server = \"https://u:p@x\"", "not the URL"),
            ("server = \"https:///v2\"", "not the URL"),
            ("host = 3", "[host."),
            ("[host]\n\"https://m\" = 3", "https://m"),
            ("[host.\"https://m\"]\ncapabilities = [\"fly\"]", "fly"),
            ("dial_timeout = \"soon\"", "soon"),
            ("dial_timeout = \"1\"", "dial_timeout"),
            ("skip_verify = \"yes\"", "skip_verify"),
            ("proxy = \"socks5://h:1\"", "proxy"),
            (
                "[header]\nauthorization = \"geheim\\n\"",
                "header.authorization",
            ),
            ("not toml", "not toml"),
        ] {
            let error = parse(text, Path::new("/")).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("geheim"), "{error}");
        }
    }
}
