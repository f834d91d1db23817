//! What kinds of failures are called, and what to do about them.

use dragonfly_crds::reports::{MAX_TEXT, MIRROR_UNUSED};
use dragonfly_proto::rpc::{FailureCount, Finding, failure::Code};

/// Reason and message of failed downloads of one kind.
pub(crate) fn failure(f: &FailureCount) -> (&'static str, String) {
    let status = f.http_status;
    let (reason, message) = match f.code() {
        Code::Origin if matches!(status, 401 | 403) => (
            DENIED,
            format!(
                "the origin answered {status}: it wants credentials that the request did not carry"
            ),
        ),
        Code::Origin if matches!(status, 404 | 410) => (
            "OriginNotFound",
            format!("the origin answered {status}: check the URL"),
        ),
        Code::Origin if status > 0 => ("OriginRefused", format!("the origin answered {status}")),
        Code::Origin => ("OriginRefused", "the origin refused".to_owned()),
        Code::OriginUnavailable => (
            "OriginUnavailable",
            "the origin cannot be reached or does not answer well: check the seeds' network and \
             spec.sources.http.proxy, caBundle and addresses"
                .to_owned(),
        ),
        Code::Denied => (
            "DeniedByPolicy",
            "policy does not allow this origin: see spec.sources.http.allowedHosts and addresses"
                .to_owned(),
        ),
        Code::Changed => (
            "ContentChanged",
            "the content changed at the origin again and again while it was distributed".to_owned(),
        ),
        Code::NoSource => (
            "NoSource",
            "nobody holds the content and nobody may fetch it: check that seeds are ready, and \
             spec.backToSource"
                .to_owned(),
        ),
        Code::NoSpace => (
            "NoSpace",
            "a node's disk or quota is full: free space or raise spec.storage.quota".to_owned(),
        ),
        Code::Digest => (
            "DigestMismatch",
            "the origin's bytes are not those that the digest asked for names".to_owned(),
        ),
        Code::NotFound => ("NotFound", "there is no such content".to_owned()),
        Code::Invalid => ("InvalidRequest", "a client's request was wrong".to_owned()),
        Code::Deadline => (
            "DeadlineExceeded",
            "it took longer than the client allowed".to_owned(),
        ),
        Code::Internal => (
            "InternalError",
            "a node failed: its log says how".to_owned(),
        ),
        Code::Settings => (MIRROR_UNUSED, format!("{}; {WHERE}", settings(f.finding()))),
        Code::Unspecified => (
            "Unknown",
            "a failure that this release does not know".to_owned(),
        ),
    };
    (reason, message)
}

/// What keeps a container runtime from using its node's mirror, and how that is mended.
pub(crate) const fn settings(finding: Finding) -> &'static str {
    match finding {
        Finding::ConfigUnreadable => {
            "containerd's config.toml cannot be read, so whether the mirror is used is not known"
        }
        Finding::ConfigPathMissing => {
            "containerd's config_path is not set, so it reads no hosts.toml: set it to the one \
             directory /etc/containerd/certs.d"
        }
        Finding::ConfigPathList => {
            "containerd's config_path lists several directories, and containerd 2.1 and later then \
             uses no mirror and says nothing: name one, /etc/containerd/certs.d, or set \
             use_local_image_pull = true"
        }
        Finding::ConfigPathElsewhere => {
            "containerd's config_path is another directory than the one with the entries: see \
             spec.mirror.containerdDirectory"
        }
        Finding::RegistryMirrors => {
            "containerd's config.toml sets registry.mirrors, and then no hosts.toml is read: move \
             what it says to hosts.toml"
        }
        Finding::FileLeftAlone => {
            "a file that needs the mirror's entry is a link or cannot be read, and was left as it is"
        }
        Finding::RegistryTaken => {
            "another file of registries.conf.d says where a registry is, and was left as it is: add \
             the mirror there"
        }
        Finding::Unspecified => "the container runtime does not use the mirror",
    }
}

/// Who says on which nodes that is so.
pub(crate) const WHERE: &str = "`kubectl dragonfly mirror plan` names the nodes and the files";

/// An origin wants other credentials.
pub(crate) const DENIED: &str = "OriginDenied";
/// Nodes refused a policy.
pub(crate) const POLICY_REFUSED: &str = "PolicyRefused";
/// Schedulers refused a policy.
pub(crate) const POLICY_UNREADABLE: &str = "PolicyUnreadable";
/// No seed has a session.
pub(crate) const NO_SEED: &str = "NoSeed";

/// A text that fits into status and events.
pub(crate) fn short(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
