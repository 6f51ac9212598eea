//! The token that a host joins with: `<id>.<secret>.<pin>`.
//!
//! Id and secret are a Kubernetes bootstrap token; the pin is the SHA-256 of the cluster's authority
//! (its public key, as kubeadm's `--discovery-token-ca-cert-hash`), in hexadecimal. So one string both
//! proves to the server who the host is, and to the host which cluster it is talking to.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The SHA-256 of an authority's public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

/// What a host shows, and what it checks.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: String,
    secret: String,
    pub pin: Pin,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no join token: it has the form <6 characters>.<16 characters>.<64 hexadecimal digits>, as `skiff token create` prints it"
)]
pub struct MalformedToken;

impl Pin {
    /// Of a certificate in PEM; `None` when it is none.
    pub fn of_pem(pem: &str) -> Option<Self> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        Some(Self(Sha256::digest(certificate.public_key().raw).into()))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Pin {
    type Err = MalformedToken;

    fn from_str(text: &str) -> Result<Self, MalformedToken> {
        let mut bytes = [0; 32];
        if text.len() != 2 * bytes.len() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(MalformedToken);
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| MalformedToken)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| MalformedToken)?;
        }
        Ok(Self(bytes))
    }
}

impl JoinToken {
    /// What the API server is shown: the bootstrap token.
    pub(super) fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    pub fn id(&self) -> &str {
        &self.id
    }
}

impl FromStr for JoinToken {
    type Err = MalformedToken;

    fn from_str(text: &str) -> Result<Self, MalformedToken> {
        let mut parts = text.trim().split('.');
        let (Some(id), Some(secret), Some(pin), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(MalformedToken);
        };
        let fits = |part: &str, length| {
            let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            part.len() == length && part.bytes().all(known)
        };
        if !fits(id, 6) || !fits(secret, 16) {
            return Err(MalformedToken);
        }
        Ok(Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
            pin: pin.parse()?,
        })
    }
}

/// Without the secret: this ends up in logs.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}.<secret>.{})", self.id, self.pin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_three_parts() {
        let pin = "0f".repeat(32);
        let token: JoinToken = format!("abcdef.0123456789abcdef.{pin}\n").parse().unwrap();
        assert_eq!(token.bearer(), "abcdef.0123456789abcdef");
        assert_eq!(token.pin.to_string(), pin);
        assert!(!format!("{token:?}").contains("0123456789abcdef."));
        for wrong in [
            String::new(),
            "abcdef.0123456789abcdef".into(),
            format!("abcdef.0123456789abcdef.{pin}.x"),
            format!("abcdef.0123456789abcde.{pin}"),
            format!("ABCDEF.0123456789abcdef.{pin}"),
            format!("abcdef.0123456789abcdef.{}", "0g".repeat(32)),
            format!("abcdef.0123456789abcdef.{}", "é".repeat(32)),
        ] {
            assert_eq!(wrong.parse::<JoinToken>(), Err(MalformedToken), "{wrong}");
        }
    }
}
