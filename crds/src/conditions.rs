//! Types of conditions, and reasons that kinds have in common.
//!
//! Invariant: a type is never renamed and never changes its polarity; kstatus, ArgoCD and people's
//! scripts read them. Reasons of one kind only stand beside that kind.

/// `True`: the object does what its spec says, in the generation that `observedGeneration` names.
pub const READY: &str = "Ready";
/// `True`: something is being changed towards the spec.
pub const RECONCILING: &str = "Reconciling";
/// `True`: no progress is possible until somebody changes the spec or what it refers to.
pub const STALLED: &str = "Stalled";
/// `True`: of the nodes that look at their container runtimes' settings, none finds anything that keeps a
/// runtime from using its registry mirror. Of a Distribution, by its schedulers; absent where it asks for
/// no mirror.
pub const MIRROR_USABLE: &str = "MirrorUsable";

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
    /// An issuer has not yet signed the mesh's CA.
    pub const WAITING_FOR_ISSUER: &str = "WaitingForIssuer";
    /// An issuer does not sign the mesh's CA, or signed something else.
    pub const ISSUER_REFUSED: &str = "IssuerRefused";
    /// An issuer is to sign the mesh's CA, and the cluster does not know what issuers are asked with.
    pub const CERT_MANAGER_MISSING: &str = "CertManagerMissing";
    /// The API server refuses an object that the spec asks for.
    pub const REFUSED: &str = "Refused";
    /// No reason to be stalled.
    pub const NOT_STALLED: &str = "NotStalled";
}

/// Reasons of [`MIRROR_USABLE`]. Of several that are found at once the one that most nodes found.
pub mod mirror {
    /// Nothing was found.
    pub const USABLE: &str = "Usable";
    /// No node says how its container runtimes are set up.
    pub const NOT_LOOKED_AT: &str = "NotLookedAt";
    /// containerd's `config.toml` cannot be read.
    pub const CONFIG_UNREADABLE: &str = "ConfigUnreadable";
    /// containerd's `config_path` is not set.
    pub const CONFIG_PATH_MISSING: &str = "ConfigPathMissing";
    /// It lists several directories.
    pub const CONFIG_PATH_LIST: &str = "ConfigPathList";
    /// It is another directory.
    pub const CONFIG_PATH_ELSEWHERE: &str = "ConfigPathElsewhere";
    /// containerd's `registry.mirrors` is set.
    pub const REGISTRY_MIRRORS: &str = "RegistryMirrors";
    /// A file that needs the mirror's entry was left as it is.
    pub const FILE_LEFT_ALONE: &str = "FileLeftAlone";
    /// Another file says where a registry is.
    pub const REGISTRY_TAKEN: &str = "RegistryTaken";
    /// Something that only a newer release knows.
    pub const OTHER: &str = "Other";
}
