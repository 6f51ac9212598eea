//! What can be broken or measured on a node, each kind in a file of its own.

mod burn_cpu;
mod crash_node;
mod exhaust_memory;
mod fill_disk;
mod kill_container;
mod packets;
mod probe;
mod refuse_registries;
mod restart_agent;
mod stop_container;
mod take_memory;
mod write;

pub(super) use burn_cpu::BurnCpu;
pub(super) use crash_node::CrashNode;
pub use crash_node::finish_crash;
pub(super) use exhaust_memory::ExhaustMemory;
pub(super) use fill_disk::FillDisk;
pub(super) use kill_container::KillContainer;
pub(super) use packets::{CutControlPlane, CutPods, DelayPackets, LosePackets, SilenceDns};
pub(super) use probe::Probe;
pub(super) use refuse_registries::RefuseRegistries;
pub(super) use restart_agent::RestartAgent;
pub(super) use stop_container::StopContainer;
pub(super) use take_memory::TakeMemory;
pub(super) use write::Write;
