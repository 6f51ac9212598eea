//! `skiff image`: this node's images, whether or not anything else of Skiff runs.
//!
//! The commands open the node's store themselves; its locks let the agent use it meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use skiff_agent::identity::Identity;
use skiff_images::{
    Compression, Image, NoRegistry, PackOptions, PullRequest, Puller, Reference, Store,
};

#[derive(Debug, Args)]
pub struct ImageArgs {
    /// The data directory of the node
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/var/lib/skiff"
    )]
    data_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take in an OCI archive, an OCI layout directory or what `docker save` wrote
    Import {
        #[arg(value_name = "FILE-OR-DIR")]
        path: PathBuf,
        /// What to call the image, instead of what the archive calls it
        #[arg(long = "name", value_name = "REF")]
        names: Vec<Reference>,
    },
    /// List this node's images
    #[command(visible_alias = "ls")]
    List {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Take a name away, and the image with its last name
    Rm {
        #[arg(value_name = "REF", required = true)]
        references: Vec<Reference>,
    },
    /// Show all that is known of an image, as JSON
    Inspect {
        /// A reference, or the first digits of an image id
        #[arg(value_name = "REF")]
        name: String,
    },
    /// Make an image of a directory
    Pack(PackArgs),
    /// Write images to an OCI archive
    Export {
        #[arg(value_name = "REF", required = true)]
        references: Vec<Reference>,
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Fetch an image from its registry
    Pull {
        #[arg(value_name = "REF")]
        reference: Reference,
    },
}

#[derive(Debug, Args)]
struct PackArgs {
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
    #[arg(long, value_enum, default_value_t)]
    compression: LayerCompression,
    /// When the image was made, in seconds since 1970; no file in it is younger. By default the
    /// time of the newest file
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH")]
    created: Option<i64>,
    /// Write an OCI archive instead of adding the image to this node
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum LayerCompression {
    None,
    #[default]
    Gzip,
    Zstd,
}

pub async fn run(args: ImageArgs) -> anyhow::Result<()> {
    let data_dir = &args.data_dir;
    match args.command {
        Command::Import { path, names } => {
            let store = open(data_dir).await?;
            for image in store.import(absolute(&path)?, &names).await? {
                for reference in &image.references {
                    println!("{reference} {}", image.id);
                }
            }
        }
        Command::List { output } => list(&open(data_dir).await?, output).await?,
        Command::Rm { references } => {
            let store = open(data_dir).await?;
            for reference in references {
                let removed = store.remove(&reference).await?;
                println!("Untagged: {}", removed.reference);
                if let Some(id) = removed.deleted {
                    println!("Deleted: {id}");
                }
            }
        }
        Command::Inspect { name } => {
            let image = open(data_dir).await?.find(&name).await?;
            println!("{}", serde_json::to_string_pretty(&Inspected::of(&image)?)?);
        }
        Command::Pack(pack) => run_pack(data_dir, pack).await?,
        Command::Export { references, output } => {
            open(data_dir).await?.export(&references, output).await?;
        }
        Command::Pull { reference } => {
            let request = PullRequest {
                reference,
                credentials: Vec::new(),
            };
            let image = NoRegistry::NoClient.pull(request).await?;
            println!("{}", image.id);
        }
    }
    Ok(())
}

async fn open(data_dir: &Path) -> anyhow::Result<Store> {
    fs::create_dir_all(data_dir)
        .with_context(|| format!("cannot make the data directory {}", data_dir.display()))?;
    let identity = Identity::of(data_dir)
        .with_context(|| format!("cannot use the data directory {}", data_dir.display()))?;
    Ok(Store::open(identity.images_dir()).await?)
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot find {}", path.display()))
}

async fn run_pack(data_dir: &Path, args: PackArgs) -> anyhow::Result<()> {
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
        let store = open(data_dir).await?;
        let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
        let archive = scratch.path().join("image.tar");
        pack(rootfs, options, archive.clone()).await?;
        for image in store.import(archive, &args.tags).await? {
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

async fn list(store: &Store, output: Output) -> anyhow::Result<()> {
    let images = store.list().await?;
    if output == Output::Json {
        let listed: Vec<Listed<'_>> = images.iter().map(|image| Listed::of(image)).collect();
        println!("{}", serde_json::to_string_pretty(&listed)?);
        return Ok(());
    }
    let mut rows = vec![["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"].map(str::to_owned)];
    let now = jiff::Timestamp::now();
    for image in &images {
        for reference in &image.references {
            rows.push([
                reference.name(),
                reference.tag().unwrap_or("<none>").to_owned(),
                image.id.hex()[..12].to_owned(),
                age(image, now),
                human_size(image.size),
            ]);
        }
    }
    print_table(&rows);
    Ok(())
}

/// An image in `list -o json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    references: &'a [Reference],
    id: String,
    digest: String,
    created: Option<&'a str>,
    size: u64,
}

impl<'a> Listed<'a> {
    fn of(image: &'a Image) -> Self {
        Self {
            references: &image.references,
            id: image.id.to_string(),
            digest: image.digest.to_string(),
            created: image.config.created().as_deref(),
            size: image.size,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Inspected<'a> {
    #[serde(flatten)]
    listed: Listed<'a>,
    repo_digests: Vec<Reference>,
    manifest: String,
    /// The image's configuration as the OCI image specification writes it.
    config: serde_json::Value,
    layers: &'a [PathBuf],
}

impl<'a> Inspected<'a> {
    fn of(image: &'a Image) -> anyhow::Result<Self> {
        Ok(Self {
            listed: Listed::of(image),
            repo_digests: image.repo_digests(),
            manifest: image.manifest.to_string(),
            config: serde_json::to_value(&image.config)?,
            layers: &image.layers,
        })
    }
}

/// How long ago an image was made, in its largest unit.
fn age(image: &Image, now: jiff::Timestamp) -> String {
    let created = image.config.created().as_deref();
    let Some(Ok(created)) = created.map(str::parse::<jiff::Timestamp>) else {
        return "N/A".to_owned();
    };
    let seconds = (now.as_second() - created.as_second()).max(0);
    let (count, unit) = match seconds {
        s if s < 60 => (s, "second"),
        s if s < 3_600 => (s / 60, "minute"),
        s if s < 86_400 => (s / 3_600, "hour"),
        s if s < 14 * 86_400 => (s / 86_400, "day"),
        s if s < 60 * 86_400 => (s / (7 * 86_400), "week"),
        s if s < 730 * 86_400 => (s / (30 * 86_400), "month"),
        s => (s / (365 * 86_400), "year"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

/// Decimal units and three digits, as Docker prints sizes.
fn human_size(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if size < 1000.0 {
            return match size {
                _ if unit == "B" => format!("{bytes}B"),
                s if s < 10.0 => format!("{s:.2}{unit}"),
                s if s < 100.0 => format!("{s:.1}{unit}"),
                s => format!("{s:.0}{unit}"),
            };
        }
        size /= 1000.0;
    }
    format!("{size:.2}TB")
}

fn print_table<const N: usize>(rows: &[[String; N]]) {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("   ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1_234, "1.23kB"),
            (45_678_901, "45.7MB"),
            (456_789_012, "457MB"),
            (2_000_000_000_000, "2.00TB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }

    #[test]
    fn a_command_is_words_or_one_array() {
        let given = vec!["[\"nginx\", \"-g\", \"daemon off;\"]".to_owned()];
        assert_eq!(words("cmd", given).unwrap(), ["nginx", "-g", "daemon off;"]);
        let given = vec!["sh".to_owned(), "-c".to_owned()];
        assert_eq!(words("cmd", given.clone()).unwrap(), given);
        assert!(words("cmd", vec!["[1]".to_owned()]).is_err());
    }
}
