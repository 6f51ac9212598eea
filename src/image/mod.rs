//! `skiff image`: this node's images, whether or not anything else of Skiff runs.
//!
//! The commands open the node's store themselves; its locks let the agent use it meanwhile.

mod limits;
mod pack;
mod progress;
mod pull;
mod show;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
pub use limits::LimitArgs;
use skiff_agent::identity::Identity;
use skiff_images::{Prune, Reference, Removal, Removed, Store};

#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(subcommand)]
    command: Command,
}

/// Where the images are, and what is let in.
#[derive(Debug, Args)]
struct StoreArgs {
    /// The data directory of the node
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/var/lib/skiff"
    )]
    data_dir: PathBuf,
    #[command(flatten)]
    limits: LimitArgs,
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
    List(show::ListArgs),
    /// Take a name away, and the image with its last name
    Rm {
        /// A reference, or the first digits of an image id or a digest
        #[arg(value_name = "REF-OR-ID", required = true)]
        images: Vec<String>,
        /// Also when a container uses the image (its content stays as long), and all names of an id
        #[arg(short, long)]
        force: bool,
    },
    /// Take away what was left half done; with --all also images that no container uses
    Prune {
        #[arg(short, long)]
        all: bool,
    },
    /// Show all that is known of an image, as JSON
    Inspect {
        /// A reference, or the first digits of an image id or a digest
        #[arg(value_name = "REF-OR-ID")]
        name: String,
    },
    /// Make an image of a directory
    Pack(pack::PackArgs),
    /// Write images to an OCI archive
    Export {
        #[arg(value_name = "REF", required = true)]
        references: Vec<Reference>,
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Fetch an image from its registry
    Pull(pull::PullArgs),
}

pub async fn run(args: ImageArgs) -> anyhow::Result<()> {
    let at = &args.store;
    match args.command {
        Command::Import { path, names } => {
            let store = open(at).await?;
            for image in store.import(absolute(&path)?, &names).await? {
                for reference in &image.references {
                    println!("{reference} {}", image.id);
                }
            }
        }
        Command::List(list) => show::list(&open(at).await?, list).await?,
        Command::Rm { images, force } => remove(&open(at).await?, &images, force).await?,
        Command::Prune { all } => prune(&open(at).await?, all).await?,
        Command::Inspect { name } => show::inspect(&open(at).await?, &name).await?,
        Command::Pack(pack) => pack::run(at, pack).await?,
        Command::Export { references, output } => {
            open(at).await?.export(&references, output).await?;
        }
        Command::Pull(args) => pull::run(open(at).await?, &at.data_dir, args).await?,
    }
    Ok(())
}

async fn open(at: &StoreArgs) -> anyhow::Result<Store> {
    let data_dir = &at.data_dir;
    fs::create_dir_all(data_dir)
        .with_context(|| format!("cannot make the data directory {}", data_dir.display()))?;
    let identity = Identity::of(data_dir)
        .with_context(|| format!("cannot use the data directory {}", data_dir.display()))?;
    Ok(Store::open_with(identity.images_dir(), at.limits.limits()).await?)
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot find {}", path.display()))
}

/// Removes what can be removed; then says what could not.
async fn remove(store: &Store, images: &[String], force: bool) -> anyhow::Result<()> {
    let how = match force {
        true => Removal::Forced,
        false => Removal::Careful,
    };
    let mut failed = 0;
    for image in images {
        match store.remove_named(image, how).await {
            Ok(removed) => tell(&removed),
            Err(error) if images.len() == 1 => return Err(error.into()),
            Err(error) => {
                eprintln!("{error}");
                failed += 1;
            }
        }
    }
    match failed {
        0 => Ok(()),
        failed => bail!("{failed} of {} not removed", images.len()),
    }
}

async fn prune(store: &Store, all: bool) -> anyhow::Result<()> {
    let what = match all {
        true => Prune::Unused,
        false => Prune::Leftovers,
    };
    let pruned = store.prune(what).await?;
    tell(&pruned.removed);
    println!("Total reclaimed space: {}", show::human_size(pruned.freed));
    Ok(())
}

fn tell(removed: &[Removed]) {
    for removed in removed {
        println!("Untagged: {}", removed.reference);
        if let Some(id) = removed.deleted {
            println!("Deleted: {id}");
        }
    }
}
