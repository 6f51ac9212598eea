//! What clients may ask.

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::OFlag;
use nix::unistd::{Pid, pipe2};
use skiff_shim::protocol::{
    Call, Create, Exec, Failure, FailureKind, Message, PodState, Reply, Request,
};
use skiff_shim::record::RECORD_FILE;

use crate::container::{Container, Phase, Waiting};
use crate::create::{self, LIBCONTAINER_DIR, Pipes};
use crate::exec::{self, Streams};
use crate::log::{LogFile, Stream};
use crate::output::{Attached, Output, set_nonblocking};
use crate::supervisor::{Command, Supervisor};
use crate::{Result, cgroup, child, context};

/// The kernel's number of SIGKILL.
const SIGKILL: i32 = 9;

impl Supervisor {
    /// Answers a request, now or when what it began has been done.
    pub(crate) fn request(&mut self, client: u64, request: Request, fds: Vec<OwnedFd>) {
        let asked = Waiting {
            client,
            seq: request.seq,
        };
        let result = match request.call {
            Call::State => Ok(Some(self.state())),
            Call::Subscribe => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.subscribed = true;
                }
                Ok(Some(self.state()))
            }
            Call::Create(create) => self.create(asked, &create).map(|()| None),
            Call::Start { id } => self.start(asked, &id).map(|()| None),
            Call::Signal { id, signal } => self.signal(&id, signal).map(|()| Some(Reply::Done)),
            Call::Remove { id } => self.remove(&id).map(|()| Some(Reply::Done)),
            Call::Exec(exec) => self.exec(asked, &exec, fds).map(|()| None),
            Call::Attach { id, stdin } => self.attach(asked, &id, stdin, fds).map(|()| None),
            Call::Shutdown => {
                self.stop(asked);
                Ok(None)
            }
        };
        match result {
            Ok(Some(reply)) => self.answer(asked, Ok(reply), &[]),
            Ok(None) => {}
            Err(failure) => self.answer(asked, Err(failure), &[]),
        }
    }

    fn state(&self) -> Reply {
        let containers = self.containers.values();
        // One that is being set up does not exist yet: its change is told when it does.
        let known = containers.filter(|c| !matches!(c.phase, Phase::SettingUp { .. }));
        Reply::State(PodState {
            pid: std::process::id() as i32,
            containers: known.map(|container| container.record.clone()).collect(),
        })
    }

    fn create(&mut self, asked: Waiting, create: &Create) -> Result<(), Failure> {
        if self.containers.contains_key(&create.id) || self.stopping.is_some() {
            let why = format!(
                "container {} exists, or the pod is being stopped",
                create.id
            );
            return Err(Failure::new(FailureKind::Conflict, why));
        }
        let log = LogFile::open(&create.log_path, create.log_limits).map_err(internal)?;
        let (pipes, stdin, outputs) = match create.tty {
            true => (None, None, Vec::new()),
            false => {
                let (pipes, stdin, outputs) = make_pipes(create.stdin).map_err(internal)?;
                (Some(pipes), stdin, outputs)
            }
        };
        let (run_dir, init) = (self.run_dir.clone(), self.init);
        let keep = pipes.as_ref().map(Pipes::raw).unwrap_or([0, 1, 2]);
        let (child, channel) = child::fork(&create.cgroups, &keep, |channel| {
            create::run(create, &run_dir, init, pipes, channel);
        })
        .map_err(internal)?;
        set_nonblocking(&channel);
        let mut container = Container::new(
            create,
            Phase::SettingUp {
                child,
                channel,
                asked,
            },
        );
        container.log = Some(log);
        container.stdin = stdin;
        container.outputs = outputs;
        self.containers.insert(create.id.clone(), container);
        Ok(())
    }

    /// libcontainer's process waits for a connection to its socket.
    fn start(&mut self, asked: Waiting, id: &str) -> Result<(), Failure> {
        let directory = self.run_dir.join(LIBCONTAINER_DIR).join(id);
        let container = self.container(id)?;
        if !matches!(container.phase, Phase::Waiting { .. }) {
            let why = format!("container {id} does not wait to be started");
            return Err(Failure::new(FailureKind::Conflict, why));
        }
        // The path may be longer than an address can be: it is reached through a descriptor.
        let opened = fs::File::open(&directory).map_err(context("opening", &directory));
        let opened = opened.map_err(internal)?;
        let socket = format!("/proc/self/fd/{}/notify.sock", opened.as_raw_fd());
        UnixStream::connect(socket)
            .and_then(|mut stream| stream.write_all(b"start container"))
            .map_err(context("starting", id))
            .map_err(internal)?;
        if let Phase::Waiting { channel } = std::mem::replace(&mut container.phase, Phase::Ended) {
            container.phase = Phase::Starting { channel, asked };
        }
        Ok(())
    }

    fn signal(&mut self, id: &str, signal: i32) -> Result<(), Failure> {
        let container = self.container(id)?;
        if let Some(pid) = container.pid {
            send(pid, signal)?;
            if signal == SIGKILL {
                // In a pid namespace of its own they die with the first; elsewhere not.
                cgroup::kill(&container.cgroups);
            }
        } else if !container.has_ended() {
            let why = format!("container {id} is being created");
            return Err(Failure::new(FailureKind::Conflict, why));
        }
        Ok(())
    }

    fn remove(&mut self, id: &str) -> Result<(), Failure> {
        let container = self.container(id)?;
        if !container.has_ended() {
            let why = format!("container {id} has not ended: stop it before it is removed");
            return Err(Failure::new(FailureKind::Conflict, why));
        }
        let record = container.state_dir.join(RECORD_FILE);
        match fs::remove_file(&record) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(internal(context("removing", record)(error)));
            }
            _ => {}
        }
        self.containers.remove(id);
        self.broadcast(&Message::Removed { id: id.to_owned() });
        Ok(())
    }

    fn exec(&mut self, asked: Waiting, exec: &Exec, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let container = self.container(&exec.id)?;
        let (Phase::Running, Some(pid)) = (&container.phase, container.pid) else {
            let why = format!("container {} is not running", exec.id);
            return Err(Failure::new(FailureKind::Conflict, why));
        };
        let streams = match (exec.tty, <[OwnedFd; 3]>::try_from(fds)) {
            (true, _) => Streams::Terminal,
            (false, Ok(fds)) => Streams::Pipes(fds),
            (false, Err(_)) => {
                let why = "a command without a terminal needs three descriptors";
                return Err(Failure::new(FailureKind::Invalid, why));
            }
        };
        let (state_dir, cgroups) = (container.state_dir.clone(), container.cgroups.clone());
        let keep = streams.raw();
        let (child, channel) = child::fork(&cgroups, &keep, |channel| {
            exec::run(exec, &self.run_dir, &state_dir, pid, &streams, channel);
        })
        .map_err(internal)?;
        set_nonblocking(&channel);
        self.commands.push(Command {
            asked,
            child,
            channel: Some(channel),
            pid: None,
            terminal: None,
            ending: None,
        });
        Ok(())
    }

    fn attach(
        &mut self,
        asked: Waiting,
        id: &str,
        stdin: bool,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let container = self.container(id)?;
        if container.has_ended() {
            let why = format!("container {id} is not running");
            return Err(Failure::new(FailureKind::Conflict, why));
        }
        let Ok([stdout, stderr]) = <[OwnedFd; 2]>::try_from(fds) else {
            let why = "an attachment needs two descriptors";
            return Err(Failure::new(FailureKind::Invalid, why));
        };
        let attached = Attached::new(asked.client, stdout, stderr);
        container.attached.push(attached);
        let input: Vec<_> = container.stdin.iter().map(AsRawFd::as_raw_fd).collect();
        // Given away, it ends when the client closes it, whatever way that happens.
        let given = match stdin && container.stdin_once {
            true => container.stdin.take(),
            false => None,
        };
        self.answer(asked, Ok(Reply::Attached), &input);
        drop(given);
        Ok(())
    }

    /// The answer comes when every container has ended.
    fn stop(&mut self, asked: Waiting) {
        for container in self.containers.values().filter(|c| !c.has_ended()) {
            cgroup::kill(&container.cgroups);
            if let Some(pid) = container.pid {
                let _ = send(pid, SIGKILL);
            }
        }
        self.stopping = Some(asked);
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| Failure::new(FailureKind::NotFound, format!("container {id} not found")))
    }
}

impl Container {
    /// With a terminal, input and output are its other end.
    pub(crate) fn take_terminal(&mut self, fds: Vec<OwnedFd>) {
        let Some(master) = fds.into_iter().next() else {
            return;
        };
        self.stdin = master.try_clone().ok();
        self.outputs.push(Output::new(master, Stream::Stdout));
    }
}

/// The container's ends, our end of its input if it has one, and our ends of its output.
fn make_pipes(stdin: bool) -> Result<(Pipes, Option<OwnedFd>, Vec<Output>)> {
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(context("making", "a pipe"));
    let (input, ours) = match stdin {
        true => pipe().map(|(read, write)| (read, Some(write)))?,
        false => {
            let null = fs::File::open("/dev/null").map_err(context("opening", "/dev/null"))?;
            (null.into(), None)
        }
    };
    let (stdout_ours, stdout) = pipe()?;
    let (stderr_ours, stderr) = pipe()?;
    let pipes = Pipes {
        stdin: input,
        stdout,
        stderr,
    };
    let outputs = vec![
        Output::new(stdout_ours, Stream::Stdout),
        Output::new(stderr_ours, Stream::Stderr),
    ];
    Ok((pipes, ours, outputs))
}

/// A signal by number: real-time ones have no name.
fn send(pid: Pid, signal: i32) -> Result<(), Failure> {
    // SAFETY: the call takes no pointers.
    let result = unsafe { libc::kill(pid.as_raw(), signal) };
    match nix::errno::Errno::result(result) {
        Ok(_) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(internal(format!("sending signal {signal}: {error}"))),
    }
}

fn internal(message: String) -> Failure {
    Failure::new(FailureKind::Internal, message)
}
