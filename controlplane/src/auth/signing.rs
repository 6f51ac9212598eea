//! Certificates for others' keys: what the signers of `certificates.k8s.io` do with a request.

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::pki::Pki;

/// The most that a certificate counts as valid before it was signed, for clocks that are behind.
const BACKDATE: Duration = Duration::minutes(5);

/// What somebody asks to have certified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    /// In text.
    pub addresses: Vec<String>,
    /// Whether it asks for names of other kinds (mail addresses, URIs).
    pub other_names: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error("unable to parse csr {0}")]
    Unreadable(String),
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
}

/// Reads the subject of a request in PEM.
///
/// # Errors
/// When it is not one.
pub fn subject_of(pem: &[u8]) -> Result<Subject, SigningError> {
    let unreadable = |e: &dyn std::fmt::Display| SigningError::Unreadable(e.to_string());
    let der = CertificateSigningRequestDer::from_pem_slice(pem).map_err(|e| unreadable(&e))?;
    let (_, request) = X509CertificationRequest::from_der(&der).map_err(|e| unreadable(&e))?;
    request.verify_signature().map_err(|e| unreadable(&e))?;
    let name = &request.certification_request_info.subject;
    let mut subject = Subject {
        common_name: name
            .iter_common_name()
            .next()
            .and_then(|n| n.as_str().ok())
            .unwrap_or_default()
            .into(),
        organizations: name
            .iter_organization()
            .filter_map(|o| o.as_str().ok().map(str::to_string))
            .collect(),
        ..Subject::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else {
            continue;
        };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => subject.dns_names.push((*name).to_string()),
                GeneralName::IPAddress(octets) => subject.addresses.push(address(octets)),
                _ => subject.other_names = true,
            }
        }
    }
    Ok(subject)
}

fn address(octets: &[u8]) -> String {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return std::net::Ipv4Addr::from(octets).to_string();
    }
    match <[u8; 16]>::try_from(octets) {
        Ok(octets) => std::net::Ipv6Addr::from(octets).to_string(),
        Err(_) => String::new(),
    }
}

impl Pki {
    /// Signs a request in PEM: subject, names and key are the request's, everything else is ours.
    /// `usages` are those of the CertificateSigningRequest's `spec.usages`.
    ///
    /// # Errors
    /// When the request is not one, or its signature is wrong.
    pub fn sign(
        &self,
        pem: &[u8],
        usages: &[String],
        lifetime: std::time::Duration,
    ) -> Result<String, SigningError> {
        let unreadable = |e: &dyn std::fmt::Display| SigningError::Unreadable(e.to_string());
        let der = CertificateSigningRequestDer::from_pem_slice(pem).map_err(|e| unreadable(&e))?;
        let mut request = CertificateSigningRequestParams::from_der(&der)?;
        let lifetime = Duration::try_from(lifetime).unwrap_or(Duration::days(365));
        let now = OffsetDateTime::now_utc();
        let asked = request.params;
        let mut params = CertificateParams::default();
        params.distinguished_name = asked.distinguished_name;
        params.subject_alt_names = asked.subject_alt_names;
        params.is_ca = IsCa::NoCa;
        params.key_usages = usages.iter().filter_map(|u| key_usage(u)).collect();
        params.extended_key_usages = usages.iter().filter_map(|u| extended_usage(u)).collect();
        params.use_authority_key_identifier_extension = true;
        params.not_before = now - BACKDATE.min(lifetime / 20);
        params.not_after = now + lifetime;
        request.params = params;
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

fn key_usage(name: &str) -> Option<KeyUsagePurpose> {
    match name {
        "signing" | "digital signature" => Some(KeyUsagePurpose::DigitalSignature),
        "content commitment" => Some(KeyUsagePurpose::ContentCommitment),
        "key encipherment" => Some(KeyUsagePurpose::KeyEncipherment),
        "key agreement" => Some(KeyUsagePurpose::KeyAgreement),
        "data encipherment" => Some(KeyUsagePurpose::DataEncipherment),
        _ => None,
    }
}

fn extended_usage(name: &str) -> Option<ExtendedKeyUsagePurpose> {
    match name {
        "client auth" => Some(ExtendedKeyUsagePurpose::ClientAuth),
        "server auth" => Some(ExtendedKeyUsagePurpose::ServerAuth),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{DnType, KeyPair};

    use super::*;
    use crate::auth::authenticate::from_certificate;

    #[test]
    fn a_request_becomes_a_certificate_of_the_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &[]).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["n1".into(), "10.0.0.7".into()]).unwrap();
        params.distinguished_name.remove(DnType::CommonName);
        params
            .distinguished_name
            .push(DnType::CommonName, "system:node:n1");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:nodes");
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();

        let subject = subject_of(pem.as_bytes()).unwrap();
        assert_eq!(subject.common_name, "system:node:n1");
        assert_eq!(subject.organizations, ["system:nodes"]);
        assert_eq!(subject.dns_names, ["n1"]);
        assert_eq!(subject.addresses, ["10.0.0.7"]);

        let usages = ["digital signature".to_string(), "client auth".to_string()];
        let hour = std::time::Duration::from_secs(3600);
        let signed = pki.sign(pem.as_bytes(), &usages, hour).unwrap();
        let der = rustls::pki_types::CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
        assert_eq!(from_certificate(&der).unwrap().node(), Some("n1"));
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        let validity = parsed.validity();
        let life = validity.not_after.timestamp() - validity.not_before.timestamp();
        assert!((3600..=3600 + 181).contains(&life), "{life}");
        assert!(!parsed.is_ca());

        assert!(subject_of(b"nonsense").is_err());
        assert!(pki.sign(b"nonsense", &usages, hour).is_err());
    }
}
