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
    /// No reason to be stalled.
    pub const NOT_STALLED: &str = "NotStalled";
}
