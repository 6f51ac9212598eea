//! Reads the generated table of protobuf field numbers.
//!
//! ```text
//! package core.v1 io.k8s.api.core.v1      the alias and full name of what follows
//! Volume                                  a structure
//!  1 name                                 number 1 is the field `name`
//!  2 +VolumeSource                        number 2 holds fields that JSON has in the structure itself
//! ```
//!
//! A name ends in `*` when Go has a pointer there: its zero is a value, and not the same as
//! nothing.

use std::collections::HashMap;
use std::sync::OnceLock;

const NUMBERS: &str = include_str!("numbers.txt");

/// What a number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbered {
    Field {
        name: &'static str,
        pointer: bool,
    },
    /// A structure of the same package, or of `meta.v1`.
    Inline(&'static str),
}

/// The fields of each structure, by its package's full name and its own.
type Table = HashMap<(&'static str, &'static str), Vec<(u32, Numbered)>>;

/// What a number means in a structure.
pub(super) fn lookup(package: &str, name: &str, number: u32) -> Option<Numbered> {
    static TABLE: OnceLock<Table> = OnceLock::new();
    let fields = TABLE.get_or_init(|| parse(NUMBERS)).get(&(package, name))?;
    let at = fields.binary_search_by_key(&number, |(n, _)| *n).ok()?;
    Some(fields[at].1)
}

fn parse(text: &'static str) -> Table {
    let mut table = Table::new();
    let mut package = "";
    let mut name = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("package ") {
            package = rest.split_once(' ').map_or(rest, |(_, full)| full);
        } else if let Some((number, field)) = line.trim_start().split_once(' ') {
            let field = match (field.strip_prefix('+'), field.strip_suffix('*')) {
                (Some(inlined), _) => Numbered::Inline(inlined),
                (None, Some(name)) => Numbered::Field {
                    name,
                    pointer: true,
                },
                (None, None) => Numbered::Field {
                    name: field,
                    pointer: false,
                },
            };
            let fields = table.entry((package, name)).or_default();
            // The table is generated; its test reads every line.
            fields.push((number.parse().unwrap_or_default(), field));
        } else {
            name = line;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood() {
        let table = parse(NUMBERS);
        for ((_, name), fields) in &table {
            assert!(fields.iter().all(|(number, _)| *number > 0), "{name}");
            assert!(fields.is_sorted_by_key(|(number, _)| *number), "{name}");
        }
        assert_eq!(
            lookup("io.k8s.api.core.v1", "Volume", 2),
            Some(Numbered::Inline("VolumeSource"))
        );
        assert_eq!(
            lookup("io.k8s.api.apps.v1", "DeploymentSpec", 1),
            Some(Numbered::Field {
                name: "replicas",
                pointer: true
            })
        );
    }
}
