//! From credentials to a user.

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::FromDer;
use x509_parser::prelude::X509Certificate;

use super::UserInfo;

/// The user that a client certificate names: its common name, and its organizations as groups.
///
/// The certificate has been verified against the cluster's authority by the TLS handshake.
/// `None` when it names nobody.
pub fn from_certificate(certificate: &CertificateDer<'_>) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .map(str::to_string);
    Some(UserInfo::authenticated(name, groups))
}

#[cfg(test)]
mod tests {
    use super::super::pki::Pki;
    use super::super::{MASTERS, NODES};
    use super::*;

    #[test]
    fn certificates_name_users_and_groups() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &[]).unwrap();
        let (chain, _) = pki.admin().der().unwrap();
        let admin = from_certificate(&chain[0]).unwrap();
        assert_eq!(admin.name, "kubernetes-admin");
        assert!(admin.is_in(MASTERS));

        let node = pki.issue_node("a", &["a".to_string()]).unwrap();
        let (chain, _) = node.client.der().unwrap();
        let agent = from_certificate(&chain[0]).unwrap();
        assert!(agent.is_in(NODES));
        assert_eq!(agent.node(), Some("a"));
    }
}
