//! Entries are there while the mirror answers, and only then.
//!
//! A runtime whose mirror hangs waits half a minute for its first byte; one whose mirror is not in its
//! settings asks the registry at once. So whoever writes the entries is another process than the
//! mirror, asks it all the time, and withdraws them when it does not answer.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use dragonfly_proto::rpc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::files::{Change, Done, Entries, FileError};

/// Between two questions. With two that fail, of [`ANSWER`] each, entries are withdrawn within a
/// second.
const EVERY: Duration = Duration::from_millis(150);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(350);
/// How many answers in a row change the state.
const IN_A_ROW: u32 = 2;
/// How often files are looked at again while nothing changes, in questions: others change them too.
const LOOK_AGAIN: u32 = 40;

/// What keeps runtimes from using the mirror.
pub type Findings = BTreeSet<rpc::Finding>;

/// Whether the mirror at an address answers; it is told what keeps runtimes from using it, where the caller
/// is who looks after that.
pub async fn answers(mirror: SocketAddr, found: Option<&Findings>) -> bool {
    let found = found.map(|found| {
        let names: Vec<_> = found.iter().map(rpc::Finding::as_str_name).collect();
        format!("?found={}", names.join(","))
    });
    let found = found.unwrap_or_default();
    let asked = async {
        let mut stream = TcpStream::connect(mirror).await?;
        let question =
            format!("GET /healthz{found} HTTP/1.1\r\nhost: {mirror}\r\nconnection: close\r\n\r\n");
        stream.write_all(question.as_bytes()).await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        Ok::<_, std::io::Error>(&status == b"HTTP/1.1 200")
    };
    matches!(timeout(ANSWER, asked).await, Ok(Ok(true)))
}

/// What became of files says of whether the mirror is used.
#[must_use]
pub fn findings_of(done: &Done) -> Findings {
    let errors = done.iter().filter_map(|(_, change)| change.as_ref().err());
    let found = errors.filter_map(|error| match error {
        FileError::Unsound(..) | FileError::NoFile(_) => Some(rpc::Finding::FileLeftAlone),
        FileError::Taken(..) => Some(rpc::Finding::RegistryTaken),
        FileError::Io(..) => None,
    });
    found.collect()
}

/// Keeps entries while the mirror answers, until `stop`; then takes them out. Where this node is not
/// `told` files are looked at and left as they are. `look` says what else keeps runtimes from using the
/// mirror. `changed` hears of each change of the state: whether the entries are there.
pub async fn run(
    entries: Entries,
    told: bool,
    look: impl Fn() -> Findings,
    stop: CancellationToken,
    mut changed: impl FnMut(bool),
) {
    let mirror = entries.mirror;
    // What one before left may be for a mirror that is gone.
    let mut installed = false;
    report(&withdraw(&entries).await);
    let mut found = look();
    found.extend(findings_of(&plan(&entries).await));
    let (mut row, mut same) = (0, 0);
    while !stop.is_cancelled() {
        let answers = answers(mirror, Some(&found)).await;
        let wanted = answers && told;
        row = if wanted == installed { 0 } else { row + 1 };
        same += 1;
        if row >= IN_A_ROW {
            (installed, row, same) = (wanted, 0, 0);
            if installed {
                tracing::info!(%mirror, "the mirror answers: runtimes are told of it");
                let done = write(&entries).await;
                report(&done);
                found = look();
                found.extend(findings_of(&done));
            } else {
                tracing::warn!(%mirror, "the mirror does not answer: its entries are withdrawn");
                report(&withdraw(&entries).await);
            }
            changed(installed);
        } else if same >= LOOK_AGAIN {
            same = 0;
            let done = if installed {
                let done = write(&entries).await;
                // What is left alone was said when it was found.
                report(&done.into_iter().filter(|(_, c)| c.is_ok()).collect());
                plan(&entries).await
            } else {
                plan(&entries).await
            };
            found = look();
            found.extend(findings_of(&done));
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => {}
        }
    }
    report(&withdraw(&entries).await);
    changed(false);
}

async fn plan(entries: &Entries) -> Done {
    let entries = entries.clone();
    done(tokio::task::spawn_blocking(move || entries.plan()).await)
}

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

fn report(done: &Done) {
    for (path, change) in done {
        let path = path.display();
        match change {
            Ok(Change::Nothing) => {}
            Ok(change) => tracing::info!(%path, ?change, "a runtime's settings"),
            Err(error) => tracing::error!(%error, "a runtime's settings"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::files::Target;
    use std::sync::{Arc, Mutex};
    use tokio::net::TcpListener;

    /// Answers as a mirror does, unless `hangs`: then connections are taken and nothing is said.
    async fn mirror(
        hangs: tokio::sync::watch::Receiver<bool>,
        asked: Arc<Mutex<String>>,
    ) -> SocketAddr {
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
                let mut question = [0; 256];
                let read = stream.read(&mut question).await.unwrap_or(0);
                *asked.lock().unwrap() = String::from_utf8_lossy(&question[..read]).into_owned();
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

    async fn within_text(asked: &Mutex<String>, part: &str) -> String {
        let is = || asked.lock().unwrap().contains(part);
        within(Duration::from_secs(5), is).await;
        asked.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn entries_are_there_only_while_the_mirror_answers() {
        let dir = tempfile::tempdir().unwrap();
        let (hang, hangs) = tokio::sync::watch::channel(false);
        let asked = Arc::new(Mutex::new(String::new()));
        let address = mirror(hangs, asked.clone()).await;
        let entries = Entries {
            containerd: Some(dir.path().to_owned()),
            containers: None,
            docker: None,
            mirror: address,
            targets: vec![Target {
                registry: None,
                server: None,
            }],
        };
        let file = dir.path().join("_default/hosts.toml");
        let stop = CancellationToken::new();
        let look = || Findings::from([rpc::Finding::ConfigPathList]);
        let looking = CancellationToken::new();
        let only_looks = run(entries.clone(), false, look, looking.clone(), |_| ());
        let only_looks = tokio::spawn(only_looks);
        let said = within_text(&asked, "found=FINDING_CONFIG_PATH_LIST ").await;
        assert!(said.starts_with("GET /healthz"), "{said}");
        assert!(!file.exists(), "a node that is not told is left as it is");
        looking.cancel();
        only_looks.await.unwrap();
        let running = tokio::spawn(run(entries, true, look, stop.clone(), |_| ()));
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
