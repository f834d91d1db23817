//! CEL rules (`x-kubernetes-validations`).
//!
//! Transition rules (`oldSelf`) do not apply at creation, and light mode knows no old object; they
//! are left out unless they ask to be run without one, which is not supported.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use cel::objects::Key;
use cel::{Context, Program};
use serde_json::Value;

use super::SchemaError;

/// One rule.
pub(super) struct CompiledRule {
    source: String,
    program: Program,
    pub(super) message: String,
    pub(super) field_path: String,
}

impl fmt::Debug for CompiledRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl CompiledRule {
    /// `None` for a transition rule.
    pub(super) fn compile(at: &str, rule: &Value) -> Result<Option<Self>, SchemaError> {
        let text = |name: &str| rule.get(name).and_then(Value::as_str).map(str::to_owned);
        let wrong = |what: &str| SchemaError::Compile(at.to_owned(), what.to_owned());
        for keyword in rule
            .as_object()
            .into_iter()
            .flat_map(|fields| fields.keys())
        {
            if !matches!(
                keyword.as_str(),
                "rule" | "message" | "fieldPath" | "reason"
            ) {
                return Err(SchemaError::Keyword(at.to_owned(), keyword.clone()));
            }
        }
        let source = text("rule").ok_or_else(|| wrong("a rule without text"))?;
        let program = Program::compile(&source).map_err(|error| wrong(&error.to_string()))?;
        if program.references().has_variable("oldSelf") {
            return Ok(None);
        }
        let message = text("message").unwrap_or_else(|| format!("failed rule: {source}"));
        let field_path = text("fieldPath").unwrap_or_default();
        Ok(Some(Self {
            source,
            program,
            message,
            field_path,
        }))
    }

    /// `Ok` when the rule holds, else what to say.
    pub(super) fn check(&self, subject: &Value) -> Result<(), String> {
        let mut context = Context::default();
        context.add_variable_from_value("self", to_cel(subject));
        match self.program.execute(&context) {
            Ok(cel::Value::Bool(true)) => Ok(()),
            Ok(cel::Value::Bool(false)) => Err(self.message.clone()),
            Ok(_) => Err(format!("rule {} is no condition", self.source)),
            Err(error) => Err(format!("rule {}: {error}", self.source)),
        }
    }
}

/// As Kubernetes types them: every number of our schemas is an int. (The crate's own conversion
/// makes positive ones uint, which compares differently.)
fn to_cel(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(flag) => cel::Value::Bool(*flag),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => cel::Value::Int(integer),
            None => cel::Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => cel::Value::String(Arc::new(text.clone())),
        Value::Array(items) => cel::Value::List(Arc::new(items.iter().map(to_cel).collect())),
        Value::Object(fields) => {
            let map: HashMap<Key, cel::Value> = fields
                .iter()
                .map(|(name, value)| (Key::from(name.clone()), to_cel(value)))
                .collect();
            cel::Value::Map(map.into())
        }
    }
}
