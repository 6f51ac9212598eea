//! Acting as somebody else (`kubectl --as`), for those who may.

use http::HeaderMap;

use super::Api;
use super::status::ApiError;
use crate::auth::authorize::Attributes;
use crate::auth::{ANONYMOUS, UNAUTHENTICATED, UserInfo};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

impl Api {
    /// The user as whom the request acts: the one that its headers name, or who sent it.
    ///
    /// # Errors
    /// 403 when the sender may not impersonate, 400 when groups or a uid stand without a user.
    pub(super) fn impersonated(
        &self,
        sender: UserInfo,
        headers: &HeaderMap,
    ) -> Result<UserInfo, ApiError> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let groups: Vec<String> = headers
            .get_all(GROUP)
            .iter()
            .filter_map(|group| group.to_str().ok().map(str::to_string))
            .collect();
        let Some(name) = text(USER) else {
            if groups.is_empty() && text(UID).is_none() {
                return Ok(sender);
            }
            return Err(ApiError::bad_request(
                "requested impersonation of groups or a uid without impersonating a user",
            ));
        };
        self.may_impersonate(&sender, name, &groups)?;
        let mut user = assume(name, groups);
        if let Some(uid) = text(UID) {
            self.authorize(
                &sender,
                &impersonate("authentication.k8s.io", "uids", "", uid),
            )?;
            user.uid = uid.to_string();
        }
        Ok(user)
    }

    fn may_impersonate(
        &self,
        sender: &UserInfo,
        name: &str,
        groups: &[String],
    ) -> Result<(), ApiError> {
        let account = name.strip_prefix(SERVICE_ACCOUNT);
        match account.and_then(|account| account.split_once(':')) {
            Some((namespace, account)) => {
                self.authorize(
                    sender,
                    &impersonate("", "serviceaccounts", namespace, account),
                )?;
            }
            None => self.authorize(sender, &impersonate("", "users", "", name))?,
        }
        for group in groups {
            self.authorize(sender, &impersonate("", "groups", "", group))?;
        }
        Ok(())
    }
}

fn impersonate<'a>(
    group: &'a str,
    resource: &'a str,
    namespace: &'a str,
    name: &'a str,
) -> Attributes<'a> {
    Attributes {
        verb: "impersonate",
        group,
        resource,
        namespace,
        name,
        ..Attributes::default()
    }
}

/// The groups that a user has besides those that were asked for.
fn assume(name: &str, mut groups: Vec<String>) -> UserInfo {
    if name == ANONYMOUS {
        groups.push(UNAUTHENTICATED.to_string());
        return UserInfo {
            name: name.to_string(),
            uid: String::new(),
            groups,
        };
    }
    let account = name.strip_prefix(SERVICE_ACCOUNT);
    if let Some((namespace, _)) = account.and_then(|account| account.split_once(':'))
        && groups.is_empty()
    {
        groups.push("system:serviceaccounts".to_string());
        groups.push(format!("system:serviceaccounts:{namespace}"));
    }
    UserInfo::authenticated(name, groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::AUTHENTICATED;

    #[test]
    fn a_service_account_brings_its_groups() {
        let user = assume("system:serviceaccount:ns:sa", Vec::new());
        assert!(user.is_in("system:serviceaccounts:ns") && user.is_in(AUTHENTICATED));
        let user = assume("bob", vec!["dev".to_string()]);
        assert_eq!(user.groups, ["dev", AUTHENTICATED]);
        assert_eq!(assume(ANONYMOUS, Vec::new()).groups, [UNAUTHENTICATED]);
    }
}
