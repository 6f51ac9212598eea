//! The API over HTTP: a path and a method become a verb on a resource, which one generic
//! pipeline serves.
//!
//! ```text
//! authenticate -> authorize -> decode -> default -> admit -> validate -> store
//!                                                              watch cache -> get, list, watch
//! ```
//!
//! [`Api::handle`] takes every request, from the TLS server and from the control plane's own
//! parts alike. [`call::Call`] is one request to a resource; each verb is a file.

mod allocate;
pub mod answer;
mod approval;
pub(crate) mod bootstrap;
pub mod builtin;
pub mod call;
mod create;
mod decode;
mod delete;
pub mod discovery;
mod eviction;
mod impersonate;
pub mod names;
pub mod negotiate;
mod node;
pub mod object;
pub mod openapi;
pub mod patch;
mod patching;
pub mod path;
mod policy;
pub mod query;
mod read;
mod reviews;
mod sessions;
pub mod status;
mod subresource;
pub mod table;
mod tokens;
mod update;
mod watch;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::upgrade::OnUpgrade;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::admission::DefaultTolerations;
use crate::allocation::ServiceAllocator;
use crate::auth::UserInfo;
use crate::auth::authorize::Attributes;
use crate::auth::tokens::Tokens;
use crate::cache::Cache;
use crate::resources::{Registry, Resource};
use crate::store::Store;
use answer::Answer;
use call::Call;
use path::{ResourcePath, Target};
use query::Query;
use status::ApiError;

/// Serves the API.
pub struct Api {
    registry: RwLock<Arc<Registry>>,
    store: Arc<dyn Store>,
    cache: Arc<Cache>,
    services: Arc<ServiceAllocator>,
    credentials: Option<Credentials>,
    settings: Settings,
    /// What must exist before anybody is served does.
    bootstrapped: AtomicBool,
    /// Cancelled when the server stops: ends the watches.
    stopping: CancellationToken,
}

/// What whoever starts the server chooses.
pub struct Settings {
    /// `host:port`, for discovery.
    pub address: String,
    /// How long pods tolerate that their node is lost, if they don't say.
    pub tolerations: DefaultTolerations,
}

/// What the server itself proves who it is with. Without it no node is asked, and no tokens
/// are issued or believed.
pub struct Credentials {
    pub node_tls: Arc<rustls::ClientConfig>,
    pub tokens: Tokens,
}

impl Api {
    pub fn new(
        registry: Registry,
        store: Arc<dyn Store>,
        cache: Arc<Cache>,
        services: Arc<ServiceAllocator>,
        credentials: Option<Credentials>,
        settings: Settings,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            registry: RwLock::new(Arc::new(registry)),
            store,
            cache,
            services,
            credentials,
            settings,
            bootstrapped: AtomicBool::new(false),
            stopping,
        }
    }

    pub fn registry(&self) -> Arc<Registry> {
        self.registry.read().clone()
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// Answers one request. Who asks is the request's [`UserInfo`] extension, if the connection
    /// has proved it.
    pub async fn handle(&self, request: Request<Body>) -> Response<Body> {
        match self.serve(request).await {
            Ok(response) => response,
            Err(error) => Answer::from(error).into_response(),
        }
    }

    async fn serve(&self, request: Request<Body>) -> Result<Response<Body>, ApiError> {
        let (mut parts, body) = request.into_parts();
        let user = match parts.extensions.remove::<UserInfo>() {
            Some(user) => user,
            None => self
                .bearer(&parts.headers)?
                .unwrap_or_else(UserInfo::anonymous),
        };
        let user = self.impersonated(user, &parts.headers)?;
        let path = parts.uri.path();
        let query = Query::parse(parts.uri.query());
        let target = Target::parse(path);
        let Target::Resource(resource_path) = target else {
            if !builtin::is_public(path) {
                let method = parts.method.as_str().to_ascii_lowercase();
                let attributes = Attributes {
                    verb: &method,
                    path: Some(path),
                    ..Attributes::default()
                };
                self.authorize(&user, &attributes)?;
            }
            let answer = self.builtin(&parts.method, path, &target, &query, &parts.headers)?;
            return Ok(answer.into_response());
        };
        let verb = Verb::of(&parts.method, &resource_path, &query)?;
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        self.authorize(&user, &attributes(verb, &resource_path, &query))?;
        let (resource, stored) = self.find(&resource_path)?;
        let call = Call::new(user, resource, stored, resource_path, query, parts.headers)?;
        if let Some(response) = self.connect_to_node(verb, &call, upgrade).await {
            return response;
        }
        let deprecated = call.resource.deprecated;
        let response = self.dispatch(verb, call, body).await;
        let Some(warning) = deprecated else {
            return response;
        };
        let mut response = response.unwrap_or_else(|error| Answer::from(error).into_response());
        answer::warn(response.headers_mut(), warning);
        Ok(response)
    }

    fn find(&self, path: &ResourcePath) -> Result<(Arc<Resource>, Arc<Resource>), ApiError> {
        let registry = self.registry();
        let resource = registry
            .get(&path.group, &path.version, &path.plural)
            .ok_or_else(ApiError::no_such_path)?;
        // A namespace in the path belongs to namespaced kinds only; without one they list all.
        let fits = match &path.namespace {
            Some(_) => resource.namespaced,
            None => !resource.namespaced || path.name.is_none(),
        };
        if !fits {
            return Err(ApiError::no_such_path());
        }
        let stored = registry.storing(resource);
        let stored = stored.ok_or_else(|| {
            ApiError::internal(format!("nothing stores {}", resource.qualified()))
        })?;
        Ok((resource.clone(), stored))
    }

    async fn dispatch(
        &self,
        verb: Verb,
        mut call: Call,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        if call.resource.question && (verb != Verb::Create || !call.subresource.is_empty()) {
            return Err(ApiError::method_not_allowed_here());
        }
        if verb == Verb::Watch && call.subresource.is_empty() {
            return self.watch(call);
        }
        let body = read_body(body).await?;
        let answer = if call.subresource.is_empty() {
            match verb {
                Verb::Get => self.get(&call),
                Verb::List | Verb::Watch => self.list(&call),
                Verb::Create if call.resource.question => self.review(&call, &body),
                Verb::Create => self.create(&call, &body).await,
                Verb::Update => self.update(&call, &body).await,
                Verb::Patch => self.patch(&call, &body).await,
                Verb::Delete => self.delete(&call, &body).await,
                Verb::DeleteCollection => self.delete_collection(&mut call, &body).await,
            }
        } else {
            self.subresource(verb, &call, &body).await
        };
        Ok(answer?.into_response())
    }

    /// Requests that a node answers; `None` for all others.
    async fn connect_to_node(
        &self,
        verb: Verb,
        call: &Call,
        upgrade: Option<OnUpgrade>,
    ) -> Option<Result<Response<Body>, ApiError>> {
        if !call.resource.group.is_empty() {
            return None;
        }
        let connects = matches!(verb, Verb::Get | Verb::Create);
        Some(
            match (call.resource.plural, call.subresource.as_str(), verb) {
                ("pods", "log", Verb::Get) => self.pod_log(call).await,
                ("pods", "exec" | "attach", _) if connects => self.pod_session(call, upgrade).await,
                ("pods", "portforward", _) if connects => self.pod_ports(call, upgrade).await,
                ("nodes", "proxy", Verb::Get) => self.node_proxy(call).await,
                _ => return None,
            },
        )
    }

    async fn subresource(&self, verb: Verb, call: &Call, body: &[u8]) -> Result<Answer, ApiError> {
        let resource = call.resource.clone();
        let is_core = |plural: &str| resource.group.is_empty() && resource.plural == plural;
        match (call.subresource.as_str(), &resource.scale, verb) {
            ("status", _, Verb::Get) if resource.has_status => self.get(call),
            ("status", _, Verb::Update) if resource.has_status => self.update(call, body).await,
            ("status", _, Verb::Patch) if resource.has_status => self.patch(call, body).await,
            ("approval", _, Verb::Get) if resource.has_approval => self.get(call),
            ("approval", _, Verb::Update) if resource.has_approval => self.update(call, body).await,
            ("approval", _, Verb::Patch) if resource.has_approval => self.patch(call, body).await,
            ("scale", Some(scale), Verb::Get) => self.get_scale(call, scale),
            ("scale", Some(scale), Verb::Update) => self.update_scale(call, scale, body).await,
            ("scale", Some(scale), Verb::Patch) => self.patch_scale(call, scale, body).await,
            ("binding", _, Verb::Create) if is_core("pods") => self.bind(call, body).await,
            ("eviction", _, Verb::Create) if is_core("pods") => {
                self.create_eviction(call, body).await
            }
            ("token", _, Verb::Create) if is_core("serviceaccounts") => {
                self.create_token(call, body)
            }
            ("finalize", _, Verb::Update) if is_core("namespaces") => {
                self.finalize(call, body).await
            }
            ("status" | "scale" | "binding" | "eviction" | "finalize", _, _) => {
                Err(ApiError::method_not_allowed_here())
            }
            _ => Err(ApiError::no_such_path()),
        }
    }
}

/// What a request does to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    fn of(method: &Method, path: &ResourcePath, query: &Query) -> Result<Self, ApiError> {
        let one = path.name.is_some();
        match *method {
            Method::GET | Method::HEAD if one => Ok(Self::Get),
            Method::GET | Method::HEAD if query.flag("watch") => Ok(Self::Watch),
            Method::GET | Method::HEAD => Ok(Self::List),
            Method::POST if !one || path.subresource.is_some() => Ok(Self::Create),
            Method::PUT if one => Ok(Self::Update),
            Method::PATCH if one => Ok(Self::Patch),
            Method::DELETE if one => Ok(Self::Delete),
            Method::DELETE => Ok(Self::DeleteCollection),
            _ => Err(ApiError::method_not_allowed_here()),
        }
    }

    /// As rules name it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

fn attributes<'a>(verb: Verb, path: &'a ResourcePath, query: &'a Query) -> Attributes<'a> {
    let name = path.name.as_deref().unwrap_or_default();
    // A namespace counts as being inside itself.
    let namespace = match &path.namespace {
        Some(namespace) => namespace,
        None if path.group.is_empty() && path.plural == "namespaces" => name,
        None => "",
    };
    let subresource = path.subresource.as_deref().unwrap_or_default();
    // A session changes the pod, whatever method its protocol opens with.
    let session = path.plural == "pods" && matches!(subresource, "exec" | "attach" | "portforward");
    Attributes {
        verb: if session { "create" } else { verb.as_str() },
        group: &path.group,
        version: &path.version,
        resource: &path.plural,
        subresource,
        namespace,
        name,
        field_selector: query.text("fieldSelector"),
        path: None,
    }
}

async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    let limited = Limited::new(body, decode::LIMIT);
    match limited.collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(decode::LIMIT)),
        Err(error) => Err(ApiError::bad_request(format!(
            "the body could not be read: {error}"
        ))),
    }
}
