//! A key that was made on this node, and what the cluster says about it.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

/// When a certificate is renewed: at this share of its life, less up to a tenth of it so that the
/// nodes of a cluster don't come all at once.
const RENEW_AT: f64 = 0.85;
const JITTER: f64 = 0.1;

/// A certificate with its key, both PEM.
#[derive(Clone)]
pub(super) struct KeyAndCertificate {
    pub(super) key: String,
    pub(super) certificate: String,
}

/// A key, and the request that asks for its certificate (PEM).
pub(super) struct KeyAndRequest {
    pub(super) key: String,
    pub(super) request: String,
}

/// From when to when, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: i64,
    pub(super) until: i64,
}

impl KeyAndRequest {
    /// A new key for the node, as client when there are no `addresses`, else as its endpoint there.
    pub(super) fn new(node: &str, addresses: &[IpAddr]) -> Result<Self, rcgen::Error> {
        let mut names = Vec::new();
        if !addresses.is_empty() {
            names.push(node.to_owned());
            names.extend(addresses.iter().map(IpAddr::to_string));
        }
        let mut params = CertificateParams::new(names)?;
        let subject = &mut params.distinguished_name;
        subject.remove(DnType::CommonName);
        subject.push(DnType::OrganizationName, "system:nodes");
        subject.push(DnType::CommonName, format!("system:node:{node}"));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(Self {
            request: params.serialize_request(&key)?.pem()?,
            key: key.serialize_pem(),
        })
    }
}

impl KeyAndCertificate {
    /// As rustls takes them; `None` when either is not PEM.
    pub(super) fn der(&self) -> Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes());
        let chain: Vec<_> = chain.collect::<Result<_, _>>().ok()?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).ok()?;
        (!chain.is_empty()).then_some((chain, key))
    }

    pub(super) fn validity(&self) -> Option<Validity> {
        let (chain, _) = self.der()?;
        let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
        let validity = certificate.validity();
        Some(Validity {
            from: validity.not_before.timestamp(),
            until: validity.not_after.timestamp(),
        })
    }

    /// Whether it can be used now.
    pub(super) fn is_valid(&self, now: Timestamp) -> bool {
        self.validity().is_some_and(|v| v.until > now.as_second())
    }

    /// Whether it is good for all of these addresses.
    pub(super) fn covers(&self, addresses: &[IpAddr]) -> bool {
        let covered = || -> Option<bool> {
            let (chain, _) = self.der()?;
            let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
            let names = certificate.subject_alternative_name().ok()??;
            let has = |address: &IpAddr| {
                let octets = match address {
                    IpAddr::V4(v4) => v4.octets().to_vec(),
                    IpAddr::V6(v6) => v6.octets().to_vec(),
                };
                let mut names = names.value.general_names.iter();
                names.any(|name| matches!(name, x509_parser::extensions::GeneralName::IPAddress(found) if *found == octets))
            };
            Some(addresses.iter().all(has))
        };
        covered().unwrap_or(false)
    }

    /// How long until it is to be renewed. `chance` is between 0 and 1.
    pub(super) fn renewal_in(&self, now: Timestamp, chance: f64) -> Duration {
        self.validity()
            .map_or(Duration::ZERO, |v| v.renewal_in(now.as_second(), chance))
    }
}

impl Validity {
    fn renewal_in(self, now: i64, chance: f64) -> Duration {
        let life = (self.until - self.from).max(0) as f64;
        let at = self.from as f64 + life * (RENEW_AT - JITTER * chance);
        Duration::from_secs_f64((at - now as f64).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_renewed_at_four_fifths_of_their_life() {
        let validity = Validity {
            from: 1000,
            until: 2000,
        };
        let seconds = |now, chance| validity.renewal_in(now, chance).as_secs();
        assert_eq!(seconds(1000, 0.5), 800);
        assert_eq!(seconds(1000, 0.0), 850);
        assert_eq!(seconds(1000, 1.0), 750);
        assert_eq!(seconds(1700, 0.5), 100);
        assert_eq!(seconds(3000, 0.5), 0);
    }

    #[test]
    fn a_request_names_the_node_and_its_endpoint() {
        let address: IpAddr = "10.0.0.7".parse().unwrap();
        let made = KeyAndRequest::new("n1", &[address]).unwrap();
        let key = KeyPair::from_pem(&made.key).unwrap();
        // The request parses, and is signed by the key that goes with it.
        let request = rcgen::CertificateSigningRequestParams::from_pem(&made.request).unwrap();
        let certificate = request.params.self_signed(&key).unwrap().pem();
        let pair = KeyAndCertificate {
            key: made.key,
            certificate,
        };
        assert!(pair.covers(&[address]));
        assert!(!pair.covers(&["10.0.0.8".parse().unwrap()]));
    }
}
