//! Executing a program inside a container: the last step of creating one and of an exec.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::unistd::{AccessFlags, access, execve};
use skiff_shim::wire;

use crate::child::Report;
use crate::privileges::Privileges;

/// Replaces this process by the program; returns only what went wrong, in runc's words.
pub(crate) fn execute(args: &[String], env: &[String]) -> String {
    let program = match find(args, env) {
        Ok(program) => program,
        Err(message) => return message,
    };
    let strings = |list: &[String]| {
        let list = list.iter().map(|text| CString::new(text.as_bytes()));
        list.collect::<Result<Vec<_>, _>>()
    };
    let path = CString::new(program.as_os_str().as_bytes());
    let (Ok(path), Ok(arguments), Ok(variables)) = (path, strings(args), strings(env)) else {
        return format!(
            "exec {:?}: a zero byte in the command or its environment",
            args[0]
        );
    };
    let error = match execve(&path, &arguments, &variables) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    format!("exec {}: {}", program.display(), describe(error))
}

/// The program that a command names, looked for in the environment's `PATH` unless it has a
/// slash.
pub(crate) fn find(args: &[String], env: &[String]) -> Result<PathBuf, String> {
    let Some(name) = args.first() else {
        return Err("no command specified".to_owned());
    };
    let executable = |path: &Path| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    if name.contains('/') {
        let path = PathBuf::from(name);
        return if executable(&path) {
            Ok(path)
        } else if path.is_dir() {
            Err(format!("exec: {name:?}: is a directory"))
        } else if path.exists() {
            Err(format!("exec: {name:?}: permission denied"))
        } else {
            Err(format!(
                "exec: {name:?}: stat {name}: no such file or directory"
            ))
        };
    }
    let search = env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="));
    let mut denied = false;
    for directory in search.unwrap_or_default().split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let path = Path::new(directory).join(OsStr::new(name));
        if executable(&path) {
            return Ok(path);
        }
        denied |= path.is_file();
    }
    if denied {
        return Err(format!("exec: {name:?}: permission denied"));
    }
    Err(format!(
        "exec: {name:?}: executable file not found in $PATH"
    ))
}

/// Go's words for the error, which people search for.
fn describe(error: nix::errno::Errno) -> String {
    error.desc().to_lowercase()
}

/// Executes a container's own process with what privileges it is left, and tells the shim when
/// that fails.
#[derive(Clone)]
pub(crate) struct Confined {
    pub(crate) privileges: Privileges,
    /// The channel to the shim; it closes when the program is executed.
    pub(crate) channel: RawFd,
}

impl Confined {
    fn command(spec: &Spec) -> (Vec<String>, Vec<String>) {
        let process = spec.process().as_ref();
        let get = |list: Option<&Option<Vec<String>>>| list.cloned().flatten().unwrap_or_default();
        (
            get(process.map(|process| process.args())),
            get(process.map(|process| process.env())),
        )
    }
}

impl Executor for Confined {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let (args, mut env) = Self::command(spec);
        // libcontainer has looked up the user's home and put it into our environment.
        if let Ok(home) = std::env::var("HOME")
            && !env.iter().any(|entry| entry.starts_with("HOME="))
        {
            env.push(format!("HOME={home}"));
        }
        let message = execute(&args, &env);
        // SAFETY: the channel is open in this process until it executes or ends.
        let channel = unsafe { BorrowedFd::borrow_raw(self.channel) };
        let report = Report::Failed {
            message: message.clone(),
        };
        let _ = wire::send(channel.as_fd(), &report, &[]);
        Err(ExecutorError::Other(message))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        // The process has its user by now. It waits to be started with no more privileges than
        // its program will have.
        let (args, env) = Self::command(spec);
        self.privileges
            .enter()
            .and_then(|()| find(&args, &env).map(drop))
            .map_err(ExecutorValidationError::ArgValidationError)
    }
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn programs_are_found_like_a_shell_finds_them() {
        let env = ["PATH=/nowhere:/bin:/usr/bin".to_owned()];
        let look = |name: &str| find(&[name.to_owned()], &env);
        assert!(look("sh").unwrap().ends_with("sh"));
        assert!(look("/bin/sh").is_ok());
        assert_eq!(
            look("no-such").unwrap_err(),
            "exec: \"no-such\": executable file not found in $PATH"
        );
        assert_eq!(
            look("/no/such").unwrap_err(),
            "exec: \"/no/such\": stat /no/such: no such file or directory"
        );
        assert_eq!(
            look("/etc/passwd").unwrap_err(),
            "exec: \"/etc/passwd\": permission denied"
        );
    }
}
