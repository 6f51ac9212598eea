//! What came of a drill, in one word.

use skiff_dev::{Drill, DrillPhase, DrillResult, DrillStatus};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    Failed,
    Refused,
    Cancelled,
    /// Victims were chosen, and nothing was touched.
    DryRun,
    /// It goes on.
    Unfinished(DrillPhase),
}

impl Verdict {
    pub fn of(drill: &Drill) -> Self {
        let Some(status) = &drill.status else {
            return Self::Unfinished(DrillPhase::Pending);
        };
        match status.result {
            Some(DrillResult::Refused) => Self::Refused,
            Some(DrillResult::Cancelled) => Self::Cancelled,
            _ if status.phase != DrillPhase::Completed => Self::Unfinished(status.phase),
            _ if drill.spec.dry_run => Self::DryRun,
            Some(DrillResult::Passed) => Self::Passed,
            // A drill that is over without a result is none to rely on.
            Some(DrillResult::Failed) | None => Self::Failed,
        }
    }

    /// Whether a script may go on.
    pub fn is_good(self) -> bool {
        matches!(self, Self::Passed | Self::DryRun)
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "PASSED",
            Self::Failed => "FAILED",
            Self::Refused => "REFUSED",
            Self::Cancelled => "CANCELLED",
            Self::DryRun => "DRY RUN",
            Self::Unfinished(_) => "UNFINISHED",
        }
    }
}

/// What there is to say of a drill, also if nothing has happened yet.
pub fn status(drill: &Drill) -> DrillStatus {
    drill.status.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drill(phase: DrillPhase, result: Option<DrillResult>, dry_run: bool) -> Drill {
        let mut drill = Drill {
            status: Some(DrillStatus {
                phase,
                result,
                ..DrillStatus::default()
            }),
            ..Drill::default()
        };
        drill.spec.dry_run = dry_run;
        drill
    }

    #[test]
    fn only_what_ended_well_is_good() {
        use DrillPhase::{Completed, Healing};
        for (phase, result, dry_run, verdict) in [
            (Completed, Some(DrillResult::Passed), false, Verdict::Passed),
            (Completed, Some(DrillResult::Failed), false, Verdict::Failed),
            (Completed, Some(DrillResult::Passed), true, Verdict::DryRun),
            (Completed, None, true, Verdict::DryRun),
            (
                Completed,
                Some(DrillResult::Refused),
                true,
                Verdict::Refused,
            ),
            (
                Completed,
                Some(DrillResult::Cancelled),
                false,
                Verdict::Cancelled,
            ),
            (Completed, None, false, Verdict::Failed),
            (Healing, None, false, Verdict::Unfinished(Healing)),
        ] {
            assert_eq!(Verdict::of(&drill(phase, result, dry_run)), verdict);
        }
        assert!(!Verdict::of(&Drill::default()).is_good());
    }
}
