//! What a client says to a node, one module a command: `pub async fn run(args: Args) -> ExitCode`.

pub(crate) mod get;
pub(crate) mod import;
pub(crate) mod ls;
pub(crate) mod rm;
pub(crate) mod stat;
pub(crate) mod top;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dragonfly_client::{Client, Error, Kind};
use futures::future::BoxFuture;

/// How a command ended, for scripts. Told in `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Ok = 0,
    Internal = 1,
    Usage = 2,
    Denied = 3,
    Digest = 4,
    Unavailable = 5,
    Timeout = 6,
    Output = 7,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<Kind> for Exit {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Usage => Self::Usage,
            Kind::Denied => Self::Denied,
            Kind::Digest => Self::Digest,
            Kind::Unavailable => Self::Unavailable,
            Kind::Timeout => Self::Timeout,
            Kind::Output => Self::Output,
            Kind::Internal => Self::Internal,
        }
    }
}

/// For `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    internal error
  2    wrong usage, or the request makes no sense
  3    not found, or refused by the origin or by policy
  4    the bytes are not what the digest says (nothing is written)
  5    no node, no source: the mesh or the origin cannot be reached
  6    --timeout is over
  7    disk full, or the output cannot be written
  130  interrupted";

/// What went wrong, and the exit code for it.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) exit: Exit,
    pub(crate) text: String,
}

impl Failed {
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self {
            exit,
            text: text.into(),
        }
    }
}

impl From<Error> for Failed {
    fn from(e: Error) -> Self {
        Self::new(e.kind().into(), e.to_string())
    }
}

/// Prints what went wrong; the exit code.
pub(crate) fn ended(outcome: Result<(), Failed>) -> ExitCode {
    match outcome {
        Ok(()) => Exit::Ok.into(),
        Err(failed) => {
            complain(&failed.text);
            failed.exit.into()
        }
    }
}

/// An error, on the standard error stream.
pub(crate) fn complain(text: &str) {
    // Nobody reads it: then there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "dragonfly: {text}");
}

/// Text for standard output; a reader that has gone (`| head`) is no error.
pub(crate) fn say(text: &str) -> Result<(), Failed> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failed::new(Exit::Output, format!("standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Which node.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct NodeArgs {
    /// The node's socket [default: /run/dragonfly/node.sock, else
    /// $XDG_RUNTIME_DIR/dragonfly/node.sock]
    #[arg(long, env = "DRAGONFLY_SOCKET", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

impl NodeArgs {
    /// The socket: the one that was named, or the first of the usual ones that is there.
    pub(crate) fn socket(&self) -> PathBuf {
        if let Some(socket) = &self.socket {
            return socket.clone();
        }
        let system = Path::new("/run/dragonfly/node.sock");
        let own = std::env::var_os("XDG_RUNTIME_DIR")
            .map(|dir| Path::new(&dir).join("dragonfly/node.sock"));
        own.filter(|own| !system.exists() && own.exists())
            .unwrap_or_else(|| system.to_owned())
    }

    pub(crate) async fn connect(&self) -> Result<Client, Failed> {
        Ok(Client::connect(self.socket()).await?)
    }
}

/// How results are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Starts a node for one command, when none runs.
pub(crate) trait StartNode: Sync {
    /// A node that serves clients at the socket it names.
    fn start(&self) -> BoxFuture<'_, Result<TemporaryNode, String>>;
}

/// A node that lives as long as the command.
pub(crate) struct TemporaryNode {
    /// Where it serves.
    pub(crate) socket: PathBuf,
    /// Shuts it down in good order.
    pub(crate) stop: BoxFuture<'static, ()>,
}

/// The digest in the URL of what was imported without one of its own.
pub(crate) fn imported_digest(url: &str) -> Option<String> {
    let hex = url
        .strip_prefix("dragonfly://")
        .filter(|hex| is_task_id(hex))?;
    Some(format!("sha256:{}", hex.to_ascii_lowercase()))
}

/// What a command is about: a task id, or a URL.
pub(crate) fn is_task_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// `512`, `64K`, `10M`, `1.5G`: bytes, in powers of 1024; a trailing `B`, `iB` or `/s` is allowed.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let bare = text
        .trim()
        .trim_end_matches("/s")
        .trim_end_matches(['B', 'b']);
    let bare = bare.trim_end_matches('i');
    let split = bare
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(bare.len());
    let (number, unit) = bare.split_at(split);
    let power = match unit.to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return Err(format!("`{text}`: write bytes like 512, 64K, 10M or 1G")),
    };
    let number: f64 = number
        .trim()
        .parse()
        .map_err(|_| format!("`{text}` is no number of bytes"))?;
    if !(0.0..1e15).contains(&number) {
        return Err(format!("`{text}` is not a possible number of bytes"));
    }
    Ok((number * 1024_f64.powi(power)) as u64)
}

/// `1536` as `1.5 KiB`.
pub(crate) fn show_bytes(n: u64) -> String {
    indicatif::HumanBytes(n).to_string()
}

/// Rows under headings, columns aligned.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let width = |i: usize| {
        let cells = rows
            .iter()
            .filter_map(|r| r.get(i))
            .map(|c| c.chars().count());
        cells.chain([heads[i].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..heads.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}"));
        let line = padded.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    let mut out = line(heads.to_vec());
    for row in rows {
        out.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_the_usual_units_and_nothing_else() {
        for (text, want) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("64K", Some(64 << 10)),
            ("10M", Some(10 << 20)),
            ("10MiB/s", Some(10 << 20)),
            ("1.5g", Some(3 << 29)),
            ("-1", None),
            ("ten", None),
            ("1X", None),
            ("", None),
        ] {
            assert_eq!(parse_bytes(text).ok(), want, "{text}");
        }
    }
}
