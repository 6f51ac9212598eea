//! What probes and streams of writes measure: the file that a helper writes, and what is read from it.
//!
//! ```text
//! helper: request -> outcome -> samples (a file)        agent: samples -> tally -> status, while it lasts
//!                                                              samples -> course -> status, at the end
//! ```
//!
//! The file belongs to the task, not to a process: an agent that starts reads on, and what was measured is there
//! even if nobody was there to look.

pub(in crate::drill) mod clock;
pub(in crate::drill) mod course;
pub(in crate::drill) mod follow;
pub(in crate::drill) mod samples;
