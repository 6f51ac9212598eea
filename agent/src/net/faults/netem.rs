//! Delays by the kernel's network emulator (tc-netem(8)), on both ends of a pod's link: the host's end holds what goes
//! to the pod, the pod's end what comes from it.
//!
//! The emulator is a module that not every kernel has, and that it loads by itself. A task's is told from another task's and
//! from anybody else's by its handle, so that undoing one leaves the others alone.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE};
use nix::sched::{CloneFlags, setns};
use skiff_shim::protocol::NETNS_FILE;

use super::{PacketFaultError, PodPlace};
use crate::identity::Identity;
use crate::net::netlink::{Netlink, Request};
use crate::net::veth::{POD_LINK, find_link};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const TC_H_ROOT: u32 = 0xffff_ffff;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_NETEM_LATENCY64: u16 = 10;
const KIND: &[u8] = b"netem\0";
/// Packets that are held at once: a second at 100,000 packets a second.
const LIMIT: u32 = 100_000;

/// One end of a pod's link: a socket in the network namespace that it is in, and its index there.
struct End {
    socket: Netlink,
    index: u32,
}

/// Which of the emulators is meant: `struct tcmsg`'s handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Handle(u32);

impl Handle {
    /// That of the task with this uid. There are 65,534, each pod has one at most.
    pub(super) fn of(task: &str) -> Self {
        // FNV-1a: what one agent began, another build of it has to find again.
        let hash = task.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        // The upper half is the number, the lower half is for classes; none and all ones have meanings of their own.
        Self((1 + hash % 0xfffe) << 16)
    }
}

/// Holds the packets of these pods. When it can't be done for one, it is undone for all.
pub(super) fn delay(
    identity: &Identity,
    handle: Handle,
    pods: &[PodPlace],
    delay: Duration,
) -> Result<(), PacketFaultError> {
    let mut done: Vec<End> = Vec::new();
    for pod in pods {
        let held = hold(identity, handle, pod, delay, &mut done);
        if held.is_err() {
            for end in &done {
                if let Err(error) = end.release(handle) {
                    tracing::warn!(pod = pod.uid, %error, "the packets of a pod are still delayed");
                }
            }
            return held;
        }
    }
    Ok(())
}

fn hold(
    identity: &Identity,
    handle: Handle,
    pod: &PodPlace,
    delay: Duration,
    done: &mut Vec<End>,
) -> Result<(), PacketFaultError> {
    for end in [host_end(identity, pod), pod_end(identity, pod)] {
        let end = end.map_err(|source| PacketFaultError::NoLink {
            pod: pod.uid.clone(),
            source,
        })?;
        end.hold(handle, delay)
            .map_err(|error| refusal(pod, error))?;
        done.push(end);
    }
    Ok(())
}

fn refusal(pod: &PodPlace, source: io::Error) -> PacketFaultError {
    let pod = pod.uid.clone();
    match source.raw_os_error() {
        // The kernel's answer to a kind that it does not have.
        Some(libc::ENOENT) => PacketFaultError::NoEmulator,
        Some(libc::EEXIST) => PacketFaultError::Occupied { pod },
        _ => PacketFaultError::Delay { pod, source },
    }
}

/// Lets the packets of these pods pass again. A pod that is gone took its link along.
pub(super) fn undo(
    identity: &Identity,
    handle: Handle,
    pods: &[PodPlace],
) -> Result<(), PacketFaultError> {
    for pod in pods {
        for end in [host_end(identity, pod), pod_end(identity, pod)] {
            let released = match end {
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                end => end.and_then(|end| end.release(handle)),
            };
            released.map_err(|source| PacketFaultError::Delay {
                pod: pod.uid.clone(),
                source,
            })?;
        }
    }
    Ok(())
}

fn host_end(identity: &Identity, pod: &PodPlace) -> io::Result<End> {
    End::find(&identity.link(pod.address))
}

fn pod_end(identity: &Identity, pod: &PodPlace) -> io::Result<End> {
    let namespace = File::open(identity.pod_run_dir(&pod.uid).join(NETNS_FILE))?;
    // A thread that changed its namespace serves nothing else; the socket stays in it.
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(OwnedFd::from(namespace), CloneFlags::CLONE_NEWNET)?;
            End::find(POD_LINK)
        });
        match inside.join() {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

impl End {
    fn find(link: &str) -> io::Result<Self> {
        let socket = Netlink::route()?;
        let found = find_link(&socket, link)?;
        let found = found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        Ok(Self {
            socket,
            index: found.index,
        })
    }

    /// Begins it, or changes what was begun with this handle; another's is an error (`EEXIST`).
    fn hold(&self, handle: Handle, delay: Duration) -> io::Result<()> {
        let mut payload = self.header(handle);
        attribute(&mut payload, TCA_KIND, KIND);
        attribute(&mut payload, TCA_OPTIONS, &options(delay));
        self.socket.apply_one(Request {
            kind: RTM_NEWQDISC,
            flags: NLM_F_CREATE | NLM_F_ACK,
            payload,
        })
    }

    /// Takes ours away; nobody else's.
    fn release(&self, handle: Handle) -> io::Result<()> {
        let mut payload = self.header(handle);
        attribute(&mut payload, TCA_KIND, KIND);
        let removed = self.socket.apply_one(Request {
            kind: RTM_DELQDISC,
            flags: NLM_F_ACK,
            payload,
        });
        match removed {
            // There is none, or one with another handle or of another kind.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// `struct tcmsg`
    fn header(&self, handle: Handle) -> Vec<u8> {
        let mut header = vec![0; 4];
        for number in [self.index, handle.0, TC_H_ROOT, 0] {
            header.extend(number.to_ne_bytes());
        }
        header
    }
}

/// `struct tc_netem_qopt`, and the delay, which has an attribute of its own, in nanoseconds.
fn options(delay: Duration) -> Vec<u8> {
    let (latency, loss, gap, duplicate, jitter) = (0, 0, 0, 0, 0);
    let mut options: Vec<u8> = Vec::new();
    for number in [latency, LIMIT, loss, gap, duplicate, jitter] {
        options.extend(u32::to_ne_bytes(number));
    }
    let nanoseconds = i64::try_from(delay.as_nanos()).unwrap_or(i64::MAX);
    attribute(
        &mut options,
        TCA_NETEM_LATENCY64,
        &nanoseconds.to_ne_bytes(),
    );
    options
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = (4 + value.len()) as u16;
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_have_handles_of_their_own() {
        let one = Handle::of("5f0c7a52-9d5c-4a54-9f6d-6a2f0a3a7b11");
        assert_eq!(one, Handle::of("5f0c7a52-9d5c-4a54-9f6d-6a2f0a3a7b11"));
        assert_ne!(one, Handle::of("5f0c7a52-9d5c-4a54-9f6d-6a2f0a3a7b12"));
        for task in ["", "another", "5f0c7a52-9d5c-4a54-9f6d-6a2f0a3a7b11"] {
            let Handle(handle) = Handle::of(task);
            assert!(handle & 0xffff == 0 && (1..0xffff).contains(&(handle >> 16)));
        }
    }
}
