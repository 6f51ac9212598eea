//! `skiff image pack`: a directory becomes an image.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use skiff_images::{Compression, PackOptions, Reference};

#[derive(Debug, Args)]
pub(super) struct PackArgs {
    /// The directory that becomes the image's root
    rootfs: PathBuf,
    /// What to call the image
    #[arg(short, long = "tag", value_name = "REF", required = true)]
    tags: Vec<Reference>,
    /// One argument of the entrypoint (repeat it), or all of them as a JSON array
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// One argument of the default command (repeat it), or all of them as a JSON array
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    cmd: Vec<String>,
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A port that the image listens on: 80, 80/tcp, 53/udp
    #[arg(long = "port", value_name = "PORT")]
    ports: Vec<String>,
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// A directory that each container gets a volume of its own for
    #[arg(long = "volume", value_name = "DIR")]
    volumes: Vec<String>,
    /// What the image runs on: linux/arm64, linux/arm/v7. By default what this machine is
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    #[arg(long, value_enum, default_value_t)]
    compression: LayerCompression,
    /// When the image was made, in seconds since 1970 or as 2026-01-31T12:00:00Z; no file in it is
    /// younger. By default the time of the newest file
    #[arg(long, value_name = "TIME", env = "SOURCE_DATE_EPOCH", value_parser = time)]
    created: Option<i64>,
    /// Write an OCI archive instead of adding the image to this node
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum LayerCompression {
    None,
    #[default]
    Gzip,
    Zstd,
}

pub(super) async fn run(at: &super::StoreArgs, args: PackArgs) -> anyhow::Result<()> {
    let options = PackOptions {
        references: args.tags.clone(),
        entrypoint: words("entrypoint", args.entrypoint)?,
        cmd: words("cmd", args.cmd)?,
        env: args.env,
        ports: args.ports,
        user: args.user,
        workdir: args.workdir,
        stop_signal: args.stop_signal,
        labels: labels(&args.labels)?,
        volumes: args.volumes,
        platform: args.platform,
        compression: match args.compression {
            LayerCompression::None => Compression::None,
            LayerCompression::Gzip => Compression::Gzip,
            LayerCompression::Zstd => Compression::Zstd,
        },
        created: args.created,
    };
    if let Some(variable) = options.env.iter().find(|variable| !variable.contains('=')) {
        bail!("--env {variable}: NAME=VALUE is expected");
    }
    let rootfs = args.rootfs;
    let Some(output) = args.output else {
        let nodes = super::open(at).await?;
        let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
        let archive = scratch.path().join("image.tar");
        pack(rootfs, options, archive.clone()).await?;
        for image in super::import(&nodes, &archive, &args.tags).await? {
            println!("{}", image.id);
        }
        return Ok(());
    };
    pack(rootfs, options, output).await
}

async fn pack(rootfs: PathBuf, options: PackOptions, to: PathBuf) -> anyhow::Result<()> {
    let packing = move || skiff_images::pack(&rootfs, &options, &to);
    Ok(tokio::task::spawn_blocking(packing).await??)
}

/// Words of a command: one JSON array, as in a Dockerfile, or each on its own.
fn words(option: &str, given: Vec<String>) -> anyhow::Result<Vec<String>> {
    match given.as_slice() {
        [array] if array.starts_with('[') => serde_json::from_str(array)
            .with_context(|| format!("--{option}: not a JSON array of strings")),
        _ => Ok(given),
    }
}

fn labels(given: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    given
        .iter()
        .map(|label| match label.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => bail!("--label {label}: NAME=VALUE is expected"),
        })
        .collect()
}

/// Seconds since 1970, from a number or an RFC 3339 time.
fn time(text: &str) -> Result<i64, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let time = text.parse::<jiff::Timestamp>();
    let time = time.map_err(|_| "neither seconds since 1970 nor a time as 2026-01-31T12:00:00Z")?;
    Ok(time.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_words_or_one_array() {
        let given = vec!["[\"nginx\", \"-g\", \"daemon off;\"]".to_owned()];
        assert_eq!(words("cmd", given).unwrap(), ["nginx", "-g", "daemon off;"]);
        let given = vec!["sh".to_owned(), "-c".to_owned()];
        assert_eq!(words("cmd", given.clone()).unwrap(), given);
        assert!(words("cmd", vec!["[1]".to_owned()]).is_err());
    }

    #[test]
    fn times_are_seconds_or_dates() {
        assert_eq!(time("86400"), Ok(86_400));
        assert_eq!(time("1970-01-02T00:00:00Z"), Ok(86_400));
        assert!(time("yesterday").is_err());
    }
}
