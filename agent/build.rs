//! Builds the shim as a small static executable, which the agent carries inside itself.
//!
//! The shim has its own profile and its own target directory beside the outer one, so that
//! every outer build (debug, release, clippy ...) shares one shim, and cargo's locks don't meet.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let workspace = manifest_dir
        .parent()
        .expect("the agent is in the workspace");
    for path in ["shim/src", "shim/Cargo.toml", "../Cargo.lock"] {
        println!(
            "cargo::rerun-if-changed={}",
            manifest_dir.join(path).display()
        );
    }
    let target = variable("TARGET");
    let directory = target_directory().join("shim");
    let status = Command::new(variable("CARGO"))
        .current_dir(workspace)
        .args(["build", "--package", "skiff-shim", "--bin", "skiff-shim"])
        .args(["--profile", "shim", "--locked", "--target", &target])
        .arg("--target-dir")
        .arg(&directory)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("CARGO_MAKEFLAGS")
        .env_remove("MAKEFLAGS")
        // Neither position-independent nor dynamically linked: nothing is relocated at run
        // time, so idle shims share nearly all of their pages.
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C relocation-model=static",
        )
        .env("LIBSECCOMP_LINK_TYPE", "static")
        .env("LIBSECCOMP_LIB_PATH", libseccomp_directory(&target))
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "building the shim failed");
    let shim = directory.join(&target).join("shim").join("skiff-shim");
    let shim = fs::read(&shim).expect("the shim can be read");
    // Compressed, since it is the largest single thing in the agent and written out only once.
    let packed = zstd::encode_all(shim.as_slice(), 19).expect("memory does not fail to compress");
    // A copy that a later build of another profile can't replace under this one.
    let copy = Path::new(&variable("OUT_DIR")).join("skiff-shim.zst");
    fs::write(&copy, packed).expect("the compressed shim can be written");
    println!("cargo::rustc-env=SKIFF_SHIM={}", copy.display());
    println!("cargo::rustc-env=SKIFF_SHIM_HASH={}", hash(&shim));
}

/// Tells one build of the shim from another.
fn hash(shim: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    shim.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// The outer target directory: `OUT_DIR` is `<target>[/<triple>]/<profile>/build/<package>/out`.
fn target_directory() -> PathBuf {
    let out = PathBuf::from(variable("OUT_DIR"));
    let profile = out.ancestors().nth(3).expect("OUT_DIR is that deep");
    let parent = profile.parent().expect("OUT_DIR is that deep");
    if parent.ends_with(variable("TARGET")) {
        parent.parent().expect("OUT_DIR is that deep").to_owned()
    } else {
        parent.to_owned()
    }
}

/// Where `libseccomp.a` is: Debian's multiarch directory, or one of the usual others.
fn libseccomp_directory(target: &str) -> PathBuf {
    if let Ok(directory) = env::var("LIBSECCOMP_LIB_PATH") {
        return directory.into();
    }
    let multiarch = target.replace("-unknown", "");
    [
        format!("/usr/lib/{multiarch}"),
        "/usr/lib64".to_owned(),
        "/usr/lib".to_owned(),
        "/usr/local/lib".to_owned(),
    ]
    .into_iter()
    .map(PathBuf::from)
    .find(|directory| directory.join("libseccomp.a").exists())
    .expect("libseccomp.a is needed (Debian: apt-get install libseccomp-dev)")
}
