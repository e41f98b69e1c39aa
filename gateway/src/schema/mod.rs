//! JSON Schemas of `policy.json` and `directory.json`, for editors (draft 2020-12).
//!
//! The types here are never read into: they say what the readers in `portcullis_policy` and [`directory`](crate::directory)
//! take, and schemars makes schemas of them. A schema knows types, keys and what a string looks like. It does not know names
//! that are defined elsewhere, what stands twice, or what one value says about another; a test says exactly which problems of
//! `portcullis check` those are, and that the two agree in everything else.

pub mod directory;
pub mod policy;
pub mod text;

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

/// The files that have a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Document {
    /// `policy.json`
    Policy,
    /// `directory.json`
    Directory,
}

impl Document {
    /// Its schema.
    pub fn schema(self) -> Value {
        match self {
            Self::Policy => of::<policy::Policy>(),
            Self::Directory => of::<directory::Directory>(),
        }
    }

    /// Its schema as text, ending in a newline.
    pub fn schema_text(self) -> String {
        // `{:#}` of a JSON value is its indented form.
        format!("{:#}\n", self.schema())
    }
}

fn of<T: JsonSchema>() -> Value {
    let mut schema = SchemaGenerator::default().into_root_schema_for::<T>().to_value();
    forbid_null(&mut schema);
    schema
}

/// A key that may be left out may not be null: takes back what schemars says of every `Option`.
fn forbid_null(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(forbid_null);
            let single = match object.get_mut("type") {
                Some(Value::Array(types)) => {
                    types.retain(|kind| kind != "null");
                    if types.len() == 1 { types.pop() } else { None }
                }
                Some(_) | None => None,
            };
            if let Some(kind) = single {
                object.insert("type".to_owned(), kind);
            }
            let single = match object.get_mut("anyOf") {
                Some(Value::Array(choices)) => {
                    let before = choices.len();
                    choices.retain(|choice| choice.get("type").is_none_or(|kind| kind != "null"));
                    if choices.len() == 1 && before > 1 { choices.pop() } else { None }
                }
                Some(_) | None => None,
            };
            if let Some(Value::Object(choice)) = single {
                object.remove("anyOf");
                let beside: Map<String, Value> = std::mem::take(object);
                object.extend(choice);
                // What the field says of itself is nearer than what its type says.
                object.extend(beside);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_null),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
