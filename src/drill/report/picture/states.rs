//! The states of pods and nodes, in the few colours that can be told apart.

/// What a state means to whoever looks at the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Ready,
    Waiting,
    Starting,
    Running,
    Terminating,
    Broken,
    Other,
}

impl State {
    /// Of a span's state, which may be any word.
    pub fn of(state: &str) -> Self {
        let state = state.to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| state.contains(word));
        match state.as_str() {
            "ready" => Self::Ready,
            "running" => Self::Running,
            // Its containers have ended well; it is only to be removed.
            "succeeded" | "completed" => Self::Terminating,
            "pending" | "scheduled" => Self::Waiting,
            _ if has(&["creating", "starting", "init", "pulling"]) => Self::Starting,
            _ if has(&[
                "terminating",
                "deleting",
                "cordon",
                "schedulingdisabled",
                "drain",
            ]) =>
            {
                Self::Terminating
            }
            _ if has(&[
                "notready", "unknown", "fail", "error", "err", "crash", "backoff", "oom", "kill",
                "hang",
            ]) =>
            {
                Self::Broken
            }
            _ if has(&[
                "down",
                "away",
                "stopped",
                "evicted",
                "lost",
                "unreachable",
                "terminated",
            ]) =>
            {
                Self::Broken
            }
            _ => Self::Other,
        }
    }

    pub fn class(self) -> &'static str {
        match self {
            Self::Ready => "s-ready",
            Self::Waiting => "s-waiting",
            Self::Starting => "s-starting",
            Self::Running => "s-running",
            Self::Terminating => "s-terminating",
            Self::Broken => "s-broken",
            Self::Other => "s-other",
        }
    }

    /// For the words in a bar of this colour.
    pub fn text_class(self) -> &'static str {
        match self {
            Self::Waiting | Self::Running | Self::Other => "on-light",
            _ => "on-dark",
        }
    }

    pub fn meaning(self) -> &'static str {
        match self {
            Self::Ready => "Ready: it works",
            Self::Waiting => "waiting for a place",
            Self::Starting => "being started",
            Self::Running => "running, not Ready yet",
            Self::Terminating => "on its way out, or cordoned",
            Self::Broken => "not working",
            Self::Other => "another state",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_what_they_mean() {
        for (state, meaning) in [
            ("Ready", State::Ready),
            ("NotReady", State::Broken),
            ("Unknown", State::Broken),
            ("Pending", State::Waiting),
            ("ContainerCreating", State::Starting),
            ("PodInitializing", State::Starting),
            ("Running", State::Running),
            ("Terminating", State::Terminating),
            ("Succeeded", State::Terminating),
            ("Ready,SchedulingDisabled", State::Terminating),
            ("CrashLoopBackOff", State::Broken),
            ("ImagePullBackOff", State::Broken),
            ("OOMKilled", State::Broken),
            ("<anything>", State::Other),
        ] {
            assert_eq!(State::of(state), meaning, "{state}");
        }
    }
}
