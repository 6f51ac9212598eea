//! Docker's credential helpers: programs called `docker-credential-<name>` that are told a server
//! on their standard input and print its account.
//! (<https://github.com/docker/docker-credential-helpers#development>)

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::{Credentials, CredentialsError};

/// How long a helper may think: one may ask its user something.
const PATIENCE: Duration = Duration::from_secs(60);
const OUTPUT_LIMIT: u64 = 1024 * 1024;
/// What helpers print, with a failure, when they have no account.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The name of an account whose password is an identity token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
struct Output {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// Asks a helper for a server's account.
pub(super) async fn get(
    helper: &str,
    server: &str,
) -> Result<Option<Credentials>, CredentialsError> {
    let program = format!("docker-credential-{helper}");
    // It is looked for on the PATH: a name with a slash in it would not be.
    match helper.contains('/') {
        true => Err(failure(&program, server, "its name has a slash in it")),
        false => ask(&program, server).await,
    }
}

fn failure(program: &str, server: &str, reason: impl ToString) -> CredentialsError {
    CredentialsError::Helper {
        program: program.to_owned(),
        server: server.to_owned(),
        reason: reason.to_string(),
    }
}

async fn ask(program: &str, server: &str) -> Result<Option<Credentials>, CredentialsError> {
    let fail = |reason: String| failure(program, server, reason);
    let ran = tokio::time::timeout(PATIENCE, run(program, server)).await;
    let (succeeded, output) = match ran {
        Ok(Ok(ran)) => ran,
        Ok(Err(error)) => return Err(fail(error.to_string())),
        Err(_) => return Err(fail(format!("no answer within {}s", PATIENCE.as_secs()))),
    };
    if !succeeded {
        let said = String::from_utf8_lossy(&output);
        let said = said.trim();
        return match said == NOT_FOUND {
            true => Ok(None),
            false => Err(fail(crate::registry::clean(said, 256))),
        };
    }
    let account: Output = serde_json::from_slice(&output)
        .map_err(|_| fail("its output is not an account in JSON".to_owned()))?;
    Ok(
        match (account.username.as_str(), account.secret.is_empty()) {
            ("", true) => None,
            (TOKEN_USER, _) => Some(Credentials::IdentityToken(account.secret)),
            _ => Some(Credentials::basic(account.username, account.secret)),
        },
    )
}

/// Runs a helper's `get`: whether it succeeded, and its output. Ends it if nobody waits any more.
async fn run(program: &str, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // A helper that does not read what it is asked tells so by its status.
        let _ = input.write_all(server.as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(OUTPUT_LIMIT).read_to_end(&mut output).await?;
    }
    Ok((child.wait().await?.success(), output))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Asks a helper that is a shell script.
    async fn answer(script: &str) -> Result<Option<Credentials>, CredentialsError> {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("docker-credential-test");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        ask(program.to_str().unwrap(), "r.io").await
    }

    #[tokio::test]
    async fn a_helper_is_told_the_server_and_prints_its_account() {
        // `read` fails at the end of what has no line's end, which is how it is asked.
        let script = r#"
            [ "$1" = get ] || exit 3
            read -r server
            printf '{"ServerURL":"%s","Username":"me","Secret":"of-%s"}' "$server" "$server""#;
        let found = answer(script).await.unwrap();
        assert_eq!(found, Some(Credentials::basic("me", "of-r.io")));
        let found = answer(r#"echo '{"Username":"<token>","Secret":"t"}'"#).await;
        let token = Credentials::IdentityToken("t".to_owned());
        assert_eq!(found.unwrap(), Some(token));
        assert_eq!(answer("echo '{}'").await.unwrap(), None);
    }

    #[tokio::test]
    async fn no_account_is_told_from_a_failure() {
        let none = "echo credentials not found in native keychain; exit 1";
        assert_eq!(answer(none).await.unwrap(), None);
        for (script, reason) in [
            (
                "echo the keychain is locked; exit 1",
                "the keychain is locked",
            ),
            ("echo geheim", "not an account"),
        ] {
            let error = answer(script).await.unwrap_err().to_string();
            assert!(
                error.contains(reason) && error.contains("for r.io"),
                "{error}"
            );
            assert!(!error.contains("geheim"), "{error}");
        }
        let absent = get("skiff-has-none-of-that-name", "r.io")
            .await
            .unwrap_err();
        assert!(
            absent
                .to_string()
                .contains("docker-credential-skiff-has-none")
        );
        assert!(get("../evil", "r.io").await.is_err());
    }
}
