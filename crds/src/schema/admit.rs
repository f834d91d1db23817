//! An object against its schema, in the order of an apiserver: unknown fields, defaults, shape and
//! bounds, rules.

use serde_json::{Map, Value};

use super::{Kind, Node, Type};
use crate::field::{Reason, quoted};

/// A mistake at a place; the object is known to the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// `spec.storage.quota`; `<nil>` for the object itself, as an apiserver says.
    pub field: String,
    /// What kind of mistake.
    pub reason: Reason,
    /// The value and what it must be.
    pub message: String,
}

/// Mistakes reported of one object; more help nobody.
const MAX_MISTAKES: usize = 64;

impl Kind {
    /// Checks an object as an apiserver does on creation and applies the schema's defaults to it.
    /// `metadata` is not looked at but by rules; `sound` says that it may be.
    pub fn admit(&self, object: &mut Value, sound: bool) -> Vec<Mistake> {
        let mut pass = Pass {
            mistakes: Vec::new(),
        };
        pass.prune(&self.root, object, "");
        fill(&self.root, object);
        pass.shape(&self.root, object, "");
        // An apiserver evaluates no rules on an object of the wrong shape either.
        if sound && pass.mistakes.is_empty() {
            pass.rules(&self.root, object, "");
        }
        pass.mistakes
    }
}

struct Pass {
    mistakes: Vec<Mistake>,
}

impl Pass {
    fn fail(&mut self, path: &str, reason: Reason, message: String) {
        if self.mistakes.len() < MAX_MISTAKES {
            let field = if path.is_empty() {
                "<nil>"
            } else {
                path.trim_start_matches('.')
            };
            self.mistakes.push(Mistake {
                field: field.to_owned(),
                reason,
                message,
            });
        }
    }

    /// Reports unknown fields and takes them and nulls away, so that later steps see known ones
    /// only.
    fn prune(&mut self, node: &Node, value: &mut Value, path: &str) {
        match value {
            Value::Object(fields) if node.type_ == Type::Object => {
                fields.retain(|name, child| match node.child(name) {
                    // No field of ours is nullable: an apiserver takes null as left out.
                    Some(_) => !child.is_null(),
                    None if node.preserve => true,
                    None => {
                        let path = join(path, name);
                        self.fail(
                            &path,
                            Reason::UnknownField,
                            "the kind has no such field".to_owned(),
                        );
                        false
                    }
                });
                for (name, child) in fields {
                    if let Some(schema) = node.child(name) {
                        self.prune(schema, child, &join(path, name));
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &node.items {
                    for (index, item) in items.iter_mut().enumerate() {
                        self.prune(schema, item, &format!("{path}[{index}]"));
                    }
                }
            }
            _ => {}
        }
    }

    fn shape(&mut self, node: &Node, value: &Value, path: &str) {
        match (node.type_, value) {
            (Type::Any, _) | (Type::Boolean, Value::Bool(_)) => {}
            (Type::Object, Value::Object(fields)) => self.object(node, fields, path),
            (Type::Array, Value::Array(items)) => self.array(node, items, path),
            (Type::Text, Value::String(text)) => self.text(node, text, path),
            (Type::Integer, Value::Number(number)) if number.is_i64() => {
                self.integer(node, number.as_i64().unwrap_or_default(), path);
            }
            (wanted, found) => {
                let message = format!(
                    "{}: must be {}, not {}",
                    show(found),
                    wanted.name(),
                    kind(found)
                );
                self.fail(path, Reason::InvalidValue, message);
            }
        }
    }

    fn object(&mut self, node: &Node, fields: &Map<String, Value>, path: &str) {
        if let Some(most) = node.max_properties.filter(|most| fields.len() > *most) {
            let message = format!("{}: must have at most {most} entries", fields.len());
            return self.fail(path, Reason::TooMany, message);
        }
        for name in node
            .required
            .iter()
            .filter(|name| !fields.contains_key(*name))
        {
            self.fail(
                &join(path, name),
                Reason::Required,
                "must be given".to_owned(),
            );
        }
        for (name, child) in fields {
            if let Some(schema) = node.child(name) {
                self.shape(schema, child, &join(path, name));
            }
        }
    }

    fn array(&mut self, node: &Node, items: &[Value], path: &str) {
        if let Some(most) = node.max_items.filter(|most| items.len() > *most) {
            let message = format!("{}: must have at most {most} items", items.len());
            return self.fail(path, Reason::TooMany, message);
        }
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if node.set && items[..index].contains(item) {
                self.fail(&path, Reason::Duplicate, show(item));
            }
            if let Some(schema) = &node.items {
                self.shape(schema, item, &path);
            }
        }
    }

    fn text(&mut self, node: &Node, text: &str, path: &str) {
        let length = text.chars().count();
        if let Some(most) = node.max_length.filter(|most| length > *most) {
            // A pattern is not tried on text that is too long.
            let message = format!("may not be more than {most} characters");
            return self.fail(path, Reason::TooLong, message);
        }
        if let Some(least) = node.min_length.filter(|least| length < *least) {
            let message = format!("{}: should be at least {least} chars long", quoted(text));
            self.fail(path, Reason::InvalidValue, message);
        }
        if let Some(pattern) = node
            .pattern
            .as_ref()
            .filter(|pattern| !pattern.is_match(text))
        {
            let message = format!("{}: should match '{pattern}'", quoted(text));
            self.fail(path, Reason::InvalidValue, message);
        }
        if !node.choices.is_empty() && !node.choices.iter().any(|choice| choice == text) {
            let choices: Vec<_> = node.choices.iter().map(|choice| quoted(choice)).collect();
            let message = format!("{}: supported values: {}", quoted(text), choices.join(", "));
            self.fail(path, Reason::Unsupported, message);
        }
    }

    fn integer(&mut self, node: &Node, value: i64, path: &str) {
        if let Some(least) = node.minimum.filter(|least| value < *least) {
            let message = format!("{value}: should be greater than or equal to {least}");
            self.fail(path, Reason::InvalidValue, message);
        }
        if let Some(most) = node.maximum.filter(|most| value > *most) {
            let message = format!("{value}: should be less than or equal to {most}");
            self.fail(path, Reason::InvalidValue, message);
        }
    }

    fn rules(&mut self, node: &Node, value: &Value, path: &str) {
        for rule in &node.rules {
            if let Err(why) = rule.check(value) {
                let place = format!("{path}{}", rule.field_path);
                let culprit = value.pointer(&rule.field_path.replace('.', "/"));
                let message = match culprit.filter(|_| !rule.field_path.is_empty()) {
                    Some(culprit) => format!("{}: {why}", show(culprit)),
                    None => why,
                };
                self.fail(&place, Reason::InvalidValue, message);
            }
        }
        match value {
            Value::Object(fields) => {
                for (name, child) in fields {
                    if let Some(schema) = node.child(name) {
                        self.rules(schema, child, &join(path, name));
                    }
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let Some(schema) = &node.items {
                        self.rules(schema, item, &format!("{path}[{index}]"));
                    }
                }
            }
            _ => {}
        }
    }
}

/// Defaults of what is left out, from the outside in: a default may itself lack fields with one.
fn fill(node: &Node, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, schema) in &node.properties {
                if let (Some(default), None) = (&schema.default, fields.get(name)) {
                    fields.insert(name.clone(), default.clone());
                }
                if let Some(child) = fields.get_mut(name) {
                    fill(schema, child);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &node.items {
                items.iter_mut().for_each(|item| fill(schema, item));
            }
        }
        _ => {}
    }
}

impl Node {
    /// The schema of a field, or of a map's value.
    fn child(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or(self.values.as_deref())
    }
}

impl Type {
    const fn name(self) -> &'static str {
        match self {
            Self::Object => "of type object",
            Self::Array => "of type array",
            Self::Text => "of type string",
            Self::Integer => "of type integer",
            Self::Boolean => "of type boolean",
            Self::Any => "anything",
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(_) | Value::Object(_) => quoted(kind(value)),
        scalar => scalar.to_string(),
    }
}

fn join(path: &str, name: &str) -> String {
    format!("{path}.{name}")
}
