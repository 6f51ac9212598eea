//! Bootstrap tokens: what a host shows that wants to become a node.
//!
//! A token `<id>.<secret>` is good while the Secret `bootstrap-token-<id>` of kube-system says so
//! (Kubernetes' `bootstrap.kubernetes.io/token`). Who shows it is `system:bootstrap:<id>`, and may do
//! little more than ask for a node's certificate.

use std::hint::black_box;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use super::UserInfo;

pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
pub const NAMESPACE: &str = "kube-system";
/// Everybody who shows such a token is a member.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";
const USER_PREFIX: &str = "system:bootstrap:";
const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;

/// A token's two parts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BootstrapToken<'a> {
    pub id: &'a str,
    secret: &'a str,
}

/// Why a token lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no such bootstrap token")]
    Unknown,
    #[error("the bootstrap token {0} has expired")]
    Expired(String),
    #[error("the bootstrap token {0} is not for authentication")]
    NotForAuthentication(String),
}

impl<'a> BootstrapToken<'a> {
    /// `None` for what is no such token: six characters, a dot, sixteen characters.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (id, secret) = text.split_once('.')?;
        let fits = |part: &str, length| {
            part.len() == length
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        (fits(id, ID_LENGTH) && fits(secret, SECRET_LENGTH)).then_some(Self { id, secret })
    }

    /// The name of the Secret that says whether it is good.
    pub fn secret_name(&self) -> String {
        secret_name(self.id)
    }

    /// The user behind the token, by what its Secret says now.
    ///
    /// # Errors
    /// Only who knows the secret learns more than that it is no good.
    pub fn user(&self, secret: &Secret, now: Timestamp) -> Result<UserInfo, Refused> {
        let entry = |key: &str| text(secret, key).unwrap_or_default();
        let is_token = secret.type_.as_deref() == Some(SECRET_TYPE);
        let same = same(&entry("token-secret"), self.secret) & same(&entry("token-id"), self.id);
        if !is_token || secret.metadata.deletion_timestamp.is_some() || !same {
            return Err(Refused::Unknown);
        }
        if expiration(secret).is_some_and(|at| at.is_none_or(|at| at <= now)) {
            return Err(Refused::Expired(self.id.into()));
        }
        if entry("usage-bootstrap-authentication") != "true" {
            return Err(Refused::NotForAuthentication(self.id.into()));
        }
        let extra = entry("auth-extra-groups");
        let extra = extra
            .split(',')
            .filter(|g| g.starts_with("system:bootstrappers:"));
        let groups = std::iter::once(BOOTSTRAPPERS).chain(extra);
        let name = format!("{USER_PREFIX}{}", self.id);
        Ok(UserInfo::authenticated(name, groups.map(str::to_string)))
    }
}

pub fn secret_name(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

/// When a token ends: `None` never, `Some(None)` when what is written there is no time, which counts
/// as the past.
pub fn expiration(secret: &Secret) -> Option<Option<Timestamp>> {
    let written = text(secret, "expiration").filter(|text| !text.is_empty())?;
    Some(written.parse().ok())
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;
    String::from_utf8(bytes.0.clone()).ok()
}

/// Compares in a time that tells nothing about where two texts differ.
fn same(a: &str, b: &str) -> bool {
    let differing = a
        .bytes()
        .zip(b.bytes())
        .fold(0, |all, (a, b)| all | (a ^ b));
    (black_box(differing) == 0) & (a.len() == b.len())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn secret(entries: &[(&str, &str)]) -> Secret {
        let entry =
            |(key, value): &(&str, &str)| (key.to_string(), ByteString(value.as_bytes().to_vec()));
        Secret {
            type_: Some(SECRET_TYPE.into()),
            data: Some(entries.iter().map(entry).collect()),
            ..Secret::default()
        }
    }

    #[test]
    fn a_token_is_as_good_as_its_secret_says() {
        let now = Timestamp::from_second(1000).unwrap();
        let token = BootstrapToken::parse("abcdef.0123456789abcdef").unwrap();
        let mut entries = vec![
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("expiration", "1970-01-01T00:20:00Z"),
            (
                "auth-extra-groups",
                "system:bootstrappers:edge,system:masters",
            ),
        ];
        let user = token.user(&secret(&entries), now).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert!(user.is_in(BOOTSTRAPPERS) && user.is_in("system:bootstrappers:edge"));
        assert!(!user.is_in(crate::auth::MASTERS));

        entries[3].1 = "1970-01-01T00:10:00Z";
        let refused = |entries: &[_]| token.user(&secret(entries), now).unwrap_err();
        assert_eq!(refused(&entries), Refused::Expired("abcdef".into()));
        entries[3].1 = "soon";
        assert_eq!(refused(&entries), Refused::Expired("abcdef".into()));
        entries[3].1 = "";
        entries[2].1 = "false";
        assert!(matches!(
            refused(&entries),
            Refused::NotForAuthentication(_)
        ));
        entries[1].1 = "0123456789abcdeg";
        assert_eq!(refused(&entries), Refused::Unknown);
        let mut other = secret(&entries);
        other.type_ = Some("Opaque".into());
        assert_eq!(token.user(&other, now), Err(Refused::Unknown));
    }

    #[test]
    fn only_the_known_form_is_a_token() {
        for text in [
            "",
            "abcdef",
            "abcdef.0123456789abcde",
            "ABCDEF.0123456789abcdef",
            "a.b.c",
        ] {
            assert!(BootstrapToken::parse(text).is_none(), "{text}");
        }
    }
}
