//! Which requests are a node's, and what may be signed: Kubernetes' rules for kubelets
//! (`k8s.io/kubernetes/pkg/apis/certificates`), and one for serving certificates, which Kubernetes
//! leaves to people.

use std::sync::Arc;

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use k8s_openapi::api::core::v1::Node;

use crate::auth::signing::Subject;
use crate::auth::{NODE_PREFIX, NODES};

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";

const CLIENT_USAGES: [&str; 3] = ["client auth", "digital signature", "key encipherment"];
const SERVING_USAGES: [&str; 3] = ["server auth", "digital signature", "key encipherment"];

/// Why a request may be approved, if its asker has the permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// A host's first certificate.
    NodeClient,
    /// A node's certificate anew.
    SelfNodeClient,
    /// A certificate for the node's own endpoint.
    SelfServing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing that is decided here.
    NotANodes,
    /// To be approved if the asker has the rule's permission.
    Ask(Rule),
    Deny {
        reason: &'static str,
        message: String,
    },
}

impl Rule {
    /// The subresource of requests that the asker must be allowed to create.
    pub(super) fn permission(self) -> Option<&'static str> {
        match self {
            Self::NodeClient => Some("nodeclient"),
            Self::SelfNodeClient => Some("selfnodeclient"),
            // It is the node itself that asks, for names that are its own.
            Self::SelfServing => None,
        }
    }

    pub(super) fn message(self) -> &'static str {
        match self {
            Self::NodeClient => {
                "Auto approving kubelet client certificate after SubjectAccessReview."
            }
            Self::SelfNodeClient => {
                "Auto approving self kubelet client certificate after SubjectAccessReview."
            }
            Self::SelfServing => "Auto approving kubelet serving certificate of the node itself.",
        }
    }
}

/// What to make of a request that nobody has decided about.
pub(super) fn judge(
    spec: &CertificateSigningRequestSpec,
    subject: &Subject,
    nodes: &[Arc<Node>],
) -> Verdict {
    let Some(node) = subject.common_name.strip_prefix(NODE_PREFIX) else {
        return Verdict::NotANodes;
    };
    if node.is_empty() || subject.organizations != [NODES] || subject.other_names {
        return Verdict::NotANodes;
    }
    let is_self = spec.username.as_deref() == Some(subject.common_name.as_str());
    match spec.signer_name.as_str() {
        NODE_CLIENT if has_usages(spec, &CLIENT_USAGES) && has_no_names(subject) => {
            if is_self {
                Verdict::Ask(Rule::SelfNodeClient)
            } else if nodes.iter().any(|n| is_named(n, node) && is_ready(n)) {
                Verdict::Deny {
                    reason: "NodeNameInUse",
                    message: format!("the node {node} is part of the cluster already, and alive"),
                }
            } else {
                Verdict::Ask(Rule::NodeClient)
            }
        }
        NODE_SERVING if is_self && has_usages(spec, &SERVING_USAGES) => {
            judge_serving(node, subject, nodes)
        }
        _ => Verdict::NotANodes,
    }
}

/// A node's endpoint goes by the node's name and by addresses that no other node has.
fn judge_serving(node: &str, subject: &Subject, nodes: &[Arc<Node>]) -> Verdict {
    if has_no_names(subject) || subject.dns_names.iter().any(|name| name != node) {
        return Verdict::NotANodes;
    }
    let others = nodes.iter().filter(|other| !is_named(other, node));
    let taken = others.flat_map(|other| {
        let status = other.status.as_ref();
        status
            .and_then(|s| s.addresses.as_ref())
            .into_iter()
            .flatten()
    });
    for address in taken {
        if subject.addresses.contains(&address.address) {
            return Verdict::Deny {
                reason: "AddressInUse",
                message: format!("the address {} is another node's", address.address),
            };
        }
    }
    Verdict::Ask(Rule::SelfServing)
}

/// The usages with which an approved request is signed; `None` when its signer is none of ours or
/// does not sign such.
pub(super) fn signable(spec: &CertificateSigningRequestSpec) -> Option<Vec<String>> {
    let allowed = match spec.signer_name.as_str() {
        CLIENT | NODE_CLIENT => &CLIENT_USAGES,
        NODE_SERVING => &SERVING_USAGES,
        _ => return None,
    };
    has_usages(spec, allowed).then(|| spec.usages.clone().unwrap_or_default())
}

/// Key encipherment is for RSA keys alone, and may be left out.
fn has_usages(spec: &CertificateSigningRequestSpec, allowed: &[&str; 3]) -> bool {
    let usages = spec.usages.as_deref().unwrap_or_default();
    let has = |usage: &str| usages.iter().any(|u| u == usage);
    has(allowed[0]) && has(allowed[1]) && usages.iter().all(|u| allowed.contains(&u.as_str()))
}

fn has_no_names(subject: &Subject) -> bool {
    subject.dns_names.is_empty() && subject.addresses.is_empty()
}

fn is_named(node: &Node, name: &str) -> bool {
    node.metadata.name.as_deref() == Some(name)
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeAddress, NodeCondition, NodeStatus};

    use super::*;

    fn spec(signer: &str, user: &str, usages: &[&str]) -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            signer_name: signer.into(),
            username: Some(user.into()),
            usages: Some(usages.iter().map(ToString::to_string).collect()),
            ..Default::default()
        }
    }

    fn subject(node: &str) -> Subject {
        Subject {
            common_name: format!("system:node:{node}"),
            organizations: vec![NODES.into()],
            ..Subject::default()
        }
    }

    fn node(name: &str, ready: &str, address: &str) -> Arc<Node> {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node.status = Some(NodeStatus {
            conditions: Some(vec![NodeCondition {
                type_: "Ready".into(),
                status: ready.into(),
                ..Default::default()
            }]),
            addresses: Some(vec![NodeAddress {
                type_: "InternalIP".into(),
                address: address.into(),
            }]),
            ..Default::default()
        });
        Arc::new(node)
    }

    const USAGES: &[&str] = &["digital signature", "client auth"];

    #[test]
    fn a_name_is_given_once() {
        let joining = spec(NODE_CLIENT, "system:bootstrap:abcdef", USAGES);
        let nodes = [
            node("a", "True", "10.0.0.1"),
            node("b", "Unknown", "10.0.0.2"),
        ];
        let ask = Verdict::Ask(Rule::NodeClient);
        assert_eq!(judge(&joining, &subject("c"), &nodes), ask);
        assert_eq!(judge(&joining, &subject("b"), &nodes), ask);
        let clash = judge(&joining, &subject("a"), &nodes);
        assert!(matches!(
            clash,
            Verdict::Deny {
                reason: "NodeNameInUse",
                ..
            }
        ));
        let renewal = spec(NODE_CLIENT, "system:node:a", USAGES);
        assert_eq!(
            judge(&renewal, &subject("a"), &nodes),
            Verdict::Ask(Rule::SelfNodeClient)
        );
    }

    #[test]
    fn what_is_no_nodes_waits_for_a_person() {
        let user = "system:bootstrap:abcdef";
        let mut masters = subject("a");
        masters.organizations = vec![crate::auth::MASTERS.into()];
        let mut both = subject("a");
        both.organizations.push(crate::auth::MASTERS.into());
        let mut named = subject("a");
        named.dns_names.push("kubernetes".into());
        for wrong in [masters, both, named] {
            let request = spec(NODE_CLIENT, user, USAGES);
            assert_eq!(judge(&request, &wrong, &[]), Verdict::NotANodes);
        }
        let signer = spec("example.com/x", user, USAGES);
        assert_eq!(judge(&signer, &subject("a"), &[]), Verdict::NotANodes);
        let usages = spec(NODE_CLIENT, user, &["digital signature", "server auth"]);
        assert_eq!(judge(&usages, &subject("a"), &[]), Verdict::NotANodes);
    }

    #[test]
    fn an_endpoint_goes_by_its_own_names() {
        let usages = &["digital signature", "server auth"];
        let nodes = [node("b", "True", "10.0.0.2")];
        let asked = |user: &str, dns: &str, address: &str| {
            let mut subject = subject("a");
            subject.dns_names.push(dns.into());
            subject.addresses.push(address.into());
            judge(&spec(NODE_SERVING, user, usages), &subject, &nodes)
        };
        let own = asked("system:node:a", "a", "10.0.0.1");
        assert_eq!(own, Verdict::Ask(Rule::SelfServing));
        assert_eq!(asked("system:node:b", "a", "10.0.0.1"), Verdict::NotANodes);
        assert_eq!(
            asked("system:node:a", "kubernetes", "10.0.0.1"),
            Verdict::NotANodes
        );
        let others = asked("system:node:a", "a", "10.0.0.2");
        assert!(matches!(
            others,
            Verdict::Deny {
                reason: "AddressInUse",
                ..
            }
        ));
    }
}
