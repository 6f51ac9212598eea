//! The forked child that sets a container up with libcontainer.
//!
//! It has a mount namespace of its own, in which the container's root is mounted, so the host
//! never sees it. libcontainer then makes the container's namespaces from there. Its process
//! waits to be started; this child ends, and the process becomes the shim's (a subreaper).

use std::error::Error;
use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{LinuxNamespaceType, Spec};
use libcontainer::syscall::syscall::SyscallType;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use nix::unistd::Pid;
use skiff_shim::protocol::{Create, ROOTFS_DIR};

use crate::child::{Channel, Report, own};
use crate::execute::Confined;
use crate::privileges::Privileges;
use crate::rootfs::{attach, clone_tree, mount_overlay};
use crate::seccomp::Filter;
use crate::{Result, context};

/// Where the host's control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// libcontainer's own state of the pod's containers, in the pod's run directory.
pub(crate) const LIBCONTAINER_DIR: &str = "libcontainer";

/// The container's ends of its pipes; none with a terminal.
pub(crate) struct Pipes {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Pipes {
    pub(crate) fn raw(&self) -> [RawFd; 3] {
        [&self.stdin, &self.stdout, &self.stderr].map(AsRawFd::as_raw_fd)
    }
}

/// Sets the container up and reports its process, or what went wrong.
pub(crate) fn run(
    create: &Create,
    run_dir: &Path,
    init: Option<Pid>,
    pipes: Option<Pipes>,
    channel: &Channel,
) {
    match set_up(create, run_dir, init, pipes, channel) {
        Ok((pid, terminal)) => {
            let fds: Vec<RawFd> = terminal.iter().map(AsRawFd::as_raw_fd).collect();
            channel.report(&Report::Process { pid }, &fds);
        }
        Err(message) => channel.fail(message),
    }
}

fn set_up(
    create: &Create,
    run_dir: &Path,
    init: Option<Pid>,
    pipes: Option<Pipes>,
    channel: &Channel,
) -> Result<(i32, Option<OwnedFd>)> {
    let rootfs = run_dir.join(ROOTFS_DIR);
    let mut spec = Spec::load(create.state_dir.join("config.json"))
        .map_err(context("reading the specification in", &create.state_dir))?;
    let filter = seccomp_filter(&spec, run_dir)?;
    let executor = Confined {
        privileges: Privileges::take(&mut spec, filter),
        channel: channel.raw(),
    };
    share_processes(&mut spec, init);
    enter_mount_namespace(&mut spec, run_dir)?;
    mount_overlay(&create.rootfs, &rootfs)?;
    make_working_directory(&spec, &rootfs)?;
    let state = run_dir.join(LIBCONTAINER_DIR);
    let bundle = state.join("bundles").join(&create.id);
    fs::create_dir_all(&bundle).map_err(context("making", &bundle))?;
    spec.save(bundle.join("config.json"))
        .map_err(context("writing the specification to", &bundle))?;
    build(create, &state, &bundle, pipes, executor)
}

/// The filter of the container's profile, kept for all pods of the node.
pub(crate) fn seccomp_filter(spec: &Spec, run_dir: &Path) -> Result<Option<Filter>> {
    let linux = spec.linux().as_ref();
    let profile = linux.and_then(|linux| linux.seccomp().as_ref());
    let cache = node_run_dir(run_dir).join("seccomp");
    profile
        .map(|profile| Filter::of(profile, &cache))
        .transpose()
}

/// `/run/skiff/<id>`, of which a pod's run directory is `pods/<uid>`.
fn node_run_dir(run_dir: &Path) -> &Path {
    run_dir.ancestors().nth(2).unwrap_or(run_dir)
}

/// Fills in the pid namespace that the pod's containers share, if they do.
fn share_processes(spec: &mut Spec, init: Option<Pid>) {
    let Some(init) = init else { return };
    let linux = spec.linux_mut().as_mut();
    let namespaces = linux.and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten() {
        if namespace.typ() == LinuxNamespaceType::Pid {
            namespace.set_path(Some(PathBuf::from(format!("/proc/{init}/ns/pid"))));
        }
    }
}

/// A copy of the host's mounts, of which changes here stay here. Volumes that the changes would
/// break are taken aside before.
fn enter_mount_namespace(spec: &mut Spec, run_dir: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(context("making", "a mount namespace"))?;
    let node = node_run_dir(run_dir);
    let aside = take_aside(spec, node)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(context("separating mounts from", "the host's"))?;
    hide_cgroups()?;
    // libcontainer reads the table of mounts a dozen times: the pins of every other pod need
    // not be in it. What is under the mount is the same directory.
    umount2(node, MntFlags::MNT_DETACH).map_err(context("hiding", node))?;
    let volumes = spec.mounts_mut().as_mut();
    let volumes = volumes.map(Vec::as_mut_slice).unwrap_or_default();
    for (index, tree) in &aside {
        let place = run_dir
            .join(LIBCONTAINER_DIR)
            .join(format!("volume-{index}"));
        let is_directory = fs::File::from(tree.try_clone().map_err(context("keeping", &place))?)
            .metadata()
            .is_ok_and(|metadata| metadata.is_dir());
        if is_directory {
            fs::create_dir_all(&place).map_err(context("making", &place))?;
        } else {
            let parent = place.parent().unwrap_or(run_dir);
            fs::create_dir_all(parent).map_err(context("making", parent))?;
            fs::File::create(&place).map_err(context("making", &place))?;
        }
        attach(tree, &place).map_err(context("binding a volume at", &place))?;
        volumes[*index].set_source(Some(place));
    }
    Ok(())
}

/// Clones the mounts of volumes that have in them what is about to be hidden (the host's control
/// groups, the node's run directory), and of those whose mounts are to reach the host, which must
/// stay its peers.
fn take_aside(spec: &Spec, node: &Path) -> Result<Vec<(usize, OwnedFd)>> {
    let mut aside = Vec::new();
    for (index, volume) in spec.mounts().iter().flatten().enumerate() {
        let is_bind = volume.typ().as_deref() == Some("bind");
        let Some(source) = volume.source().as_ref().filter(|_| is_bind) else {
            continue;
        };
        let options = volume.options().iter().flatten();
        let is_shared = options.into_iter().any(|option| option == "rshared");
        let hidden = [Path::new(CGROUPS), node];
        let overlaps = |hidden: &Path| source.starts_with(hidden) || hidden.starts_with(source);
        if is_shared || hidden.into_iter().any(overlaps) {
            let tree = clone_tree(source).map_err(context("cloning the mounts of", source))?;
            aside.push((index, tree));
        }
    }
    Ok(aside)
}

/// The container's cgroup is made, limited and joined already. libcontainer would move its
/// processes there once more, each for an RCU grace period of 8 ms, and make groups in
/// hierarchies that nobody asked for: it gets to see none.
fn hide_cgroups() -> Result<()> {
    // What is not mounted need not be unmounted.
    let _ = umount2(CGROUPS, MntFlags::MNT_DETACH);
    let tmpfs = Some("tmpfs");
    mount(tmpfs, CGROUPS, tmpfs, MsFlags::empty(), None::<&str>).map_err(context("hiding", CGROUPS))
}

/// As runc, makes the working directory if the image has none. A link in the image can't lead
/// out of it.
fn make_working_directory(spec: &Spec, rootfs: &Path) -> Result<()> {
    let Some(process) = spec.process() else {
        return Ok(());
    };
    let root = pathrs::Root::open(rootfs).map_err(context("opening", rootfs))?;
    let permissions = fs::Permissions::from_mode(0o755);
    root.mkdir_all(process.cwd(), &permissions)
        .map(drop)
        .map_err(context("making the working directory", process.cwd()))
}

fn build(
    create: &Create,
    state: &Path,
    bundle: &Path,
    pipes: Option<Pipes>,
    executor: Confined,
) -> Result<(i32, Option<OwnedFd>)> {
    let mut builder = ContainerBuilder::new(create.id.clone(), SyscallType::default())
        .with_root_path(state)
        .map_err(explain)?
        .with_executor(executor);
    let mut console = None;
    if let Some(pipes) = pipes {
        builder = builder
            .with_stdin(pipes.stdin)
            .with_stdout(pipes.stdout)
            .with_stderr(pipes.stderr);
    } else {
        let path = state.join(format!("{}.tty", &create.id[..12.min(create.id.len())]));
        let _ = fs::remove_file(&path);
        console = Some(UnixListener::bind(&path).map_err(context("listening on", &path))?);
        builder = builder.with_console_socket(Some(path));
    }
    let built = builder
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .build();
    let container = built.map_err(explain)?;
    let pid = container.pid().ok_or("libcontainer gave no process")?;
    let terminal = console
        .map(|listener| receive_terminal(&listener))
        .transpose()
        .map_err(context("receiving", "the container's terminal"))?;
    Ok((pid.as_raw(), terminal))
}

/// The container's first process has sent its terminal already.
fn receive_terminal(listener: &UnixListener) -> std::io::Result<OwnedFd> {
    let (stream, _) = listener.accept()?;
    let mut byte = [0u8; 64];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut iov = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut iov, Some(&mut control), flags)?;
    for item in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = item
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel has just made this descriptor for us.
            return Ok(unsafe { own(*fd) });
        }
    }
    Err(std::io::Error::other("it was not sent"))
}

/// libcontainer's error with its causes, of which the last says most.
fn explain(error: impl Error) -> String {
    let mut words = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if words.last() != Some(&text) {
            words.push(text);
        }
        cause = inner.source();
    }
    words.join(": ")
}
