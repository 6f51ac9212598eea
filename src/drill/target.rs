//! What a drill is pointed at, as it is typed: `pod/web-1`, `deployment/web`, `node/n1`, `selector/app=web`.

use std::str::FromStr;

use skiff_dev::{Target, TargetKind};

/// A target without its namespace, which is an option of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetName(Target);

impl TargetName {
    /// The pods that a label selector matches.
    pub fn matching(selector: &str) -> Self {
        Self(Target {
            kind: TargetKind::Selector,
            selector: Some(selector.to_owned()),
            ..Target::default()
        })
    }

    /// The target, its namespace left open.
    pub fn target(self) -> Target {
        self.0
    }
}

impl FromStr for TargetName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str =
            "pod/NAME, deployment/NAME, replicaset/NAME, node/NAME or selector/LABELS";
        let Some((kind, name)) = text.split_once('/') else {
            return Err(format!("{text:?} is no target: it takes {FORMS}"));
        };
        // As kubectl: short names, plurals, and the group behind a dot.
        let kind = match kind.to_ascii_lowercase().as_str() {
            "pod" | "pods" | "po" => TargetKind::Pod,
            "deployment" | "deployments" | "deploy" | "deployment.apps" | "deployments.apps" => {
                TargetKind::Deployment
            }
            "replicaset" | "replicasets" | "rs" | "replicaset.apps" | "replicasets.apps" => {
                TargetKind::ReplicaSet
            }
            "node" | "nodes" | "no" => TargetKind::Node,
            "selector" => TargetKind::Selector,
            _ => return Err(format!("{kind:?} is nothing to drill: it takes {FORMS}")),
        };
        if name.is_empty() {
            return Err(format!("{text:?} names nothing: it takes {FORMS}"));
        }
        if kind == TargetKind::Selector {
            return Ok(Self::matching(name));
        }
        if name.contains('/') {
            return Err(format!("{name:?} is no name of an object"));
        }
        Ok(Self(Target {
            kind,
            name: Some(name.to_owned()),
            ..Target::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        text.parse::<TargetName>().unwrap().target()
    }

    #[test]
    fn targets_are_named_as_for_kubectl() {
        for (text, kind) in [
            ("pod/x", TargetKind::Pod),
            ("po/x", TargetKind::Pod),
            ("deploy/x", TargetKind::Deployment),
            ("deployments.apps/x", TargetKind::Deployment),
            ("Deployment/x", TargetKind::Deployment),
            ("rs/x", TargetKind::ReplicaSet),
            ("node/x", TargetKind::Node),
        ] {
            let found = target(text);
            assert_eq!((found.kind, found.name.as_deref()), (kind, Some("x")));
        }
    }

    #[test]
    fn a_selector_may_hold_anything() {
        let found = target("selector/app.example/name in (a,b)");
        assert_eq!(found.selector.as_deref(), Some("app.example/name in (a,b)"));
        assert_eq!((found.kind, found.name), (TargetKind::Selector, None));
    }

    #[test]
    fn wrong_forms_are_told_the_right_ones() {
        for wrong in ["", "web", "/web", "pod/", "job/x", "pod/a/b", "selector/"] {
            let error = wrong.parse::<TargetName>().unwrap_err();
            assert!(!error.is_empty(), "{wrong}");
        }
        let error = "svc/web".parse::<TargetName>().unwrap_err();
        assert!(
            error.contains("deployment/NAME") && error.contains("\"svc\""),
            "{error}"
        );
    }
}
