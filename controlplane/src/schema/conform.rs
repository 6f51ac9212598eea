//! Makes a value conform to its type: what decoding into Go's structures does.
//!
//! Wrong types are refused with the words of Go's decoder, unknown fields are removed and
//! reported by path, nulls and optional empty lists and maps are dropped as `omitempty` would,
//! and quantities and times take their canonical form.

use serde_json::Value;

use super::table::{Definition, Schema, Type};
use crate::resources::quantity::{self, Quantity};

/// A value of the wrong type, in the words of Kubernetes' decoder.
type Mistyped = String;

/// Walks `value` along `ty`. Gives the paths of what was unknown and removed.
///
/// # Errors
/// At the first value of a wrong type.
pub(super) fn conform(
    schema: &Schema,
    ty: &Type,
    value: &mut Value,
) -> Result<Vec<String>, Mistyped> {
    let mut walk = Walk {
        schema,
        path: String::new(),
        fields: Vec::new(),
        holder: None,
        unknown: Vec::new(),
    };
    walk.visit(ty, value)?;
    Ok(walk.unknown)
}

struct Walk<'s> {
    schema: &'s Schema,
    /// With indices and map keys, for unknown fields.
    path: String,
    /// The struct fields alone, as Go's decoder names them.
    fields: Vec<&'static str>,
    /// The structure that has the last of `fields`.
    holder: Option<&'s Definition>,
    unknown: Vec<String>,
}

impl<'s> Walk<'s> {
    fn visit(&mut self, ty: &Type, value: &mut Value) -> Result<(), Mistyped> {
        match ty {
            Type::Any => Ok(()),
            Type::String => self.expect(value.is_string(), ty, value),
            Type::Bool => self.expect(value.is_boolean(), ty, value),
            Type::Int32 => self.expect(
                value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
                ty,
                value,
            ),
            Type::Int64 => self.expect(value.is_i64(), ty, value),
            Type::Double => self.expect(value.is_number(), ty, value),
            Type::Bytes => self.bytes(value),
            Type::Time => self.time(value, 0),
            Type::MicroTime => self.time(value, 6),
            Type::Quantity => quantity(value),
            Type::IntOrString => match value {
                Value::String(_) => Ok(()),
                Value::Number(n) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
                other => Err(format!(
                    "json: cannot unmarshal {} into Go value of type int32",
                    go_kind(other)
                )),
            },
            Type::List(item) => self.list(ty, item, value),
            Type::Map(item) => self.map(ty, item, value),
            Type::Struct(at) => self.structure(ty, self.schema.at(*at), value),
        }
    }

    fn list(&mut self, ty: &Type, item: &Type, value: &mut Value) -> Result<(), Mistyped> {
        let Value::Array(items) = value else {
            return self.mismatch(ty, value);
        };
        let length = self.path.len();
        for (index, element) in items.iter_mut().enumerate() {
            if element.is_null() {
                *element = zero(item);
            }
            if !is_scalar(item) {
                self.path.push_str(&format!("[{index}]"));
            }
            self.visit(item, element)?;
            self.path.truncate(length);
        }
        Ok(())
    }

    fn map(&mut self, ty: &Type, item: &Type, value: &mut Value) -> Result<(), Mistyped> {
        let Value::Object(entries) = value else {
            return self.mismatch(ty, value);
        };
        let length = self.path.len();
        for (key, element) in entries.iter_mut() {
            if element.is_null() {
                *element = zero(item);
            }
            if !is_scalar(item) {
                self.descend(key);
            }
            self.visit(item, element)?;
            self.path.truncate(length);
        }
        Ok(())
    }

    fn structure(
        &mut self,
        ty: &Type,
        definition: &'s Definition,
        value: &mut Value,
    ) -> Result<(), Mistyped> {
        let Value::Object(entries) = value else {
            return self.mismatch(ty, value);
        };
        let length = self.path.len();
        let outer = self.holder.replace(definition);
        let mut unknown = Vec::new();
        let mut absent = Vec::new();
        for (key, element) in entries.iter_mut() {
            let Some(field) = definition.field(key) else {
                unknown.push(key.clone());
                continue;
            };
            if element.is_null() {
                absent.push(field.name);
                continue;
            }
            self.descend(field.name);
            self.fields.push(field.name);
            self.visit(&field.ty, element)?;
            self.fields.pop();
            self.path.truncate(length);
            if !field.required && is_empty_collection(&field.ty, element) {
                absent.push(field.name);
            }
        }
        for key in absent {
            entries.remove(key);
        }
        for key in unknown {
            entries.remove(&key);
            self.descend(&key);
            self.unknown.push(self.path.clone());
            self.path.truncate(length);
        }
        self.holder = outer;
        Ok(())
    }

    fn bytes(&self, value: &mut Value) -> Result<(), Mistyped> {
        use base64::Engine;
        let Value::String(text) = value else {
            return self.mismatch(&Type::Bytes, value);
        };
        match base64::engine::general_purpose::STANDARD.decode(text.as_bytes()) {
            Ok(_) => Ok(()),
            Err(
                base64::DecodeError::InvalidByte(at, _)
                | base64::DecodeError::InvalidLastSymbol(at, _),
            ) => Err(format!("illegal base64 data at input byte {at}")),
            Err(_) => Err(format!(
                "illegal base64 data at input byte {}",
                text.len() / 4 * 4
            )),
        }
    }

    fn time(&self, value: &mut Value, precision: usize) -> Result<(), Mistyped> {
        let Value::String(text) = value else {
            return self.mismatch(&Type::Time, value);
        };
        let Ok(time) = text.parse::<jiff::Timestamp>() else {
            let layout = if precision == 0 {
                "2006-01-02T15:04:05Z07:00"
            } else {
                "2006-01-02T15:04:05.000000Z07:00"
            };
            return Err(format!(
                "parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""
            ));
        };
        let canonical = if precision == 0 {
            time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
        } else {
            time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
        };
        if *text != canonical {
            *text = canonical;
        }
        Ok(())
    }

    fn descend(&mut self, key: &str) {
        if !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(key);
    }

    fn expect(&self, right: bool, ty: &Type, value: &Value) -> Result<(), Mistyped> {
        if right {
            Ok(())
        } else {
            self.mismatch(ty, value)
        }
    }

    fn mismatch(&self, ty: &Type, value: &Value) -> Result<(), Mistyped> {
        let given = match (ty, value) {
            (Type::Int32 | Type::Int64, Value::Number(number)) => format!("number {number}"),
            _ => go_kind(value).to_string(),
        };
        let wanted = self.go_type(ty);
        Err(match self.holder {
            Some(holder) if !self.fields.is_empty() => format!(
                "json: cannot unmarshal {given} into Go struct field {}.{} of type {wanted}",
                holder.name,
                self.fields.join(".")
            ),
            _ => format!("json: cannot unmarshal {given} into Go value of type {wanted}"),
        })
    }

    fn go_type(&self, ty: &Type) -> String {
        match ty {
            Type::Any => "interface {}".into(),
            Type::String | Type::Time | Type::MicroTime => "string".into(),
            Type::Bytes => "[]uint8".into(),
            Type::Bool => "bool".into(),
            Type::Int32 => "int32".into(),
            Type::Int64 => "int64".into(),
            Type::Double => "float64".into(),
            Type::Quantity => "resource.Quantity".into(),
            Type::IntOrString => "intstr.IntOrString".into(),
            Type::List(item) => format!("[]{}", self.go_type(item)),
            Type::Map(item) => format!("map[string]{}", self.go_type(item)),
            Type::Struct(at) => {
                let definition = self.schema.at(*at);
                let package = definition.package.rsplit('.').next().unwrap_or_default();
                format!("{package}.{}", definition.name)
            }
        }
    }
}

fn quantity(value: &mut Value) -> Result<(), Mistyped> {
    let text = match value {
        Value::String(text) => text.trim().to_string(),
        Value::Number(number) => number.to_string(),
        _ => return Err(quantity::MALFORMED.into()),
    };
    let parsed = Quantity::parse(&text).map_err(|e| e.to_string())?;
    let canonical = parsed.to_string();
    if value.as_str() != Some(&canonical) {
        *value = Value::String(canonical);
    }
    Ok(())
}

fn is_scalar(ty: &Type) -> bool {
    !matches!(ty, Type::List(_) | Type::Map(_) | Type::Struct(_))
}

fn is_empty_collection(ty: &Type, value: &Value) -> bool {
    match (ty, value) {
        (Type::List(_), Value::Array(items)) => items.is_empty(),
        (Type::Map(_), Value::Object(entries)) => entries.is_empty(),
        _ => false,
    }
}

/// What a null inside a list or map becomes in Go: the type's zero value.
fn zero(ty: &Type) -> Value {
    match ty {
        Type::Any | Type::Time | Type::MicroTime => Value::Null,
        Type::String | Type::Bytes => "".into(),
        Type::Bool => false.into(),
        Type::Int32 | Type::Int64 | Type::Double | Type::IntOrString => 0.into(),
        Type::Quantity => "0".into(),
        Type::List(_) => Value::Array(Vec::new()),
        Type::Map(_) | Type::Struct(_) => Value::Object(serde_json::Map::new()),
    }
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Mistyped, conform};
    use crate::schema::schema;

    fn deployment(mut value: Value) -> Result<(Value, Vec<String>), Mistyped> {
        let schema = schema();
        let unknown = conform(
            schema,
            &schema.type_of("io.k8s.api.apps.v1.Deployment"),
            &mut value,
        )?;
        Ok((value, unknown))
    }

    fn refused(value: Value) -> String {
        deployment(value).unwrap_err()
    }

    #[test]
    fn unknown_fields_are_pruned_and_named_by_path() {
        let given = json!({"spec": {"replicass": 3, "template": {"spec": {"containers": [{"name": "a", "imagee": "b"}]}}}});
        let (value, unknown) = deployment(given).unwrap();
        assert_eq!(
            unknown,
            ["spec.template.spec.containers[0].imagee", "spec.replicass"]
        );
        assert_eq!(
            value,
            json!({"spec": {"template": {"spec": {"containers": [{"name": "a"}]}}}})
        );
    }

    #[test]
    fn wrong_types_are_refused_in_the_decoders_words() {
        assert_eq!(
            refused(json!({"spec": {"replicas": "three"}})),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        );
        let env = json!([{"name": "A", "value": 1}]);
        assert_eq!(
            refused(
                json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "env": env}]}}}})
            ),
            "json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string"
        );
        assert_eq!(
            refused(json!({"metadata": {"labels": {"a": true}}})),
            "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string"
        );
        assert_eq!(
            refused(json!([])),
            "json: cannot unmarshal array into Go value of type v1.Deployment"
        );
        assert_eq!(
            refused(json!({"spec": {"template": {"spec": {"containers": {}}}}})),
            "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container"
        );
    }

    #[test]
    fn quantities_times_and_nulls_become_canonical() {
        let given = json!({
            "metadata": {"creationTimestamp": null, "labels": {}, "annotations": {"a": null}},
            "spec": {"strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
                "template": {"metadata": {"creationTimestamp": "2024-05-01T12:00:00.5+02:00"},
                "spec": {"containers": [{"name": "a", "env": [], "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}]}}},
        });
        let want = json!({
            "metadata": {"annotations": {"a": ""}},
            "spec": {"strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
                "template": {"metadata": {"creationTimestamp": "2024-05-01T10:00:00Z"},
                "spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}]}}},
        });
        assert_eq!(deployment(given).unwrap(), (want, vec![]));
    }
}
