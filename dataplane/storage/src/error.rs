//! What can go wrong, to what, and what to do about it.

use std::fmt;
use std::io;

use dragonfly_proto::id::ContentKey;

/// Result of the storage.
pub type Result<T> = std::result::Result<T, StorageError>;

/// What class of failure it is; callers decide by this and never by text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The medium has no room left (or what is left has to stay free), even after evicting.
    DiskFull,
    /// The store's quota does not allow it, even after evicting.
    QuotaExceeded,
    /// What is stored does not match its own checksums.
    Corrupt,
    /// There is no such task.
    NotFound,
    /// The task exists, but not all of the blocks asked for are held.
    NotHeld,
    /// The task was deleted while this handle lived; reading goes on, writing does not.
    Deleted,
    /// It contradicts what is stored (other geometry, other length).
    Conflict,
    /// The caller's argument is outside its bounds.
    Invalid,
    /// Another process has the store open.
    Busy,
    /// Any other input/output failure.
    Io,
}

impl ErrorKind {
    /// Whether the same call may succeed later without anyone changing the arguments.
    #[must_use]
    pub const fn is_temporary(self) -> bool {
        matches!(
            self,
            Self::DiskFull | Self::QuotaExceeded | Self::NotHeld | Self::Busy | Self::Io
        )
    }

    const fn hint(self) -> &'static str {
        match self {
            Self::DiskFull => {
                "free space on the volume, lower the share of it that stays free \
                 (reserveFreePercent), or lower the quota so that eviction starts earlier"
            }
            Self::QuotaExceeded => {
                "raise the quota, unpin or delete tasks, or wait until tasks in use are released"
            }
            Self::Corrupt => "delete the task, it will be fetched again",
            Self::NotFound => "create the task first",
            Self::NotHeld => "fetch the missing blocks first",
            Self::Deleted => "drop the handle and create the task anew",
            Self::Conflict => "use the stored geometry, or delete the task if the content changed",
            Self::Invalid => "correct the argument",
            Self::Busy => "stop the other process or give each its own directory",
            Self::Io => "check the volume's health and permissions",
        }
    }
}

/// A failure of the storage: its class, the culprit (a task or a file) and the cause.
#[derive(Debug, thiserror::Error)]
#[error("{subject}: {detail}; {}", kind.hint())]
pub struct StorageError {
    kind: ErrorKind,
    subject: String,
    detail: String,
    #[source]
    source: Option<io::Error>,
}

impl StorageError {
    /// A failure without an input/output error beneath it.
    #[must_use]
    pub fn new(kind: ErrorKind, subject: impl fmt::Display, detail: impl Into<String>) -> Self {
        Self {
            kind,
            subject: subject.to_string(),
            detail: detail.into(),
            source: None,
        }
    }

    /// An input/output failure of `subject` while doing `what`; the class follows from the cause.
    #[must_use]
    pub fn io(subject: impl fmt::Display, what: &str, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
            // Data that ends before its records say so: the file was cut by someone else.
            io::ErrorKind::UnexpectedEof => ErrorKind::Corrupt,
            _ => ErrorKind::Io,
        };
        Self {
            kind,
            subject: subject.to_string(),
            detail: format!("{what}: {source}"),
            source: Some(source),
        }
    }

    pub(crate) fn task(kind: ErrorKind, key: &ContentKey, detail: impl Into<String>) -> Self {
        Self::new(kind, format_args!("task {key}"), detail)
    }

    pub(crate) fn task_io(key: &ContentKey, what: &str, source: io::Error) -> Self {
        Self::io(format_args!("task {key}"), what, source)
    }

    /// The class of the failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }
}
