//! Where content comes from: origins behind one trait, and the engine that fetches from them.
//!
//! * [`source`]: the trait [`Source`] that each kind of origin implements, [`Request`], [`Body`].
//! * [`mod@http`]: HTTP and HTTPS; [`limits`] and [`address`]: what it keeps to.
//! * [`fetch`]: parallel ranges, resume, retries, detection of change: what a seed runs.
//! * [`plan`]: which bytes next; [`mod@canonical`]: one spelling for each source (request keys).
//! * [`metadata`], [`range`], [`error`], [`secret`]: the values that these exchange.
//!
//! What holds everywhere: bytes of two versions of a content are never mixed; a credential is never
//! printed; redirects lead neither credentials to another origin nor the mesh to an address that
//! policy refuses; TLS certificates are always verified.

pub mod address;
pub mod canonical;
pub mod error;
pub mod fetch;
pub mod http;
pub mod limits;
pub mod metadata;
pub mod plan;
pub mod range;
pub mod retry;
pub mod secret;
pub mod source;

pub use address::{AddressPolicy, Lookup};
pub use canonical::{Canonical, QueryFilter, canonical, canonical_whole};
pub use error::{Error, Fault, Kind, Result, Retry};
pub use fetch::{Begun, Chunk, Fetch, FetchOptions, Fetcher, Mode};
pub use http::{HostHeaders, HttpOptions, HttpSource};
pub use limits::OriginLimits;
pub use metadata::{Freshness, Metadata, Validator};
pub use plan::{Plan, Queue};
pub use range::ByteRange;
/// The URL type of the whole API.
pub use reqwest::Url;
pub use retry::RetryPolicy;
pub use source::{Body, Opened, Request, Source, Sources};
