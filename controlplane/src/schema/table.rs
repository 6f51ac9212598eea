//! Reads the tables of definitions: the generated one of Kubernetes' types, and the one of our own.
//!
//! The texts have three kinds of lines, told apart by how they begin:
//!
//! ```text
//! package core.v1 io.k8s.api.core.v1            the alias and full name of what follows
//! PodSpec [gvk=group/version/Kind] [atomic]     a definition
//!  containers! []core.v1.Container patch=merge key=name list=map:name | What it means
//! ```
//!
//! A field has a name (`!` when required), a type (`[]` list of, `{}` map of, a value type such
//! as `string`, or a definition), and what it says of merging: the strategic merge patch's
//! strategy and key, and server-side apply's list type. A list without `list=` is atomic. What follows
//! ` | ` is prose: it stays in the text, where [`describe`] finds it.

use std::collections::HashMap;

/// Between facts and prose.
const PROSE: &str = " | ";

/// A field's or item's type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// Any JSON at all: nothing inside is checked.
    Any,
    String,
    /// Base64 in JSON.
    Bytes,
    Bool,
    Int32,
    Int64,
    Double,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    Quantity,
    IntOrString,
    List(Box<Type>),
    Map(Box<Type>),
    /// Index of a definition in its schema.
    Struct(u16),
}

/// How a strategic merge patch treats a field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
    /// The key by which a list's items are matched; without one they are primitives.
    pub merge_key: Option<&'static str>,
}

/// How server-side apply sees a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ListKind {
    /// Owned as a whole.
    #[default]
    Atomic,
    /// A set of scalars.
    Set,
    /// Items identified by these keys.
    Map(Vec<&'static str>),
}

#[derive(Debug, Clone)]
pub struct Field {
    pub name: &'static str,
    pub ty: Type,
    pub required: bool,
    pub patch: PatchStrategy,
    pub list: ListKind,
    /// A map that is owned and replaced as a whole by server-side apply.
    pub atomic: bool,
}

#[derive(Debug, Clone)]
pub struct Definition {
    /// As `io.k8s.api.core.v1`.
    pub package: &'static str,
    /// As `PodSpec`.
    pub name: &'static str,
    /// Group, version and kind, for what is an object on its own.
    pub gvk: Option<(&'static str, &'static str, &'static str)>,
    /// Owned as a whole by server-side apply.
    pub atomic: bool,
    /// Sorted by name.
    pub fields: Vec<Field>,
}

impl Definition {
    pub fn field(&self, name: &str) -> Option<&Field> {
        let at = self.fields.binary_search_by(|f| f.name.cmp(name)).ok()?;
        Some(&self.fields[at])
    }

    /// As `io.k8s.api.core.v1.PodSpec`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.package, self.name)
    }
}

/// All definitions, found by full name or by index.
#[derive(Debug)]
pub struct Schema {
    definitions: Vec<Definition>,
    by_name: HashMap<String, u16>,
}

impl Schema {
    /// The definition named as `io.k8s.api.core.v1.Pod`.
    pub fn get(&self, full_name: &str) -> Option<&Definition> {
        self.by_name.get(full_name).map(|&at| self.at(at))
    }

    /// The type of a whole object named as `io.k8s.api.core.v1.Pod`; [`Type::Any`] when the
    /// table does not know it.
    pub fn type_of(&self, full_name: &str) -> Type {
        self.by_name
            .get(full_name)
            .map_or(Type::Any, |&at| Type::Struct(at))
    }

    /// The definition that a [`Type::Struct`] points at.
    pub fn at(&self, index: u16) -> &Definition {
        &self.definitions[usize::from(index)]
    }

    /// In the table's order: by package, then by name.
    pub fn iter(&self) -> impl Iterator<Item = &Definition> {
        self.definitions.iter()
    }

    pub(super) fn parse(texts: &[&'static str]) -> Self {
        let mut packages = HashMap::new();
        let mut names = HashMap::new();
        let mut by_name = HashMap::new();
        let mut headers = 0u16;
        let mut package = ("", "");
        for line in lines(texts) {
            if let Some(rest) = line.strip_prefix("package ") {
                package = rest.split_once(' ').unwrap_or((rest, rest));
                packages.insert(package.0, package.1);
            } else if !line.starts_with(' ') {
                let name = line.split(' ').next().unwrap_or(line);
                names.insert(format!("{}.{name}", package.0), headers);
                by_name.insert(format!("{}.{name}", package.1), headers);
                headers += 1;
            }
        }

        let mut definitions: Vec<Definition> = Vec::with_capacity(headers.into());
        for line in lines(texts) {
            if let Some(rest) = line.strip_prefix("package ") {
                package = rest.split_once(' ').unwrap_or((rest, rest));
            } else if let Some(field) = line.strip_prefix(' ') {
                if let Some(definition) = definitions.last_mut() {
                    definition.fields.push(parse_field(field, &names));
                }
            } else {
                definitions.push(parse_header(line, package.1));
            }
        }
        for definition in &mut definitions {
            definition.fields.sort_by_key(|f| f.name);
            definition.fields.shrink_to_fit();
        }
        Self {
            definitions,
            by_name,
        }
    }
}

/// The lines of all texts, without prose.
fn lines(texts: &[&'static str]) -> impl Iterator<Item = &'static str> {
    let lines = texts.iter().flat_map(|text| text.lines());
    lines.map(|line| line.split_once(PROSE).map_or(line, |(facts, _)| facts))
}

/// What a text says in prose of a definition, or of one of its fields.
pub(super) fn describe(
    text: &'static str,
    definition: &Definition,
    field: Option<&str>,
) -> Option<&'static str> {
    let is_its_package = |line: &&str| {
        let full_name = line
            .strip_prefix("package ")
            .and_then(|p| p.split(' ').nth(1));
        full_name == Some(definition.package)
    };
    let lines = text
        .lines()
        .skip_while(|line| !is_its_package(line))
        .skip(1);
    let mut lines = lines.take_while(|line| !line.starts_with("package "));
    let begins = |line: &str| first_word(line) == definition.name;
    let header = lines.find(|line| !line.starts_with(' ') && begins(line))?;
    let line = match field {
        None => header,
        Some(name) => lines
            .take_while(|line| line.starts_with(' '))
            .find(|line| first_word(line).trim_end_matches('!') == name)?,
    };
    line.split_once(PROSE).map(|(_, prose)| prose)
}

fn first_word(line: &str) -> &str {
    line.trim_start().split(' ').next().unwrap_or_default()
}

fn parse_header(line: &'static str, package: &'static str) -> Definition {
    let mut words = line.split(' ');
    let name = words.next().unwrap_or(line);
    let mut definition = Definition {
        package,
        name,
        gvk: None,
        atomic: false,
        fields: Vec::new(),
    };
    for word in words {
        if word == "atomic" {
            definition.atomic = true;
        } else if let Some(gvk) = word.strip_prefix("gvk=") {
            let mut parts = gvk.splitn(3, '/');
            if let (Some(group), Some(version), Some(kind)) =
                (parts.next(), parts.next(), parts.next())
            {
                definition.gvk = Some((group, version, kind));
            }
        }
    }
    definition
}

fn parse_field(line: &'static str, names: &HashMap<String, u16>) -> Field {
    let mut words = line.split(' ');
    let word = words.next().unwrap_or(line);
    let name = word.strip_suffix('!').unwrap_or(word);
    let mut field = Field {
        name,
        ty: parse_type(words.next().unwrap_or("any"), names),
        required: word.ends_with('!'),
        patch: PatchStrategy::default(),
        list: ListKind::Atomic,
        atomic: false,
    };
    for word in words {
        match word.split_once('=') {
            Some(("patch", strategies)) => {
                for strategy in strategies.split(',') {
                    match strategy {
                        "merge" => field.patch.merge = true,
                        "replace" => field.patch.replace = true,
                        "retainKeys" => field.patch.retain_keys = true,
                        _ => {}
                    }
                }
            }
            Some(("key", key)) => field.patch.merge_key = Some(key),
            Some(("list", "set")) => field.list = ListKind::Set,
            Some(("list", kind)) => {
                let keys = kind.strip_prefix("map:").unwrap_or(kind);
                field.list = ListKind::Map(keys.split(',').collect());
            }
            _ => field.atomic |= word == "atomic",
        }
    }
    field
}

fn parse_type(text: &str, names: &HashMap<String, u16>) -> Type {
    if let Some(item) = text.strip_prefix("[]") {
        return Type::List(Box::new(parse_type(item, names)));
    }
    if let Some(item) = text.strip_prefix("{}") {
        return Type::Map(Box::new(parse_type(item, names)));
    }
    match text {
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "bool" => Type::Bool,
        "int32" => Type::Int32,
        "int64" => Type::Int64,
        "double" => Type::Double,
        "time" => Type::Time,
        "microtime" => Type::MicroTime,
        "quantity" => Type::Quantity,
        "intorstring" => Type::IntOrString,
        name => names.get(name).map_or(Type::Any, |&at| Type::Struct(at)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    #[test]
    fn knows_the_structure_of_a_pod() {
        let schema = schema();
        let pod = schema.get("io.k8s.api.core.v1.Pod").unwrap();
        assert_eq!(pod.gvk, Some(("", "v1", "Pod")));
        let Type::Struct(spec) = pod.field("spec").unwrap().ty else {
            panic!("spec is a structure")
        };
        let containers = schema.at(spec).field("containers").unwrap();
        assert!(containers.required && containers.patch.merge);
        assert_eq!(containers.patch.merge_key, Some("name"));
        assert_eq!(containers.list, ListKind::Map(vec!["name"]));
        assert!(
            schema
                .get("io.k8s.api.core.v1.SecretKeySelector")
                .unwrap()
                .atomic
        );
    }

    #[test]
    fn every_named_type_is_in_the_table() {
        let is_any = |l: &&str| l.split(' ').nth(2).is_some_and(|ty| ty.ends_with("any"));
        let any = lines(&super::super::DEFINITIONS)
            .filter(|l| l.starts_with(' '))
            .filter(is_any)
            .count();
        let read: usize = schema()
            .iter()
            .map(|d| d.fields.iter().filter(|f| holds_any(&f.ty)).count())
            .sum();
        assert_eq!(
            any, read,
            "a type that the reader does not know reads as any"
        );
    }

    #[test]
    fn prose_is_found_by_definition_and_field() {
        let text = "package a.v1 x.a.v1\nSpec | Of a.\npackage b.v1 x.b.v1\nSpec | Of b.\n name! string | Who.\n \
                    age int32\nOther\n size int32 | How large.\n";
        let schema = Schema::parse(&[text]);
        let spec = schema.get("x.b.v1.Spec").unwrap();
        assert_eq!(spec.fields.len(), 2);
        assert_eq!(describe(text, spec, None), Some("Of b."));
        assert_eq!(describe(text, spec, Some("name")), Some("Who."));
        assert_eq!(describe(text, spec, Some("age")), None);
        assert_eq!(describe(text, spec, Some("size")), None, "another's");
        let other = schema.get("x.b.v1.Other").unwrap();
        assert_eq!(describe(text, other, None), None);
        assert_eq!(describe(text, other, Some("size")), Some("How large."));
    }

    fn holds_any(ty: &Type) -> bool {
        match ty {
            Type::Any => true,
            Type::List(item) | Type::Map(item) => holds_any(item),
            _ => false,
        }
    }
}
