//! One container, as the shim keeps it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use skiff_shim::protocol::Create;
use skiff_shim::record::{ContainerRecord, ContainerState, START_ERROR_EXIT_CODE};

use crate::clock::Moment;
use crate::create::LIBCONTAINER_DIR;
use crate::log::LogFile;
use crate::output::{Attached, Output};
use crate::reaper::Ending;
use crate::{Result, cgroup, context};

/// A request that is answered later.
#[derive(Clone, Copy)]
pub(crate) struct Waiting {
    pub(crate) client: u64,
    pub(crate) seq: u64,
}

/// How far a container has come.
pub(crate) enum Phase {
    /// The forked child sets it up.
    SettingUp {
        child: Pid,
        channel: OwnedFd,
        asked: Waiting,
    },
    /// Its process waits to be started.
    Waiting {
        channel: OwnedFd,
    },
    /// Its process was let go and has not executed its program yet.
    Starting {
        channel: OwnedFd,
        asked: Waiting,
    },
    Running,
    Ended,
}

pub(crate) struct Container {
    pub(crate) record: ContainerRecord,
    pub(crate) phase: Phase,
    /// Its first process, from when it is known to when it was reaped.
    pub(crate) pid: Option<Pid>,
    pub(crate) state_dir: PathBuf,
    pub(crate) cgroups: Vec<PathBuf>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) log: Option<LogFile>,
    /// Where its input is written: a pipe, or its terminal.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdin_once: bool,
    pub(crate) attached: Vec<Attached>,
}

impl Container {
    pub(crate) fn new(create: &Create, phase: Phase) -> Self {
        Self {
            record: ContainerRecord {
                id: create.id.clone(),
                name: create.name.clone(),
                attempt: create.attempt,
                image: create.image.clone(),
                image_id: create.image_id.clone(),
                log_path: create.log_path.clone(),
                created_at: Moment::now().to_micros(),
                state: ContainerState::Created,
            },
            phase,
            pid: None,
            state_dir: create.state_dir.clone(),
            cgroups: create.cgroups.clone(),
            outputs: Vec::new(),
            log: None,
            stdin: None,
            stdin_once: create.stdin_once,
            attached: Vec::new(),
        }
    }

    /// A container of an earlier shim: it has ended, or was lost.
    pub(crate) fn from_record(record: ContainerRecord, state_dir: PathBuf) -> Self {
        Self {
            record,
            phase: Phase::Ended,
            pid: None,
            state_dir,
            cgroups: Vec::new(),
            outputs: Vec::new(),
            log: None,
            stdin: None,
            stdin_once: false,
            attached: Vec::new(),
        }
    }

    /// The channel to the process that is being set up or started.
    pub(crate) fn channel(&self) -> Option<&OwnedFd> {
        match &self.phase {
            Phase::SettingUp { channel, .. }
            | Phase::Waiting { channel }
            | Phase::Starting { channel, .. } => Some(channel),
            Phase::Running | Phase::Ended => None,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// Writes the record where it survives us. An ending must survive a power cut as well; what
    /// came before it is lost with the host's memory anyway.
    pub(crate) fn save(&self) -> Result<()> {
        let write = match self.record.has_exited() {
            true => ContainerRecord::write,
            false => ContainerRecord::write_unsynced,
        };
        write(&self.record, &self.state_dir)
            .map_err(context("writing the record in", &self.state_dir))
    }

    pub(crate) fn started(&mut self, pid: Pid) {
        self.phase = Phase::Running;
        self.record.state = ContainerState::Running {
            pid: pid.as_raw(),
            started_at: Moment::now().to_micros(),
        };
    }

    /// The container could not be set up or started.
    pub(crate) fn failed(&mut self, message: String) {
        self.record.state = ContainerState::Exited {
            started_at: None,
            finished_at: Moment::now().to_micros(),
            exit_code: START_ERROR_EXIT_CODE,
            signal: None,
            oom_killed: false,
            lost: false,
            error: Some(message),
        };
        self.close();
    }

    /// Its first process has ended: everything that it wrote is logged, and its end recorded.
    pub(crate) fn ended(&mut self, ending: Ending) {
        self.pid = None;
        if self.record.has_exited() {
            return;
        }
        // Processes that share its pid namespace with others, or the host's, outlive the first.
        cgroup::kill(&self.cgroups);
        let exit_code = ending.exit_code();
        self.record.state = ContainerState::Exited {
            started_at: self.record.started_at().map(str::to_owned),
            finished_at: Moment::now().to_micros(),
            exit_code,
            signal: ending.signal(),
            oom_killed: exit_code != 0 && cgroup::oom_kills(&self.cgroups) > 0,
            lost: false,
            error: None,
        };
        self.close();
    }

    /// Takes what is left in the pipes and lets them go.
    fn close(&mut self) {
        self.phase = Phase::Ended;
        for output in std::mem::take(&mut self.outputs) {
            output.finish(&mut self.log, &mut self.attached);
        }
        self.log = None;
        self.stdin = None;
    }

    /// libcontainer's files of the container in the pod's run directory.
    pub(crate) fn clear_state(&self, run_dir: &Path) {
        let state = run_dir.join(LIBCONTAINER_DIR);
        let _ = std::fs::remove_dir_all(state.join(&self.record.id));
        let _ = std::fs::remove_dir_all(state.join("bundles").join(&self.record.id));
    }
}
