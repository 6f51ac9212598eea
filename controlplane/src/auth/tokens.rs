//! Service account tokens: JSON web tokens that the control plane signs and checks.
//!
//! The claims are Kubernetes' (KEP 1205): a token belongs to a service account, perhaps to a pod
//! too, and is good as long as these exist with the uids it names. Whether they do is asked of
//! [`Bound`], which the watch cache implements.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};

use super::{UserInfo, es256};

/// Who signs, and for whom a token is when it names nobody: the API server.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the key that signs service account tokens can't be used: {0}")]
    Key(String),
    #[error("cannot sign a token: {0}")]
    Sign(String),
    #[error("invalid bearer token: {0}")]
    Invalid(String),
}

/// Signs and checks tokens.
pub struct Tokens {
    signing: EncodingKey,
    checking: DecodingKey,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    /// Seconds since 1970, as all times here.
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Kubernetes,
    pub nbf: i64,
    pub sub: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kubernetes {
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    pub serviceaccount: Reference,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    pub uid: String,
}

/// Knows which objects there are.
pub trait Bound {
    /// Whether the core object exists and has this uid.
    fn exists(&self, plural: &str, namespace: &str, object: &Reference) -> bool;
}

impl Tokens {
    /// # Errors
    /// When the key, PKCS#8 in PEM, is not one of the curve P-256.
    pub fn new(key: &str) -> Result<Self, TokenError> {
        es256::install();
        let bad = |error: &dyn std::fmt::Display| TokenError::Key(error.to_string());
        let public = KeyPair::from_pem(key)
            .map_err(|e| bad(&e))?
            .public_key_pem();
        Ok(Self {
            signing: EncodingKey::from_ec_pem(key.as_bytes()).map_err(|e| bad(&e))?,
            checking: DecodingKey::from_ec_pem(public.as_bytes()).map_err(|e| bad(&e))?,
        })
    }

    /// # Errors
    /// When signing fails.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &self.signing)
            .map_err(|e| TokenError::Sign(e.to_string()))
    }

    /// The user behind a token that is meant for one of `audiences`, and those audiences.
    ///
    /// # Errors
    /// When it is not ours, has expired, or what it is bound to is gone.
    pub fn check(
        &self,
        token: &str,
        audiences: &[&str],
        bound: &dyn Bound,
    ) -> Result<(UserInfo, Vec<String>), TokenError> {
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_issuer(&[ISSUER]);
        rules.set_audience(audiences);
        rules.validate_nbf = true;
        rules.leeway = 0;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.checking, &rules)
            .map_err(|e| TokenError::Invalid(e.to_string()))?
            .claims;
        let Kubernetes {
            namespace,
            pod,
            serviceaccount: account,
            ..
        } = claims.kubernetes;
        if !bound.exists("serviceaccounts", &namespace, &account) {
            return Err(TokenError::Invalid("its service account is gone".into()));
        }
        if pod.is_some_and(|pod| !bound.exists("pods", &namespace, &pod)) {
            return Err(TokenError::Invalid("its pod is gone".into()));
        }
        let groups = [
            "system:serviceaccounts".to_string(),
            format!("system:serviceaccounts:{namespace}"),
        ];
        let mut user = UserInfo::authenticated(claims.sub, groups);
        user.uid = account.uid;
        let good_for = claims.aud;
        let good_for = good_for
            .into_iter()
            .filter(|a| audiences.contains(&a.as_str()));
        Ok((user, good_for.collect()))
    }
}

/// The user name of a service account.
pub fn user_name(namespace: &str, account: &str) -> String {
    format!("system:serviceaccount:{namespace}:{account}")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exists(&'static [&'static str]);

    impl Bound for Exists {
        fn exists(&self, _: &str, _: &str, object: &Reference) -> bool {
            self.0.contains(&object.uid.as_str())
        }
    }

    fn claims(now: i64) -> Claims {
        let reference = |name: &str, uid: &str| Reference {
            name: name.to_string(),
            uid: uid.to_string(),
        };
        Claims {
            aud: vec![ISSUER.to_string()],
            exp: now + 600,
            iat: now,
            iss: ISSUER.to_string(),
            jti: "1".to_string(),
            kubernetes: Kubernetes {
                namespace: "ns".to_string(),
                node: None,
                pod: Some(reference("p", "pod-uid")),
                serviceaccount: reference("sa", "sa-uid"),
            },
            nbf: now,
            sub: user_name("ns", "sa"),
        }
    }

    fn tokens() -> Tokens {
        Tokens::new(&KeyPair::generate().unwrap().serialize_pem()).unwrap()
    }

    #[test]
    fn a_token_is_good_while_what_it_is_bound_to_exists() {
        let tokens = tokens();
        let now = jiff::Timestamp::now().as_second();
        let token = tokens.sign(&claims(now)).unwrap();
        let all = Exists(&["sa-uid", "pod-uid"]);
        let (user, audiences) = tokens.check(&token, &[ISSUER], &all).unwrap();
        assert_eq!(user.name, "system:serviceaccount:ns:sa");
        assert!(user.is_in("system:serviceaccounts:ns"));
        assert_eq!(audiences, [ISSUER]);
        for gone in [Exists(&["sa-uid"]), Exists(&["pod-uid"])] {
            assert!(tokens.check(&token, &[ISSUER], &gone).is_err());
        }
        assert!(tokens.check(&token, &["vault"], &all).is_err());
    }

    #[test]
    fn old_and_foreign_tokens_are_refused() {
        let all = Exists(&["sa-uid", "pod-uid"]);
        let now = jiff::Timestamp::now().as_second();
        let ours = tokens();
        let old = ours.sign(&claims(now - 3600)).unwrap();
        assert!(ours.check(&old, &[ISSUER], &all).is_err());
        let foreign = tokens().sign(&claims(now)).unwrap();
        assert!(ours.check(&foreign, &[ISSUER], &all).is_err());
    }
}
