//! A registry mirror on a node: container runtimes pull through it, and what they pull comes through
//! the mesh.
//!
//! ```text
//!  container runtime ──► server ──► tags ─────► upstream registry (always asked what a tag means)
//!                          │   └──► access ──► upstream registry (who asks may read this?)
//!                          └──────► content ─► the node's task engine; without it, upstream
//! ```
//!
//! * [`server`]: connections and answers. `ask`: what a request means; `range`: which bytes.
//! * [`settings`]: which registries, by whose word. `upstream`: how they are asked.
//! * `tokens`, `secrets`: what is shown for clients that show nothing, where policy gives pull secrets.
//! * `access`: who may read what, remembered for a short time. `tags`: what a tag meant last.
//! * `content`: bytes by digest, through the mesh or past it; `direct`: past it.
//! * [`install`]: the entries in a container runtime's settings, and who withdraws them.
//!
//! What holds everywhere: what is served by digest was checked against it before its end was sent; a
//! body that broke off upstream or in the mesh is gone on with here; a client's credentials are sent to
//! the registry that it named, go with its own fetch and are kept nowhere, and never mixed with a pull
//! secret; whoever is not let in by upstream is shown upstream's refusal, whatever this node holds.

mod access;
mod answer;
mod ask;
mod content;
mod direct;
pub mod install;
pub mod metrics;
mod range;
mod secrets;
pub mod server;
pub mod settings;
mod tags;
mod tokens;
mod upstream;

/// Parsers of what comes from outside, for fuzzing.
#[doc(hidden)]
pub mod outside {
    /// Reads a request's path and query, a `Range` header and a `Link` header; none may panic.
    pub fn read(path: &str, query: Option<&str>, range: &str, link: &str) {
        if let Ok(wanted) = crate::ask::Wanted::read(path, query) {
            let _ = wanted.upstream_path();
            let _ = crate::upstream::link(link, &wanted);
        }
        let _ = crate::range::Asked::read(range);
    }
}

pub use server::{Mirror, MirrorError, More};
pub use settings::{Registry, Settings, Tags};
pub use tokens::PullSecrets;
