//! The policy: everything that a node, a seed or a scheduler has to know of a mesh, in numbers.
//!
//! Invariants: no references, no secrets; identity is (uid, revision, hash), and the hash is over
//! the canonical JSON of everything but the identity, unknown fields included, so a policy survives
//! any number of hops through releases that know less; at most [`MAX_ENCODED`] bytes; what
//! [`Policy::decode`] returns has every number within its range.
//!
//! A receiver takes the policy of its stream, whatever the revision (a restored cluster goes back);
//! [`Policy::same_as`] tells whether anything is to be done. One that does not decode is refused and
//! the last good one stays.

mod encoding;

use serde::{Deserialize, Serialize};

pub use crate::distribution::{Media, Objective, Transport};
pub use crate::scheduler_pool::StrategyType;
pub use encoding::{DecodeError, EncodeError, content_hash};

/// Largest encoded policy.
pub const MAX_ENCODED: usize = 64 * 1024;
/// What this release understands of [`Policy::required_features`]. None are defined yet.
pub const KNOWN_FEATURES: u64 = 0;

/// One resolved policy.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct Policy {
    /// UID of the Distribution.
    pub uid: String,
    /// Grows by one with every change of content.
    pub revision: u64,
    /// Hex of the hash of the content.
    pub hash: String,
    /// Bits without which a node must not run this policy.
    pub required_features: u64,
    /// For every node.
    pub node: NodePolicy,
    /// For whoever goes to HTTP origins: seeds, and peers where `node.back_to_source` is set.
    pub source_http: HttpPolicy,
    /// What every peer does as a mirror of registries; `None`: it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorPolicy>,
    /// For schedulers.
    pub scheduler: SchedulerPolicy,
}

impl Policy {
    /// Whether there is nothing to do for one who runs `other`.
    pub fn same_as(&self, other: &Self) -> bool {
        self.uid == other.uid && self.revision == other.revision && self.hash == other.hash
    }

    /// The mesh's identity in 16 bytes, as the wire carries it: the UID where it is a UUID, else its
    /// hash.
    pub fn mesh_id(&self) -> [u8; 16] {
        let digits: Vec<u8> = self
            .uid
            .chars()
            .filter_map(|c| Some(c.to_digit(16)? as u8))
            .collect();
        let others = self.uid.chars().filter(|c| !c.is_ascii_hexdigit());
        let mut id = [0u8; 16];
        if digits.len() == 32 && others.eq("----".chars()) {
            for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
                *byte = pair[0] << 4 | pair[1];
            }
        } else {
            id.copy_from_slice(&blake3::hash(self.uid.as_bytes()).as_bytes()[..16]);
        }
        id
    }
}

/// What every node does.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
pub struct NodePolicy {
    /// How connections between parts are protected.
    pub transport: Transport,
    /// Bytes a second sent to other nodes; 0 for no limit.
    pub upload_bytes_per_second: u64,
    /// Bytes a second taken from other nodes; 0 for no limit.
    pub download_bytes_per_second: u64,
    /// Whether a peer may go to the origin when no seed can.
    pub back_to_source: bool,
    /// What is made fast where links differ.
    pub objective: Objective,
    /// Where content is kept.
    pub storage: StoragePolicy,
    /// Machines whose certificates are refused although they are good: Kubernetes' names, or nodes'
    /// identities.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<String>,
}

/// Where a node keeps content.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
pub struct StoragePolicy {
    /// Files or memory.
    pub media: Media,
    /// Most bytes.
    pub quota_bytes: u64,
    /// Eviction starts above this share of the quota.
    pub high_watermark_percent: u8,
    /// Eviction ends at this share; less than the high one.
    pub low_watermark_percent: u8,
    /// Content not used for longer goes; 0 for never.
    pub max_age_ms: u64,
    /// Share of the volume left free.
    pub reserve_free_percent: u8,
}

impl Default for StoragePolicy {
    fn default() -> Self {
        Self {
            media: Media::Disk,
            quota_bytes: 10 << 30,
            high_watermark_percent: 95,
            low_watermark_percent: 85,
            max_age_ms: 0,
            reserve_free_percent: 20,
        }
    }
}

/// How to speak to HTTP origins.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpPolicy {
    /// How long an answer is used without asking again; 0 to ask each time.
    pub freshness_ms: u64,
    /// Query parameters that alone count; all when empty.
    pub query_include: Vec<String>,
    /// Query parameters that never count.
    pub query_exclude: Vec<String>,
    /// Hosts that may be contacted; any when empty.
    pub allowed_hosts: Vec<String>,
    /// PEM certificates of further authorities.
    pub ca_bundle: Option<String>,
    /// URL of a proxy.
    pub proxy: Option<String>,
    /// What is reached without it.
    pub no_proxy: Vec<String>,
    /// Private networks may be contacted.
    pub allow_private: bool,
    /// The node itself may be contacted.
    pub allow_loopback: bool,
    /// Link-local and metadata addresses may be contacted.
    pub allow_link_local: bool,
    /// Requests at once to one origin.
    pub max_requests_per_origin: u32,
    /// Bytes a second from one origin; 0 for no limit.
    pub max_bytes_per_second_per_origin: u64,
    /// Range requests at once for one content.
    pub parallel_ranges: u32,
    /// A request without a byte for this long has failed.
    pub stall_timeout_ms: u64,
    /// Time to make a connection.
    pub connect_timeout_ms: u64,
}

impl Default for HttpPolicy {
    fn default() -> Self {
        Self {
            freshness_ms: 30_000,
            query_include: Vec::new(),
            query_exclude: Vec::new(),
            allowed_hosts: Vec::new(),
            ca_bundle: None,
            proxy: None,
            no_proxy: Vec::new(),
            // What an older release does not say is not allowed.
            allow_private: false,
            allow_loopback: false,
            allow_link_local: false,
            max_requests_per_origin: 32,
            max_bytes_per_second_per_origin: 0,
            parallel_ranges: 4,
            stall_timeout_ms: 30_000,
            connect_timeout_ms: 10_000,
        }
    }
}

/// The registry mirror of every peer.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
pub struct MirrorPolicy {
    /// The port on loopback; not 0.
    pub port: u16,
    /// Registries by name.
    pub registries: Vec<MirrorRegistry>,
    /// Registries that are not listed are mirrored as well.
    pub others: bool,
    /// A tag means what it last meant while its registry does not answer.
    pub last_known_tags: bool,
}

/// A registry that is mirrored.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
pub struct MirrorRegistry {
    /// `host` or `host:port` in lower case.
    pub host: String,
    /// Where it is; `None`: `https://` and the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// What schedulers do, and how many parts the mesh has.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
pub struct SchedulerPolicy {
    /// Schedulers of the pool.
    pub replicas: u32,
    /// How neighbours are chosen.
    pub strategy: StrategyType,
    /// Neighbours that a node should have.
    pub degree: u32,
    /// Random candidates looked at for each.
    pub candidates: u32,
    /// Nodes of each remote zone that fetch across zones.
    pub gateways: u32,
    /// Seeds of the mesh.
    pub seeds: u32,
    /// Seeds that fetch one content at once; at most `seeds`.
    pub emitters: u32,
}

impl Default for SchedulerPolicy {
    fn default() -> Self {
        Self {
            replicas: 1,
            strategy: StrategyType::LeastConnected,
            degree: 12,
            candidates: 8,
            gateways: 1,
            seeds: 1,
            emitters: 1,
        }
    }
}
