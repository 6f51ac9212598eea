//! From Kubernetes' protobuf encoding to JSON: `application/vnd.kubernetes.protobuf`.
//!
//! Go clients with typed objects (`kubectl create namespace`) send it. A body is the magic `k8s\0`
//! and a `runtime.Unknown`, which names the kind and holds the object's own message. Go always
//! writes fields that are no pointers, so their zeros mean nothing and are left out, as its
//! JSON encoder does.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::numbers::{self, Numbered};
use super::table::{Definition, Schema, Type};

pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    Magic,
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: illegal wireType {0}")]
    WireType(u32),
    #[error("proto: {0} is not of the type that its field has")]
    Mismatch(&'static str),
    #[error("no kind {kind:?} is registered for version {version:?}")]
    UnknownKind { kind: String, version: String },
}

/// Decodes a body into the object that it holds, `apiVersion` and `kind` included.
///
/// # Errors
/// When it is no such body, or of a kind that the schema does not know.
pub(super) fn decode(schema: &Schema, body: &[u8]) -> Result<Value, ProtobufError> {
    let body = body.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &body[..0]);
    for field in Fields(body) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => version = string(text),
                        (2, Wire::Bytes(text)) => kind = string(text),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let Some(definition) = definition_of(schema, &version, &kind) else {
        return Err(ProtobufError::UnknownKind { kind, version });
    };
    let mut object = Map::new();
    structure(schema, definition, definition.name, raw, &mut object)?;
    object.insert("apiVersion".to_string(), version.into());
    object.insert("kind".to_string(), kind.into());
    Ok(Value::Object(object))
}

/// The kind's definition. Options (`DeleteOptions`) are sent under every group's name.
fn definition_of<'s>(schema: &'s Schema, version: &str, kind: &str) -> Option<&'s Definition> {
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    schema
        .iter()
        .find(|definition| definition.gvk == Some((group, version, kind)))
        .or_else(|| schema.get(&format!("{META}.{kind}")))
}

/// Reads a message into the fields of `definition`. `message` is the structure whose numbers it
/// has: the definition's own, or one that is inlined into it.
fn structure(
    schema: &Schema,
    definition: &Definition,
    message: &str,
    bytes: &[u8],
    object: &mut Map<String, Value>,
) -> Result<(), ProtobufError> {
    for field in Fields(bytes) {
        let (number, wire) = field?;
        let numbered = numbers::lookup(definition.package, message, number)
            .or_else(|| numbers::lookup(META, message, number));
        match (numbered, wire) {
            (Some(Numbered::Inline(inlined)), Wire::Bytes(bytes)) => {
                structure(schema, definition, inlined, bytes, object)?;
            }
            (Some(Numbered::Field { name, pointer }), wire) => {
                let Some(field) = definition.field(name) else {
                    continue;
                };
                let place = object.entry(name).or_insert(Value::Null);
                put(schema, &field.ty, wire, name, place)?;
                if place.is_null() || (!pointer && is_zero(place)) {
                    object.remove(name);
                }
            }
            // A field that is newer than we are.
            _ => {}
        }
    }
    Ok(())
}

/// Puts one occurrence of a field where its value belongs. Lists and maps have many.
fn put(
    schema: &Schema,
    ty: &Type,
    wire: Wire<'_>,
    name: &'static str,
    place: &mut Value,
) -> Result<(), ProtobufError> {
    match (ty, wire) {
        (Type::List(item), Wire::Bytes(packed)) if is_packable(item) => {
            let mut rest = packed;
            while !rest.is_empty() {
                let number = varint(&mut rest)?;
                push(place, scalar(item, Wire::Number(number), name)?);
            }
        }
        (Type::List(item), wire) => {
            let value = value(schema, item, wire, name)?;
            push(place, value);
        }
        (Type::Map(item), Wire::Bytes(entry)) => {
            let (mut key, mut held) = (String::new(), None);
            for field in Fields(entry) {
                match field? {
                    (1, Wire::Bytes(text)) => key = string(text),
                    (2, wire) => held = Some(map_value(schema, item, wire, name)?),
                    _ => {}
                }
            }
            let held = held.unwrap_or_else(|| empty(item));
            if !place.is_object() {
                *place = json!({});
            }
            place[key] = held;
        }
        (ty, wire) => *place = value(schema, ty, wire, name)?,
    }
    Ok(())
}

/// Lists as values of maps are wrapped in a message of their own.
fn map_value(
    schema: &Schema,
    ty: &Type,
    wire: Wire<'_>,
    name: &'static str,
) -> Result<Value, ProtobufError> {
    let (Type::List(_), Wire::Bytes(wrapped)) = (ty, &wire) else {
        return value(schema, ty, wire, name);
    };
    let mut list = json!([]);
    for field in Fields(wrapped) {
        if let (1, wire) = field? {
            put(schema, ty, wire, name, &mut list)?;
        }
    }
    Ok(list)
}

fn value(
    schema: &Schema,
    ty: &Type,
    wire: Wire<'_>,
    name: &'static str,
) -> Result<Value, ProtobufError> {
    match (ty, wire) {
        (Type::Struct(at), Wire::Bytes(bytes)) => {
            let definition = schema.at(*at);
            let mut object = Map::new();
            structure(schema, definition, definition.name, bytes, &mut object)?;
            Ok(Value::Object(object))
        }
        (Type::Any, Wire::Bytes(bytes)) => raw_json(bytes),
        (Type::Time, Wire::Bytes(bytes)) => instant(bytes, "%Y-%m-%dT%H:%M:%SZ"),
        (Type::MicroTime, Wire::Bytes(bytes)) => instant(bytes, "%Y-%m-%dT%H:%M:%S.%6fZ"),
        (Type::Quantity, Wire::Bytes(bytes)) => quantity(bytes),
        (Type::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes),
        (ty, wire) => scalar(ty, wire, name),
    }
}

fn scalar(ty: &Type, wire: Wire<'_>, name: &'static str) -> Result<Value, ProtobufError> {
    Ok(match (ty, wire) {
        (Type::String, Wire::Bytes(bytes)) => string(bytes).into(),
        (Type::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Type::Bool, Wire::Number(number)) => (number != 0).into(),
        (Type::Int32 | Type::Int64, Wire::Number(number)) => number.cast_signed().into(),
        (Type::Double, Wire::Fixed64(bits)) => f64::from_bits(bits).into(),
        _ => return Err(ProtobufError::Mismatch(name)),
    })
}

fn push(place: &mut Value, value: Value) {
    match place {
        Value::Array(list) => list.push(value),
        place => *place = json!([value]),
    }
}

fn is_packable(item: &Type) -> bool {
    matches!(item, Type::Int32 | Type::Int64 | Type::Bool)
}

/// `RawExtension` and `FieldsV1`: JSON as bytes in field 1.
fn raw_json(bytes: &[u8]) -> Result<Value, ProtobufError> {
    for field in Fields(bytes) {
        if let (1, Wire::Bytes(raw)) = field? {
            return Ok(serde_json::from_slice(raw).unwrap_or_default());
        }
    }
    Ok(Value::Null)
}

/// Seconds and nanoseconds since 1970. Go's zero time has neither, and is null.
fn instant(bytes: &[u8], format: &str) -> Result<Value, ProtobufError> {
    let (mut seconds, mut nanos) = (None, 0);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Number(number)) => seconds = Some(number.cast_signed()),
            (2, Wire::Number(number)) => nanos = number.cast_signed(),
            _ => {}
        }
    }
    let nanos = i32::try_from(nanos).unwrap_or_default();
    let at = seconds.and_then(|seconds| jiff::Timestamp::new(seconds, nanos).ok());
    Ok(at.map_or(Value::Null, |at| at.strftime(format).to_string().into()))
}

fn quantity(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let mut text = String::new();
    for field in Fields(bytes) {
        if let (1, Wire::Bytes(bytes)) = field? {
            text = string(bytes);
        }
    }
    Ok(if text.is_empty() {
        "0".into()
    } else {
        text.into()
    })
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Number(kind)) => is_text = kind == 1,
            (2, Wire::Number(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(bytes)) => text = string(bytes),
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// What a map's entry holds when it says nothing.
fn empty(ty: &Type) -> Value {
    match ty {
        Type::String | Type::Bytes => "".into(),
        Type::Bool => false.into(),
        Type::Int32 | Type::Int64 | Type::IntOrString => 0.into(),
        Type::Double => 0.0.into(),
        Type::Quantity => "0".into(),
        Type::List(_) => json!([]),
        Type::Map(_) | Type::Struct(_) => json!({}),
        Type::Any | Type::Time | Type::MicroTime => Value::Null,
    }
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A field's value on the wire.
enum Wire<'a> {
    Number(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

/// The fields of a message, in the order in which they stand.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), ProtobufError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u32, Wire<'a>), ProtobufError> {
        let tag = varint(&mut self.0)?;
        let number = u32::try_from(tag >> 3).map_err(|_| ProtobufError::Truncated)?;
        let wire = match (tag & 7) as u32 {
            0 => Wire::Number(varint(&mut self.0)?),
            1 => {
                let bytes = self.take(8)?.first_chunk();
                let bytes = bytes.ok_or(ProtobufError::Truncated)?;
                Wire::Fixed64(u64::from_le_bytes(*bytes))
            }
            2 => {
                let length = varint(&mut self.0)?;
                let length = usize::try_from(length).map_err(|_| ProtobufError::Truncated)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            other => return Err(ProtobufError::WireType(other)),
        };
        Ok((number, wire))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtobufError> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(ProtobufError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64, ProtobufError> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or(ProtobufError::Truncated)?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(ProtobufError::Truncated)
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        field.extend_from_slice(bytes);
        field
    }

    fn body(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn an_object_is_read_by_its_kinds_numbers() {
        // As Go writes it: with empty strings and an empty time where nothing was set.
        let metadata = [
            field(1, b"a"),
            field(2, b""),
            field(3, b"ns"),
            vec![7 << 3, 0],
            field(8, b""),
        ]
        .concat();
        let entry = [field(1, b"key"), field(2, b"value")].concat();
        let raw = [field(1, &metadata), field(2, &entry)].concat();
        assert_eq!(
            decode(schema(), &body("v1", "ConfigMap", &raw)),
            Ok(json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "a", "namespace": "ns"},
                "data": {"key": "value"},
            }))
        );
    }

    #[test]
    fn pointers_keep_their_zeros_and_inlined_fields_go_up() {
        // spec.replicas = 0; template.spec.volumes[0] = {name: v, emptyDir: {}}
        let volume = [field(1, b"v"), field(2, &field(2, b""))].concat();
        let template = field(2, &field(1, &volume));
        let spec = [vec![1 << 3, 0], field(3, &template)].concat();
        let raw = field(2, &spec);
        let object = decode(schema(), &body("apps/v1", "Deployment", &raw)).unwrap();
        assert_eq!(
            object["spec"],
            json!({"replicas": 0, "template": {"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}})
        );
    }

    #[test]
    fn options_have_no_group_of_their_own() {
        let raw = vec![1 << 3, 5];
        let options = decode(schema(), &body("apps/v1", "DeleteOptions", &raw)).unwrap();
        assert_eq!(options["gracePeriodSeconds"], 5);
    }

    #[test]
    fn broken_bodies_are_refused() {
        assert_eq!(decode(schema(), b"{}"), Err(ProtobufError::Magic));
        let cut = body("v1", "ConfigMap", &[0x0a, 9, 1]);
        assert_eq!(decode(schema(), &cut), Err(ProtobufError::Truncated));
        assert!(matches!(
            decode(schema(), &body("v1", "Nothing", b"")),
            Err(ProtobufError::UnknownKind { .. })
        ));
    }
}
