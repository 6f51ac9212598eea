//! The cluster's certificates and keys, under `<data>/server/pki`.
//!
//! | file | subject | for |
//! |---|---|---|
//! | `ca` | `skiff-ca` | signs everything below |
//! | `apiserver` | `kube-apiserver` | the API's TLS endpoint |
//! | `admin` | `kubernetes-admin`, group `system:masters` | the kubeconfig |
//! | `apiserver-kubelet-client` | `system:kube-apiserver`, group `system:masters` | asking nodes for logs and exec |
//! | `node-<name>` / `node-<name>-serving` | `system:node:<name>`, group `system:nodes` | an agent |
//! | `sa.key` | | signs service account tokens |
//!
//! Each is a `.crt` and a `.key` in PEM; keys are ECDSA P-256 and have mode 0600. What exists
//! is kept, unless it is about to expire or lacks a name that it must carry.

use std::fs::{self, DirBuilder};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;

use super::{MASTERS, NODE_PREFIX, NODES};

const CA_LIFETIME: Duration = Duration::days(3650);
const LEAF_LIFETIME: Duration = Duration::days(365);
/// A certificate with less than this to live is made again at the next start.
const RENEW_BEFORE: Duration = Duration::days(30);
/// Certificates start to be valid this long ago, for peers whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::hours(1);

/// Why certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot {action} {path}: {source}")]
    File {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot make the certificate {name}: {source}")]
    Make { name: String, source: rcgen::Error },
    #[error("{path} is not usable ({reason}); restore it, or remove it to have it made again")]
    Unusable { path: PathBuf, reason: String },
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// A certificate and its key, both PEM.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub certificate: String,
    pub key: String,
}

impl Credentials {
    /// As rustls takes them.
    ///
    /// # Errors
    /// When the text is not PEM.
    pub fn der(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let tls = |e: rustls::pki_types::pem::Error| PkiError::Tls(e.to_string());
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(tls)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(tls)?;
        Ok((chain, key))
    }
}

/// What an agent needs to talk to the API and to be talked to.
#[derive(Debug, Clone)]
pub struct NodeCredentials {
    pub client: Credentials,
    pub serving: Credentials,
}

/// The cluster's certificate authority and the control plane's own certificates.
pub struct Pki {
    dir: PathBuf,
    ca_pem: String,
    pub(super) issuer: Issuer<'static, KeyPair>,
    server: Credentials,
    admin: Credentials,
    kubelet_client: Credentials,
    service_account_key: String,
}

/// What a leaf certificate says and is for.
struct Profile<'a> {
    common_name: &'a str,
    organization: Option<&'a str>,
    names: &'a [String],
    usage: ExtendedKeyUsagePurpose,
}

impl Pki {
    /// Opens the directory, making what is missing. `names` are the host names and addresses
    /// by which clients reach the API.
    ///
    /// # Errors
    /// When the directory can't be written, or holds something that is not a key or certificate.
    pub fn open(dir: &Path, names: &[String]) -> Result<Self, PkiError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| PkiError::File {
                action: "create",
                path: dir.to_path_buf(),
                source,
            })?;
        let (ca_pem, issuer) = certificate_authority(dir)?;
        let leaf = |name: &str, profile: Profile<'_>| leaf(dir, &issuer, name, &profile);
        let server = leaf(
            "apiserver",
            Profile {
                common_name: "kube-apiserver",
                organization: None,
                names,
                usage: ExtendedKeyUsagePurpose::ServerAuth,
            },
        )?;
        let client = |common_name, organization| Profile {
            common_name,
            organization: Some(organization),
            names: &[],
            usage: ExtendedKeyUsagePurpose::ClientAuth,
        };
        let admin = leaf("admin", client("kubernetes-admin", MASTERS))?;
        let kubelet_client = leaf(
            "apiserver-kubelet-client",
            client("system:kube-apiserver", MASTERS),
        )?;
        let service_account_key = key(dir, "sa")?.serialize_pem();
        Ok(Self {
            dir: dir.to_path_buf(),
            ca_pem,
            issuer,
            server,
            admin,
            kubelet_client,
            service_account_key,
        })
    }

    /// The authority's certificate, PEM.
    pub fn ca(&self) -> &str {
        &self.ca_pem
    }

    /// The authority's certificate, DER.
    ///
    /// # Errors
    /// When what is stored is not PEM.
    pub fn ca_der(&self) -> Result<CertificateDer<'static>, PkiError> {
        CertificateDer::from_pem_slice(self.ca_pem.as_bytes())
            .map_err(|e| PkiError::Tls(e.to_string()))
    }

    /// The cluster administrator's credentials.
    pub fn admin(&self) -> &Credentials {
        &self.admin
    }

    /// The key that signs service account tokens, PKCS#8 PEM.
    pub fn service_account_key(&self) -> &str {
        &self.service_account_key
    }

    /// Makes (or finds) the certificates of a node's agent. `names` are the addresses and
    /// host names at which the agent's own endpoint is reached.
    ///
    /// # Errors
    /// When the certificates can't be made or stored.
    pub fn issue_node(&self, node: &str, names: &[String]) -> Result<NodeCredentials, PkiError> {
        let common_name = format!("{NODE_PREFIX}{node}");
        let issue = |file: String, names: &[String], usage| {
            let profile = Profile {
                common_name: &common_name,
                organization: Some(NODES),
                names,
                usage,
            };
            leaf(&self.dir, &self.issuer, &file, &profile)
        };
        Ok(NodeCredentials {
            client: issue(
                format!("node-{node}"),
                &[],
                ExtendedKeyUsagePurpose::ClientAuth,
            )?,
            serving: issue(
                format!("node-{node}-serving"),
                names,
                ExtendedKeyUsagePurpose::ServerAuth,
            )?,
        })
    }

    /// TLS of the API's endpoint: HTTP/2 and HTTP/1.1, a client certificate where one is given.
    ///
    /// # Errors
    /// When the stored certificates are not usable.
    pub fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, PkiError> {
        let tls = |e: &dyn std::fmt::Display| PkiError::Tls(e.to_string());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider())
                .allow_unauthenticated()
                .build()
                .map_err(|e| tls(&e))?;
        let (chain, key) = self.server.der()?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|e| tls(&e))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// TLS of a client that asks nodes on behalf of the API server.
    ///
    /// # Errors
    /// When the stored certificates are not usable.
    pub fn node_client_config(&self) -> Result<Arc<rustls::ClientConfig>, PkiError> {
        let tls = |e: &dyn std::fmt::Display| PkiError::Tls(e.to_string());
        let (chain, key) = self.kubelet_client.der()?;
        let config = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key)
            .map_err(|e| tls(&e))?;
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, PkiError> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.ca_pem.as_bytes())
            .map_err(|e| PkiError::Tls(e.to_string()))?;
        roots.add(ca).map_err(|e| PkiError::Tls(e.to_string()))?;
        Ok(roots)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The authority, made at the first start and kept for good: everything trusts it.
fn certificate_authority(dir: &Path) -> Result<(String, Issuer<'static, KeyPair>), PkiError> {
    let path = dir.join("ca.crt");
    let key = key(dir, "ca")?;
    let pem = match read(&path)? {
        Some(pem) => pem,
        None => {
            let make = |source| PkiError::Make {
                name: "ca".into(),
                source,
            };
            let mut params = CertificateParams::new(Vec::new()).map_err(make)?;
            params.distinguished_name.remove(DnType::CommonName);
            params
                .distinguished_name
                .push(DnType::CommonName, "skiff-ca");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![
                KeyUsagePurpose::KeyCertSign,
                KeyUsagePurpose::CrlSign,
                KeyUsagePurpose::DigitalSignature,
            ];
            set_lifetime(&mut params, CA_LIFETIME);
            let pem = params.self_signed(&key).map_err(make)?.pem();
            write(&path, &pem, 0o644)?;
            pem
        }
    };
    let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(|e| PkiError::Unusable {
        path,
        reason: e.to_string(),
    })?;
    Ok((pem, issuer))
}

fn leaf(
    dir: &Path,
    issuer: &Issuer<'static, KeyPair>,
    name: &str,
    profile: &Profile<'_>,
) -> Result<Credentials, PkiError> {
    let path = dir.join(format!("{name}.crt"));
    let key = key(dir, name)?;
    if let Some(certificate) = read(&path)?
        && is_current(&certificate, profile.names)
    {
        return Ok(Credentials {
            certificate,
            key: key.serialize_pem(),
        });
    }
    let make = |source| PkiError::Make {
        name: name.to_string(),
        source,
    };
    let mut params = CertificateParams::new(profile.names.to_vec()).map_err(make)?;
    params.distinguished_name.remove(DnType::CommonName);
    params
        .distinguished_name
        .push(DnType::CommonName, profile.common_name);
    if let Some(organization) = profile.organization {
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![profile.usage.clone()];
    params.use_authority_key_identifier_extension = true;
    set_lifetime(&mut params, LEAF_LIFETIME);
    let certificate = params.signed_by(&key, issuer).map_err(make)?.pem();
    write(&path, &certificate, 0o644)?;
    Ok(Credentials {
        certificate,
        key: key.serialize_pem(),
    })
}

fn set_lifetime(params: &mut CertificateParams, lifetime: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + lifetime;
}

/// Whether a stored certificate still lives long enough and carries all the names.
fn is_current(pem: &str, names: &[String]) -> bool {
    let Ok((_, block)) = x509_parser::pem::parse_x509_pem(pem.as_bytes()) else {
        return false;
    };
    let Ok(certificate) = block.parse_x509() else {
        return false;
    };
    let expires = certificate.validity().not_after.timestamp();
    if expires < (OffsetDateTime::now_utc() + RENEW_BEFORE).unix_timestamp() {
        return false;
    }
    let Ok(carried) = certificate.subject_alternative_name() else {
        return false;
    };
    let carried = carried.map_or(&[][..], |san| &san.value.general_names);
    names
        .iter()
        .all(|name| carried.iter().any(|general| is_name(general, name)))
}

fn is_name(general: &GeneralName<'_>, name: &str) -> bool {
    match general {
        GeneralName::DNSName(dns) => *dns == name,
        GeneralName::IPAddress(octets) => match name.parse() {
            Ok(IpAddr::V4(address)) => *octets == address.octets(),
            Ok(IpAddr::V6(address)) => *octets == address.octets(),
            Err(_) => false,
        },
        _ => false,
    }
}

fn key(dir: &Path, name: &str) -> Result<KeyPair, PkiError> {
    let path = dir.join(format!("{name}.key"));
    if let Some(pem) = read(&path)? {
        return KeyPair::from_pem(&pem).map_err(|e| PkiError::Unusable {
            path,
            reason: e.to_string(),
        });
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|source| PkiError::Make {
        name: name.to_string(),
        source,
    })?;
    write(&path, &key.serialize_pem(), 0o600)?;
    Ok(key)
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File {
            action: "read",
            path: path.to_path_buf(),
            source,
        }),
    }
}

/// Writes a file so that a crash leaves either the old one or the whole new one.
pub(super) fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let failed = |source| PkiError::File {
        action: "write",
        path: path.to_path_buf(),
        source,
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // A leftover of a crash may have another mode.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(&temporary)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_exists_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path(), &names(&["localhost", "127.0.0.1"])).unwrap();
        let second = Pki::open(dir.path(), &names(&["localhost", "127.0.0.1"])).unwrap();
        assert_eq!(first.ca(), second.ca());
        assert_eq!(first.server.certificate, second.server.certificate);
        assert_eq!(first.admin().certificate, second.admin().certificate);
    }

    #[test]
    fn a_new_name_renews_the_serving_certificate_alone() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path(), &names(&["localhost"])).unwrap();
        let second = Pki::open(dir.path(), &names(&["localhost", "::1"])).unwrap();
        assert_eq!(first.ca(), second.ca());
        assert_ne!(first.server.certificate, second.server.certificate);
        assert_eq!(first.admin().certificate, second.admin().certificate);
    }

    #[test]
    fn keys_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        Pki::open(dir.path(), &names(&["localhost"])).unwrap();
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            if entry.path().extension().is_some_and(|e| e == "key") {
                assert_eq!(
                    entry.metadata().unwrap().permissions().mode() & 0o777,
                    0o600
                );
            }
        }
    }

    #[test]
    fn a_broken_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.key"), "nonsense").unwrap();
        let error = Pki::open(dir.path(), &[]).err().unwrap().to_string();
        assert!(error.contains("ca.key"), "{error}");
    }
}
