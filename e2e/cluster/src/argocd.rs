//! ArgoCD's health checks and actions: the very Lua of `config/argocd`, run by the interpreter that ArgoCD
//! has.

use std::collections::BTreeMap;
use std::process::Command;

use dragonfly_e2e::{Failed, Result};
use kube::Resource;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::operator::read;
use crate::tools::Tool;

#[derive(Deserialize)]
struct ConfigMap {
    data: BTreeMap<String, String>,
}

/// What ArgoCD is told, by its own names.
///
/// # Errors
/// The file cannot be read.
pub fn customizations() -> Result<BTreeMap<String, String>> {
    let text = read("config/argocd/argocd-cm.yaml")?;
    let map: ConfigMap =
        serde_saphyr::from_str(&text).map_err(|e| Failed::at("config/argocd", e))?;
    Ok(map.data)
}

/// JSON as Lua writes it.
fn literal(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(literal).collect();
            format!("{{{}}}", items.join(","))
        }
        Value::Object(fields) => {
            let fields = fields.iter();
            let fields: Vec<_> = fields
                .map(|(name, value)| format!("[{}]={}", Value::from(name.as_str()), literal(value)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
        scalar => scalar.to_string(),
    }
}

/// What a script returns for an object: `show` prints it.
///
/// # Errors
/// The interpreter cannot be built, or what it says.
pub fn run(script: &str, object: &Value, show: &str) -> Result<String> {
    let wrong = |e: &dyn std::fmt::Display| Failed::at("glua", e);
    let built = Tool::Lua.built()?;
    let glua = built.get("glua").ok_or_else(|| wrong(&"was not built"))?;
    let dir = tempfile::tempdir().map_err(|e| wrong(&e))?;
    let file = dir.path().join("script.lua");
    // ArgoCD opens neither io nor os to scripts.
    let text = format!(
        "local io, debug, package, require, dofile, loadfile = nil\n\
         obj = {}\n\
         local function script()\n{script}\nend\n\
         local result = script()\n{show}\n",
        literal(object)
    );
    std::fs::write(&file, &text).map_err(|e| wrong(&e))?;
    let out = Command::new(glua).arg(&file).output();
    let out = out.map_err(|e| wrong(&e))?;
    let errors = String::from_utf8_lossy(&out.stderr);
    if !out.status.success() || !errors.is_empty() {
        return Err(wrong(&format!("{errors}\n{text}")));
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim_end().to_owned())
}

/// The health of an object of a kind, and why.
///
/// # Errors
/// There is no health check of the kind, or what the interpreter says.
pub fn health_of(kind: &str, object: &Value) -> Result<(String, String)> {
    let name = format!("resource.customizations.health.d7y.io_{kind}");
    let all = customizations()?;
    let script = all.get(&name);
    let script = script.ok_or_else(|| Failed::at(&name, "is not in config/argocd"))?;
    let show = "print(result.status .. '|' .. result.message)";
    let said = run(script, object, show)?;
    let (status, message) = said.split_once('|').unwrap_or((&said, ""));
    Ok((status.to_owned(), message.to_owned()))
}

/// The health of an object as it is.
///
/// # Errors
/// Those of [`health_of`].
pub fn health<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Result<(String, String)> {
    let kind = K::kind(&());
    let value = serde_json::to_value(object).map_err(|e| Failed::at(&kind, e))?;
    health_of(&kind, &value)
}
