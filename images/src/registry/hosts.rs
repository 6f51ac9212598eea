//! Which servers to ask for a registry's images: the endpoints, in order.
//!
//! A registry's folder is looked for in the configured ones as containerd does it, and read anew
//! for each pull. Without one, a registry is its own server.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::config::RegistryConfig;
use super::error::HostsError;
use super::hosts_file::{self, Capabilities, ClientCertificate, HostConfig, Server};
use super::tls::TlsSettings;
use super::transport::TransportSettings;

const HOSTS_FILE: &str = "hosts.toml";
const DEFAULT_FOLDER: &str = "_default";

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Https,
    Http,
    /// TLS, unless the server turns out not to speak it.
    HttpsOrHttp,
}

/// A server to ask, and everything needed to do so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) protocol: Protocol,
    /// Host and port, as in a URL.
    pub(super) authority: String,
    /// What precedes `/<repository>`.
    pub(super) path: String,
    pub(super) capabilities: Capabilities,
    pub(super) headers: Vec<(String, String)>,
    pub(super) transport: TransportSettings,
}

/// The servers that stand for a registry, mirrors first. Reads files: not for a runtime's thread.
pub(super) fn hosts(registry: &str, config: &RegistryConfig) -> Result<Vec<Host>, HostsError> {
    let configured = match find_folder(registry, &config.hosts_dirs)? {
        Some(folder) => load_folder(&folder)?,
        None => vec![HostConfig::default()],
    };
    let hosts = configured.into_iter();
    Ok(hosts.map(|host| resolve(host, registry, config)).collect())
}

/// The folder that speaks for a registry: `host_port_`, `host:port` or `host`, else `_default`.
fn find_folder(registry: &str, dirs: &[PathBuf]) -> Result<Option<PathBuf>, HostsError> {
    let mut own = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':').filter(|_| has_port(registry)) {
        own.push(format!("{host}_{port}_"));
    }
    own.push(registry.to_owned());
    let own = dirs
        .iter()
        .flat_map(|dir| own.iter().map(|name| dir.join(name)));
    let default = dirs.iter().map(|dir| dir.join(DEFAULT_FOLDER));
    for folder in own.chain(default) {
        match fs::metadata(&folder) {
            Ok(_) => return Ok(Some(folder)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(HostsError::read(&folder, source)),
        }
    }
    Ok(None)
}

fn load_folder(folder: &Path) -> Result<Vec<HostConfig>, HostsError> {
    let file = folder.join(HOSTS_FILE);
    match fs::read_to_string(&file) {
        Ok(text) if !text.is_empty() => {
            hosts_file::parse(&text, folder).map_err(|reason| HostsError::Invalid { file, reason })
        }
        Ok(_) => certificate_files(folder),
        Err(error) if error.kind() == io::ErrorKind::NotFound => certificate_files(folder),
        Err(source) => Err(HostsError::read(&file, source)),
    }
}

/// Docker's layout, used when there is no `hosts.toml`: `*.crt` are CAs, `*.cert` and `*.key` are
/// client certificates.
fn certificate_files(folder: &Path) -> Result<Vec<HostConfig>, HostsError> {
    let entries = fs::read_dir(folder).map_err(|source| HostsError::read(folder, source))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths: Vec<PathBuf> = paths
        .collect::<io::Result<_>>()
        .map_err(|source| HostsError::read(folder, source))?;
    paths.sort();
    let mut host = HostConfig::default();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => host.ca.push(path),
            Some("cert") => host.client.push(ClientCertificate {
                key: Some(path.with_extension("key")),
                certificate: path,
            }),
            _ => {}
        }
    }
    Ok(vec![host])
}

/// Fills in what a `hosts.toml` leaves open.
fn resolve(host: HostConfig, registry: &str, config: &RegistryConfig) -> Host {
    let has_tls_settings = host.has_tls_settings();
    let (server, protocol) = match host.server {
        Some(server) => {
            let protocol = match server.tls {
                true => Protocol::Https,
                // As containerd does: settings for TLS are a sign that it is meant to be used.
                false if has_tls_settings && port(&server.authority) != Some("80") => {
                    Protocol::HttpsOrHttp
                }
                false => Protocol::Http,
            };
            (server, protocol)
        }
        None => (own_server(registry), own_protocol(registry, config)),
    };
    Host {
        protocol,
        authority: server.authority,
        path: server.path,
        capabilities: host.capabilities,
        headers: host.headers,
        transport: TransportSettings {
            tls: TlsSettings {
                ca: config.extra_cas.iter().cloned().chain(host.ca).collect(),
                client: host.client,
                skip_verify: host.skip_verify.unwrap_or(false),
            },
            connect_timeout: host.dial_timeout.unwrap_or(config.timeouts.connect),
            proxy: host.proxy,
        },
    }
}

/// A registry's own server, which only for Docker Hub has another name.
fn own_server(registry: &str) -> Server {
    let authority = match registry {
        "docker.io" => "registry-1.docker.io",
        other => other,
    };
    Server {
        tls: true,
        authority: authority.to_owned(),
        path: "/v2".to_owned(),
    }
}

fn own_protocol(registry: &str, config: &RegistryConfig) -> Protocol {
    if config.plain_http.iter().any(|name| name == registry) {
        return Protocol::Http;
    }
    match (is_loopback(registry), port(registry)) {
        (true, Some("80")) => Protocol::Http,
        (true, Some(port)) if port != "443" => Protocol::HttpsOrHttp,
        _ => Protocol::Https,
    }
}

/// Whether `host` or `host:port` is this machine: `localhost`, 127.0.0.0/8 or `[::1]`.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = match port(authority) {
        Some(port) => &authority[..authority.len() - port.len() - 1],
        None => authority,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn has_port(authority: &str) -> bool {
    port(authority).is_some()
}

/// The port of `host:port` or `[address]:port`.
fn port(authority: &str) -> Option<&str> {
    let (_, port) = authority.rsplit_once(':')?;
    // The colons of an IPv6 address are before its bracket.
    (!port.contains(']')).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dirs: &[&Path]) -> RegistryConfig {
        RegistryConfig {
            hosts_dirs: dirs.iter().map(|dir| dir.to_path_buf()).collect(),
            plain_http: vec!["plain.example.com:5000".to_owned()],
            ..RegistryConfig::default()
        }
    }

    fn write(dir: &Path, path: &str, text: &str) {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn authorities(registry: &str, config: &RegistryConfig) -> Vec<String> {
        let hosts = hosts(registry, config).unwrap();
        hosts.into_iter().map(|host| host.authority).collect()
    }

    #[test]
    fn without_a_folder_a_registry_is_its_own_server() {
        for (registry, authority, protocol) in [
            ("docker.io", "registry-1.docker.io", Protocol::Https),
            ("quay.io", "quay.io", Protocol::Https),
            ("quay.io:5000", "quay.io:5000", Protocol::Https),
            ("localhost", "localhost", Protocol::Https),
            ("localhost:443", "localhost:443", Protocol::Https),
            ("localhost:80", "localhost:80", Protocol::Http),
            ("localhost:5000", "localhost:5000", Protocol::HttpsOrHttp),
            ("127.3.0.1:5000", "127.3.0.1:5000", Protocol::HttpsOrHttp),
            ("[::1]:5000", "[::1]:5000", Protocol::HttpsOrHttp),
            ("[::2]:5000", "[::2]:5000", Protocol::Https),
            ("[::1]", "[::1]", Protocol::Https),
            ("10.0.0.1:5000", "10.0.0.1:5000", Protocol::Https),
            (
                "localhost.evil.com:5000",
                "localhost.evil.com:5000",
                Protocol::Https,
            ),
            (
                "127.0.0.1.evil.com:5000",
                "127.0.0.1.evil.com:5000",
                Protocol::Https,
            ),
            (
                "plain.example.com:5000",
                "plain.example.com:5000",
                Protocol::Http,
            ),
            ("plain.example.com", "plain.example.com", Protocol::Https),
        ] {
            let hosts = hosts(registry, &config(&[])).unwrap();
            assert_eq!(hosts.len(), 1, "{registry}");
            assert_eq!(hosts[0].authority, authority, "{registry}");
            assert_eq!(hosts[0].protocol, protocol, "{registry}");
            assert_eq!(hosts[0].path, "/v2");
            assert!(!hosts[0].transport.tls.skip_verify);
        }
    }

    #[test]
    fn folders_are_found_as_containerd_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("1"), dir.path().join("2"));
        write(&first, "_default/hosts.toml", "[host.\"https://default\"]");
        write(&second, "r.io:5000/hosts.toml", "[host.\"https://colon\"]");
        write(&second, "r.io/hosts.toml", "server = \"https://only\"");
        let config = config(&[&first, &second, Path::new("/nonexistent")]);
        assert_eq!(authorities("r.io:5000", &config), ["colon", "r.io:5000"]);
        assert_eq!(authorities("r.io", &config), ["only"]);
        assert_eq!(
            authorities("docker.io", &config),
            ["default", "registry-1.docker.io"]
        );
        write(&first, "r.io_5000_/hosts.toml", "[host.\"https://under\"]");
        assert_eq!(authorities("r.io:5000", &config), ["under", "r.io:5000"]);
    }

    #[test]
    fn settings_for_tls_make_a_plain_mirror_try_tls_first() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "r.io/hosts.toml",
            "skip_verify = true\n[host.\"http://m1:5000\"]\nskip_verify = true\n\
             [host.\"http://m2:5000\"]\n[host.\"http://m3:80\"]\nca = \"x\"\n",
        );
        let hosts = hosts("r.io", &config(&[dir.path()])).unwrap();
        let protocols: Vec<_> = hosts.iter().map(|host| host.protocol).collect();
        assert_eq!(
            protocols,
            [
                Protocol::HttpsOrHttp,
                Protocol::Http,
                Protocol::Http,
                Protocol::Https
            ]
        );
        assert!(hosts[3].transport.tls.skip_verify);
    }

    #[test]
    fn dockers_certificate_files_serve_without_a_hosts_file() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["ca.crt", "me.cert", "me.key", "readme.txt"] {
            write(dir.path(), &format!("r.io/{file}"), "");
        }
        let hosts = hosts("r.io", &config(&[dir.path()])).unwrap();
        let folder = dir.path().join("r.io");
        assert_eq!(hosts[0].transport.tls.ca, [folder.join("ca.crt")]);
        assert_eq!(
            hosts[0].transport.tls.client,
            [ClientCertificate {
                certificate: folder.join("me.cert"),
                key: Some(folder.join("me.key")),
            }]
        );
    }

    #[test]
    fn a_bad_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "r.io/hosts.toml", "server = [");
        let error = hosts("r.io", &config(&[dir.path()])).unwrap_err();
        let file = dir.path().join("r.io/hosts.toml");
        assert!(
            error.to_string().contains(file.to_str().unwrap()),
            "{error}"
        );
    }
}
