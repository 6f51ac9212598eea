//! Debian's `docker-registry`, started for a test on a port of 127.0.0.1.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use skiff_images::Reference;
use tempfile::TempDir;

use super::certificates::Pair;

/// The account of [`Access::Password`].
pub(crate) const USER: &str = "me";
pub(crate) const PASSWORD: &str = "word";
/// The same for `htpasswd`, by bcrypt.
const HTPASSWD: &str = "me:$2y$05$abcdefghijklmnopqrstuuQDoL5Sa/TtfS/XN4AY/jgq.HBbO1BTu\n";
/// How long it may take to start, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) enum Access<'a> {
    Anyone,
    /// [`USER`] and [`PASSWORD`].
    Password,
    /// Tokens of a server at `realm`, signed with a certificate.
    Token {
        realm: &'a str,
        signer: &'a Pair,
    },
}

/// A running registry with its own folder. It ends when it is dropped.
pub(crate) struct DebianRegistry {
    child: Child,
    host: String,
    _dir: TempDir,
}

impl DebianRegistry {
    /// With TLS if there is a certificate.
    pub(crate) fn start(tls: Option<&Pair>, access: &Access<'_>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = configuration(dir.path(), tls, access);
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let mut child = Command::new("docker-registry")
            .args(["serve".as_ref(), file.as_os_str()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed by scripts/install test");
        let log = BufReader::new(child.stderr.take().unwrap());
        // The log is read to its end, so that the registry is never held up by it.
        let (sender, addresses) = mpsc::channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("listening on ") {
                    let end = rest.find([',', '"', ' ']).unwrap_or(rest.len());
                    let _ = sender.send(rest[..end].to_owned());
                }
            }
        });
        let host = addresses.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let _ = child.kill();
            panic!("docker-registry did not start: {}", file.display())
        });
        Self {
            child,
            host,
            _dir: dir,
        }
    }

    /// Host and port, as in a reference.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.host).parse().unwrap()
    }

    /// Copies an image of an OCI layout into the registry.
    pub(crate) fn push(
        &self,
        layout: &Path,
        name_in_layout: &str,
        name: &str,
        access: &Access<'_>,
    ) {
        let mut copy = Command::new("skopeo");
        copy.args([
            "copy",
            "--quiet",
            "--insecure-policy",
            "--dest-tls-verify=false",
        ]);
        match access {
            Access::Anyone => copy.arg("--dest-no-creds"),
            Access::Password => copy.args(["--dest-creds", &format!("{USER}:{PASSWORD}")]),
            Access::Token { .. } => copy.args(["--dest-creds", "pusher:pusher"]),
        };
        let output = copy
            .arg(format!("oci:{}:{name_in_layout}", layout.display()))
            .arg(format!("docker://{}/{name}", self.host))
            .output()
            .expect("skopeo is installed by scripts/install test");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

impl Drop for DebianRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(dir: &Path, tls: Option<&Pair>, access: &Access<'_>) -> String {
    let file = |name: &str| -> PathBuf { dir.join(name) };
    let storage = file("storage");
    let mut config = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {storage:?}}}\n\
         http:\n  addr: 127.0.0.1:0\n  secret: a-test\n"
    );
    if let Some(pair) = tls {
        let (certificate, key) = (file("server.crt"), file("server.key"));
        pair.write(&certificate, &key);
        writeln!(
            config,
            "  tls: {{certificate: {certificate:?}, key: {key:?}}}"
        )
        .unwrap();
    }
    match access {
        Access::Anyone => {}
        Access::Password => {
            let path = file("htpasswd");
            std::fs::write(&path, HTPASSWD).unwrap();
            writeln!(config, "auth:\n  htpasswd: {{realm: test, path: {path:?}}}").unwrap();
        }
        Access::Token { realm, signer } => {
            let bundle = file("signer.crt");
            std::fs::write(&bundle, &signer.certificate).unwrap();
            writeln!(
                config,
                "auth:\n  token: {{realm: {realm:?}, service: test, issuer: test, \
                 rootcertbundle: {bundle:?}}}"
            )
            .unwrap();
        }
    }
    config
}
