//! In which shape a client wants its answer: the `Accept` header.

use super::status::ApiError;
use super::table::IncludeObject;

/// The shape of an answer, always JSON or YAML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The object, or the list of them, as it is.
    Object,
    /// A `meta.k8s.io/v1` Table.
    Table(IncludeObject),
    /// A `PartialObjectMetadata`, or the list of them.
    Metadata,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    Json,
    Yaml,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub shape: Shape,
    pub syntax: Syntax,
}

const SUPPORTED: [&str; 2] = ["application/json", "application/yaml"];

impl Wanted {
    pub const JSON: Self = Self {
        shape: Shape::Object,
        syntax: Syntax::Json,
    };

    /// The first media type of the header that can be served.
    ///
    /// # Errors
    /// 406 when there is none.
    pub fn of(accept: &str, include: IncludeObject) -> Result<Self, ApiError> {
        if accept.trim().is_empty() {
            return Ok(Self::JSON);
        }
        accept
            .split(',')
            .find_map(|media| Self::of_media_type(media, include))
            .ok_or_else(|| ApiError::not_acceptable(&SUPPORTED))
    }

    fn of_media_type(media: &str, include: IncludeObject) -> Option<Self> {
        let (name, parameters) = split(media);
        let syntax = match name {
            "application/json" | "*/*" | "application/*" => Syntax::Json,
            "application/yaml" => Syntax::Yaml,
            _ => return None,
        };
        let shape = match parameter(&parameters, "as") {
            None => Shape::Object,
            Some(_) if parameter(&parameters, "g") != Some("meta.k8s.io") => return None,
            Some(_) if parameter(&parameters, "v") != Some("v1") => return None,
            Some("Table") => Shape::Table(include),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Shape::Metadata,
            Some(_) => return None,
        };
        Some(Self { shape, syntax })
    }
}

/// Whether the client wants all groups in one document of discovery's version 2.
pub fn wants_aggregated_discovery(accept: &str) -> bool {
    // The first media type that can be served decides.
    for media in accept.split(',') {
        let (name, parameters) = split(media);
        if name != "application/json" {
            continue;
        }
        match parameter(&parameters, "as") {
            Some("APIGroupDiscoveryList") if parameter(&parameters, "v") == Some("v2") => {
                return true;
            }
            Some(_) => {}
            None => return false,
        }
    }
    false
}

/// The name of a media type, without its parameters.
pub fn media_type(header: &str) -> &str {
    header.split(';').next().unwrap_or_default().trim()
}

fn split(media: &str) -> (&str, Vec<(&str, &str)>) {
    let mut parts = media.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let parameters = parts.filter_map(|part| part.split_once('=')).collect();
    (name, parameters)
}

fn parameter<'a>(parameters: &[(&str, &'a str)], name: &str) -> Option<&'a str> {
    parameters
        .iter()
        .find(|(key, _)| *key == name)
        .map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(accept: &str) -> Shape {
        Wanted::of(accept, IncludeObject::Metadata).unwrap().shape
    }

    #[test]
    fn the_first_type_that_can_be_served_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(shape(kubectl), Shape::Table(IncludeObject::Metadata));
        assert_eq!(
            shape("application/vnd.kubernetes.protobuf,application/json"),
            Shape::Object
        );
        assert_eq!(
            shape("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"),
            Shape::Metadata
        );
        assert_eq!(shape("*/*"), Shape::Object);
        let none = Wanted::of("text/html", IncludeObject::Metadata);
        assert_eq!(none.unwrap_err().code, 406);
    }

    #[test]
    fn discovery_can_be_had_in_one_piece() {
        let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert!(wants_aggregated_discovery(kubectl));
        assert!(!wants_aggregated_discovery("application/json"));
    }
}
