//! Who is who in a mesh.
//!
//! Without Kubernetes an [`Authority`] lives with the schedulers: a CA, an Ed25519 key that signs
//! tickets and epochs, and the secret part of the join token, by which a node proves itself
//! ([`enroll`]); the token carries the CA's certificate, so that the first call is authenticated too.
//!
//! On Kubernetes the operator has the [`Ca`] and gives certificates for projected tokens
//! ([`enroll_projected`]); schedulers pass on what join tokens ask for ([`Relay`]) and hold no key of
//! the CA. Identities there follow from where a pod runs ([`assigned()`]).
//!
//! Another CA may sign that CA's certificate ([`ca_request`], [`signed_ca`]); its key stays where it was made.
//!
//! Private keys of parts never leave the process they were made in but for a directory in memory that
//! the same pod alone reads ([`keep`]), and are never on a disk.

mod assigned;
mod authority;
mod ca;
mod enroll;
mod incoming;
mod kept;
mod relay;
mod signed;
mod token;

pub use assigned::{Subject, assigned};
pub use authority::{Authority, IdentityError, signing_key};
pub use ca::{Ca, Holds, bundle};
pub use dragonfly_transport::{OpeningKey, Role, SCHEDULER_NAME, Who, issuer_name, node_name};
pub use enroll::{Credentials, Projected, enroll, enroll_projected, view};
pub use incoming::{Caller, incoming};
pub use kept::{keep, kept};
pub use relay::{Issuer, Relay};
pub use signed::{ca_key, ca_request, signed_ca};
pub use token::JoinToken;
