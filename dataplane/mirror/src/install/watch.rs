//! Entries are there while the mirror answers, and only then.
//!
//! A runtime whose mirror hangs waits half a minute for its first byte; one whose mirror is not in its
//! settings asks the registry at once. So whoever writes the entries is another process than the
//! mirror, asks it all the time, and withdraws them when it does not answer.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::files::{Change, Entries, FileError};

/// Between two questions. With two that fail, of [`ANSWER`] each, entries are withdrawn within a
/// second.
const EVERY: Duration = Duration::from_millis(150);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(350);
/// How many answers in a row change the state.
const IN_A_ROW: u32 = 2;
/// How often files are looked at again while nothing changes, in questions: others change them too.
const LOOK_AGAIN: u32 = 40;

/// Whether the mirror at an address answers.
pub async fn answers(mirror: SocketAddr) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(mirror).await?;
        let question =
            format!("GET /healthz HTTP/1.1\r\nhost: {mirror}\r\nconnection: close\r\n\r\n");
        stream.write_all(question.as_bytes()).await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        Ok::<_, std::io::Error>(&status == b"HTTP/1.1 200")
    };
    matches!(timeout(ANSWER, asked).await, Ok(Ok(true)))
}

/// Keeps entries while the mirror answers, until `stop`; then takes them out. `changed` hears of each
/// change of the state: whether the entries are there.
pub async fn run(
    entries: Entries,
    mirror: SocketAddr,
    stop: CancellationToken,
    mut changed: impl FnMut(bool),
) {
    // What one before left may be for a mirror that is gone.
    let mut installed = false;
    report(withdraw(&entries).await);
    let (mut row, mut same) = (0, 0);
    while !stop.is_cancelled() {
        let answers = answers(mirror).await;
        row = if answers == installed { 0 } else { row + 1 };
        same += 1;
        if row >= IN_A_ROW {
            (installed, row, same) = (answers, 0, 0);
            if installed {
                tracing::info!(%mirror, "the mirror answers: containerd is told of it");
                report(write(&entries).await);
            } else {
                tracing::warn!(%mirror, "the mirror does not answer: its entries are withdrawn");
                report(withdraw(&entries).await);
            }
            changed(installed);
        } else if installed && same >= LOOK_AGAIN {
            same = 0;
            report(write(&entries).await);
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => {}
        }
    }
    report(withdraw(&entries).await);
    changed(false);
}

type Done = Vec<(PathBuf, Result<Change, FileError>)>;

async fn write(entries: &Entries) -> Done {
    let entries = entries.clone();
    done(tokio::task::spawn_blocking(move || entries.write()).await)
}

async fn withdraw(entries: &Entries) -> Done {
    let entries = entries.clone();
    done(tokio::task::spawn_blocking(move || entries.withdraw()).await)
}

fn done(done: Result<Done, tokio::task::JoinError>) -> Done {
    done.unwrap_or_else(|error| {
        tracing::error!(%error, "files were not written");
        vec![]
    })
}

fn report(done: Done) {
    for (path, change) in done {
        let path = path.display();
        match change {
            Ok(Change::Nothing) => {}
            Ok(change) => tracing::info!(%path, ?change, "containerd's settings"),
            Err(error) => tracing::error!(%error, "containerd's settings"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::files::Target;
    use tokio::net::TcpListener;

    /// Answers as a mirror does, unless `hangs`: then connections are taken and nothing is said.
    async fn mirror(hangs: tokio::sync::watch::Receiver<bool>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut open = vec![];
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if *hangs.borrow() {
                    open.push(stream);
                    continue;
                }
                let _ = stream.read(&mut [0; 256]).await;
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await;
            }
        });
        address
    }

    async fn within(limit: Duration, mut is: impl FnMut() -> bool) -> Duration {
        let since = tokio::time::Instant::now();
        while !is() {
            assert!(since.elapsed() < limit, "not within {limit:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        since.elapsed()
    }

    #[tokio::test]
    async fn entries_are_there_only_while_the_mirror_answers() {
        let dir = tempfile::tempdir().unwrap();
        let (hang, hangs) = tokio::sync::watch::channel(false);
        let address = mirror(hangs).await;
        let entries = Entries {
            directory: dir.path().to_owned(),
            url: format!("http://{address}"),
            targets: vec![Target {
                registry: None,
                server: None,
            }],
        };
        let file = dir.path().join("_default/hosts.toml");
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(entries, address, stop.clone(), |_| ()));
        within(Duration::from_secs(5), || file.exists()).await;
        hang.send_replace(true);
        let took = within(Duration::from_secs(5), || !file.exists()).await;
        // A second on a machine that does nothing else; this one may.
        assert!(took < Duration::from_secs(3), "withdrawn after {took:?}");
        hang.send_replace(false);
        within(Duration::from_secs(5), || file.exists()).await;
        stop.cancel();
        running.await.unwrap();
        assert!(!file.exists() && !dir.path().join("_default").exists());
    }
}
