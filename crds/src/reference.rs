//! `docs/fields.md`: what people may write into objects, from the same schemas that an apiserver gets.

use std::fmt::Write as _;
use std::io;

use serde_json::Value;

use crate::crdgen::crds;

const HEAD: &str = "\
# Fields of objects

Written by `make crds` from the types; do not edit. `kubectl explain distribution.spec` says the same.
What is left out has the default. Names of `[]` are of each entry of a list.
";

/// Fields that several objects have in common, by the last part of their path: shown once.
const SHARED: &str = "pods";

/// The text of `docs/fields.md`.
///
/// # Errors
/// When a type has no JSON.
pub fn render() -> io::Result<String> {
    let mut text = HEAD.to_owned();
    let mut shared = None;
    for (_, crd) in crds()? {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap_or_default();
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let _ = write!(text, "\n## {kind}\n{}\n", said(spec));
        table(&mut text, spec, &mut shared);
    }
    if let Some(pods) = shared {
        let _ = write!(text, "\n## Pods\nOf seeds, peers and schedulers.\n");
        table(&mut text, &pods, &mut None);
    }
    Ok(text)
}

fn table(text: &mut String, schema: &Value, shared: &mut Option<Value>) {
    text.push_str("\n| field | values | default | what |\n| --- | --- | --- | --- |\n");
    rows(text, "", schema, shared);
}

fn rows(text: &mut String, above: &str, schema: &Value, shared: &mut Option<Value>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{above}{name}");
        let mut what = said(field);
        if name == SHARED {
            what.push_str(" See [below](#pods).");
        }
        let (values, default) = (values(field), default(field));
        let _ = writeln!(text, "| `{path}` | {values} | {default} | {what} |");
        if name == SHARED {
            shared.get_or_insert_with(|| field.clone());
            continue;
        }
        rows(text, &format!("{path}."), field, shared);
        rows(text, &format!("{path}[]."), &field["items"], shared);
    }
}

/// The description, in a line and safe in a cell.
fn said(field: &Value) -> String {
    let text = field["description"].as_str().unwrap_or_default();
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

/// What may stand there.
fn values(field: &Value) -> String {
    let of = |schema: &Value| {
        let named = schema["enum"].as_array().into_iter().flatten();
        let named: Vec<_> = named.filter_map(Value::as_str).collect();
        if !named.is_empty() {
            return named.join(", ");
        }
        let bound = |name: &str| schema[name].as_f64().map(|bound| format!("{bound:.0}"));
        match (schema["type"].as_str(), bound("minimum"), bound("maximum")) {
            (_, Some(least), Some(most)) => format!("{least} to {most}"),
            (_, Some(least), None) => format!("{least} or more"),
            (Some("object"), ..) if schema["additionalProperties"].is_object() => {
                "names and values".to_owned()
            }
            (Some("object"), ..) => String::new(),
            (Some("string"), ..) => "text".to_owned(),
            (kind, ..) => kind.unwrap_or_default().to_owned(),
        }
    };
    if field["type"] == "array" {
        format!("list {}", of(&field["items"])).trim().to_owned()
    } else {
        of(field)
    }
}

fn default(field: &Value) -> String {
    match &field["default"] {
        Value::Null | Value::Object(_) => String::new(),
        Value::Array(all) if all.is_empty() => "none".to_owned(),
        Value::Array(all) => {
            let all: Vec<_> = all.iter().filter_map(Value::as_str).collect();
            format!("`{}`", all.join("`, `"))
        }
        Value::String(text) if text.is_empty() => String::new(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}
