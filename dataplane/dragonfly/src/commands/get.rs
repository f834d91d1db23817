//! `dragonfly get`, also `dfget`: content into a file or to standard output.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use dragonfly_client::{Client, Event, FileOptions, Kind, Range, Request};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    EXIT_CODES, Exit, Failed, Format, NodeArgs, StartNode, complain, imported_digest, parse_bytes,
    show_bytes,
};
use crate::progress::{Progress, origins};

/// How long a named node may be away before a download begins, and how often it is looked for: a pod that
/// is replaced is back by then.
const AWAY: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

/// Get content through this machine's node: from its cache, from other nodes, or from the origin
///
/// The file appears when it is whole and right, and not otherwise. When the node restarts meanwhile,
/// the download goes on. When no node runs, one is started for this download; one that --socket names is
/// waited for, up to half a minute, where its directory is there.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// What to get; `dragonfly://<hex of its sha256>` or `dragonfly://<name>` for what was imported
    url: String,
    /// Where to; `-` is standard output, in order while it comes [default: the URL's last part]
    #[arg(short = 'O', long, value_name = "FILE")]
    output_file: Option<PathBuf>,
    /// Create the directories above the file
    #[arg(long)]
    make_directories: bool,
    /// End only when the file would survive a power loss
    #[arg(long)]
    fsync: bool,
    /// Share the node's copy where user and mount are the same: the file takes no space and is read-only
    /// (root, who can write all the same, would spoil the node's copy). It is copied where that cannot be
    #[arg(long)]
    hard_link: bool,
    /// What the whole content must hash to: sha256:<64 hex digits>
    #[arg(long, value_parser = parse_digest)]
    digest: Option<String>,
    /// Bytes of it, as HTTP counts: `0-99` (100 bytes), `100-` (to the end), `-100` (the last 100)
    #[arg(long, value_parser = parse_range, allow_hyphen_values = true)]
    range: Option<Range>,
    /// A header for the origin; repeatable. Others see arguments: secrets belong in --header-file
    #[arg(short = 'H', long, value_name = "NAME: VALUE")]
    header: Vec<String>,
    /// A file with a header a line
    #[arg(long, value_name = "FILE")]
    header_file: Option<PathBuf>,
    /// A query parameter that does not tell contents apart (a signature, say); repeatable
    #[arg(long, value_name = "NAME")]
    filter_query: Vec<String>,
    /// Bytes a second (10M, 500K) that are fetched for this download. What is in the node's cache
    /// already, or comes anyway since others want it, takes its own speed into a file
    #[arg(long, value_name = "RATE", value_parser = parse_bytes)]
    limit_rate: Option<u64>,
    /// Give up after this long: 30s, 5m, 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<Duration>,
    /// 0 to 7, 0 the most important: each step halves a download's share where several contend
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=7))]
    priority: u32,
    /// `json`: a line of JSON for each event, always on the standard error stream (standard output is
    /// for content)
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    /// No progress, no summary; errors still
    #[arg(short, long)]
    quiet: bool,
    /// Start a node for this download even if one runs
    #[arg(long, conflicts_with = "socket")]
    no_node: bool,
    #[command(flatten)]
    node: NodeArgs,
}

/// For a node of our own to end in good order.
const STOP: Duration = Duration::from_secs(10);

/// Runs it. `start` makes a node where none runs.
pub(crate) async fn run(args: Args, start: &dyn StartNode) -> ExitCode {
    let progress = Progress::new(args.output == Format::Json, args.quiet);
    let limit = args.timeout;
    let mut stop = None;
    let got = async {
        let got = get(&args, start, &progress, &mut stop);
        let Some(limit) = limit else { return got.await };
        let got = tokio::time::timeout(limit, got).await;
        got.unwrap_or_else(|_| {
            let text = format!(
                "not done within {limit:?}: try again (what came is kept in the node's cache), or \
                 with a longer --timeout"
            );
            Err(Failed::new(Exit::Timeout, text))
        })
    };
    let outcome = tokio::select! {
        outcome = got => outcome,
        () = interrupted() => Err(Failed::new(Exit::Interrupted, "interrupted")),
    };
    progress.clear();
    if let Some(stop) = stop {
        // However it ended: what the temporary node holds is to be found again. Not for ever, though.
        let _ = tokio::time::timeout(STOP, stop).await;
    }
    let Err(failed) = outcome else {
        return Exit::Ok.into();
    };
    progress.failed(failed.exit as u8, &failed.text);
    if !progress.is_json() {
        complain(&failed.text);
    }
    failed.exit.into()
}

/// Somebody wants this to end, or its terminal is gone.
async fn interrupted() {
    tokio::select! {
        () = told(SignalKind::interrupt()) => {}
        () = told(SignalKind::terminate()) => {}
        // `nohup`: it is to go on.
        () = told(SignalKind::hangup()), if !ignores_hangups() => {}
    }
}

async fn told(kind: SignalKind) {
    match signal(kind) {
        Ok(mut signal) => _ = signal.recv().await,
        Err(_) => std::future::pending().await,
    }
}

/// Whether this was started so.
fn ignores_hangups() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    // SIGHUP is 1, the lowest bit.
    mask.is_some_and(|mask| mask & 1 == 1)
}

/// `stop` is set when a node of our own has to be stopped afterwards.
async fn get(
    args: &Args,
    start: &dyn StartNode,
    progress: &Progress,
    stop: &mut Option<Stop>,
) -> Result<(), Failed> {
    let request = request(args)?;
    let output = output(args)?;
    let client = node(args, start, progress, stop).await?;
    fetch(args, &client, &request, &output, progress).await
}

type Stop = futures::future::BoxFuture<'static, ()>;

/// The machine's node, or one of our own.
async fn node(
    args: &Args,
    start: &dyn StartNode,
    progress: &Progress,
    stop: &mut Option<Stop>,
) -> Result<Client, Failed> {
    if !args.no_node {
        match args.node.connect().await {
            Ok(client) => return Ok(client),
            // Who names a socket means that node.
            Err(failed) if args.node.socket.is_some() => {
                return comes_back(args, progress, failed).await;
            }
            Err(_) => {}
        }
    }
    let started = start.start().await.map_err(|why| {
        let socket = args.node.socket();
        let text = format!(
            "no node runs at {} and none could be started: {why} (start one with `dragonfly up`)",
            socket.display()
        );
        Failed::new(Exit::Unavailable, text)
    })?;
    *stop = Some(started.stop);
    Ok(Client::connect(&started.socket).await?)
}

/// A node that is away where one has been: its pod is being replaced, so another comes.
async fn comes_back(args: &Args, progress: &Progress, failed: Failed) -> Result<Client, Failed> {
    let socket = args.node.socket();
    let since = Instant::now();
    let mut failed = failed;
    // Whose directory is missing was never there, and who may not open it may not later either.
    while socket.parent().is_some_and(Path::is_dir) && is_away(&socket).await {
        if since.elapsed() > AWAY {
            break;
        }
        if !progress.is_json() && !args.quiet && since.elapsed() < PAUSE {
            let (socket, most) = (socket.display(), AWAY.as_secs());
            complain(&format!(
                "no node answers at {socket}; waiting for it, up to {most} s"
            ));
        }
        tokio::time::sleep(PAUSE).await;
        match args.node.connect().await {
            Ok(client) => return Ok(client),
            Err(again) => failed = again,
        }
    }
    Err(failed)
}

async fn is_away(socket: &Path) -> bool {
    let tried = tokio::net::UnixStream::connect(socket).await;
    let kind = tried.err().map(|e| e.kind());
    matches!(
        kind,
        None | Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
    )
}

async fn fetch(
    args: &Args,
    client: &Client,
    request: &Request,
    output: &PathBuf,
    progress: &Progress,
) -> Result<(), Failed> {
    let begun = Instant::now();
    let mut last = None;
    let mut shown = Throttle::default();
    let on_event = |event: Event| {
        if let Event::Done(done) = &event {
            last = done.progress;
        }
        if shown.lets_through(&event) {
            progress.on(&event);
        }
    };
    let (len, last) = if output.as_os_str() == "-" {
        let got = client
            .fetch_to_writer(request, &mut stdout()?, on_event)
            .await;
        let got = got.map_err(Failed::from)?;
        let done = dragonfly_client::rpc::Done {
            progress: Some(got),
            elapsed_ms: begun.elapsed().as_millis() as u64,
            ..Default::default()
        };
        progress.on(&Event::Done(done));
        (got.have, Some(got))
    } else {
        let options = FileOptions {
            make_directories: args.make_directories,
            fsync: args.fsync,
            hard_link: args.hard_link,
            ..Default::default()
        };
        let got = client
            .fetch_to_file(request, output, &options, on_event)
            .await;
        let len = got.map_err(explain)?.len;
        (len, last)
    };
    if let Progress::Bar(bar) = progress {
        let rate = len as f64 / begun.elapsed().as_secs_f64().max(0.001);
        let from = last.map(|p| origins(&p)).filter(|t| !t.is_empty());
        let from = from.map(|t| format!(" ({t})")).unwrap_or_default();
        bar.finish_and_clear();
        let took = begun.elapsed().as_secs_f64();
        let text = format!(
            "{}: {} in {took:.1}s, {}/s{from}",
            output.display(),
            show_bytes(len),
            show_bytes(rate as u64),
        );
        let _ = io::Write::write_all(&mut io::stderr(), format!("{text}\n").as_bytes());
    }
    Ok(())
}

/// The descriptor itself: no buffer between the content and who reads it.
fn stdout() -> Result<tokio::fs::File, Failed> {
    let own = io::stdout().as_fd().try_clone_to_owned();
    let own = own.map_err(|e| Failed::new(Exit::Output, format!("standard output: {e}")))?;
    Ok(tokio::fs::File::from_std(own.into()))
}

fn explain(e: dragonfly_client::Error) -> Failed {
    let directory = matches!(&e, dragonfly_client::Error::Output { error, .. }
        if error.kind() == io::ErrorKind::NotFound);
    let mut failed = Failed::from(e);
    if directory {
        failed.text.push_str("; --make-directories creates it");
    }
    if failed.exit == Exit::from(Kind::Digest) && !failed.text.contains("nothing was written") {
        failed.text.push_str("; nothing was written");
    }
    failed
}

/// A stream tells of every chunk; five times a second is enough to see.
#[derive(Default)]
struct Throttle(Option<Instant>);

impl Throttle {
    fn lets_through(&mut self, event: &Event) -> bool {
        if !matches!(event, Event::Progress(_)) {
            return true;
        }
        let due = self
            .0
            .is_none_or(|at| at.elapsed() >= Duration::from_millis(190));
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

fn request(args: &Args) -> Result<Request, Failed> {
    let usage = |text: String| Failed::new(Exit::Usage, text);
    let mut headers = Vec::new();
    for (n, text) in args.header.iter().enumerate() {
        // The header itself is not repeated: it may be a secret.
        let why = || usage(format!("--header number {}: write `Name: value`", n + 1));
        headers.push(parse_header(text).ok_or_else(why)?);
    }
    if let Some(path) = &args.header_file {
        let text = std::fs::read_to_string(path)
            .map_err(|e| usage(format!("--header-file {}: {e}", path.display())))?;
        for (n, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let why = || usage(format!("{}:{}: write `Name: value`", path.display(), n + 1));
            headers.push(parse_header(line).ok_or_else(why)?);
        }
    }
    let imported = imported_digest(&args.url);
    let digest = match (&args.digest, imported) {
        (Some(digest), _) => digest.clone(),
        (None, Some(digest)) => digest,
        (None, None) => String::new(),
    };
    Ok(Request {
        url: args.url.clone(),
        digest,
        headers,
        filtered_query: args.filter_query.clone(),
        range: args.range.unwrap_or_default(),
        priority: args.priority,
        rate_limit: args.limit_rate.unwrap_or(0),
    })
}

fn output(args: &Args) -> Result<PathBuf, Failed> {
    if let Some(path) = &args.output_file {
        return Ok(path.clone());
    }
    let path = args.url.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let last = path
        .split_once('/')
        .and_then(|(_, path)| path.rsplit('/').next());
    let name = last.filter(|name| !matches!(*name, "" | "." | "..") && !name.contains('%'));
    name.map(PathBuf::from).ok_or_else(|| {
        Failed::new(
            Exit::Usage,
            "the URL ends in no file name: say where to with -O FILE",
        )
    })
}

fn parse_header(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    let name = name.trim();
    (!name.is_empty()).then(|| (name.to_owned(), value.trim().to_owned()))
}

fn parse_digest(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let hex = lower.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(lower);
    }
    Err(format!(
        "`{text}` is not a digest: write sha256:<64 hex digits>"
    ))
}

fn parse_range(text: &str) -> Result<Range, String> {
    let wrong = || format!("`{text}` is not a range: write 0-99, 100- or -100");
    let number = |s: &str| s.parse::<u64>().map_err(|_| wrong());
    match text.split_once('-').ok_or_else(wrong)? {
        ("", last) => match number(last)? {
            0 => Err("the last 0 bytes are none".to_owned()),
            n => Ok(Range::Last(n)),
        },
        (first, "") => Ok(Range::Part(number(first)?, None)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            let end = last.checked_add(1).filter(|_| first <= last);
            let end = end.ok_or_else(|| format!("`{text}` ends before it begins"))?;
            Ok(Range::Part(first, Some(end)))
        }
    }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time: write 30s, 5m or 2h");
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * factor)
        .ok()
        .filter(|d| !d.is_zero() && *d < Duration::from_secs(10_000_000))
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_http() {
        for (text, want) in [
            ("0-99", Some(Range::Part(0, Some(100)))),
            ("5-5", Some(Range::Part(5, Some(6)))),
            ("100-", Some(Range::Part(100, None))),
            ("-100", Some(Range::Last(100))),
            ("9-3", None),
            ("-0", None),
            ("-", None),
            ("", None),
            ("a-b", None),
            ("0-18446744073709551615", None),
        ] {
            assert_eq!(parse_range(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn times_have_units() {
        for (text, want) in [
            ("30s", 30_000),
            ("5m", 300_000),
            ("250ms", 250),
            ("2h", 7_200_000),
        ] {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(want)), "{text}");
        }
        for text in ["", "0s", "-1s", "5 weeks", "nan"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_header_keeps_colons_in_its_value() {
        let got = parse_header("Authorization: Basic a:b");
        assert_eq!(
            got,
            Some(("Authorization".to_owned(), "Basic a:b".to_owned()))
        );
        assert_eq!(parse_header("no colon"), None);
    }
}
