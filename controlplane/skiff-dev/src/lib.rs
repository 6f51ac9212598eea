//! The objects of Skiff's own API group, `skiff.dev/v1`: failure drills.
//!
//! The control plane and the agents never call each other; these are the objects by which they meet.
//! A [`Drill`] is what somebody wants to rehearse, and its status is the report. The drill controller
//! makes a [`DrillTask`] for each thing that some node (or the control plane itself) has to do: a
//! fault to bring about and to undo, a target to probe, a stream of writes to keep up.
//!
//! ```text
//! Drill -> the drill controller chooses victims -> DrillTasks -> agents carry them out, write status
//!       <- report <- what the controller saw of the cluster, and what the tasks say
//! ```

mod drill;
mod duration;
mod expectation;
mod object;
mod plan;
mod task;

pub use drill::{
    Drill, DrillKind, DrillPhase, DrillResult, DrillSpec, DrillStatus, EventCount,
    ExpectationResult, Latency, Parameters, ProbeBucket, ProbeScheme, ProbeSpec, Requests, Span,
    Target, TargetKind, TimelineEntry, UnknownDrill, Writes,
};
pub use duration::{GoDuration, InvalidDuration};
pub use expectation::{Expectation, InvalidExpectation};
pub use object::{GROUP, VERSION};
pub use plan::{Baseline, BaselinePod, DrillPlan, PlannedProbe, Scope, Victim};
pub use task::{
    Action, DrillTask, DrillTaskSpec, DrillTaskStatus, NumberRange, PodRef, ProbeTarget, TaskPhase,
};
