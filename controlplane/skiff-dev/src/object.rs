//! What makes a struct an object of the API for `k8s-openapi` and `kube`.

pub const GROUP: &str = "skiff.dev";
pub const VERSION: &str = "v1";

/// Implements a cluster-scoped kind of this group for a struct with `metadata`, `spec` and `status`.
///
/// Serialisation is written out here because `apiVersion` and `kind` belong to the type, not to
/// a value of it.
macro_rules! object {
    ($kind:ident, $name:literal, $plural:literal, $spec:ty, $status:ty) => {
        impl k8s_openapi::Resource for $kind {
            const API_VERSION: &'static str = "skiff.dev/v1";
            const GROUP: &'static str = $crate::GROUP;
            const KIND: &'static str = $name;
            const VERSION: &'static str = $crate::VERSION;
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = k8s_openapi::ClusterResourceScope;
        }

        impl k8s_openapi::Metadata for $kind {
            type Ty = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

            fn metadata(&self) -> &Self::Ty {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut Self::Ty {
                &mut self.metadata
            }
        }

        impl serde::Serialize for $kind {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                #[derive(serde::Serialize)]
                #[serde(rename_all = "camelCase")]
                struct Written<'a> {
                    api_version: &'static str,
                    kind: &'static str,
                    metadata: &'a k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
                    spec: &'a $spec,
                    #[serde(skip_serializing_if = "Option::is_none")]
                    status: &'a Option<$status>,
                }
                Written {
                    api_version: <Self as k8s_openapi::Resource>::API_VERSION,
                    kind: <Self as k8s_openapi::Resource>::KIND,
                    metadata: &self.metadata,
                    spec: &self.spec,
                    status: &self.status,
                }
                .serialize(serializer)
            }
        }
    };
}

pub(crate) use object;
