//! The node's side channel: a ticket in, a read-only descriptor out.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use crate::client::Client;

impl Client {
    /// The content behind a ticket of [`Done`](crate::rpc::Done), read-only, at its beginning.
    ///
    /// # Errors
    /// The ticket was used, is older than a minute, or the side channel cannot be reached: read the
    /// stream then.
    pub async fn descriptor(&self, ticket: &[u8]) -> io::Result<File> {
        let status = self.status().await.map_err(io::Error::other)?;
        // Only its name is taken: the node may see the directory under another path.
        let name = Path::new(&status.side_channel).file_name();
        let name = name.ok_or_else(|| io::Error::other("the node has no side channel"))?;
        let mut stream = UnixStream::connect(self.socket().with_file_name(name)).await?;
        stream.write_all(ticket).await?;
        loop {
            stream.readable().await?;
            match stream.try_io(Interest::READABLE, || receive(&stream)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                answer => return answer,
            }
        }
    }
}

fn receive(stream: &UnixStream) -> io::Result<File> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut answer = [0];
    let mut data = [IoSliceMut::new(&mut answer)];
    let got = recvmsg(stream, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the node gave no answer",
        ));
    }
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(descriptor) = descriptors.next()
        {
            return Ok(File::from(descriptor));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        "the node refused the ticket",
    ))
}
