//! What a program uses to get content from its node: over the node's unix socket, as whoever runs
//! the program.
//!
//! ```no_run
//! # async fn example() -> Result<(), dragonfly_client::Error> {
//! use dragonfly_client::{Client, FileOptions, Request};
//! let client = Client::connect("/run/dragonfly/node.sock").await?;
//! let request = Request::new("https://example.com/model.bin");
//! client.fetch_to_file(&request, "model.bin", &FileOptions::default(), |_| {}).await?;
//! # Ok(())
//! # }
//! ```
//!
//! * [`Client`]: the connection and the small calls. [`Request`]: what to get.
//! * [`Reader`]: the bytes in order while they come; goes on by itself when the node restarts.
//! * [`Client::fetch_to_file`]: a file, written by this process, whole or not at all.
//! * [`Error`]: what went wrong, and whose fault it is.
//!
//! The node writes no file for anybody: it hands out a read-only descriptor, and this crate clones
//! (`FICLONE`) or copies from it with its own rights.

mod client;
mod descriptor;
mod error;
mod file;
mod follow;
mod hash;
mod import;
mod output;
mod reader;
mod request;

pub use client::{Client, Event};
pub use error::{Error, Kind, Result};
pub use file::{Fetched, FileOptions, How};
pub use hash::digest_of;
pub use import::Imported;
pub use reader::Reader;
pub use request::{Range, Request};

/// The messages themselves, for what this crate does not wrap.
pub use dragonfly_proto::rpc;
