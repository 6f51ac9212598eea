//! What people, and the collector of unused images, take away: names, and the content behind them.

use std::collections::BTreeSet;

use super::disk::Disk;
use super::image::{self, Image, Loaded};
use super::index::Named;
use super::lease;
use super::sweep::{self, Trash};
use crate::{Digest, Error, Reference};

/// What removing a name did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    pub reference: Reference,
    /// The image id, when the image went with its last name. One that a container uses stays
    /// until the container is gone.
    pub deleted: Option<Digest>,
}

/// What to do about an image that a container uses, or that has names in several repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// An error.
    Careful,
    /// Its names go; the content stays as long as it is in use.
    Forced,
}

/// What pruning takes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    /// Content that no name and no container needs: what was left half done.
    Leftovers,
    /// Images too that no container uses, whatever their names.
    Unused,
}

/// What pruning did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    pub removed: Vec<Removed>,
    /// Bytes on the disk.
    pub freed: u64,
}

/// Removes the image, or the one of its names, that a person means.
pub(super) fn remove(disk: &Disk, name: &str, how: Removal) -> Result<Vec<Removed>, Error> {
    let loaded = disk.loaded()?;
    let lock = disk.lock()?;
    let names = disk.read_index()?;
    let (doomed, kept) = split(&loaded, names, name, how)?;
    let used = used(disk)?;
    if how == Removal::Careful {
        let in_use = doomed.iter().find(|named| {
            is_last(named, &kept)
                && ids(&loaded, named).is_some_and(|ids| used.contains(&ids.manifest))
        });
        if let Some(named) = in_use {
            return Err(Error::InUse {
                image: named.reference.to_string(),
            });
        }
    }
    disk.write_index(&lock, &kept)?;
    let trash = match doomed.iter().any(|named| is_last(named, &kept)) {
        true => sweep::unreachable(disk, &lock)?,
        false => Trash::nothing(),
    };
    drop(lock);
    trash.empty();
    Ok(report(&loaded, &doomed, &kept, &used))
}

/// Takes away what nothing uses.
pub(super) fn prune(disk: &Disk, what: Prune) -> Result<Pruned, Error> {
    take_away(disk, |disk| match what {
        Prune::Leftovers => Ok(BTreeSet::new()),
        Prune::Unused => {
            let used = used(disk)?;
            let unused = |image: &Image| (!used.contains(&image.manifest)).then_some(image.digest);
            Ok(disk
                .loaded()?
                .images
                .iter()
                .filter_map(|image| unused(image))
                .collect())
        }
    })
}

/// Removes an image under all its names, unless a container uses it by now: then nothing happens.
pub(super) fn collect(disk: &Disk, image: &Image) -> Result<Pruned, Error> {
    take_away(disk, |_| Ok(BTreeSet::from([image.digest])))
}

pub(super) fn unpin(disk: &Disk, reference: &Reference) -> Result<(), Error> {
    let lock = disk.lock()?;
    let mut names = disk.read_index()?;
    let named = names.iter_mut().find(|named| named.reference == *reference);
    let named = named.ok_or_else(|| Error::not_found(reference))?;
    *named = Named::new(reference.clone(), &named.target, false);
    disk.write_index(&lock, &names)
}

/// `choose` gives the digests that names stand for. Of those, images in use are left alone.
fn take_away(
    disk: &Disk,
    choose: impl FnOnce(&Disk) -> Result<BTreeSet<Digest>, Error>,
) -> Result<Pruned, Error> {
    let chosen = choose(disk)?;
    let loaded = disk.loaded()?;
    let lock = disk.lock()?;
    // Again, because a container may have been made meanwhile.
    let used = used(disk)?;
    let (doomed, kept): (Vec<Named>, Vec<Named>) =
        disk.read_index()?.into_iter().partition(|named| {
            ids(&loaded, named)
                .is_some_and(|ids| chosen.contains(&ids.digest) && !used.contains(&ids.manifest))
        });
    if !doomed.is_empty() {
        disk.write_index(&lock, &kept)?;
    }
    let trash = sweep::abandoned(disk, &lock)?.and(sweep::unreachable(disk, &lock)?);
    drop(lock);
    let freed = trash.size();
    trash.empty();
    Ok(Pruned {
        removed: report(&loaded, &doomed, &kept, &used),
        freed,
    })
}

/// The names that go, and those that stay.
fn split(
    loaded: &Loaded,
    names: Vec<Named>,
    name: &str,
    how: Removal,
) -> Result<(Vec<Named>, Vec<Named>), Error> {
    let reference = name.parse::<Reference>().ok();
    // One that is damaged has a name too.
    if let Some(reference) = reference.as_ref().filter(|r| r.digest().is_none())
        && names.iter().any(|named| named.reference == *reference)
    {
        return Ok(names
            .into_iter()
            .partition(|named| named.reference == *reference));
    }
    let image = image::find(loaded, name)?;
    let by_digest =
        reference.filter(|reference| reference.digest().is_some() && image.is(reference));
    if by_digest.is_none() && how == Removal::Careful {
        let repositories: BTreeSet<String> = image.references.iter().map(Reference::name).collect();
        if repositories.len() > 1 {
            let names = image.references.iter().map(ToString::to_string);
            return Err(Error::SeveralNames {
                image: name.to_owned(),
                names: names.collect::<Vec<_>>().join(", "),
            });
        }
    }
    Ok(names.into_iter().partition(|named| {
        image.references.contains(&named.reference)
            && by_digest
                .as_ref()
                .is_none_or(|reference| reference.name() == named.reference.name())
    }))
}

/// The manifests that leases keep.
pub(super) fn used(disk: &Disk) -> Result<BTreeSet<Digest>, Error> {
    Ok(lease::all(disk)?
        .into_iter()
        .map(|(_, manifest)| manifest)
        .collect())
}

/// Whether no other name stands for the same.
fn is_last(named: &Named, kept: &[Named]) -> bool {
    !kept
        .iter()
        .any(|other| other.target.digest() == named.target.digest())
}

/// The image that a name stands for; nothing for one that is damaged.
fn ids<'a>(loaded: &'a Loaded, named: &Named) -> Option<&'a Image> {
    let digest = Digest::try_from(named.target.digest()).ok()?;
    let mut images = loaded.images.iter();
    images
        .find(|image| image.digest == digest)
        .map(|image| &**image)
}

fn report(
    loaded: &Loaded,
    doomed: &[Named],
    kept: &[Named],
    used: &BTreeSet<Digest>,
) -> Vec<Removed> {
    let mut removed: Vec<Removed> = Vec::new();
    for (number, named) in doomed.iter().enumerate() {
        let last = is_last(named, kept) && is_last(named, &doomed[number + 1..]);
        let image = ids(loaded, named).filter(|image| last && !used.contains(&image.manifest));
        removed.push(Removed {
            reference: named.reference.clone(),
            deleted: image.map(|image| image.id),
        });
    }
    removed
}
