//! Failures on purpose: what this node's agent does in drills.
//!
//! The drill controller makes a [`DrillTask`](skiff_dev::DrillTask) for each thing that this node has to
//! do: a fault to bring about and to undo, something to probe, a stream of writes to keep up.
//!
//! ```text
//! watch of own tasks -> runner -> a worker for each task
//!                                  prepare (refuse)  -> journal -> inject -> hold ... undo -> journal -> status, finalizer
//! ```
//!
//! - [`fault`] is the seam: every kind of thing to do is a [`Fault`](fault::Fault), one file in `faults/`, and `fault::of`
//!   is the one place that knows them all.
//! - `worker` takes one task through its life. It undoes when the task is stopped, deleted, gone, or due; when
//!   the agent ends in good order; and when somebody on the host asks for it ([`heal`]).
//! - [`journal`] is written before anything is touched. An agent that starts goes on with what is still
//!   wanted, and undoes the rest; without an agent, [`heal_in_place`] undoes.
//! - `helper` are child processes that do what must not be done in the agent (spin, take memory), or
//!   must outlive it (probe). They watch the clock themselves and end when their task is due.
//! - `report` writes statuses, however long the API is away.

pub(crate) mod fault;
mod faults;
mod heal;
pub mod helper;
pub(crate) mod journal;
mod measure;
pub(crate) mod report;
mod runner;
pub(crate) mod site;
mod target;
mod worker;

pub use faults::finish_crash;
pub use heal::{HealError, ask_to_heal, heal_in_place, open_tasks};
pub(crate) use runner::Runner;
pub(crate) use site::{Scene, Site, Surroundings};
