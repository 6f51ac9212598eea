//! `skiff image`: this node's images, whether or not anything else of Skiff runs.
//!
//! The commands open the node's store themselves; its locks let the agent use it meanwhile. Several nodes of one
//! host have a store each: what is added or taken away is added to or taken away from all of them, unless one is
//! named.

mod limits;
mod pack;
mod progress;
mod pull;
mod show;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
pub use limits::LimitArgs;
use skiff_agent::identity::Identity;
use skiff_images::{Error, Image, Prune, Reference, Removal, Removed, Store};

use crate::local::{NodeArgs, NodeDir};

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
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// The images of one node.
struct NodeImages {
    place: NodeDir,
    store: Store,
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
            for image in import(&open(at).await?, &absolute(&path)?, &names).await? {
                for reference in &image.references {
                    println!("{reference} {}", image.id);
                }
            }
        }
        Command::List(list) => show::list(&open(at).await?, list).await?,
        Command::Rm { images, force } => remove(&open(at).await?, &images, force).await?,
        Command::Prune { all } => prune(&open(at).await?, all).await?,
        Command::Inspect { name } => {
            let nodes = open(at).await?;
            let store = having(&nodes, &name).await?;
            show::inspect(store, &name).await?;
        }
        Command::Pack(pack) => pack::run(at, pack).await?,
        Command::Export { references, output } => {
            export(&open(at).await?, &references, output).await?
        }
        Command::Pull(args) => {
            for node in open(at).await? {
                pull::run(node, &args).await?;
            }
        }
    }
    Ok(())
}

/// The images of every node that is meant; at least one.
async fn open(at: &StoreArgs) -> anyhow::Result<Vec<NodeImages>> {
    let mut opened = Vec::new();
    for place in at.node.dirs()? {
        let data_dir = &place.data_dir;
        fs::create_dir_all(data_dir)
            .with_context(|| format!("cannot make the data directory {}", data_dir.display()))?;
        let identity = Identity::of(data_dir)
            .with_context(|| format!("cannot use the data directory {}", data_dir.display()))?;
        let store = Store::open_with(identity.images_dir(), at.limits.limits()).await?;
        opened.push(NodeImages { place, store });
    }
    Ok(opened)
}

/// Takes an archive in on every node.
async fn import(
    nodes: &[NodeImages],
    path: &Path,
    names: &[Reference],
) -> anyhow::Result<Vec<Arc<Image>>> {
    let mut imported = Vec::new();
    for node in nodes {
        imported = node.store.import(path.to_owned(), names).await?;
    }
    Ok(imported)
}

/// The first node that has an image of this name.
async fn having<'a>(nodes: &'a [NodeImages], name: &str) -> anyhow::Result<&'a Store> {
    let mut missing = Error::NotFound(name.to_owned());
    for node in nodes {
        match node.store.find(name).await {
            Ok(_) => return Ok(&node.store),
            Err(error) => missing = error,
        }
    }
    Err(missing.into())
}

/// From a node that has all of them.
async fn export(
    nodes: &[NodeImages],
    references: &[Reference],
    output: PathBuf,
) -> anyhow::Result<()> {
    let first = references.first().map(ToString::to_string);
    let store = having(nodes, &first.unwrap_or_default()).await?;
    Ok(store.export(references, output).await?)
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot find {}", path.display()))
}

/// Removes what can be removed; then says what could not.
async fn remove(nodes: &[NodeImages], images: &[String], force: bool) -> anyhow::Result<()> {
    let how = match force {
        true => Removal::Forced,
        false => Removal::Careful,
    };
    let mut failed = 0;
    for image in images {
        match remove_one(nodes, image, how).await {
            Ok(()) => {}
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

/// From every node that has it: it is missing when none has.
async fn remove_one(nodes: &[NodeImages], image: &str, how: Removal) -> Result<(), Error> {
    let mut missing = None;
    let mut found = false;
    for node in nodes {
        match node.store.remove_named(image, how).await {
            Ok(removed) => {
                found = true;
                tell(&removed);
            }
            Err(error @ Error::NotFound(_)) => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if !found => Err(error),
        _ => Ok(()),
    }
}

async fn prune(nodes: &[NodeImages], all: bool) -> anyhow::Result<()> {
    let what = match all {
        true => Prune::Unused,
        false => Prune::Leftovers,
    };
    let mut freed = 0;
    for node in nodes {
        let pruned = node.store.prune(what).await?;
        tell(&pruned.removed);
        freed += pruned.freed;
    }
    println!("Total reclaimed space: {}", show::human_size(freed));
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
