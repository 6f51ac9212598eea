//! `skiff image list` and `inspect`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use skiff_images::{Digest, Image, Reference, Store};

use super::NodeImages;
use crate::local::NodeDir;
use crate::output::{Format, Table};

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Only images of this name, with any tag or the one given
    #[arg(value_name = "NAME")]
    name: Option<Reference>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Print ids alone
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,
    /// Show what the names stand for, in full
    #[arg(long)]
    digests: bool,
}

pub(super) async fn list(nodes: &[NodeImages], args: ListArgs) -> anyhow::Result<()> {
    let mut listed = Vec::new();
    let mut table = ImageTable::new(nodes, &args);
    let mut ids = Vec::new();
    for NodeImages { place, store } in nodes {
        let mut images = store.list().await?;
        if let Some(name) = &args.name {
            images.retain(|image| image.references.iter().any(|own| own.name() == name.name()));
        }
        for damaged in store.damaged().await? {
            eprintln!("warning: {}", damaged.error());
        }
        if args.output == Format::Json {
            let used = store.used().await?;
            for image in &images {
                listed.push(serde_json::to_value(Listed::of(
                    image,
                    &used,
                    place.node.as_deref(),
                ))?);
            }
        }
        ids.extend(images.iter().map(|image| image.id));
        table.add(place, &images);
    }
    if args.quiet {
        let mut printed = BTreeSet::new();
        for id in ids.into_iter().filter(|id| printed.insert(*id)) {
            println!("{}", short(id));
        }
    } else if args.output == Format::Json {
        println!("{}", serde_json::to_string_pretty(&listed)?);
    } else {
        print!("{}", table.table);
    }
    Ok(())
}

/// A row for each name of each image.
struct ImageTable<'a> {
    table: Table,
    only: Option<&'a Reference>,
    digests: bool,
}

impl<'a> ImageTable<'a> {
    fn new(nodes: &[NodeImages], args: &'a ListArgs) -> Self {
        let several = nodes.iter().any(|node| node.place.node.is_some());
        let headings = [
            several.then_some("NODE"),
            Some("REPOSITORY"),
            Some("TAG"),
            args.digests.then_some("DIGEST"),
            Some("IMAGE ID"),
            Some("CREATED"),
            Some("PLATFORM"),
            Some("SIZE"),
        ];
        Self {
            table: Table::new(headings.into_iter().flatten()),
            only: args.name.as_ref(),
            digests: args.digests,
        }
    }

    fn add(&mut self, place: &NodeDir, images: &[Arc<Image>]) {
        for image in images {
            let meant = |name: &&Reference| self.only.is_none_or(|only| only.name() == name.name());
            for name in image.references.iter().filter(meant) {
                let cells = [
                    place.node.clone(),
                    Some(name.name()),
                    Some(name.tag().unwrap_or("<none>").to_owned()),
                    self.digests.then(|| image.digest.to_string()),
                    Some(short(image.id)),
                    Some(age(image, jiff::Timestamp::now())),
                    Some(image.platform()),
                    Some(human_size(image.size)),
                ];
                self.table.row(cells.into_iter().flatten());
            }
        }
    }
}

/// As many digits as Docker shows.
fn short(id: Digest) -> String {
    id.hex()[..12].to_owned()
}

pub(super) async fn inspect(store: &Store, name: &str) -> anyhow::Result<()> {
    let image = store.find(name).await?;
    let used = store.used().await?;
    let inspected = Inspected {
        listed: Listed::of(&image, &used, None),
        repo_digests: image.repo_digests(),
        config: serde_json::to_value(&image.config)?,
        layers: &image.layers,
    };
    println!("{}", serde_json::to_string_pretty(&inspected)?);
    Ok(())
}

/// An image in `list -o json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    /// Where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    references: &'a [Reference],
    id: String,
    digest: String,
    manifest: String,
    created: Option<&'a str>,
    platform: String,
    /// Bytes of its blobs, as in a registry.
    size: u64,
    /// It came from a file: only its removal by name takes it away.
    pinned: bool,
    /// A container uses it.
    in_use: bool,
}

impl<'a> Listed<'a> {
    fn of(image: &'a Image, used: &BTreeSet<Digest>, node: Option<&'a str>) -> Self {
        Self {
            node,
            in_use: used.contains(&image.manifest),
            references: &image.references,
            id: image.id.to_string(),
            digest: image.digest.to_string(),
            created: image.config.created().as_deref(),
            manifest: image.manifest.to_string(),
            platform: image.platform(),
            size: image.size,
            pinned: image.pinned,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Inspected<'a> {
    #[serde(flatten)]
    listed: Listed<'a>,
    repo_digests: Vec<Reference>,
    /// The image's configuration as the OCI image specification writes it.
    config: serde_json::Value,
    layers: &'a [PathBuf],
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
pub(super) fn human_size(bytes: u64) -> String {
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
}
