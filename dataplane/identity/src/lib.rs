//! Who is who in a mesh without Kubernetes: a CA of its own, and tokens to join by (contract 5).
//!
//! The [`Authority`] lives with the schedulers: a CA key that signs nodes' certificates, an Ed25519
//! key that signs tickets and epochs, and the secret part of the join token. A node proves itself by
//! the token ([`enroll`]), which carries the CA's certificate, so that the first call is
//! authenticated too. Private keys never leave the node they were made on.

mod authority;
mod enroll;
mod token;

pub use authority::{Authority, IdentityError};
pub use dragonfly_transport::SCHEDULER_NAME;
pub use enroll::{Credentials, enroll, view};
pub use token::JoinToken;
