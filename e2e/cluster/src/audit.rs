//! What the API server noted down: every request of who works in the operator's namespace.

use std::path::Path;

use dragonfly_e2e::{Failed, Result};
use serde::Deserialize;

use crate::Cluster;
use crate::supervisor::AUDIT;

/// A request that was answered.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: String,
    /// When it was answered, RFC 3339 in UTC: later is greater.
    pub stage_timestamp: String,
    /// Who asked.
    user: User,
    #[serde(default)]
    object_ref: Option<Object>,
}

#[derive(Debug, Clone, Deserialize)]
struct User {
    username: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Object {
    resource: String,
    namespace: String,
    name: String,
    subresource: String,
}

impl Asked {
    /// The account's name, without its namespace.
    pub fn account(&self) -> &str {
        self.user.username.rsplit(':').next().unwrap_or_default()
    }

    /// `distributions/status`, or nothing for what is no object.
    pub fn resource(&self) -> String {
        match &self.object_ref {
            Some(object) if object.subresource.is_empty() => object.resource.clone(),
            Some(object) => format!("{}/{}", object.resource, object.subresource),
            None => String::new(),
        }
    }

    /// `namespace/name`.
    pub fn object(&self) -> String {
        let object = self.object_ref.clone().unwrap_or_default();
        format!("{}/{}", object.namespace, object.name)
    }

    /// Whether it changes something. A review of a token does not, though it is created.
    pub fn writes(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch") && self.resource() != "tokenreviews"
    }
}

impl Cluster {
    /// All requests so far of service accounts of the namespace `dragonfly-system`, as they were
    /// answered; of a watch its end.
    ///
    /// # Errors
    /// The API server's record cannot be read.
    pub fn asked(&self) -> Result<Vec<Asked>> {
        let path = self.info().dir.join(AUDIT);
        let text = std::fs::read_to_string(&path).map_err(|e| Failed::at(path.display(), e))?;
        // The last line may be being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| read(&path, line)).collect()
    }
}

fn read(path: &Path, line: &str) -> Result<Asked> {
    serde_json::from_str(line).map_err(|e| Failed::at(path.display(), format!("{e}: {line}")))
}
