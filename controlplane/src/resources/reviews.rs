//! Questions to the server in the form of objects: who am I, may I, is this token good.
//!
//! Creating one gives the answer (`crate::api::reviews`); nothing is stored.

use super::Resource;

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

pub(super) fn resources() -> [Resource; 6] {
    [
        Resource {
            singular: "selfsubjectreview",
            question: true,
            ..Resource::cluster_scoped(
                AUTHENTICATION,
                "v1",
                "SelfSubjectReview",
                "selfsubjectreviews",
                "io.k8s.api.authentication.v1.SelfSubjectReview",
            )
        },
        Resource {
            singular: "tokenreview",
            question: true,
            ..Resource::cluster_scoped(
                AUTHENTICATION,
                "v1",
                "TokenReview",
                "tokenreviews",
                "io.k8s.api.authentication.v1.TokenReview",
            )
        },
        Resource {
            singular: "localsubjectaccessreview",
            question: true,
            ..Resource::namespaced(
                AUTHORIZATION,
                "v1",
                "LocalSubjectAccessReview",
                "localsubjectaccessreviews",
                "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
            )
        },
        Resource {
            singular: "selfsubjectaccessreview",
            question: true,
            ..Resource::cluster_scoped(
                AUTHORIZATION,
                "v1",
                "SelfSubjectAccessReview",
                "selfsubjectaccessreviews",
                "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
            )
        },
        Resource {
            singular: "selfsubjectrulesreview",
            question: true,
            ..Resource::cluster_scoped(
                AUTHORIZATION,
                "v1",
                "SelfSubjectRulesReview",
                "selfsubjectrulesreviews",
                "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
            )
        },
        Resource {
            singular: "subjectaccessreview",
            question: true,
            ..Resource::cluster_scoped(
                AUTHORIZATION,
                "v1",
                "SubjectAccessReview",
                "subjectaccessreviews",
                "io.k8s.api.authorization.v1.SubjectAccessReview",
            )
        },
    ]
}
