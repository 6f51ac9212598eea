//! The default seccomp profile: the system calls that Docker and containerd let a container
//! make. What is not listed fails with EPERM.

use std::collections::HashSet;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

/// Calls that every container may make.
const ALLOWED: &str = "
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown
    chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod
    fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr
    flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate
    ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat
    getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32
    getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority
    getrandom getresgid getresgid32 getresuid getresuid32 getrlimit get_robust_list getrusage
    getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getuid32 getxattr
    getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl
    io_destroy io_getevents io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set io_setup
    io_submit ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown
    lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek
    lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create
    memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock
    munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2
    pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll
    ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv
    process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead
    readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages
    removexattr removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr
    sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
    semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32
    setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32
    setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32
    setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
    sigpending sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64
    statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
    timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat
    uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write
    writev";

#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &str = "arch_prctl modify_ldt";
#[cfg(target_arch = "aarch64")]
const ALLOWED_HERE: &str =
    "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [Arch; 3] = [Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [Arch; 2] = [Arch::ScmpArchAarch64, Arch::ScmpArchArm];

/// Calls that come with a capability.
const WITH_CAPABILITY: [(Capability, &str); 14] = [
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount \
         mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
         sethostname setns syslog umount umount2 unshare",
    ),
    (Capability::Bpf, "bpf"),
    (Capability::DacReadSearch, "open_by_handle_at"),
    (Capability::Perfmon, "perf_event_open"),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (
        Capability::SysModule,
        "delete_module finit_module init_module",
    ),
    (
        Capability::SysNice,
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise"),
    (Capability::SysRawio, "iopl ioperm"),
    (
        Capability::SysTime,
        "clock_settime clock_settime64 settimeofday stime",
    ),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::Syslog, "syslog"),
];

/// The personalities that change nothing: Linux, 32-bit Linux, with the old `uname`, and "which?".
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];

/// `CLONE_NEW*`: the flags of `clone` that make namespaces.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// `AF_VSOCK` sockets reach the hypervisor, past every network policy.
const AF_VSOCK: u64 = 40;

/// The profile for a container with these capabilities.
///
/// # Errors
/// None in practice: the builders' own.
pub fn default_profile(capabilities: &HashSet<Capability>) -> Result<LinuxSeccomp, OciSpecError> {
    let mut rules = vec![
        allow(&format!("{ALLOWED} {ALLOWED_HERE}"))?,
        allow_if("socket", 0, LinuxSeccompOperator::ScmpCmpNe, AF_VSOCK, None)?,
    ];
    for personality in PERSONALITIES {
        let equal = LinuxSeccompOperator::ScmpCmpEq;
        rules.push(allow_if("personality", 0, equal, personality, None)?);
    }
    for (capability, calls) in WITH_CAPABILITY {
        if capabilities.contains(&capability) {
            rules.push(allow(calls)?);
        }
    }
    if !capabilities.contains(&Capability::SysAdmin) {
        let masked = LinuxSeccompOperator::ScmpCmpMaskedEq;
        rules.push(allow_if("clone", 0, masked, CLONE_NAMESPACES, Some(0))?);
        // Its flags are in memory, where a filter can't look: libraries fall back to `clone`.
        rules.push(fail("clone3", libc::ENOSYS as u32)?);
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(libc::EPERM as u32)
        .architectures(ARCHITECTURES.to_vec())
        .syscalls(rules)
        .build()
}

fn allow(calls: &str) -> Result<LinuxSyscall, OciSpecError> {
    LinuxSyscallBuilder::default()
        .names(names(calls))
        .action(LinuxSeccompAction::ScmpActAllow)
        .build()
}

fn allow_if(
    call: &str,
    index: usize,
    op: LinuxSeccompOperator,
    value: u64,
    value_two: Option<u64>,
) -> Result<LinuxSyscall, OciSpecError> {
    let mut argument = LinuxSeccompArgBuilder::default()
        .index(index)
        .op(op)
        .value(value);
    if let Some(value_two) = value_two {
        argument = argument.value_two(value_two);
    }
    let arguments: Vec<LinuxSeccompArg> = vec![argument.build()?];
    LinuxSyscallBuilder::default()
        .names(names(call))
        .action(LinuxSeccompAction::ScmpActAllow)
        .args(arguments)
        .build()
}

fn fail(call: &str, errno: u32) -> Result<LinuxSyscall, OciSpecError> {
    LinuxSyscallBuilder::default()
        .names(names(call))
        .action(LinuxSeccompAction::ScmpActErrno)
        .errno_ret(errno)
        .build()
}

fn names(calls: &str) -> Vec<String> {
    calls.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules_for(profile: &LinuxSeccomp, call: &str) -> Vec<LinuxSeccompAction> {
        let rules = profile.syscalls().iter().flatten();
        rules
            .filter(|rule| rule.names().iter().any(|name| name == call))
            .map(LinuxSyscall::action)
            .collect()
    }

    #[test]
    fn dangerous_calls_need_capabilities() {
        let profile = default_profile(&HashSet::new()).unwrap();
        assert_eq!(rules_for(&profile, "read").len(), 1);
        assert!(rules_for(&profile, "mount").is_empty());
        assert!(rules_for(&profile, "keyctl").is_empty());
        assert_eq!(
            rules_for(&profile, "clone3"),
            [LinuxSeccompAction::ScmpActErrno]
        );
        let admin = default_profile(&HashSet::from([Capability::SysAdmin])).unwrap();
        assert_eq!(rules_for(&admin, "mount").len(), 1);
        assert_eq!(
            rules_for(&admin, "clone3"),
            [LinuxSeccompAction::ScmpActAllow]
        );
    }
}
