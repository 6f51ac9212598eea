//! The OpenAPI v2 document as protobuf, the form that kubectl asks for when version 3 does not
//! describe a kind: with the answer it finds that nobody does, and says so.
//!
//! The messages are gnostic's (`openapiv2/OpenAPIv2.proto`). They are written down as tables of
//! field numbers, for the keywords that our documents use, and one walk over the JSON document
//! encodes it.

use serde_json::Value;

/// What clients put into `Accept`, and, with the character that media types allow, what the
/// API server answers as.
pub const ACCEPTED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
pub const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// A message: its fields by JSON key, and the number of its `vendor_extension`, which takes
/// every key that begins with `x-`.
struct Message {
    fields: &'static [(&'static str, u64, Form)],
    extensions: Option<u64>,
}

/// How a JSON value becomes a field.
enum Form {
    Text,
    Flag,
    /// An `Any` that holds the value as YAML.
    Yaml,
    One(&'static Message),
    /// Messages that hold nothing but the next one, each in the given field.
    Within(&'static [u64], &'static Form),
    /// Each item of the array is a field of its own.
    Each(&'static Form),
    /// A message with, in the given field, a name and a value for each entry.
    Named(u64, &'static Form),
    /// A parameter, which is another message for each place that it is in.
    Parameter,
}

static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Form::Text),
        ("info", 2, Form::One(&INFO)),
        ("paths", 8, Form::Named(2, &Form::One(&PATH_ITEM))),
        ("definitions", 9, Form::Named(1, &Form::One(&SCHEMA))),
    ],
    extensions: None,
};

static INFO: Message = Message {
    fields: &[("title", 1, Form::Text), ("version", 2, Form::Text)],
    extensions: None,
};

static PATH_ITEM: Message = Message {
    fields: &[
        ("get", 2, Form::One(&OPERATION)),
        ("put", 3, Form::One(&OPERATION)),
        ("post", 4, Form::One(&OPERATION)),
        ("delete", 5, Form::One(&OPERATION)),
        ("patch", 8, Form::One(&OPERATION)),
        ("parameters", 9, Form::Each(&Form::Parameter)),
    ],
    extensions: Some(10),
};

static OPERATION: Message = Message {
    fields: &[
        ("operationId", 5, Form::Text),
        ("produces", 6, Form::Each(&Form::Text)),
        ("consumes", 7, Form::Each(&Form::Text)),
        ("parameters", 8, Form::Each(&Form::Parameter)),
        // Responses, NamedResponseValue, ResponseValue, Response
        (
            "responses",
            9,
            Form::Named(1, &Form::Within(&[1], &Form::One(&RESPONSE))),
        ),
    ],
    extensions: Some(13),
};

static RESPONSE: Message = Message {
    fields: &[
        ("description", 1, Form::Text),
        ("schema", 2, Form::Within(&[1], &Form::One(&SCHEMA))),
    ],
    extensions: None,
};

static BODY_PARAMETER: Message = Message {
    fields: &[
        ("name", 2, Form::Text),
        ("in", 3, Form::Text),
        ("required", 4, Form::Flag),
        ("schema", 5, Form::One(&SCHEMA)),
    ],
    extensions: None,
};

static QUERY_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Form::Flag),
        ("in", 2, Form::Text),
        ("name", 4, Form::Text),
        ("type", 6, Form::Text),
        ("uniqueItems", 20, Form::Flag),
    ],
    extensions: None,
};

static PATH_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Form::Flag),
        ("in", 2, Form::Text),
        ("name", 4, Form::Text),
        ("type", 5, Form::Text),
        ("uniqueItems", 19, Form::Flag),
    ],
    extensions: None,
};

static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Form::Text),
        ("format", 2, Form::Text),
        ("description", 4, Form::Text),
        ("default", 5, Form::Yaml),
        ("required", 19, Form::Each(&Form::Text)),
        (
            "additionalProperties",
            21,
            Form::Within(&[1], &Form::One(&SCHEMA)),
        ),
        ("type", 22, Form::Within(&[1], &Form::Text)),
        ("items", 23, Form::Within(&[1], &Form::One(&SCHEMA))),
        ("allOf", 24, Form::Each(&Form::One(&SCHEMA))),
        ("properties", 25, Form::Named(1, &Form::One(&SCHEMA))),
    ],
    extensions: Some(31),
};

/// Encodes an OpenAPI v2 document.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    message(&DOCUMENT, document)
}

fn message(shape: &Message, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, number, form) in shape.fields {
        if let Some(value) = value.get(key) {
            field(&mut out, *number, form, value);
        }
    }
    if let Some(number) = shape.extensions {
        let entries = value.as_object().into_iter().flatten();
        for (key, value) in entries.filter(|(key, _)| key.starts_with("x-")) {
            bytes(&mut out, number, &named(key, &Form::Yaml, value));
        }
    }
    out
}

fn field(out: &mut Vec<u8>, number: u64, form: &Form, value: &Value) {
    match form {
        Form::Text => bytes(out, number, value.as_str().unwrap_or_default().as_bytes()),
        Form::Flag => {
            varint(out, number << 3);
            varint(out, u64::from(value.as_bool().unwrap_or_default()));
        }
        Form::Yaml => {
            let mut any = Vec::new();
            // JSON is YAML.
            bytes(&mut any, 2, format!("{value}\n").as_bytes());
            bytes(out, number, &any);
        }
        Form::One(shape) => bytes(out, number, &message(shape, value)),
        Form::Within(path, form) => within(out, number, path, form, value),
        Form::Each(form) => {
            for item in value.as_array().into_iter().flatten() {
                field(out, number, form, item);
            }
        }
        Form::Named(inner, form) => {
            let mut entries = Vec::new();
            for (name, value) in value.as_object().into_iter().flatten() {
                bytes(&mut entries, *inner, &named(name, form, value));
            }
            bytes(out, number, &entries);
        }
        Form::Parameter => {
            // ParametersItem, Parameter, and then what stands in the body or not.
            let (path, form): (&[u64], _) = match value["in"].as_str() {
                Some("body") => (&[1, 1], &Form::One(&BODY_PARAMETER)),
                Some("path") => (&[1, 2, 4], &Form::One(&PATH_PARAMETER)),
                _ => (&[1, 2, 3], &Form::One(&QUERY_PARAMETER)),
            };
            within(out, number, path, form, value);
        }
    }
}

fn within(out: &mut Vec<u8>, number: u64, path: &[u64], form: &Form, value: &Value) {
    let Some((next, rest)) = path.split_first() else {
        return field(out, number, form, value);
    };
    let mut inner = Vec::new();
    within(&mut inner, *next, rest, form, value);
    bytes(out, number, &inner);
}

/// The messages `NamedSchema`, `NamedAny` ...: a name and a value.
fn named(name: &str, form: &Form, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, 1, name.as_bytes());
    field(&mut out, 2, form, value);
    out
}

fn bytes(out: &mut Vec<u8>, number: u64, content: &[u8]) {
    varint(out, number << 3 | 2);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_definition_is_encoded_as_gnostic_does() {
        let document = json!({
            "swagger": "2.0",
            "definitions": {"A": {"type": "object", "x-kind": "K"}},
        });
        let expected = [
            &b"\x0a\x032.0"[..],              // swagger
            b"J%\x0a#",                       // Definitions, NamedSchema
            b"\x0a\x01A\x12\x1e",             // its name, its Schema
            b"\xb2\x01\x08\x0a\x06object",    // TypeItem
            b"\xfa\x01\x10\x0a\x06x-kind",    // NamedAny
            b"\x12\x06\x12\x04\x22K\x22\x0a", // Any
        ];
        assert_eq!(encode(&document), expected.concat());
    }

    #[test]
    fn lengths_beyond_one_byte_are_varints() {
        let mut out = Vec::new();
        bytes(&mut out, 22, &[b'x'; 300]);
        assert_eq!(out[..4], [0xb2, 0x01, 0xac, 0x02]);
        assert_eq!(out.len(), 304);
    }
}
