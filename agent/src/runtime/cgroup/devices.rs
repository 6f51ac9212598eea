//! Which devices a group's processes may use: rules on v1, a small BPF program on v2.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;

/// One kind of device and what may be done with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    kind: Kind,
    /// `None` is any.
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Block,
    Character,
}

// `BPF_DEVCG_ACC_*` of the kernel.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

/// Docker's rules for containers that are not privileged: any node may be made, and these used.
pub(super) const DEFAULT: [Rule; 12] = [
    Rule {
        kind: Kind::Character,
        major: None,
        minor: None,
        access: MKNOD,
    },
    Rule {
        kind: Kind::Block,
        major: None,
        minor: None,
        access: MKNOD,
    },
    character(1, Some(3)),    // null
    character(1, Some(5)),    // zero
    character(1, Some(7)),    // full
    character(1, Some(8)),    // random
    character(1, Some(9)),    // urandom
    character(5, Some(0)),    // tty
    character(5, Some(1)),    // console
    character(5, Some(2)),    // ptmx
    character(136, None),     // pts
    character(10, Some(200)), // tun
];

const fn character(major: u32, minor: Option<u32>) -> Rule {
    Rule {
        kind: Kind::Character,
        major: Some(major),
        minor,
        access: ALL,
    }
}

/// As v1's `devices.allow` takes it: `c 1:3 rwm`.
impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            Kind::Block => 'b',
            Kind::Character => 'c',
        };
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |n| n.to_string());
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
            if self.access & bit != 0 {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// Restricts a group of the unified hierarchy, and those below it, to what the rules allow.
pub(super) fn restrict_unified(directory: &Path, rules: &[Rule]) -> io::Result<()> {
    let group = File::open(directory)?;
    let program = load(&program(rules))?;
    let attributes = AttachAttributes {
        target: group.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: 6,  // BPF_CGROUP_DEVICE
        flags: 2, // BPF_F_ALLOW_MULTI: those of groups above hold as well
    };
    // SAFETY: the descriptors are open, and the structure is what this command takes.
    unsafe { bpf(8, &attributes) }?; // BPF_PROG_ATTACH
    Ok(())
}

/// An instruction of the kernel's BPF machine.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    }
}

/// The program for some rules. It is given `struct bpf_cgroup_dev_ctx` (access and kind in one
/// word, major, minor) in register 1 and answers in register 0: 1 allows.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    const LOAD_WORD: u8 = 0x61;
    const MOVE_REGISTER: u8 = 0xbc;
    const MOVE: u8 = 0xb4;
    const AND: u8 = 0x54;
    const SHIFT_RIGHT: u8 = 0x74;
    const JUMP_IF_NOT_EQUAL: u8 = 0x55;
    const EXIT: u8 = 0x95;
    // What each register holds.
    const ANSWER: u8 = 0;
    const CONTEXT: u8 = 1;
    const KIND: u8 = 2;
    const ACCESS: u8 = 3;
    const MAJOR: u8 = 4;
    const MINOR: u8 = 5;
    const EXCESS: u8 = 6;
    let mut code = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules {
        let kind = match rule.kind {
            Kind::Block => 1,
            Kind::Character => 2,
        };
        let mut conditions = vec![(KIND, kind)];
        conditions.extend(rule.major.map(|major| (MAJOR, major as i32)));
        conditions.extend(rule.minor.map(|minor| (MINOR, minor as i32)));
        // What is asked for beyond what the rule allows must be nothing.
        let mut body = vec![
            instruction(MOVE_REGISTER, EXCESS, ACCESS, 0, 0),
            instruction(AND, EXCESS, 0, 0, !(rule.access as i32)),
        ];
        conditions.insert(0, (EXCESS, 0));
        let count = conditions.len();
        for (index, (register, value)) in conditions.into_iter().enumerate() {
            // Over the other conditions, the answer and the exit.
            let skip = (count - index - 1 + 2) as i16;
            body.push(instruction(JUMP_IF_NOT_EQUAL, register, 0, skip, value));
        }
        body.push(instruction(MOVE, ANSWER, 0, 0, 1));
        body.push(instruction(EXIT, 0, 0, 0, 0));
        code.extend(body);
    }
    code.push(instruction(MOVE, ANSWER, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

/// `union bpf_attr` for BPF_PROG_LOAD, up to what is used of it.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    length: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn load(code: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        kind: 15, // BPF_PROG_TYPE_CGROUP_DEVICE
        length: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: the pointers are to `code` and to a constant, which outlive the call.
    let fd = unsafe { bpf(5, &attributes) }?; // BPF_PROG_LOAD
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `bpf(2)`.
///
/// # Safety
/// `attributes` is what the command takes, and what it points to is valid during the call.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: the caller's promise; the size is the structure's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    Ok(Errno::result(result)? as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_written_as_v1_takes_them() {
        let text: Vec<_> = DEFAULT.iter().map(ToString::to_string).collect();
        assert_eq!(text[..3], ["c *:* m", "b *:* m", "c 1:3 rwm"]);
        assert_eq!(text[10], "c 136:* rwm");
    }

    /// On any host with the unified hierarchy mounted somewhere, a hybrid one included.
    #[test]
    fn the_kernel_takes_the_program_and_heeds_it() {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let unified = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let Some(root) = unified.and_then(|line| line.split(' ').nth(4)) else {
            return;
        };
        let group = Path::new(root).join(format!("skiff-devices-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        // Full (1:7) is not in these rules; null (1:3) is.
        restrict_unified(&group, &DEFAULT[..3]).unwrap();
        let script = format!(
            "echo $$ > {}/cgroup.procs; cat /dev/null && echo null; head -c 1 /dev/full || echo no full",
            group.display()
        );
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .output();
        std::fs::remove_dir(&group).unwrap();
        assert_eq!(output.unwrap().stdout, b"null\nno full\n");
    }
}
