//! Paths that name no resource: version, health, discovery, OpenAPI.

use std::sync::atomic::Ordering;

use http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Value, json};

use super::Api;
use super::answer::Answer;
use super::call::text_header;
use super::negotiate::{self, Wanted};
use super::path::Target;
use super::query::Query;
use super::status::ApiError;
use super::table::IncludeObject;
use super::{discovery, openapi};
use crate::resources::Registry;

/// The version of Kubernetes' API that is served.
pub const GIT_VERSION: &str = concat!("v1.37.0+skiff", env!("CARGO_PKG_VERSION"));

/// Paths that need no credentials.
pub fn is_public(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next();
    matches!(first, Some("version" | "healthz" | "livez" | "readyz"))
}

impl Api {
    pub(super) fn builtin(
        &self,
        method: &Method,
        path: &str,
        target: &Target,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Answer, ApiError> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(ApiError::method_not_allowed_here());
        }
        let registry = self.registry();
        let accept = text_header(headers, header::ACCEPT);
        let found = |value: Option<Value>| value.ok_or_else(ApiError::no_such_path);
        let value = match target {
            Target::CoreVersions | Target::Groups
                if negotiate::wants_aggregated_discovery(accept) =>
            {
                let core = *target == Target::CoreVersions;
                let document = discovery::aggregated(&registry, core);
                return Ok(Answer {
                    content_type: "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                    ..Answer::json(StatusCode::OK, &document)
                });
            }
            Target::CoreVersions => discovery::core_versions(&self.settings.address),
            Target::Groups => discovery::groups(&registry),
            Target::Group(group) => found(discovery::group(&registry, group))?,
            Target::Version(group, version) => {
                found(discovery::resources(&registry, group, version))?
            }
            _ => return self.other(path, query, accept),
        };
        let wanted = Wanted::of(accept, IncludeObject::Metadata).unwrap_or(Wanted::JSON);
        Answer::value(StatusCode::OK, &value, wanted)
    }

    fn other(&self, path: &str, query: &Query, accept: &str) -> Result<Answer, ApiError> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let registry = self.registry();
        match parts.as_slice() {
            [] => Ok(Answer::json(StatusCode::OK, &paths())),
            ["version"] => Ok(Answer::json(StatusCode::OK, &version())),
            [endpoint @ ("healthz" | "livez" | "readyz")] => Ok(self.health(endpoint, query)),
            [endpoint @ ("healthz" | "livez" | "readyz"), check] => self.one_check(endpoint, check),
            ["openapi", "v2"] if wants_protobuf(accept) => Ok(Answer {
                content_type: openapi::PROTOBUF,
                ..Answer::bytes(StatusCode::OK, openapi::v2_protobuf(&registry))
            }),
            ["openapi", "v2"] => {
                Wanted::of(accept, IncludeObject::Metadata)?;
                Ok(Answer::bytes(StatusCode::OK, openapi::v2(&registry)))
            }
            ["openapi", "v3"] => Ok(Answer::json(StatusCode::OK, &openapi::v3_index(&registry))),
            ["openapi", "v3", "api", version] => document(&registry, "", version, query),
            ["openapi", "v3", "apis", group, version] => document(&registry, group, version, query),
            _ => Err(ApiError::no_such_path()),
        }
    }

    /// What must be well for the endpoint to say so.
    fn checks(&self, endpoint: &str) -> Vec<(&'static str, bool)> {
        let mut checks = vec![
            ("ping", true),
            ("store", self.store.is_open()),
            (
                "poststarthook/bootstrap",
                self.bootstrapped.load(Ordering::Acquire),
            ),
        ];
        if endpoint == "readyz" {
            checks.push(("shutdown", !self.stopping.is_cancelled()));
        }
        checks
    }

    fn health(&self, endpoint: &str, query: &Query) -> Answer {
        let excluded = query.all("exclude");
        let checks = self.checks(endpoint);
        let well = checks
            .iter()
            .all(|(name, well)| *well || excluded.contains(name));
        let verbose = !query.all("verbose").is_empty();
        if well && !verbose {
            return Answer::text(StatusCode::OK, "ok");
        }
        let mut text = String::new();
        for (name, well) in checks {
            text.push_str(&match (well, excluded.contains(&name)) {
                (_, true) => format!("[+]{name} excluded: ok\n"),
                (true, _) => format!("[+]{name} ok\n"),
                (false, _) => format!("[-]{name} failed: reason withheld\n"),
            });
        }
        if well {
            return Answer::text(StatusCode::OK, text + endpoint + " check passed\n");
        }
        Answer::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            text + endpoint + " check failed\n",
        )
    }

    fn one_check(&self, endpoint: &str, check: &str) -> Result<Answer, ApiError> {
        let checks = self.checks(endpoint);
        match checks.iter().find(|(name, _)| *name == check) {
            Some((_, true)) => Ok(Answer::text(StatusCode::OK, "ok")),
            Some((_, false)) => Ok(Answer::text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("internal server error: {check} failed"),
            )),
            None => Err(ApiError::no_such_path()),
        }
    }
}

/// One version's OpenAPI document, to keep for whoever asks by its present hash.
fn document(
    registry: &Registry,
    group: &str,
    version: &str,
    query: &Query,
) -> Result<Answer, ApiError> {
    let document = openapi::v3(registry, group, version).ok_or_else(ApiError::no_such_path)?;
    Ok(Answer {
        immutable: query.text("hash") == openapi::fingerprint(registry, group, version),
        ..Answer::bytes(StatusCode::OK, document)
    })
}

/// Whether a client asks for the OpenAPI v2 document as protobuf before anything else.
fn wants_protobuf(accept: &str) -> bool {
    let first = accept.split(',').next().unwrap_or_default().trim();
    [openapi::PROTOBUF_ACCEPTED, openapi::PROTOBUF].contains(&first)
}

/// `GET /version`
pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": "37",
        "emulationMajor": "1",
        "emulationMinor": "37",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "36",
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", architecture()),
    })
}

/// The processor as Go, and so Kubernetes, names it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn paths() -> Value {
    json!({"paths": [
        "/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3",
        "/readyz", "/version",
    ]})
}
