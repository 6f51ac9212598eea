//! Lists, whole or page by page. All pages of a list show the same instant: a list that has
//! more pages to come leaves the entries of that instant on the shelf for a while.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::{Cache, Entry, Scope, Selector, Shelf};
use crate::store::Revision;

/// How long a client may take from one page to the next (etcd's compaction interval).
const PAGES_KEPT: Duration = Duration::from_secs(300);
/// Half-way lists that a shelf keeps at most.
const PAGED_LISTS: usize = 16;

/// The entries of a scope at one instant.
type Entries = Arc<[Arc<Entry>]>;

/// Which part of a list is wanted.
#[derive(Debug, Clone, Default)]
pub struct PageRequest {
    /// 0: everything.
    pub limit: usize,
    pub continue_token: Option<String>,
    /// The state at exactly this revision, or none.
    pub exactly: Option<Revision>,
}

/// A list, or a page of one.
#[derive(Debug)]
pub struct Page {
    pub revision: Revision,
    pub entries: Vec<Arc<Entry>>,
    /// Asks for the next page; `None` on the last.
    pub continue_token: Option<String>,
    /// How many entries come after this page, where that is known without a search.
    pub remaining: Option<usize>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    #[error("continue key is not valid: {0}")]
    BadToken(String),
    /// Another list from `restart` on works, at the present revision.
    #[error(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list."
    )]
    TokenExpired { restart: String },
    #[error("The resourceVersion for the provided list is too old.")]
    RevisionExpired,
}

/// A list at the instant of its first page.
pub(super) struct Paged {
    revision: Revision,
    scope: Scope,
    entries: Arc<[Arc<Entry>]>,
    used: Instant,
}

/// What a continue token says, in Kubernetes' own encoding.
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    /// -1: the present, whatever it is by then.
    rv: i64,
    /// The key after which to go on.
    start: String,
}

impl Shelf {
    /// # Errors
    /// When the continue token is malformed or its list is no longer kept.
    pub fn list(
        &self,
        cache: &Cache,
        scope: &Scope,
        selector: &Selector,
        request: &PageRequest,
    ) -> Result<Page, ListError> {
        let token = request
            .continue_token
            .as_deref()
            .map(Token::decode)
            .transpose()?;
        let (revision, entries) = match &token {
            Some(token) if token.rv >= 0 => self
                .paged(token.rv.cast_unsigned(), scope)
                .ok_or_else(|| token.expired())?,
            _ => self.instant(cache, scope, request.exactly)?,
        };
        let start = token.map_or(0, |token| {
            entries.partition_point(|e| e.key.as_str() <= token.start.as_str())
        });
        Ok(self.page(revision, scope, selector, request.limit, entries, start))
    }

    /// The entries of a scope now, or at the wanted revision if they are at hand.
    fn instant(
        &self,
        cache: &Cache,
        scope: &Scope,
        exactly: Option<Revision>,
    ) -> Result<(Revision, Entries), ListError> {
        let state = self.read();
        let revision = cache.revision().max(state.last);
        match exactly {
            Some(wanted) if wanted < state.last => {
                drop(state);
                self.paged(wanted, scope).ok_or(ListError::RevisionExpired)
            }
            Some(wanted) => Ok((wanted, state.scoped(scope).cloned().collect())),
            None => Ok((revision, state.scoped(scope).cloned().collect())),
        }
    }

    fn page(
        &self,
        revision: Revision,
        scope: &Scope,
        selector: &Selector,
        limit: usize,
        all: Arc<[Arc<Entry>]>,
        start: usize,
    ) -> Page {
        let all_selected = selector.is_everything();
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut entries = Vec::new();
        let mut rest = all[start..].iter();
        for entry in rest.by_ref() {
            if all_selected || selector.matches(entry) {
                entries.push(entry.clone());
                if entries.len() == limit {
                    break;
                }
            }
        }
        let remaining = rest.len();
        let more = if all_selected {
            remaining > 0
        } else {
            rest.any(|entry| selector.matches(entry))
        };
        let last = entries.last().filter(|_| more);
        let continue_token = last.map(|last| Token::after(revision, last).encode());
        if more {
            self.keep(revision, scope, all);
        }
        Page {
            revision,
            entries,
            remaining: (more && all_selected).then_some(remaining),
            continue_token,
        }
    }

    fn paged(&self, revision: Revision, scope: &Scope) -> Option<(Revision, Arc<[Arc<Entry>]>)> {
        let mut pages = self.pages.lock();
        let paged = pages
            .iter_mut()
            .find(|p| p.revision == revision && p.scope == *scope)?;
        paged.used = Instant::now();
        Some((revision, paged.entries.clone()))
    }

    fn keep(&self, revision: Revision, scope: &Scope, entries: Arc<[Arc<Entry>]>) {
        let mut pages = self.pages.lock();
        if pages
            .iter()
            .any(|p| p.revision == revision && p.scope == *scope)
        {
            return;
        }
        if pages.len() >= PAGED_LISTS {
            pages.remove(0);
        }
        pages.push(Paged {
            revision,
            scope: scope.clone(),
            entries,
            used: Instant::now(),
        });
    }

    pub(super) fn drop_old_pages(&self) {
        self.pages
            .lock()
            .retain(|paged| paged.used.elapsed() < PAGES_KEPT);
    }
}

impl Token {
    fn after(revision: Revision, entry: &Entry) -> Self {
        Self {
            v: "meta.k8s.io/v1".to_string(),
            rv: revision.cast_signed(),
            start: entry.key.as_str().to_string(),
        }
    }

    fn encode(&self) -> String {
        let json = serde_json::json!({"v": self.v, "rv": self.rv, "start": self.start});
        URL_SAFE_NO_PAD.encode(json.to_string())
    }

    fn decode(text: &str) -> Result<Self, ListError> {
        let bad = |why: String| ListError::BadToken(why);
        let json = URL_SAFE_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_err(|e| bad(e.to_string()))?;
        let token: Self = serde_json::from_slice(&json).map_err(|e| bad(e.to_string()))?;
        if token.v != "meta.k8s.io/v1" {
            return Err(bad(format!(
                "server does not recognize this encoded version {:?}",
                token.v
            )));
        }
        Ok(token)
    }

    fn expired(&self) -> ListError {
        let restart = Self {
            v: self.v.clone(),
            rv: -1,
            start: self.start.clone(),
        };
        ListError::TokenExpired {
            restart: restart.encode(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Pods;
    use super::*;

    fn names(page: &Page) -> Vec<&str> {
        page.entries.iter().map(|e| e.name()).collect()
    }

    fn limit(limit: usize, continue_token: Option<String>) -> PageRequest {
        PageRequest {
            limit,
            continue_token,
            exactly: None,
        }
    }

    #[test]
    fn all_pages_show_one_instant() {
        let mut pods = Pods::new();
        for name in ["a", "b", "c", "d", "e"] {
            pods.put("ns", name, "web", "");
        }
        let (shelf, everything) = (pods.shelf(), Selector::default());
        let scope = Scope::namespace("ns");
        let list = |request| shelf.list(&pods.cache, &scope, &everything, &request);
        let first = list(limit(2, None)).unwrap();
        assert_eq!(names(&first), ["a", "b"]);
        assert_eq!(first.remaining, Some(3));
        let mut pods = pods;
        pods.delete("ns", "c");
        pods.put("ns", "bb", "web", "");
        let list = |request| shelf.list(&pods.cache, &scope, &everything, &request);
        let second = list(limit(2, first.continue_token)).unwrap();
        assert_eq!(names(&second), ["c", "d"]);
        assert_eq!(second.revision, first.revision);
        let third = list(limit(2, second.continue_token)).unwrap();
        assert_eq!(names(&third), ["e"]);
        assert_eq!(third.continue_token, None);
        let now = list(limit(0, None)).unwrap();
        assert_eq!(names(&now), ["a", "b", "bb", "d", "e"]);
    }

    #[test]
    fn a_selection_pages_over_what_it_selects() {
        let mut pods = Pods::new();
        for (name, app) in [("a", "web"), ("b", "db"), ("c", "web"), ("d", "db")] {
            pods.put("ns", name, app, "");
        }
        let web = Selector::parse("app=web", "", &[]).unwrap();
        let shelf = pods.shelf();
        let scope = Scope::everything();
        let first = shelf
            .list(&pods.cache, &scope, &web, &limit(1, None))
            .unwrap();
        assert_eq!((names(&first), first.remaining), (vec!["a"], None));
        let next = limit(1, first.continue_token);
        let second = shelf.list(&pods.cache, &scope, &web, &next).unwrap();
        assert_eq!(names(&second), ["c"]);
        assert_eq!(second.continue_token, None);
    }

    #[test]
    fn an_unknown_token_says_how_to_go_on() {
        let mut pods = Pods::new();
        pods.put("ns", "a", "web", "");
        pods.put("ns", "b", "web", "");
        let a = pods.shelf().all(&Scope::everything())[0].clone();
        let token = Token::after(3, &a).encode();
        let scope = Scope::everything();
        let shelf = pods.shelf();
        let list = |token| {
            let request = limit(1, Some(token));
            shelf.list(&pods.cache, &scope, &Selector::default(), &request)
        };
        let Err(ListError::TokenExpired { restart }) = list(token) else {
            panic!("the token should have expired");
        };
        assert_eq!(names(&list(restart).unwrap()), ["b"]);
        assert!(matches!(
            list("%%%".to_string()),
            Err(ListError::BadToken(_))
        ));
    }
}
