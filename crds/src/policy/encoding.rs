//! A policy as bytes and back.

use serde_json::Value;

use super::{KNOWN_FEATURES, MAX_ENCODED, Policy};

/// Why a policy cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Larger than [`MAX_ENCODED`].
    #[error(
        "the policy takes {0} bytes, at most {MAX_ENCODED} can be sent; shorten caBundle or lists"
    )]
    TooLarge(usize),
    /// Not JSON.
    #[error("the policy cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Why a policy cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Larger than [`MAX_ENCODED`].
    #[error("a policy of {0} bytes; at most {MAX_ENCODED} are taken")]
    TooLarge(usize),
    /// Not JSON of the right shape.
    #[error("not a policy: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Cut or changed on its way.
    #[error("the policy's content does not have the hash that it names")]
    WrongHash,
    /// Made for a newer release.
    #[error(
        "the policy needs features that this release does not have (bits {0:#x}); upgrade this node"
    )]
    UnknownFeatures(u64),
    /// A number that nothing can be done with.
    #[error("the policy's {0} is out of range")]
    OutOfRange(&'static str),
}

impl Policy {
    /// Compact JSON.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() > MAX_ENCODED {
            return Err(EncodeError::TooLarge(bytes.len()));
        }
        Ok(bytes)
    }

    /// Reads and checks what another release may have written: fields that are not known are
    /// ignored, required features that are not known refuse the whole.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_ENCODED {
            return Err(DecodeError::TooLarge(bytes.len()));
        }
        Self::from_value(serde_json::from_slice(bytes)?)
    }

    /// The same from JSON that is parsed already, such as `status.policy` of a watched object.
    pub fn from_value(value: Value) -> Result<Self, DecodeError> {
        let hash = content_hash(&value);
        // Features first: a newer release may have changed the shape of anything else.
        let features = value
            .get("requiredFeatures")
            .and_then(Value::as_u64)
            .unwrap_or(0);
        if features & !KNOWN_FEATURES != 0 {
            return Err(DecodeError::UnknownFeatures(features & !KNOWN_FEATURES));
        }
        let policy: Self = serde_json::from_value(value)?;
        if policy.hash != hash {
            return Err(DecodeError::WrongHash);
        }
        policy.check()?;
        Ok(policy)
    }

    /// Gives the policy the hash of its content.
    pub(crate) fn seal(&mut self) -> Result<(), EncodeError> {
        self.hash = content_hash(&serde_json::to_value(&*self)?);
        Ok(())
    }

    /// What consumers rely on: nothing divides by zero, waits for ever or evicts everything.
    fn check(&self) -> Result<(), DecodeError> {
        let storage = &self.node.storage;
        let http = &self.source_http;
        let scheduler = &self.scheduler;
        let rows = [
            ("uid", !self.uid.is_empty() && self.uid.len() <= 128),
            ("revision", (1..=i64::MAX as u64).contains(&self.revision)),
            ("storage.quotaBytes", storage.quota_bytes > 0),
            (
                "storage.highWatermarkPercent",
                (1..=100).contains(&storage.high_watermark_percent),
            ),
            (
                "storage.lowWatermarkPercent",
                storage.low_watermark_percent < storage.high_watermark_percent,
            ),
            (
                "storage.reserveFreePercent",
                storage.reserve_free_percent <= 99,
            ),
            (
                "sourceHttp.maxRequestsPerOrigin",
                http.max_requests_per_origin > 0,
            ),
            ("sourceHttp.parallelRanges", http.parallel_ranges > 0),
            ("sourceHttp.stallTimeoutMs", http.stall_timeout_ms > 0),
            ("sourceHttp.connectTimeoutMs", http.connect_timeout_ms > 0),
            (
                "mirror.port",
                self.mirror.as_ref().is_none_or(|mirror| mirror.port > 0),
            ),
            ("scheduler.replicas", scheduler.replicas > 0),
            ("scheduler.degree", (1..=1024).contains(&scheduler.degree)),
            (
                "scheduler.candidates",
                (1..=1024).contains(&scheduler.candidates),
            ),
            ("scheduler.gateways", scheduler.gateways > 0),
            (
                "scheduler.emitters",
                (1..=scheduler.seeds).contains(&scheduler.emitters),
            ),
        ];
        match rows.iter().find(|(_, holds)| !holds) {
            Some((field, _)) => Err(DecodeError::OutOfRange(field)),
            None => Ok(()),
        }
    }
}

/// Hash of everything but the identity, in hex: what [`Policy::hash`] has to be.
pub fn content_hash(policy: &Value) -> String {
    let mut text = String::new();
    match policy {
        Value::Object(fields) => {
            let content = fields
                .iter()
                .filter(|(name, _)| !matches!(name.as_str(), "uid" | "revision" | "hash"));
            write_object(content, &mut text);
        }
        other => write_canonical(other, &mut text),
    }
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// JSON with sorted keys and no spaces, whatever order a map keeps.
fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => write_object(fields.iter(), out),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

fn write_object<'a>(fields: impl Iterator<Item = (&'a String, &'a Value)>, out: &mut String) {
    // An apiserver drops nulls of an object, so they must not count.
    let mut fields: Vec<_> = fields.filter(|(_, value)| !value.is_null()).collect();
    fields.sort_by_key(|(name, _)| name.as_str());
    out.push('{');
    for (index, (name, value)) in fields.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(&Value::from(name.as_str()).to_string());
        out.push(':');
        write_canonical(value, out);
    }
    out.push('}');
}
