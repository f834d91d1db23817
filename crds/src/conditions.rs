//! Types and reasons of conditions that all kinds have in common.
//!
//! Invariant: a type is never renamed and never changes its polarity; kstatus, ArgoCD and people's
//! scripts read them. Reasons of one kind only stand beside that kind.

/// `True`: the object does what its spec says, in the generation that `observedGeneration` names.
pub const READY: &str = "Ready";
/// `True`: something is being changed towards the spec.
pub const RECONCILING: &str = "Reconciling";
/// `True`: no progress is possible until somebody changes the spec or what it refers to.
pub const STALLED: &str = "Stalled";

/// Reasons that all kinds use.
pub mod reason {
    /// Everything is as the spec says.
    pub const READY: &str = "Ready";
    /// The first visit: nothing is known yet.
    pub const PENDING: &str = "Pending";
    /// Objects are being created or changed.
    pub const PROGRESSING: &str = "Progressing";
    /// The spec does not resolve; the message names object and field. The last good policy stays.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The object may not act in its namespace.
    pub const NAMESPACE_NOT_ALLOWED: &str = "NamespaceNotAllowed";
    /// Something went wrong that may pass; it is tried again.
    pub const FAILED: &str = "Failed";
    /// An older Distribution has the same ports or directories of the same nodes.
    pub const NODES_CLAIMED: &str = "NodesClaimed";
    /// An object of a name that the mesh needs belongs to somebody else.
    pub const NAME_TAKEN: &str = "NameTaken";
    /// A Secret is not there or does not hold what it should.
    pub const INVALID_SECRET: &str = "InvalidSecret";
    /// The mesh's keys are gone although it has run with them.
    pub const AUTHORITY_MISSING: &str = "AuthorityMissing";
    /// The API server refuses an object that the spec asks for.
    pub const REFUSED: &str = "Refused";
    /// No reason to be stalled.
    pub const NOT_STALLED: &str = "NotStalled";
}
