//! What the API server noted down: every request of a pod, or of who shows a pod's account.

use std::path::Path;
use std::time::Duration;

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

/// Who has written nothing for so long has done what there was to do.
const QUIET: Duration = Duration::from_secs(3);

impl Cluster {
    /// Until an operator has written nothing for a while: all that it wrote so far under this account, but
    /// the Lease by which it leads.
    ///
    /// # Errors
    /// The API server's record cannot be read.
    pub async fn settled(&self, namespace: &str, account: &str) -> Result<Vec<Asked>> {
        let is_work = |a: &Asked| a.account() == account && a.writes() && a.resource() != "leases";
        let mut last = None;
        loop {
            let mut all = self.asked(namespace)?;
            all.retain(is_work);
            if last.replace(all.len()) == Some(all.len()) {
                return Ok(all);
            }
            tokio::time::sleep(QUIET).await;
        }
    }

    /// All requests so far of service accounts of a namespace, as they were answered; of a watch its
    /// end.
    ///
    /// # Errors
    /// The API server's record cannot be read.
    pub fn asked(&self, namespace: &str) -> Result<Vec<Asked>> {
        let path = self.info().dir.join(AUDIT);
        let text = std::fs::read_to_string(&path).map_err(|e| Failed::at(path.display(), e))?;
        // The last line may be being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let all = whole.lines().map(|line| read(&path, line));
        let of = format!("system:serviceaccount:{namespace}:");
        all.filter(|asked| {
            let user = asked.as_ref().map(|asked| asked.user.username.as_str());
            user.map_or(true, |user| user.starts_with(&of))
        })
        .collect()
    }
}

fn read(path: &Path, line: &str) -> Result<Asked> {
    serde_json::from_str(line).map_err(|e| Failed::at(path.display(), format!("{e}: {line}")))
}
