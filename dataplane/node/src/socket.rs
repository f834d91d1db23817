//! Unix sockets that a daemon owns: a dead process's is replaced, a living one's is not.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

/// Why the API cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Another process serves it.
    #[error("{0} is in use by a running node: stop that one, or give this one another socket")]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("{0} exists and is no socket: remove it, or choose another path")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot listen on {0}: {1} (does the directory exist, and may this user write there?)")]
    Listen(PathBuf, #[source] io::Error),
    /// No threads for clients.
    #[error("cannot start threads for clients: {0}")]
    Threads(#[source] io::Error),
    /// The gRPC server broke.
    #[error("serving the API: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// A listening socket that is removed with this, if it is still this one. Of no runtime yet.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) listener: Option<UnixListener>,
    pub(crate) path: PathBuf,
    inode: u64,
}

impl Bound {
    /// Listens at `path`. The socket appears there with its mode set: bound under another name
    /// first and moved into place.
    pub(crate) async fn at(path: &Path, mode: u32) -> Result<Self, ApiError> {
        let fail = |e| ApiError::Listen(path.to_owned(), e);
        match std::fs::symlink_metadata(path) {
            Ok(m) if !m.file_type().is_socket() => {
                return Err(ApiError::NotASocket(path.to_owned()));
            }
            Ok(_) => match UnixStream::connect(path).await {
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(fail(e)),
                _ => return Err(ApiError::InUse(path.to_owned())),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(fail(e)),
        }
        let first = path.with_file_name(format!(".{:08x}", fastrand::u32(..)));
        let listener = UnixListener::bind(&first).map_err(fail)?;
        let placed = listener
            .set_nonblocking(true)
            .and_then(|()| std::fs::set_permissions(&first, std::fs::Permissions::from_mode(mode)))
            .and_then(|()| std::fs::metadata(&first))
            .and_then(|m| std::fs::rename(&first, path).map(|()| m.ino()));
        match placed {
            Ok(inode) => Ok(Self {
                listener: Some(listener),
                path: path.to_owned(),
                inode,
            }),
            Err(e) => {
                let _ = std::fs::remove_file(&first);
                Err(fail(e))
            }
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let mine = std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode);
        if mine {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
