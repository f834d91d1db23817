//! What an apiserver checks of an object, from the very schema that it would get.
//!
//! The OpenAPI schema of a CRD is compiled once into a tree of `Node`s; [`Kind::admit`] then does
//! what an apiserver does on creation: refuse unknown fields, apply defaults, check types and
//! bounds, evaluate the CEL rules.
//!
//! Invariants: a keyword that this module does not know fails the compilation (tested for every
//! kind), so nothing in a schema goes unenforced; rules run only on objects whose shape is right;
//! the depth of recursion is that of the schema, not of the input.

mod admit;
mod rules;

use std::collections::BTreeMap;

use regex_lite::Regex;
use serde_json::Value;

use crate::crdgen;
pub use admit::Mistake;
use rules::CompiledRule;

/// Why a schema cannot be enforced.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A keyword that is not implemented here.
    #[error("{0}: keyword {1} is not implemented")]
    Keyword(String, String),
    /// A keyword with a value of the wrong kind.
    #[error("{0}: {1} has a value that makes no sense")]
    Value(String, &'static str),
    /// A pattern or a rule that does not compile.
    #[error("{0}: {1}")]
    Compile(String, String),
    /// The types have no JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// The compiled schema of a kind.
#[derive(Debug)]
pub struct Kind {
    /// `Distribution`.
    pub name: String,
    root: Node,
}

/// Compiled schemas of all kinds.
pub fn kinds() -> Result<&'static [Kind], &'static SchemaError> {
    static KINDS: std::sync::LazyLock<Result<Vec<Kind>, SchemaError>> =
        std::sync::LazyLock::new(|| {
            let crds = crdgen::crds()?;
            crds.iter()
                .map(|(plural, crd)| Kind::of_crd(plural, crd))
                .collect()
        });
    KINDS.as_deref()
}

impl Kind {
    fn of_crd(plural: &str, crd: &Value) -> Result<Self, SchemaError> {
        let wrong = |what| SchemaError::Value(plural.to_owned(), what);
        let name = crd.pointer("/spec/names/kind").and_then(Value::as_str);
        let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema");
        let mut root = Node::compile(plural, schema.ok_or(wrong("schema"))?)?;
        // What an apiserver knows of every object, whatever its schema says.
        for text in ["apiVersion", "kind"] {
            root.properties.insert(text.to_owned(), Node::any());
        }
        root.properties.insert("metadata".to_owned(), Node::any());
        Ok(Self {
            name: name.ok_or(wrong("kind"))?.to_owned(),
            root,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Object,
    Array,
    Text,
    Integer,
    Boolean,
    Any,
}

/// One place in a schema.
#[derive(Debug)]
struct Node {
    type_: Type,
    properties: BTreeMap<String, Self>,
    required: Vec<String>,
    preserve: bool,
    /// What a map's values are.
    values: Option<Box<Self>>,
    max_properties: Option<usize>,
    items: Option<Box<Self>>,
    set: bool,
    default: Option<Value>,
    choices: Vec<String>,
    minimum: Option<i64>,
    maximum: Option<i64>,
    min_length: Option<usize>,
    max_length: Option<usize>,
    max_items: Option<usize>,
    pattern: Option<Regex>,
    rules: Vec<CompiledRule>,
}

impl Node {
    fn any() -> Self {
        Self {
            type_: Type::Any,
            properties: BTreeMap::new(),
            required: Vec::new(),
            preserve: true,
            values: None,
            max_properties: None,
            items: None,
            set: false,
            default: None,
            choices: Vec::new(),
            minimum: None,
            maximum: None,
            min_length: None,
            max_length: None,
            max_items: None,
            pattern: None,
            rules: Vec::new(),
        }
    }

    fn compile(at: &str, schema: &Value) -> Result<Self, SchemaError> {
        let wrong = |what: &'static str| SchemaError::Value(at.to_owned(), what);
        let mut node = Self {
            preserve: false,
            ..Self::any()
        };
        for (keyword, value) in schema.as_object().ok_or(wrong("schema"))? {
            let size = || value.as_u64().and_then(|n| usize::try_from(n).ok());
            // Bounds of integers may be written as 1.0.
            let bound = || value.as_i64().or_else(|| value.as_f64().map(|n| n as i64));
            match keyword.as_str() {
                "title" | "description" | "format" | "x-kubernetes-map-type" => {}
                "x-kubernetes-list-map-keys" => {}
                "type" => {
                    node.type_ = match value.as_str() {
                        Some("object") => Type::Object,
                        Some("array") => Type::Array,
                        Some("string") => Type::Text,
                        Some("integer") => Type::Integer,
                        Some("boolean") => Type::Boolean,
                        _ => return Err(wrong("type")),
                    };
                }
                "properties" => {
                    for (name, schema) in value.as_object().ok_or(wrong("properties"))? {
                        let child = Self::compile(&format!("{at}.{name}"), schema)?;
                        node.properties.insert(name.clone(), child);
                    }
                }
                "required" => node.required = texts(value).ok_or(wrong("required"))?,
                "additionalProperties" => {
                    node.values = Some(Box::new(Self::compile(&format!("{at}.*"), value)?));
                }
                "maxProperties" => {
                    node.max_properties = Some(size().ok_or(wrong("maxProperties"))?);
                }
                "items" => {
                    node.items = Some(Box::new(Self::compile(&format!("{at}[]"), value)?));
                }
                "default" => node.default = Some(value.clone()),
                "enum" => node.choices = texts(value).ok_or(wrong("enum"))?,
                "minimum" => node.minimum = Some(bound().ok_or(wrong("minimum"))?),
                "maximum" => node.maximum = Some(bound().ok_or(wrong("maximum"))?),
                "minLength" => node.min_length = Some(size().ok_or(wrong("minLength"))?),
                "maxLength" => node.max_length = Some(size().ok_or(wrong("maxLength"))?),
                "maxItems" => node.max_items = Some(size().ok_or(wrong("maxItems"))?),
                "pattern" => {
                    let pattern = Regex::new(value.as_str().ok_or(wrong("pattern"))?)
                        .map_err(|error| SchemaError::Compile(at.to_owned(), error.to_string()))?;
                    node.pattern = Some(pattern);
                }
                "x-kubernetes-preserve-unknown-fields" => node.preserve = true,
                "x-kubernetes-list-type" => node.set = value.as_str() == Some("set"),
                "x-kubernetes-validations" => {
                    for rule in value.as_array().ok_or(wrong("x-kubernetes-validations"))? {
                        node.rules.extend(CompiledRule::compile(at, rule)?);
                    }
                }
                other => return Err(SchemaError::Keyword(at.to_owned(), other.to_owned())),
            }
        }
        Ok(node)
    }
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value
        .as_array()?
        .iter()
        .map(|item| item.as_str().map(str::to_owned))
        .collect()
}
