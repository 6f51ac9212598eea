//! Seccomp filters: profiles compiled by libseccomp, once for all pods of the node.
//!
//! Compiling Docker's default profile takes 8 ms of processor time, so the program is kept in
//! the node's run directory, named by a hash of the profile.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Seek};
use std::path::Path;
use std::{fs, io};

use libcontainer::oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};

use crate::{Result, context};

/// Bytes in an instruction of a filter (`struct sock_filter`).
const INSTRUCTION: usize = 8;

/// A compiled filter.
#[derive(Clone)]
pub(crate) struct Filter {
    program: Vec<u8>,
    flags: libc::c_ulong,
}

impl Filter {
    /// The filter of a profile, from the node's cache if it is there.
    pub(crate) fn of(profile: &LinuxSeccomp, cache: &Path) -> Result<Self> {
        let flags = flags(profile)?;
        let path = cache.join(name_of(profile)?);
        if let Ok(program) = fs::read(&path)
            && !program.is_empty()
        {
            return Ok(Self { program, flags });
        }
        let program =
            write_out(&compile(profile)?).map_err(context("writing out", "the seccomp filter"))?;
        // Only for the next container to be quicker.
        let _ = keep(&path, &program);
        Ok(Self { program, flags })
    }

    /// Binds this process and its descendants.
    pub(crate) fn load(&self) -> Result<()> {
        let program = libc::sock_fprog {
            len: (self.program.len() / INSTRUCTION) as u16,
            filter: self.program.as_ptr().cast_mut().cast(),
        };
        // SAFETY: the program is as long as is said and outlives the call, which copies it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                self.flags,
                &raw const program,
            )
        };
        nix::errno::Errno::result(result)
            .map(drop)
            .map_err(context("loading", "the seccomp filter"))
    }
}

/// libseccomp writes to a file only (before 2.6).
fn write_out(filter: &ScmpFilterContext) -> io::Result<Vec<u8>> {
    // SAFETY: the name ends with NUL; the result is a new descriptor or an error.
    let fd = unsafe { libc::memfd_create(c"seccomp".as_ptr(), libc::MFD_CLOEXEC) };
    let fd = nix::errno::Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let mut file = fs::File::from(unsafe { crate::child::own(fd) });
    filter.export_bpf(&file).map_err(io::Error::other)?;
    let mut program = Vec::new();
    file.seek(io::SeekFrom::Start(0))?;
    file.read_to_end(&mut program)?;
    Ok(program)
}

fn name_of(profile: &LinuxSeccomp) -> Result<String> {
    let text = serde_json::to_string(profile).map_err(context("reading", "the profile"))?;
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    Ok(format!("{:016x}-{}", hasher.finish(), text.len()))
}

fn keep(path: &Path, program: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    fs::write(&draft, program)?;
    fs::rename(draft, path)
}

fn flags(profile: &LinuxSeccomp) -> Result<libc::c_ulong> {
    profile.flags().iter().flatten().try_fold(0, |flags, flag| {
        Ok(flags
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                    libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
                }
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                    return Err("seccomp: notifications are not supported".to_owned());
                }
            })
    })
}

fn compile(profile: &LinuxSeccomp) -> Result<ScmpFilterContext> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let fail = |doing: &str| {
        let doing = doing.to_owned();
        move |error: SeccompError| format!("seccomp: {doing}: {error}")
    };
    let mut filter = ScmpFilterContext::new(default).map_err(fail("making a filter"))?;
    for arch in profile.architectures().iter().flatten() {
        let arch = architecture(*arch)?;
        filter
            .add_arch(arch)
            .map_err(fail("adding an architecture"))?;
    }
    // A tree is searched in fewer steps than a list.
    filter.set_ctl_optimize(2).map_err(fail("optimizing"))?;
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        if action != default {
            add_rule(&mut filter, action, rule)?;
        }
    }
    Ok(filter)
}

/// Calls that this libseccomp does not know are left out: the default action is theirs.
fn add_rule(filter: &mut ScmpFilterContext, action: ScmpAction, rule: &LinuxSyscall) -> Result<()> {
    let arguments = rule.args().as_deref().unwrap_or_default();
    let comparisons: Vec<_> = arguments.iter().map(comparison).collect();
    let mut indices: Vec<_> = arguments.iter().map(LinuxSeccompArg::index).collect();
    indices.sort_unstable();
    let repeated = indices.windows(2).any(|pair| pair[0] == pair[1]);
    let known = rule.names().iter().map(|name| ScmpSyscall::from_name(name));
    for (call, name) in known.zip(rule.names()) {
        let Ok(call) = call else { continue };
        let failed = |error| format!("seccomp: a rule for {name}: {error}");
        if repeated {
            // One rule can't look at an argument twice: any of them is enough, as with runc.
            for comparison in &comparisons {
                let one = std::slice::from_ref(comparison);
                filter
                    .add_rule_conditional(action, call, one)
                    .map_err(failed)?;
            }
        } else {
            filter
                .add_rule_conditional(action, call, &comparisons)
                .map_err(failed)?;
        }
    }
    Ok(())
}

fn comparison(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let (first, second) = (argument.value(), argument.value_two().unwrap_or(0));
    let (op, datum) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, first),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, first),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, first),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, first),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, first),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, first),
        // The specification's value is the mask, its second value what must be left.
        LinuxSeccompOperator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(first), second),
    };
    ScmpArgCompare::new(argument.index() as u32, op, datum)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
    let errno = errno.map_or(libc::EPERM, |errno| errno as i32);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(errno as u16),
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActNotify => {
            return Err("seccomp: notifications are not supported".to_owned());
        }
    })
}

fn architecture(arch: Arch) -> Result<ScmpArch> {
    Ok(match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        other => {
            return Err(format!(
                "seccomp: architecture {other:?} is not supported here"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use libcontainer::oci_spec::runtime::{
        LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSyscallBuilder,
    };

    #[test]
    fn a_profile_is_compiled_once() {
        let masked = LinuxSeccompArgBuilder::default()
            .index(0usize)
            .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
            .value(0xf0u64)
            .value_two(0u64)
            .build()
            .unwrap();
        let rule = LinuxSyscallBuilder::default()
            .names(["clone".to_owned(), "no_such_call".to_owned()])
            .action(LinuxSeccompAction::ScmpActAllow)
            .args([masked])
            .build()
            .unwrap();
        let profile = LinuxSeccompBuilder::default()
            .default_action(LinuxSeccompAction::ScmpActErrno)
            .syscalls([rule])
            .build()
            .unwrap();
        let cache = std::env::temp_dir().join(format!("skiff-seccomp-{}", std::process::id()));
        let first = Filter::of(&profile, &cache).unwrap();
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
        let second = Filter::of(&profile, &cache).unwrap();
        assert_eq!(first.program, second.program);
        assert!(first.program.len() >= 4 * INSTRUCTION);
        fs::remove_dir_all(cache).unwrap();
    }
}
