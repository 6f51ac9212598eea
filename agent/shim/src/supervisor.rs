//! The shim's loop: clients' requests, children's reports and ends, containers' output.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, accept4, bind, listen, socket};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;
use skiff_shim::protocol::{Failure, FailureKind, Message, Reply, SOCKET_FILE, SandboxSpec};
use skiff_shim::record::ContainerRecord;
use skiff_shim::wire;

use crate::child::Report;
use crate::clock::Moment;
use crate::container::{Container, Phase, Waiting};
use crate::output::{Output, Pumped};
use crate::reaper::{Ending, reap};
use crate::{Result, cgroup, context};

/// What a record says of a container that ran when an earlier shim ended.
const LOST: &str = "the container's supervisor ended before it: its exit code is not known";

/// Everything that the shim knows.
pub(crate) struct Supervisor {
    pub(crate) run_dir: PathBuf,
    /// The first process of the pid namespace that the containers share, if they do.
    pub(crate) init: Option<Pid>,
    pub(crate) containers: BTreeMap<String, Container>,
    pub(crate) commands: Vec<Command>,
    pub(crate) clients: BTreeMap<u64, Client>,
    /// The request to stop the pod, once there is one.
    pub(crate) stopping: Option<Waiting>,
    listener: OwnedFd,
    signals: SignalFd,
    next_client: u64,
    /// Children that ended before anybody told what they are.
    unclaimed: Vec<(Pid, Ending)>,
    /// Cgroups in which processes are still dying.
    doomed: Vec<Vec<PathBuf>>,
}

pub(crate) struct Client {
    fd: OwnedFd,
    /// Whether it is told of changes.
    pub(crate) subscribed: bool,
}

/// An exec'd command.
pub(crate) struct Command {
    pub(crate) asked: Waiting,
    /// The forked child that sets it up.
    pub(crate) child: Pid,
    /// Until it has executed its program.
    pub(crate) channel: Option<OwnedFd>,
    pub(crate) pid: Option<Pid>,
    pub(crate) terminal: Option<OwnedFd>,
    /// Known before the channel's end was seen.
    pub(crate) ending: Option<Ending>,
}

/// What a descriptor in the poll set is.
enum Source {
    Listener,
    Signals,
    Client(u64),
    Container(String),
    Output(String, RawFd),
    Sinks(String),
    Command(RawFd),
}

impl Supervisor {
    pub(crate) fn new(spec: &SandboxSpec, init: Option<Pid>) -> Result<Self> {
        let containers = adopt_records(spec)?;
        Ok(Self {
            run_dir: spec.run_dir.clone(),
            init,
            containers,
            commands: Vec::new(),
            clients: BTreeMap::new(),
            stopping: None,
            listener: listen_at(spec)?,
            signals: watch_children()?,
            next_client: 1,
            unclaimed: Vec::new(),
            doomed: Vec::new(),
        })
    }

    /// Serves until the pod is stopped.
    pub(crate) fn run(&mut self) -> Result<()> {
        while !self.is_stopped() {
            for source in self.wait()? {
                self.handle(source);
            }
        }
        if let Some(init) = self.init {
            let _ = nix::sys::signal::kill(init, Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(init, None);
        }
        Ok(())
    }

    /// Answers the request to stop once the last container has ended.
    fn is_stopped(&mut self) -> bool {
        let Some(asked) = self.stopping else {
            return false;
        };
        if !self.containers.values().all(Container::has_ended) {
            return false;
        }
        self.answer(asked, Ok(Reply::Done), &[]);
        true
    }

    /// Blocks until something is to be done. Reports of children come before their ends.
    fn wait(&self) -> Result<Vec<Source>> {
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        let mut add = |source, fd: &OwnedFd, flags| {
            sources.push(source);
            // SAFETY: every descriptor in the set belongs to `self`, which outlives the set.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd.as_raw_fd()) };
            fds.push(PollFd::new(fd, flags));
        };
        let input = PollFlags::POLLIN;
        for (id, container) in &self.containers {
            if let Some(channel) = container.channel() {
                add(Source::Container(id.clone()), channel, input);
            }
            for output in &container.outputs {
                let source = Source::Output(id.clone(), output.fd.as_raw_fd());
                add(source, &output.fd, input);
            }
            for fd in container
                .attached
                .iter()
                .flat_map(|client| client.waiting())
            {
                add(Source::Sinks(id.clone()), fd, PollFlags::POLLOUT);
            }
        }
        for command in &self.commands {
            if let Some(channel) = &command.channel {
                add(Source::Command(channel.as_raw_fd()), channel, input);
            }
        }
        for (key, client) in &self.clients {
            add(Source::Client(*key), &client.fd, input);
        }
        add(Source::Listener, &self.listener, input);
        sources.push(Source::Signals);
        fds.push(PollFd::new(self.signals.as_fd(), input));
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(context("waiting for", "events")(error)),
            }
        }
        let ready = fds.iter().map(|fd| fd.any() == Some(true));
        let pairs = sources.into_iter().zip(ready);
        Ok(pairs
            .filter(|(_, ready)| *ready)
            .map(|(source, _)| source)
            .collect())
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.reap_children(),
            Source::Client(key) => self.serve(key),
            Source::Container(id) => self.hear_container(&id),
            Source::Output(id, fd) => self.pump(&id, fd),
            Source::Sinks(id) => {
                for container in self.containers.get_mut(&id).into_iter() {
                    container
                        .attached
                        .iter_mut()
                        .for_each(|client| client.flush());
                }
            }
            Source::Command(fd) => self.hear_command(fd),
        }
    }

    fn accept(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        if let Ok(fd) = accept4(self.listener.as_raw_fd(), flags) {
            // SAFETY: the kernel has just made this descriptor for us.
            let fd = unsafe { crate::child::own(fd) };
            wire::enlarge(fd.as_fd());
            let subscribed = false;
            self.clients
                .insert(self.next_client, Client { fd, subscribed });
            self.next_client += 1;
        }
    }

    /// Reads one request. A client that breaks the protocol is let go.
    fn serve(&mut self, key: u64) {
        let Some(client) = self.clients.get(&key) else {
            return;
        };
        match wire::receive(client.fd.as_fd()) {
            Ok(Some((request, fds))) => self.request(key, request, fds),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => self.drop_client(key),
        }
    }

    /// What was begun on a connection ends with it.
    fn drop_client(&mut self, key: u64) {
        self.clients.remove(&key);
        for command in self
            .commands
            .iter()
            .filter(|command| command.asked.client == key)
        {
            if let Some(pid) = command.pid {
                let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
            }
        }
        for container in self.containers.values_mut() {
            container.attached.retain(|attached| attached.client != key);
        }
    }

    pub(crate) fn answer(&mut self, asked: Waiting, result: Result<Reply, Failure>, fds: &[RawFd]) {
        let seq = asked.seq;
        self.tell(asked.client, &Message::Answer { seq, result }, fds);
    }

    /// A client that does not read what it is told is let go; it can come back and ask.
    fn tell(&mut self, key: u64, message: &Message, fds: &[RawFd]) {
        if let Some(client) = self.clients.get(&key)
            && wire::send(client.fd.as_fd(), message, fds).is_err()
        {
            self.drop_client(key);
        }
    }

    pub(crate) fn broadcast(&mut self, message: &Message) {
        let subscribed = self.clients.iter().filter(|(_, client)| client.subscribed);
        let keys: Vec<u64> = subscribed.map(|(key, _)| *key).collect();
        for key in keys {
            self.tell(key, message, &[]);
        }
    }

    /// Writes a container's record and then tells of it.
    fn publish(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        if let Err(message) = container.save() {
            // A full disk: the exit is still told, and is in memory for whoever asks.
            eprintln!("{message}");
        }
        let record = Box::new(container.record.clone());
        self.broadcast(&Message::Changed(record));
    }

    fn pump(&mut self, id: &str, fd: RawFd) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let outputs = &mut container.outputs;
        let Some(index) = outputs
            .iter()
            .position(|output| output.fd.as_raw_fd() == fd)
        else {
            return;
        };
        let pumped = outputs[index].pump(&mut container.log, &mut container.attached);
        if matches!(pumped, Pumped::End) {
            let output: Output = outputs.remove(index);
            output.finish(&mut container.log, &mut container.attached);
        }
    }

    /// Takes what the child that sets a container up, and then the container's own process, say.
    pub(crate) fn hear_container(&mut self, id: &str) {
        loop {
            let Some(container) = self.containers.get_mut(id) else {
                return;
            };
            let Some(channel) = container.channel() else {
                return;
            };
            let heard = match wire::receive::<Report>(channel.as_fd()) {
                Ok(heard) => heard,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => None,
            };
            let (report, fds) = match heard {
                Some((report, fds)) => (Some(report), fds),
                None => (None, Vec::new()),
            };
            match (
                report,
                std::mem::replace(&mut container.phase, Phase::Ended),
            ) {
                (Some(Report::Process { pid }), Phase::SettingUp { channel, asked, .. }) => {
                    container.phase = Phase::Waiting { channel };
                    container.pid = Some(Pid::from_raw(pid));
                    container.take_terminal(fds);
                    self.publish(id);
                    self.answer_record(asked, id);
                    self.claim(Pid::from_raw(pid));
                }
                (Some(Report::Failed { message }), Phase::SettingUp { asked, .. }) => {
                    self.start_failed(id, asked, message);
                }
                (None, Phase::SettingUp { asked, .. }) => {
                    let message = "the process that set it up died".to_owned();
                    self.start_failed(id, asked, message);
                }
                (Some(Report::Failed { message }), Phase::Starting { asked, .. }) => {
                    self.start_failed(id, asked, message);
                }
                (None, Phase::Starting { asked, .. }) => {
                    if let Some(pid) = container.pid {
                        container.started(pid);
                    }
                    self.publish(id);
                    self.answer_record(asked, id);
                }
                // Its process died before it was started: its end will be reaped.
                (None, Phase::Waiting { .. }) => {
                    container.phase = Phase::Running;
                    return;
                }
                (_, phase) => container.phase = phase,
            }
        }
    }

    fn start_failed(&mut self, id: &str, asked: Waiting, cause: String) {
        let message = format!(
            "failed to create shim task: OCI runtime create failed: unable to start container \
             process: {cause}"
        );
        if let Some(container) = self.containers.get_mut(id) {
            container.failed(message.clone());
            cgroup::kill(&container.cgroups);
        }
        self.publish(id);
        self.discard(id);
        self.answer(asked, Err(Failure::new(FailureKind::Start, message)), &[]);
    }

    pub(crate) fn answer_record(&mut self, asked: Waiting, id: &str) {
        if let Some(container) = self.containers.get(id) {
            let record = Box::new(container.record.clone());
            self.answer(asked, Ok(Reply::Container(record)), &[]);
        }
    }

    /// Takes what a command's process says before it executes.
    pub(crate) fn hear_command(&mut self, fd: RawFd) {
        let is_it = |command: &Command| {
            let channel = command.channel.as_ref();
            channel.is_some_and(|channel| channel.as_raw_fd() == fd)
        };
        let Some(index) = self.commands.iter().position(is_it) else {
            return;
        };
        loop {
            let command = &mut self.commands[index];
            let Some(channel) = &command.channel else {
                return;
            };
            let heard = match wire::receive::<Report>(channel.as_fd()) {
                Ok(heard) => heard,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => None,
            };
            match heard {
                Some((Report::Process { pid }, _)) => {
                    let pid = Pid::from_raw(pid);
                    command.pid = Some(pid);
                    let gone = !self.clients.contains_key(&command.asked.client);
                    if gone {
                        let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
                    }
                    let found = self.unclaimed.iter().position(|(child, _)| *child == pid);
                    if let Some(found) = found {
                        let (_, ending) = self.unclaimed.swap_remove(found);
                        self.commands[index].ending = Some(ending);
                    }
                }
                Some((Report::Terminal, fds)) => command.terminal = fds.into_iter().next(),
                Some((Report::Failed { message }, _)) => {
                    let asked = self.commands.remove(index).asked;
                    self.exec_failed(asked, message);
                    return;
                }
                None => return self.command_executed(index),
            }
        }
    }

    fn exec_failed(&mut self, asked: Waiting, cause: String) {
        let message = format!(
            "OCI runtime exec failed: exec failed: unable to start container process: {cause}"
        );
        self.answer(asked, Err(Failure::new(FailureKind::Start, message)), &[]);
    }

    fn command_executed(&mut self, index: usize) {
        let command = &mut self.commands[index];
        command.channel = None;
        let asked = command.asked;
        let Some(pid) = command.pid else {
            self.commands.remove(index);
            return self.exec_failed(asked, "the process that set it up died".to_owned());
        };
        let terminal = command.terminal.take();
        let ending = command.ending;
        let fds: Vec<RawFd> = terminal.iter().map(AsRawFd::as_raw_fd).collect();
        let reply = Reply::Exec { pid: pid.as_raw() };
        self.answer(asked, Ok(reply), &fds);
        if let Some(ending) = ending {
            self.commands.remove(index);
            self.tell_end(asked.client, ending);
        }
    }

    fn tell_end(&mut self, client: u64, ending: Ending) {
        let exit_code = ending.exit_code();
        self.tell(client, &Message::Ended { exit_code }, &[]);
    }

    fn reap_children(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Some((pid, ending)) = reap() {
            self.child_ended(pid, ending);
        }
        self.doomed.retain(|cgroups| !cgroup::remove(cgroups));
    }

    fn child_ended(&mut self, pid: Pid, ending: Ending) {
        let container = self.containers.iter().find(|(_, c)| c.pid == Some(pid));
        if let Some((id, _)) = container {
            let id = id.clone();
            // Whether it executed its program is known by now.
            self.hear_container(&id);
            return self.container_ended(&id, ending);
        }
        let command = self.commands.iter().position(|c| c.pid == Some(pid));
        if let Some(index) = command {
            if self.commands[index].channel.is_none() {
                let command = self.commands.remove(index);
                return self.tell_end(command.asked.client, ending);
            }
            self.commands[index].ending = Some(ending);
            return;
        }
        if self.setter_up_ended(pid, ending) {
            return;
        }
        if self.is_setting_up() {
            self.unclaimed.push((pid, ending));
        }
    }

    /// A forked child has ended. If it did so without a word, what it was to set up has failed:
    /// the process that it left behind may keep its channel open for good.
    fn setter_up_ended(&mut self, pid: Pid, ending: Ending) -> bool {
        let message = format!(
            "the process that sets it up was ended by {ending} (is the memory limit too low?)"
        );
        let container = self
            .containers
            .iter()
            .find(|(_, c)| matches!(c.phase, Phase::SettingUp { child, .. } if child == pid));
        if let Some((id, _)) = container {
            let id = id.clone();
            self.hear_container(&id);
            let phase = self.containers.get_mut(&id).map(|c| &c.phase);
            if let Some(Phase::SettingUp { asked, .. }) = phase {
                let asked = *asked;
                self.start_failed(&id, asked, message);
            }
            return true;
        }
        let command = self.commands.iter().find(|command| command.child == pid);
        let Some(fd) = command
            .and_then(|c| c.channel.as_ref())
            .map(AsRawFd::as_raw_fd)
        else {
            return command.is_some();
        };
        self.hear_command(fd);
        let silent = |command: &Command| command.child == pid && command.pid.is_none();
        if let Some(index) = self.commands.iter().position(silent) {
            let asked = self.commands.remove(index).asked;
            self.exec_failed(asked, message);
        }
        true
    }

    /// Whether a process may exist that its setter-up has not told of yet.
    fn is_setting_up(&mut self) -> bool {
        let mut containers = self.containers.values();
        let commands = self.commands.iter().any(|command| command.pid.is_none());
        let setting_up = commands || containers.any(|c| matches!(c.phase, Phase::SettingUp { .. }));
        if !setting_up {
            self.unclaimed.clear();
        }
        setting_up
    }

    /// A container's process has become known: it may have ended already.
    fn claim(&mut self, pid: Pid) {
        if let Some(index) = self.unclaimed.iter().position(|(child, _)| *child == pid) {
            let (_, ending) = self.unclaimed.swap_remove(index);
            self.child_ended(pid, ending);
        }
    }

    fn container_ended(&mut self, id: &str, ending: Ending) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let asked = match &container.phase {
            Phase::Starting { asked, .. } => Some(*asked),
            _ => None,
        };
        let is_news = !container.record.has_exited();
        container.ended(ending);
        let clients: Vec<u64> = container.attached.drain(..).map(|a| a.client).collect();
        if is_news {
            self.publish(id);
        }
        for client in clients {
            self.tell_end(client, ending);
        }
        if let Some(asked) = asked {
            self.answer_record(asked, id);
        }
        self.discard(id);
    }

    /// Removes what an ended container leaves in the kernel and in the run directory.
    fn discard(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.clear_state(&self.run_dir);
        let cgroups = std::mem::take(&mut container.cgroups);
        if !cgroup::remove(&cgroups) {
            self.doomed.push(cgroups);
        }
    }
}

/// Containers of an earlier shim of this pod. Those that it left running are lost.
fn adopt_records(spec: &SandboxSpec) -> Result<BTreeMap<String, Container>> {
    let directory = spec.pod_dir.join("containers");
    let entries = std::fs::read_dir(&directory).map_err(context("listing", &directory))?;
    let mut containers = BTreeMap::new();
    for entry in entries.flatten() {
        // A directory without a record is a container that never came to be.
        let Ok(record) = ContainerRecord::read(&entry.path()) else {
            continue;
        };
        let was_open = !record.has_exited();
        let record = record.lost(Moment::now().to_micros(), LOST);
        let container = Container::from_record(record, entry.path());
        if was_open {
            container.save()?;
        }
        containers.insert(container.record.id.clone(), container);
    }
    Ok(containers)
}

fn listen_at(spec: &SandboxSpec) -> Result<OwnedFd> {
    let path = spec.run_dir.join(SOCKET_FILE);
    let fail = || context("listening at", &path);
    let _ = std::fs::remove_file(&path);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(fail())?;
    let address = wire::address(&path).map_err(context("listening at", &path))?;
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = bind(fd.as_raw_fd(), &address);
    umask(before);
    bound.map_err(fail())?;
    listen(&fd, Backlog::MAXCONN).map_err(fail())?;
    Ok(fd)
}

/// Children's ends arrive as readable events. Nothing else interrupts the shim: whoever wants
/// it to stop asks on its socket.
fn watch_children() -> Result<SignalFd> {
    let mut wanted = SigSet::empty();
    wanted.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
        .map_err(context("blocking", "signals"))?;
    SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(context("watching", "signals"))
}
