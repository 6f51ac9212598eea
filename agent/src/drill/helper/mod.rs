//! Child processes of the agent that do what must not be done in it, or must outlive it.
//!
//! A helper is this program executed again with a hidden first argument and the uid of its task, which is how any agent
//! finds it. It is in a session of its own, and does nothing until it is told on its standard input what to do
//! and until when: by then it is in the control group that it is to count against. It ends by itself at
//! that time, whatever became of the agent.
//!
//! ```text
//! agent: start -> into the group -> orders on stdin        helper: orders -> work ... until
//!        ended, end: by the task's uid
//! ```

mod cpu;
mod measuring;
mod memory;
mod probe;
mod write;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(super) use cpu::Spin;
pub(super) use memory::{Exhaust, Keep, MemoryGroup, host_memory};
pub(super) use probe::{Probe, authority};
pub(super) use write::{EventWriter, TIMEOUT as WRITE_TIMEOUT};

use super::fault::{FaultError, Order};
use super::site::Site;
use crate::runtime::types::CgroupResources;

/// The hidden first argument.
const ARGUMENT: &str = "drill-helper";
/// How long a helper that was killed may take to be gone.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(2);

/// What a helper can do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "camelCase")]
pub(crate) enum Job {
    Spin(Spin),
    Exhaust(Exhaust),
    Keep(Keep),
    Probe(Probe),
    Write(EventWriter),
}

#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    until: Timestamp,
    job: Job,
}

/// Does a helper's work if this process is one; `main` asks first, before there are threads.
pub fn run_if_helper() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().as_deref() != Some(OsStr::new(ARGUMENT)) {
        return None;
    }
    Some(match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skiff: a drill's helper: {error}");
            ExitCode::FAILURE
        }
    })
}

fn work() -> io::Result<()> {
    // An interrupt at the agent's terminal is none of its business.
    nix::unistd::setsid()?;
    let mut orders = Vec::new();
    io::stdin().read_to_end(&mut orders)?;
    if orders.is_empty() {
        // Whoever started it died, or thought better of it.
        return Ok(());
    }
    let Orders { until, job } = serde_json::from_slice(&orders)?;
    match job {
        Job::Spin(job) => job.run(until),
        Job::Exhaust(job) => job.run(until),
        Job::Keep(job) => job.run(until),
        Job::Probe(job) => job.run(until),
        Job::Write(job) => job.run(until),
    }
}

/// The time left, none when it has passed. By the wall clock: that is what a task's end is told by.
fn left(until: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default()
}

/// A helper that runs.
#[derive(Debug)]
pub(crate) struct Helper {
    pid: Pid,
    /// Readable once it has ended.
    descriptor: OwnedFd,
}

/// A helper that waits for its orders.
#[derive(Debug)]
pub(crate) struct Waiting {
    helper: Helper,
    orders: std::process::ChildStdin,
}

impl Helper {
    /// Starts a helper of a task in a control group, which is made where it is missing. Blocking.
    pub(crate) fn start(site: &Site, order: &Order, group: &str) -> io::Result<Waiting> {
        let mut child = Command::new("/proc/self/exe")
            .arg0("skiff")
            .args([ARGUMENT, &order.uid])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let pid = Pid::from_raw(child.id() as i32);
        let orders = child.stdin.take();
        let orders = orders.ok_or_else(|| io::Error::other("it has no standard input"))?;
        let waiting = Waiting {
            helper: Self {
                pid,
                descriptor: open(pid)?,
            },
            orders,
        };
        // Dropping the orders ends it.
        if group == site.helpers() {
            let made = site.cgroups.create(group, &CgroupResources::default());
            made.map_err(io::Error::other)?;
        }
        for directory in site.cgroups.directories(group) {
            fs::write(directory.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(waiting)
    }

    /// The helper of a task, if it runs.
    pub(crate) fn find(uid: &str) -> io::Result<Option<Self>> {
        for process in fs::read_dir("/proc")? {
            let name = process?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if !is_helper(pid, uid) {
                continue;
            }
            let pid = Pid::from_raw(pid);
            match open(pid) {
                // It still is who it was: the descriptor was opened between the two looks.
                Ok(descriptor) if is_helper(pid.as_raw(), uid) => {
                    return Ok(Some(Self { pid, descriptor }));
                }
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Returns when it has ended.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) async fn ended(self) -> io::Result<()> {
        // SAFETY: the descriptor owns itself, is always the same one, and is never taken out again.
        let watched =
            unsafe { AsyncFd::register_with_interest(self.descriptor, Interest::READABLE) }?;
        let _ = watched.readable().await?;
        // One that this process started is its own to reap; an `exec` ago counts too.
        let _ = waitpid(self.pid, Some(WaitPidFlag::WNOHANG));
        Ok(())
    }

    /// Kills it and waits until it is gone. Blocking.
    fn kill(self) -> io::Result<()> {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            send(&self.descriptor, Signal::SIGKILL)?;
            let _ = waitpid(self.pid, Some(WaitPidFlag::WNOHANG));
            if !is_alive(self.pid) {
                return Ok(());
            }
            if std::time::Instant::now() > deadline {
                let message = format!("process {} does not end", self.pid);
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Waiting {
    /// Lets it begin.
    pub(crate) fn begin(mut self, order: &Order, job: Job) -> io::Result<Helper> {
        let until = order.until;
        let orders = serde_json::to_vec(&Orders { until, job })?;
        self.orders.write_all(&orders)?;
        Ok(self.helper)
    }
}

/// Ends the helper of a task, if there is one, and removes the group of helpers if it was the last.
pub(super) async fn end(site: &Site, uid: &str) -> Result<(), FaultError> {
    let (site, uid) = (site.clone(), uid.to_owned());
    blocking(move || {
        while let Some(helper) = Helper::find(&uid)? {
            helper.kill()?;
        }
        // Others may still be in it.
        let _ = site.cgroups.remove(&site.helpers());
        Ok(())
    })
    .await
    .map_err(FaultError::Helper)
}

/// Lets the helper of a task finish what it began, for so long at most, and ends it.
pub(super) async fn finish(site: &Site, uid: &str, patience: Duration) -> Result<(), FaultError> {
    let asked = uid.to_owned();
    let found = blocking(move || {
        let found = Helper::find(&asked)?;
        if let Some(helper) = &found {
            send(&helper.descriptor, Signal::SIGTERM)?;
        }
        io::Result::Ok(found)
    });
    if let Some(helper) = found.await.map_err(FaultError::Helper)? {
        // One that takes longer is made to.
        let _ = tokio::time::timeout(patience, helper.ended()).await;
    }
    end(site, uid).await
}

/// Returns when the helper of a task has ended; at once if there is none.
pub(super) async fn ended(uid: &str) -> Result<(), FaultError> {
    let uid = uid.to_owned();
    let found = blocking(move || Helper::find(&uid)).await;
    match found.map_err(FaultError::Helper)? {
        Some(helper) => helper.ended().await.map_err(FaultError::Helper),
        None => Ok(()),
    }
}

/// Runs what may block off the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn is_helper(pid: i32, uid: &str) -> bool {
    let command = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline"));
    let command = command.unwrap_or_default();
    let mut words = command.split(|byte| *byte == 0).skip(1);
    words.next() == Some(ARGUMENT.as_bytes()) && words.next() == Some(uid.as_bytes())
}

/// Whether a process is there, and not just its remains that its parent has not taken yet.
fn is_alive(pid: Pid) -> bool {
    use super::target::{Doing, Process};
    let found = Process::look(pid.as_raw());
    found.is_some_and(|(_, doing)| doing != Doing::Ended)
}

/// pidfd_open(2)
fn open(pid: Pid) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the call takes no pointers.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let descriptor = nix::errno::Errno::result(opened)?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}

/// pidfd_send_signal(2). No error when the process has ended.
fn send(process: &OwnedFd, signal: Signal) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: no signal information is given; the descriptor is open.
    let sent = unsafe {
        let number = signal as libc::c_int;
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            number,
            none,
            0,
        )
    };
    match nix::errno::Errno::result(sent) {
        Ok(_) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
